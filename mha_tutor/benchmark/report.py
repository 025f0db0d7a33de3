"""Runs of the benchmark as tables, as figures, and as files that a book can draw from."""

import json
from collections.abc import Iterator
from pathlib import Path

__all__ = ["backend_table", "load_machines", "plot_backends"]

MACHINES = Path(__file__).parent / "machines"
STYLES = {
    "explicit": ("#D55E00", "o"),
    "einsum": ("#E69F00", "v"),
    "math": ("#999999", "x"),
    "online": ("#CC79A7", "D"),
    "sdpa": ("#0072B2", "s"),
    "flash": ("#56B4E9", "<"),
    "efficient": ("#332288", ">"),
    "cudnn": ("#117733", "^"),
    "flex": ("#882255", "P"),
    "banded": ("#009E73", "*"),
    "triton": ("#000000", "h"),
}
OPEN = {"flex", "flash", "banded"}  # drawn so that a line below them can be seen


def load_machines(folder: Path | str = MACHINES) -> dict[str, dict]:
    """Read the runs that were saved, those of this package unless another folder is given.

    Returns:
        For each file `NAME.json` the run, under NAME, in alphabetical order.

    Example:
        >>> all("cells" in run for run in load_machines().values())
        True
    """
    paths = sorted(Path(folder).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def backend_table(run: dict) -> Iterator[str]:
    """Yield the lines of a table, at most 100 columns wide.

    Args:
        run: what `measure_backends` returns.
    """
    machine, sizes = run["machine"], run["sizes"]
    yield f"{machine['name']}, {_threads(machine)}, torch {machine['versions']['torch']}"
    yield (
        f"B={sizes['batch']}, H={sizes['num_heads']}, D={sizes['head_dim']}, window "
        f"{sizes['window']}; {run['clock']} time, medians of {run['rounds']} interleaved rounds"
    )
    group = None
    for cell in run["cells"]:
        if "refused" in cell:
            continue
        own = (cell["dtype"], cell["mask"], cell["training"], cell["L"])
        if own != group:
            group = own
            ceilings = cell["ceilings"]
            yield ""
            yield (
                f"{cell['dtype']}, mask {cell['mask']}, "
                f"{'forward+backward' if cell['training'] else 'forward'}, L={cell['L']}; "
                f"matmul {ceilings['flops_per_second'] / 1e9:.0f} GFLOP/s, "
                f"copy {ceilings['bytes_per_second'] / 1e9:.1f} GB/s"
            )
            yield (
                f"  {'backend':10} {'ms':>10} {'spread':>7} {'/ sdpa':>8} {'MiB':>9} "
                f"{'GFLOP/s':>9} {'of matmul':>9} {'GB/s':>7}"
            )
        share = cell["flops_per_second"] / cell["ceilings"]["flops_per_second"]
        yield (
            f"  {cell['backend']:10} {cell['seconds'] * 1e3:10.2f} {cell['spread']:7.0%} "
            f"{cell['ratio']:8.2f} {cell['peak_bytes'] / 2**20:9.1f} "
            f"{cell['flops_per_second'] / 1e9:9.1f} {share:9.0%} "
            f"{cell['bytes_per_second'] / 1e9:7.2f}"
        )
    yield ""
    refused = {}
    for cell in run["cells"]:
        if "refused" in cell:
            refused.setdefault((cell["backend"], cell["refused"]), cell)
    for (backend, reason), cell in refused.items():
        line = f"not run: {backend} ({cell['mask']}, L={cell['L']}, …): {reason}"
        yield line if len(line) <= 100 else f"{line[:97]}..."
    if run["growth"]:
        yield ""
        yield "fitted growth with L (exponent): time, memory"
    for fit in run["growth"]:
        passes = "forward+backward" if fit["training"] else "forward"
        yield (
            f"  {fit['backend']:10} {fit['dtype']:9} {fit['mask']:7} {passes:17}"
            f"{fit['time']:6.2f} {fit['memory']:6.2f}"
        )


def plot_backends(run: dict, mask: str = "causal", training: bool = False, *, axes=None):
    """Draw time and memory against L, one line a backend, on logarithmic axes.

    The title says what was measured on what. Two thin gray lines, L and L², are there to compare
    slopes with; their height means nothing.

    Args:
        run: what `measure_backends` returns; its first dtype is drawn.
        mask: of `MASKS`.
        training: forward and backward, or forward alone.
        axes: two of matplotlib's Axes, for time and memory; new ones if None.

    Returns:
        The two Axes.
    """
    import matplotlib.pyplot as plt

    if axes is None:
        _, axes = plt.subplots(2, 1, figsize=(4, 7), layout="constrained", sharex=True)
    shown = [c for c in run["cells"] if c["mask"] == mask and c["training"] == training]
    shown = [c for c in shown if "seconds" in c and c["dtype"] == shown[0]["dtype"]]
    lengths = sorted({c["L"] for c in shown})
    for ax, of, unit in zip(axes, ("seconds", "peak_bytes"), (1e-3, 2**20), strict=True):
        for backend, (color, marker) in STYLES.items():
            points = [(c["L"], c[of] / unit) for c in shown if c["backend"] == backend]
            if points:
                # An open marker and a broken line, on top: what lies below shows through.
                look = {"mfc": "none", "ms": 10, "ls": "--", "zorder": 3} if backend in OPEN else {}
                ax.plot(*zip(*points, strict=True), c=color, marker=marker, label=backend, **look)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(lengths, lengths)
        ax.minorticks_off()
        ax.tick_params(labelsize=11)
        ax.grid(alpha=0.3)
        lowest = min((c[of] / unit for c in shown if c["L"] == lengths[0]), default=1)
        _draw_slopes(ax, lengths, 0.6 * lowest)
        ax.margins(x=0.09)  # room for the names of the two slopes
    axes[0].set_title(_title(run, shown[0]) if shown else "nothing measured", fontsize=11)
    axes[0].set_ylim(top=5 * axes[0].get_ylim()[1])  # room for the legend
    axes[0].set_ylabel("milliseconds", fontsize=11)
    axes[1].set_ylabel("MiB at the peak", fontsize=11)
    axes[1].set_xlabel("L, queries and keys", fontsize=11)
    axes[0].legend(fontsize=10.5, ncols=2, handlelength=1.5, columnspacing=1)
    return axes


def _draw_slopes(ax, lengths: list[int], start: float) -> None:
    """Draw L and L² from the first length on, both beginning at the same height."""
    low, high = lengths[0], lengths[-1]
    for power, name in ((1, "L"), (2, "L²")):
        end = start * (high / low) ** power
        ax.plot([low, high], [start, end], color="gray", lw=1, ls=":", zorder=1)
        ax.annotate(
            name, (high, end), (4, 0), textcoords="offset points", color="gray", va="center"
        )


def _title(run: dict, cell: dict) -> str:
    """Say on which machine, on how many threads and with which sizes a figure was measured."""
    machine, sizes = run["machine"], run["sizes"]
    threads = f", {_threads(machine)}" if machine["device"] == "cpu" else ""
    passes = "forward and backward" if cell["training"] else "forward"
    shape = f"B={sizes['batch']}, H={sizes['num_heads']}, D={sizes['head_dim']}"
    mask = f"window {sizes['window']}" if cell["mask"] == "window" else f"mask {cell['mask']}"
    return f"{machine['name']}{threads}\n{shape}, {cell['dtype']}\n{mask}, {passes}"


def _threads(machine: dict) -> str:
    return f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
