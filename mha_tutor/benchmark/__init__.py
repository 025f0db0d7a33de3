"""How fast and how large: the backends against each other, and the layer against its parts.

`python -m mha_tutor.benchmark backends` measures every backend, in one interleaved run;
`python -m mha_tutor.benchmark layers` measures `MultiHeadAttention` against its own parts.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from mha_tutor.backends import BACKENDS
from mha_tutor.benchmark.backends import (
    CLOCKS,
    MASKS,
    attention_flops,
    fit_growth,
    measure_backends,
)
from mha_tutor.benchmark.layers import LAYERS, layer_table, measure_peak, measure_ratios
from mha_tutor.benchmark.memory import peak_bytes
from mha_tutor.benchmark.report import MACHINES, backend_table, load_machines, plot_backends

__all__ = [
    "LAYERS",
    "attention_flops",
    "backend_table",
    "fit_growth",
    "load_machines",
    "main",
    "measure_backends",
    "measure_peak",
    "measure_ratios",
    "peak_bytes",
    "plot_backends",
]

DTYPES = ("float32", "bfloat16", "float16", "float64")


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table; see `--help`."""
    parser = argparse.ArgumentParser(prog="mha-tutor bench", description=__doc__)
    whats = parser.add_subparsers(dest="what", required=True)
    layers = whats.add_parser("layers", help="the layer against its own parts")
    backends = whats.add_parser("backends", help="every backend on the same inputs")
    for each, rounds in ((layers, 15), (backends, 7)):
        each.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
        each.add_argument("--threads", type=int, help="of the CPU; default: torch's own choice")
        each.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    layers.add_argument("--dtype", default="float32", choices=DTYPES[:3])
    backends.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES)
    backends.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048, 4096])
    backends.add_argument("--backends", nargs="+", choices=list(BACKENDS), help="default: all")
    backends.add_argument("--masks", nargs="+", choices=MASKS, default=list(MASKS))
    backends.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    backends.add_argument("--batch", type=int, default=1)
    backends.add_argument("--heads", type=int, default=8)
    backends.add_argument("--head-dim", type=int, default=64)
    backends.add_argument("--window", type=int, default=256)
    backends.add_argument("--seconds", type=float, default=0.05, help="a turn, at least")
    backends.add_argument("--clock", choices=CLOCKS, default="wall", help="default: %(default)s")
    backends.add_argument("--json", type=Path, help="write the run to this file")
    backends.add_argument("--plot", type=Path, help="draw the run into this file (PNG, SVG, …)")
    backends.add_argument("--note", help="a remark on the machine, kept in the file")
    backends.add_argument("--name", help="keep the run among those that chapter 9 draws")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.what == "backends" and options.clock == "cpu" and torch.get_num_threads() != 1:
        parser.error("--clock cpu counts one thread: give --threads 1 too")
    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}")
    if options.what == "layers":
        for line in layer_table(options.device, getattr(torch, options.dtype), options.rounds):
            print(line, flush=True)
        return
    given = sys.argv[1:] if arguments is None else arguments
    _measure_and_report(options, shlex.join(["python", "-m", "mha_tutor.benchmark", *given]))


PASSES = {"forward": False, "forward+backward": True}


def _measure_and_report(options: argparse.Namespace, command: str) -> None:
    run = measure_backends(
        options.lengths,
        backends=options.backends,
        dtypes=[getattr(torch, name) for name in options.dtype],
        masks=options.masks,
        training=[PASSES[name] for name in options.passes],
        batch=options.batch,
        num_heads=options.heads,
        head_dim=options.head_dim,
        window=options.window,
        device=options.device,
        rounds=options.rounds,
        seconds=options.seconds,
        clock=options.clock,
        progress=_show_progress if sys.stderr.isatty() else None,
    )
    run["command"] = command
    if options.note:
        run["machine"]["note"] = options.note
    for line in backend_table(run):
        print(line)
    paths = [options.json] if options.json else []
    if options.name:
        paths.append(MACHINES / f"{options.name}.json")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_rounded(run), indent=1) + "\n", encoding="utf-8")
    if options.plot:
        import matplotlib.pyplot as plt

        figure = plot_backends(run, options.masks[-1], PASSES[options.passes[0]])[0].figure
        figure.savefig(options.plot)
        plt.close(figure)


def _show_progress(done: int, total: int, what: str) -> None:
    """Draw a bar on the terminal, over the one before."""
    filled = 30 * done // total
    bar = f"[{'#' * filled}{'.' * (30 - filled)}] {done}/{total} {what}"
    print(f"\r{bar:79.79}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _rounded(value):
    """Keep four digits: the rest is noise, and a file that people read."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
