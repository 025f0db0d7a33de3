"""Curves with their names at their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from mha_tutor.plotting.canvas import axes_or_new, set_title
from mha_tutor.plotting.inputs import to_labels, to_numbers
from mha_tutor.plotting.palette import INK

CURVE_COLORS = ("#1a1a1a", "#8c510a", "#5e3c99", "#01665e", "#737373", "#b2182b")
CURVE_MARKERS = ("o", "s", "^", "D", "v", "P")
CURVE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def plot_curves(
    x: ArrayLike,
    curves: Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    xscale: str = "linear",
    yscale: str = "linear",
    colors: Sequence[str] | None = None,
) -> Axes:
    """Draw curves over a common `x`, each named at its end, each with a marker of its own.

    Args:
        x: (N,).
        curves: label → (N,) values; up to six curves. A NaN leaves a gap.
        ax: the Axes to draw on; a new figure without it.
        xlabel: what x is, with its unit.
        ylabel: what the values are, with their unit.
        title: the title.
        xscale: "linear", "log", or "log2", which ticks each x.
        yscale: "linear", "log" or "log2".
        colors: one color for each curve; use `HEAD_COLORS` only for heads.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_curves([1, 2, 4], {"a": [1, 2, 3]}, xlabel="H", ylabel="error", xscale="log2")
        >>> [text.get_text() for text in ax.texts]
        ['a']
        >>> plt.close(ax.figure)
    """
    x = to_numbers("x", x, 1, "(N,)")
    if not 1 <= len(curves) <= len(CURVE_COLORS):
        raise ValueError(f"curves must hold 1 to {len(CURVE_COLORS)} curves, got {len(curves)}")
    colors = to_labels("colors", colors, len(curves), "curve") or CURVE_COLORS
    for name, scale in (("xscale", xscale), ("yscale", yscale)):
        if scale not in ("linear", "log", "log2"):
            raise ValueError(f'{name} must be "linear", "log" or "log2", got {scale!r}')
    lines = {label: to_numbers(f"curves[{label!r}]", y, 1, "(N,)") for label, y in curves.items()}
    for label, y in lines.items():
        if y.shape != x.shape:
            raise ValueError(
                f"curves[{label!r}] must have one value for each x ({len(x)}), got {len(y)}"
            )
    ax = axes_or_new(ax, 5.2, 3.4)
    for set_scale, scale in ((ax.set_xscale, xscale), (ax.set_yscale, yscale)):
        options = {"linear": {}, "log": {"base": 10}, "log2": {"base": 2}}[scale]
        set_scale("log" if options else "linear", **options)
    if xscale == "log2":
        ax.set_xticks(x, [f"{value:g}" for value in x])
        ax.xaxis.set_minor_locator(NullLocator())
    ends = []
    looks = zip(colors, CURVE_STYLES, CURVE_MARKERS, strict=False)
    for (label, y), (color, line, marker) in zip(lines.items(), looks, strict=False):
        style = {"color": color, "linestyle": line, "linewidth": 1.8}
        ax.plot(x, y, label=label, marker=marker, markersize=6, **style)
        finite = np.flatnonzero(np.isfinite(y))
        if len(finite):
            ends.append((label, x[finite[-1]], y[finite[-1]]))
    _label_ends(ax, ends)
    ax.set_xlabel(xlabel, fontsize=11, color=INK)
    ax.set_ylabel(ylabel, fontsize=11, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e0e0e0", linewidth=0.8)
    ax.set_axisbelow(True)
    set_title(ax, title)
    return ax


def _label_ends(ax: Axes, ends: list[tuple[str, float, float]]) -> None:
    """Name curves at their last points, moved apart where they would overlap."""
    ax.autoscale_view()
    height = ax.get_window_extent().height * 72 / ax.figure.dpi  # points
    to_axes = ax.transData + ax.transAxes.inverted()
    spots = sorted((to_axes.transform((x, y))[1] * height, label, x, y) for label, x, y in ends)
    style = {"textcoords": "offset points", "va": "center", "fontsize": 10, "color": INK}
    placed = -np.inf
    for at, label, x, y in spots:
        placed = max(at, placed + 14)
        ax.annotate(label, (x, y), xytext=(9, placed - at), **style)
