"""Every backend on the same inputs, in one interleaved run, beside what the machine can do.

In every round each backend has its turn, and so have the two ceilings: a large matrix product and
a large copy. What else the machine does slows all of them alike, so that the ratios within a round
mean more than the times.
"""

import datetime
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import torch

from mha_tutor.backends import BACKENDS, attend, available_backends
from mha_tutor.benchmark.memory import peak_bytes

__all__ = ["CLOCKS", "MASKS", "attention_flops", "fit_growth", "measure_backends"]

MASKS = ("none", "causal", "window")
# A backward pass has five matrix products where the forward pass has two.
BACKWARD = 2.5
# Those that write out all scores, and how many tables of them they hold at once.
WRITES_SCORES = {"explicit": 3, "einsum": 3, "math": 3}
CLOCKS = ("wall", "cpu")


def measure_backends(
    lengths: Iterable[int],
    *,
    backends: Iterable[str] | None = None,
    dtypes: Iterable[torch.dtype] = (torch.float32,),
    masks: Iterable[str] = MASKS,
    training: Iterable[bool] = (False, True),
    batch: int = 1,
    num_heads: int = 8,
    head_dim: int = 64,
    window: int = 256,
    device: torch.device | str = "cpu",
    rounds: int = 7,
    seconds: float = 0.05,
    clock: str = "wall",
    most_bytes: float = 2**31,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict:
    """Measure time and memory of every backend that can run, and say why the others cannot.

    Args:
        lengths: L, the same for queries and keys.
        backends: names of `mha_tutor.backends.BACKENDS`; all if None. `sdpa` is always there.
        dtypes: of query, key and value.
        masks: of `MASKS`.
        training: whether to time forward alone (False), forward and backward (True), or both.
        batch: B.
        num_heads: H.
        head_dim: D.
        window: how many keys a query sees with the mask `window`.
        device: where to run.
        rounds: how often each backend has its turn; at least 1.
        seconds: how long a turn should last at least.
        clock: `wall`, or on a CPU with one thread `cpu`: the time that the thread has run, which
            leaves out what others take of a busy machine.
        most_bytes: a backend that writes out all scores is left out where they would take more.
        progress: called before each group of cells with how many are done, how many there are,
            and what comes.

    Returns:
        What `json.dump` takes: the `machine` and the versions, the shared sizes, `cells` (one
        each backend, L, dtype, mask and pass: the median `seconds`, the `spread` between the
        quartiles over the median, the median `ratio` to `sdpa` in the same round, `peak_bytes`,
        `flops_per_second`, `bytes_per_second`, and as `ceilings` the rates of the matrix product
        and the copy of the same rounds; or instead of all that the `refused` reason), and
        `growth`, the fitted exponents in L.

    Raises:
        ValueError: rounds is less than 1, a backend, a mask or a clock has an unknown name, or
            `cpu` is asked of a GPU or of several threads.

    Example:
        >>> run = measure_backends(
        ...     [8], backends=["explicit"], masks=["none"], training=[False], rounds=1, seconds=0
        ... )
        >>> [cell["backend"] for cell in run["cells"]]
        ['sdpa', 'explicit']
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    names = list(BACKENDS) if backends is None else list(backends)
    for kind, known, given in (("backend", BACKENDS, names), ("mask", MASKS, list(masks))):
        for name in given:
            if name not in known:
                raise ValueError(f"{kind} must be one of {', '.join(known)}, got {name!r}")
    device = torch.device(device)
    if clock not in CLOCKS:
        raise ValueError(f"clock must be one of {', '.join(CLOCKS)}, got {clock!r}")
    if clock == "cpu" and (device.type != "cpu" or torch.get_num_threads() != 1):
        raise ValueError(
            "clock 'cpu' counts one thread on the CPU, "
            f"got {torch.get_num_threads()} threads and {device.type}"
        )
    names = ["sdpa", *(name for name in names if name != "sdpa")]
    groups = list(product(dtypes, masks, training, sorted(lengths)))
    cells = []
    for done, (dtype, mask, backward, length) in enumerate(groups):
        facts = {
            "L": length,
            "dtype": str(dtype).removeprefix("torch."),
            "mask": mask,
            "training": backward,
        }
        if progress is not None:
            progress(done, len(groups), " ".join(map(str, facts.values())))
        shape = (batch, num_heads, length, head_dim)
        refused = _refusals(names, shape, device, dtype, mask, backward, most_bytes)
        running = [name for name in names if refused[name] is None]
        runs = {
            name: _prepare(name, shape, device, dtype, mask, window, backward) for name in running
        }
        measured = _interleave(runs, device, dtype, rounds, seconds, clock)
        ceilings = {
            "flops_per_second": measured["matmul"]["work"] / measured["matmul"]["seconds"],
            "bytes_per_second": measured["copy"]["work"] / measured["copy"]["seconds"],
        }
        flops = attention_flops(*shape, mask, window) * (1 + BACKWARD * backward)
        # At least: q, k, v in and the output out; backward, all again and three gradients.
        traffic = math.prod(shape) * dtype.itemsize * (4 + 8 * backward)
        for name in names:
            if name not in runs:
                cells.append({"backend": name, **facts, "refused": refused[name]})
                continue
            taken = measured[name]["seconds"]
            cells.append(
                {
                    "backend": name,
                    **facts,
                    "seconds": taken,
                    "spread": measured[name]["spread"],
                    "ratio": measured[name]["ratio"],
                    "peak_bytes": peak_bytes(runs[name], device),
                    "flops_per_second": flops / taken,
                    "bytes_per_second": traffic / taken,
                    "ceilings": ceilings,
                }
            )
    if progress is not None:
        progress(len(groups), len(groups), "done")
    sizes = {"batch": batch, "num_heads": num_heads, "head_dim": head_dim, "window": window}
    return {
        "machine": _machine(device),
        "sizes": sizes,
        "rounds": rounds,
        "clock": clock,
        "cells": cells,
        "growth": fit_growth(cells),
    }


def attention_flops(
    batch: int, num_heads: int, length: int, head_dim: int, mask: str, window: int
) -> int:
    """Count the floating-point operations of a forward pass that skips what the mask hides.

    Two products, each with a multiplication and an addition for every feature of every pair of
    a query and a key that it may see.

    Example:
        >>> attention_flops(1, 1, 4, 2, "none", 0), attention_flops(1, 1, 4, 2, "causal", 0)
        (128, 80)
    """
    reach = {"none": length, "causal": length, "window": min(window, length)}[mask]
    pairs = length**2 if mask == "none" else reach * length - reach * (reach - 1) // 2
    return 4 * batch * num_heads * head_dim * pairs


def fit_growth(cells: list[dict], shortest: int = 1024) -> list[dict]:
    """Fit the exponents p of time ~ Lᵖ and of memory ~ Lᵖ by least squares of the logarithms.

    Args:
        cells: as `measure_backends` returns them.
        shortest: lengths below this, where fixed costs rule, are left out.

    Returns:
        For each backend, dtype, mask and pass with at least two lengths left: those four, `time`
        and `memory`.

    Example:
        >>> cell = {"backend": "sdpa", "dtype": "float32", "mask": "none", "training": False}
        >>> cells = [{**cell, "L": L, "seconds": L**2, "peak_bytes": L} for L in (1024, 4096)]
        >>> [(round(fit["time"], 6), round(fit["memory"], 6)) for fit in fit_growth(cells)]
        [(2.0, 1.0)]
    """
    curves: dict[tuple, list[dict]] = {}
    keys = ("backend", "dtype", "mask", "training")
    for cell in cells:
        if "seconds" in cell and cell["L"] >= shortest and cell["peak_bytes"] > 0:
            curves.setdefault(tuple(cell[key] for key in keys), []).append(cell)
    fits = []
    for curve, points in curves.items():
        if len({cell["L"] for cell in points}) < 2:
            continue
        lengths = [math.log(cell["L"]) for cell in points]
        exponents = {
            name: statistics.linear_regression(lengths, [math.log(c[of]) for c in points]).slope
            for name, of in (("time", "seconds"), ("memory", "peak_bytes"))
        }
        fits.append({**dict(zip(keys, curve, strict=True)), **exponents})
    return fits


def _refusals(
    names: list[str],
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    mask: str,
    backward: bool,
    most_bytes: float,
) -> dict[str, str | None]:
    reasons = available_backends(
        device,
        dtype,
        head_dim=shape[-1],
        is_causal=mask == "causal",
        window=mask == "window",
        training=backward,
    )
    if mask != "window":
        reasons["banded"] = "banded needs a window"
    if device.type == "cpu":
        reasons["triton"] = reasons["triton"] or "the interpreter is for reading, not for timing"
    batch, num_heads, length, _ = shape
    # In training, `online` keeps the scores of every block.
    tables_of = {**WRITES_SCORES, "online": 4} if backward else WRITES_SCORES
    for name, tables in tables_of.items():
        needed = tables * batch * num_heads * length**2 * max(dtype.itemsize, 4)
        if needed > most_bytes:
            reasons[name] = f"the scores would take {needed / 2**30:.1f} GiB"
    return {name: reasons[name] for name in names}


def _prepare(
    backend: str,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    mask: str,
    window: int,
    backward: bool,
) -> Callable[[], None]:
    """Draw inputs (zeros would flatter: some chips run them faster) and return one call."""
    generator = torch.Generator().manual_seed(0)
    query, key, value, upstream = (
        torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4)
    )
    options = {
        "is_causal": mask == "causal",
        "window": window if mask == "window" else None,
        "backend": backend,
    }
    if not backward:

        def run() -> None:
            with torch.no_grad():
                attend(query, key, value, **options)

        return run
    tensors = [x.requires_grad_() for x in (query, key, value)]

    def run_both() -> None:
        torch.autograd.grad(attend(*tensors, **options), tensors, upstream)

    return run_both


def _interleave(
    runs: dict[str, Callable[[], None]],
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    seconds: float,
    clock: str,
) -> dict[str, dict]:
    """Time each run and both ceilings in turn, round after round."""
    cuda = device.type == "cuda"
    side = 8192 if cuda else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    numbers = torch.randn((2**28 if cuda else 2**24) // dtype.itemsize, device=device).to(dtype)
    copied = torch.empty_like(numbers)
    work = {"matmul": 2 * side**3, "copy": 2 * numbers.nbytes}  # a copy reads and writes
    runs = {**runs, "matmul": lambda: left @ right, "copy": lambda: copied.copy_(numbers)}
    now = time.thread_time if clock == "cpu" else time.perf_counter

    def turn(run: Callable[[], object], calls: int) -> float:
        # A GPU works through a queue: wait until it is empty before reading the clock.
        if cuda:
            torch.cuda.synchronize()
        start = now()
        for _ in range(calls):
            run()
        if cuda:
            torch.cuda.synchronize()
        return (now() - start) / calls

    calls = {}
    for name, run in runs.items():
        run()  # compiles, tunes, fills the allocator's cache
        calls[name] = max(1, math.ceil(seconds / max(turn(run, 1), 1e-9)))
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(turn(run, calls[name]))
    results = {}
    for name, own in times.items():
        middle = statistics.median(own)
        low, _, high = statistics.quantiles(own, n=4) if len(own) > 1 else (middle,) * 3
        results[name] = {
            "seconds": middle,
            "spread": (high - low) / middle,
            "ratio": statistics.median(a / b for a, b in zip(own, times["sdpa"], strict=True)),
            "work": work.get(name),
        }
    return results


def _machine(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        versions["cuda"] = torch.version.cuda
    return {
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _cpu_name() -> str:
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        for line in cpus.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
