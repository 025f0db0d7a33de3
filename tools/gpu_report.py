"""Everything that a GPU has to show, in minutes, on a machine that one has only for minutes.

`python tools/gpu_report.py FOLDER [--tutorial 06-fused-attention.py] [--rehearse]`: the tests on
CUDA, the notebooks on CUDA (if nbval is installed), the backends' benchmark, and our kernel
against the one of Triton's own tutorial. Each step's result is written at once; one that fails,
or takes too long, does not stop the next. `--rehearse` does the same in small on the CPU.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 8 * 60


def steps(folder: Path, rehearse: bool, tutorial: Path | None) -> dict[str, list[str]]:
    """Return the commands by the name of the file that holds what they print."""
    python = [sys.executable, "-m"]
    device = "cpu" if rehearse else "cuda"
    lengths = ["128", "256"] if rehearse else ["4096", "8192", "16384"]
    found = {}
    for head_dim in ("64", "128"):
        names = ["sdpa", "flash", "flex"] if rehearse else ["sdpa", "flash", "cudnn", "flex"]
        found[f"bench-{head_dim}"] = [
            *python, "mha_tutor.benchmark", "backends", "--device", device,
            "--dtype", "bfloat16", "--head-dim", head_dim, "--heads", "16",
            "--lengths", *lengths, "--masks", "none", "causal",
            "--backends", *names, *([] if rehearse else ["triton"]),
            "--rounds", "3" if rehearse else "7", "--json", str(folder / f"bench-{head_dim}.json"),
        ]  # fmt: skip
    if tutorial is not None and not rehearse:
        found["tutorial"] = [sys.executable, __file__, "--compare", str(tutorial)]
    found["tests"] = [*python, "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
    found["tests"] += ["tests/test_devices.py"] if rehearse else ["-m", "gpu", "tests"]
    if importlib.util.find_spec("nbval"):
        notebooks = sorted((ROOT / "book").glob("0[1-9]_*.ipynb"))
        notebooks = notebooks[:1] if rehearse else notebooks
        found["notebooks"] = [
            *python, "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env",
            *map(str, notebooks),
        ]  # fmt: skip
    return found


def report(folder: Path, rehearse: bool, tutorial: Path | None) -> int:
    """Run the steps one after another and keep `report.json` up to date."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {} if rehearse else {"MHA_TUTOR_REQUIRE_GPU": "1", "MHA_TUTOR_DEVICE": "cuda"}
    environment = os.environ | variables | {"PYTHONPATH": str(ROOT)}
    end = time.monotonic() + SECONDS
    results: dict[str, dict] = {}
    for name, command in steps(folder, rehearse, tutorial).items():
        start = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, text=True, timeout=max(1, end - start),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            status, text = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            status, text = "out of time", (error.stdout or b"").decode(errors="replace")
        results[name] = {
            "command": command[1:],
            "status": status,
            "seconds": round(time.monotonic() - start, 1),
            "output": text.splitlines()[-80:],
        }
        (folder / "report.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(f"{name:10} status {status}, {results[name]['seconds']:.0f} s", flush=True)
    return int(any(result["status"] != 0 for result in results.values()))


def compare(tutorial: Path) -> None:
    """Print our kernel's speed over that of Triton's tutorial (06), and of torch's flash kernel.

    bfloat16, 16 heads; the three in turn, seven rounds; the ratio above 1 is ours being faster.
    """
    import math
    import statistics

    import torch
    from torch.nn import functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from mha_tutor.backends import attend

    spec = importlib.util.spec_from_file_location("tutorial", tutorial)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)

    def tutorial_kernel(q, k, v, causal):
        return theirs.attention.apply(q, k, v, causal, q.shape[-1] ** -0.5, False)

    def flash(q, k, v, causal):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def ours(q, k, v, causal):
        return attend(q, k, v, is_causal=causal, backend="triton")

    def milliseconds(function, *arguments, backward):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        out = function(*arguments)
        if backward:
            torch.autograd.grad(out, arguments[:3], torch.ones_like(out))
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)

    functions = {"ours": ours, "tutorial": tutorial_kernel, "flash": flash}
    logs = {(name, backward): [] for name in ("tutorial", "flash") for backward in (False, True)}
    for D in (64, 128):
        for L in (4096, 8192, 16384):
            for causal in (False, True):
                for backward in (False, True):
                    options = {"device": "cuda", "dtype": torch.bfloat16}
                    qkv = [
                        torch.randn(1, 16, L, D, **options).requires_grad_(backward)
                        for _ in range(3)
                    ]
                    times = {name: [] for name in functions}
                    for _ in range(8):
                        for name, function in functions.items():
                            times[name].append(
                                milliseconds(function, *qkv, causal, backward=backward)
                            )
                    middle = {name: statistics.median(own[1:]) for name, own in times.items()}
                    print(D, L, "causal" if causal else "full", "both" if backward else "forward",
                          {name: round(value, 3) for name, value in middle.items()})  # fmt: skip
                    for name in ("tutorial", "flash"):
                        logs[name, backward].append(math.log(middle[name] / middle["ours"]))
    for (name, backward), values in logs.items():
        what = "forward+backward" if backward else "forward"
        mean, least = math.exp(statistics.mean(values)), math.exp(min(values))
        print(f"speed over {name}, {what}: geometric mean {mean:.2f}, lowest {least:.2f}")


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "_build" / "gpu-report")
    parser.add_argument("--tutorial", type=Path, help="06-fused-attention.py of the Triton here")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in small")
    parser.add_argument("--compare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare is not None:
        compare(options.compare)
        return 0
    return report(options.folder, options.rehearse, options.tutorial)


if __name__ == "__main__":
    sys.exit(main())
