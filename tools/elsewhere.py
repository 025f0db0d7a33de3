"""Run the package's tests and the notebooks as other machines would; one line a configuration.

`python tools/elsewhere.py [--pytest ARGUMENTS] [NAME …]` uses the environment of the Python that
runs it, and prints where each log lies. It exits with 1 if anything failed.
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "_build" / "elsewhere"

# One variable for each library that picks its kernels by the CPU: ATen, MKL, oneDNN.
CONFIGURATIONS = {
    "here": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "no-avx": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    "one-thread": {"OMP_NUM_THREADS": "1"},
    "eight-threads": {"OMP_NUM_THREADS": "8"},
    "cells-twice": {},
}


def notebooks(twice: bool) -> list[str]:
    """Return the notebooks, or copies in which every code cell stands twice."""
    found = sorted((ROOT / "book").glob("*.ipynb"))
    if sys.platform != "linux":  # Triton, whose kernel chapter 9 runs, is for Linux only
        found = [path for path in found if not path.name.startswith("09")]
    if not twice:
        return list(map(str, found))
    folder = ROOT / "_build" / "twice"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        (folder / "data").symlink_to(ROOT / "book" / "data")
    for path in found:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = []
        for cell in notebook["cells"]:
            again = {**cell, "id": f"{cell['id'][:60]}-2"}
            cells += [cell, again] if cell["cell_type"] == "code" else []
        (folder / path.name).write_text(json.dumps({**notebook, "cells": cells}), encoding="utf-8")
    return [str(folder / path.name) for path in found]


def run(name: str, part: str, extra: list[str]) -> bool:
    """Run one part under one configuration, print its line, and say whether it passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *extra]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "2"]
    if part == "package":
        command += ["--ignore=tests/site"]
    elif importlib.util.find_spec("nbval") is None:
        print(f"{name:14} {part:10} not run: nbval is not installed", flush=True)
        return True
    else:
        command += ["--nbval", "--nbval-current-env", *notebooks(name == "cells-twice")]
        command += ["--dist", "loadfile"] if "-n" in command else []
    # A kernel compiled for one kind of CPU answers nonsense under another, without a word.
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(LOGS / f"inductor-{name}")}
    environment["PYTHONPATH"] = str(ROOT)
    if part == "package":
        environment["OMP_NUM_THREADS"] = "1"
    environment |= CONFIGURATIONS[name]
    log = LOGS / f"{name}-{part}.log"
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        status = subprocess.call(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    last = re.sub(r" in [\d.]+s.*", "", text.strip().splitlines()[-1].strip("= "))
    print(f"{name:14} {part:10} {last:45} {time.monotonic() - start:5.0f} s", flush=True)
    if status:
        print(*re.findall(r"^(?:FAILED|ERROR) .*", text, re.M), f"see {log}", sep="\n", flush=True)
    return status == 0


def main() -> int:
    """Run every configuration that is named, all but `here` by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CONFIGURATIONS))
    parser.add_argument("--pytest", default="", help="more arguments for pytest, as one string")
    options = parser.parse_args()
    for name in options.names:
        if name not in CONFIGURATIONS:
            parser.error(f"NAME must be one of {', '.join(CONFIGURATIONS)}, got {name!r}")
    LOGS.mkdir(parents=True, exist_ok=True)
    passed = True
    for name in options.names or [name for name in CONFIGURATIONS if name != "here"]:
        parts = ["notebooks"] if name == "cells-twice" else ["package", "notebooks"]
        for part in parts:
            passed &= run(name, part, shlex.split(options.pytest))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
