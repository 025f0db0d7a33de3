"""Pictures of one row a query and one column a key: scores, weights, masks, reach."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike

from mha_tutor.palette import HEAD_COLORS, HEAD_GLYPHS
from mha_tutor.plotting.canvas import (
    MAX_WIDTH,
    axes_or_new,
    cell_points,
    format_number,
    set_title,
    write,
)
from mha_tutor.plotting.inputs import to_array, to_boolean, to_labels, to_mask, to_numbers
from mha_tutor.plotting.palette import INK, NEUTRAL_EDGE, head_color

MASKED_FACE, MASKED_EDGE = "#e0e0e0", "#999999"
NO_HEAD = "#4d4d4d"  # the dark end of the ramp of weights that belong to no head, or to one of many
REACHED, LEAK, MISSED = "#8ecbf0", "#f2a900", "#ffffff"  # none of them a head's color


def plot_scores(
    scores: ArrayLike,
    ax: Axes | None = None,
    *,
    mask: ArrayLike | None = None,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    title: str | None = None,
    annotate: bool = True,
    fmt: str = ".1f",
    limit: float | None = None,
    colorbar: bool = False,
) -> Axes:
    """Draw scores (before the softmax) on a diverging map, symmetric about 0.

    Args:
        scores: (L, S); a score of -inf counts as masked.
        ax: the Axes to draw on; a new figure without it.
        mask: boolean, broadcast to (L, S), True = may attend; other cells are hatched gray.
        queries: L row labels.
        keys: S column labels.
        title: the title.
        annotate: write each score in its cell.
        fmt: the format spec of these numbers.
        limit: the ends of the color scale, ±limit; the largest finite absolute score without it.
        colorbar: draw a color bar.

    Example:
        >>> ax = plot_scores([[1.0, -2.0], [0.5, float("-inf")]])
        >>> ax.collections[0].get_clim()
        (-2.0, 2.0)
        >>> plt.close(ax.figure)
    """
    array = to_numbers("scores", scores, 2, "(L, S)")
    seen = to_mask(mask, array.shape) & ~np.isneginf(array)
    if limit is None:
        finite = np.abs(array[seen & np.isfinite(array)])
        limit = float(finite.max(initial=0.0)) or 1.0
    elif not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    ax = _grid_axes(ax, array.shape, queries, keys, title, colorbar=colorbar)
    _heat(ax, array, seen, Normalize(-limit, limit), "PuOr_r", fmt if annotate else None)
    if colorbar:
        ax.figure.colorbar(ax.collections[0], ax=ax, label="score")
    return ax


def plot_weights(
    weights: ArrayLike,
    ax: Axes | None = None,
    *,
    head: int | None = None,
    mask: ArrayLike | None = None,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    title: str | None = None,
    annotate: bool = True,
    fmt: str = ".2f",
    colorbar: bool = False,
) -> Axes:
    """Draw attention weights (after the softmax): queries as rows from the top, keys as columns.

    The color scale is always 0 (white) to 1, so that figures can be compared. A masked cell is
    hatched gray, since "masked" and "0" are different things; if it holds a weight all the same
    (a leak), the weight stays visible under the hatching.

    Args:
        weights: (L, S), in [0, 1]; NaN is drawn as such.
        ax: the Axes to draw on; a new figure without it.
        head: 0 to 3, whose color and marker the picture gets; gray without it.
        mask: boolean, broadcast to (L, S), True = may attend.
        queries: L row labels.
        keys: S column labels.
        title: the title.
        annotate: write each weight in its cell.
        fmt: the format spec of these numbers.
        colorbar: draw a color bar.

    Raises:
        ValueError: a weight outside [0, 1], or a wrong shape or number of labels.
        TypeError: a mask that is not boolean.

    Example:
        >>> ax = plot_weights([[1.0, 0.0], [0.5, 0.5]], mask=[[True, False], [True, True]])
        >>> [text.get_text() for text in ax.texts]
        ['1.00', '0.50', '0.50']
        >>> plt.close(ax.figure)
    """
    array = _check_weights(to_numbers("weights", weights, 2, "(L, S)"))
    allowed = to_mask(mask, array.shape)
    ax = _grid_axes(ax, array.shape, queries, keys, title, colorbar=colorbar)
    leak = ~allowed & (array > 0)
    ramp = LinearSegmentedColormap.from_list(
        "weights", ["white", NO_HEAD if head is None else head_color(head)]
    )
    _heat(ax, array, allowed | leak, Normalize(0, 1), ramp, fmt if annotate else None)
    _hatch(ax, leak, face="none")
    if head is not None:
        _mark_title(ax, head)
    if colorbar:
        ax.figure.colorbar(ax.collections[0], ax=ax, label="weight")
    return ax


def plot_heads(
    weights: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    annotate: bool = False,
) -> np.ndarray:
    """Draw the weights of all heads side by side, with one color bar.

    Args:
        weights: (H, L, S), in [0, 1].
        mask: boolean, broadcast to (H, L, S), True = may attend.
        queries: L row labels.
        keys: S column labels.
        titles: H titles; "head 0" and so on by default.
        annotate: write each weight in its cell.

    Returns:
        An array of H Axes. Up to four heads stand in one row and carry their color and marker.

    Example:
        >>> axes = plot_heads(np.full((3, 4, 4), 0.25))
        >>> [ax.get_title() for ax in axes]
        ['head 0', 'head 1', 'head 2']
        >>> plt.close(axes[0].figure)
    """
    array = _check_weights(to_numbers("weights", weights, 3, "(H, L, S)"))
    heads, length, width = array.shape
    allowed = to_mask(mask, array.shape)
    names = to_labels("titles", titles, heads, "head") or [f"head {h}" for h in range(heads)]
    columns = min(heads, 4)
    rows = -(-heads // columns)
    panel = min((MAX_WIDTH - 1.6) / columns, max(1.3, 0.5 * width))
    size = (panel * columns + 1.6, rows * (panel * length / width + 0.4) + 0.5)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, layout="constrained", facecolor="white", squeeze=False
    )
    axes = grid.ravel()
    for unused in axes[heads:]:
        unused.remove()
    axes = axes[:heads]
    for h, ax in enumerate(axes):
        head = h if heads <= len(HEAD_COLORS) else None
        ticks = {"queries": queries, "keys": keys, "title": names[h]}
        plot_weights(array[h], ax, head=head, mask=allowed[h], annotate=annotate, **ticks)
        if h % columns:
            ax.set(ylabel="")
            ax.tick_params(labelleft=False)
        if h + columns < heads:
            ax.set(xlabel="")
            ax.tick_params(labelbottom=False)
    figure.colorbar(
        axes[0].collections[0], ax=list(axes), label="weight", fraction=0.05, shrink=0.8
    )
    return axes


def plot_mask(
    mask: ArrayLike,
    ax: Axes | None = None,
    *,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    title: str | None = None,
) -> Axes:
    """Draw a boolean mask: a check mark where a query may attend, hatched gray where it may not.

    Args:
        mask: (L, S), True = may attend; leading axes of size 1 are dropped, and a mask that only
            broadcasts, such as (1, S), is drawn at its own size, its one row labeled "all".
        ax: the Axes to draw on; a new figure without it.
        queries: row labels.
        keys: column labels.
        title: the title.

    Example:
        >>> ax = plot_mask(np.tri(3, dtype=bool))
        >>> len(ax.texts)
        6
        >>> plt.close(ax.figure)
    """
    array = np.atleast_2d(to_boolean("mask", mask))
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    array = to_array("mask", array, ndim=(2,), shape="(L, S)")
    length, width = array.shape
    queries = ["all"] if queries is None and length == 1 < width else queries
    keys = ["all"] if keys is None and width == 1 < length else keys
    ax = _grid_axes(ax, array.shape, queries, keys, title)
    _mark_cells(ax, array, REACHED, "✓")
    _hatch(ax, ~array)
    return ax


def plot_reach(
    reach: ArrayLike,
    ax: Axes | None = None,
    *,
    allowed: ArrayLike | None = None,
    title: str | None = None,
    legend: bool = True,
) -> Axes:
    """Draw a receptive field: which input tokens each output token depends on.

    Args:
        reach: (L, S) boolean, True where output token i depends on input token j.
        ax: the Axes to draw on; a new figure without it.
        allowed: boolean, broadcast to (L, S), True where it may (the causal mask, say). With it
            each cell is reached, a leak, missed, or rightly not reached; the legend counts them.
        title: the title.
        legend: explain color and symbol below the cells.

    Example:
        >>> ax = plot_reach(np.ones((2, 2), dtype=bool), allowed=np.tri(2, dtype=bool))
        >>> [text.get_text() for text in ax.get_legend().get_texts()][1]
        '✗ leak: 1 of 1'
        >>> plt.close(ax.figure)
    """
    array = to_array("reach", to_boolean("reach", reach), ndim=(2,), shape="(L, S)")
    may = to_mask(allowed, array.shape, name="allowed")
    inside, outside = int(may.sum()), int((~may).sum())
    classes = [
        (array & may, REACHED, "●", "reached", inside),
        (array & ~may, LEAK, "✗", "leak", outside),
        (~array & may, MISSED, "○", "missed", inside),
        (~array & ~may, MASKED_FACE, "·", "rightly not reached", outside),
    ]
    if allowed is None:
        classes = [classes[0], (~array, MASKED_FACE, "·", "not reached", array.size)]
    room, names = 0.2 * len(classes) if legend else 0, ("output token", "input token")
    ax = _grid_axes(ax, array.shape, None, None, title, axis_labels=names, legend=room)
    for where, color, symbol, _, _ in classes:
        _mark_cells(ax, where, color, symbol)
    if legend:
        handles = [
            Patch(
                facecolor=color,
                edgecolor=NEUTRAL_EDGE,
                label=f"{symbol} {name}: {int(where.sum())} of {total}",
            )
            for where, color, symbol, name, total in classes
        ]
        down = ScaledTranslation(0, -32 / 72, ax.figure.dpi_scale_trans)  # clear of the labels
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 0}
        style = {"frameon": False, "fontsize": 10, "labelcolor": INK, "handlelength": 1.2}
        ax.legend(handles=handles, bbox_transform=ax.transAxes + down, **place, **style)
    return ax


def _check_weights(array: np.ndarray) -> np.ndarray:
    if np.any((array < 0) | (array > 1 + 1e-6)):
        raise ValueError(
            "weights must lie in [0, 1] (draw scores, from before the softmax, with plot_scores), "
            f"got values from {np.nanmin(array):.3g} to {np.nanmax(array):.3g}"
        )
    return array


def _grid_axes(
    ax: Axes | None,
    shape: tuple[int, ...],
    queries: Sequence[str] | None,
    keys: Sequence[str] | None,
    title: str | None,
    *,
    axis_labels: tuple[str, str] = ("query", "key"),
    colorbar: bool = False,
    legend: float = 0,
) -> Axes:
    """Prepare Axes for an (L, S) picture: cell (i, j) fills [j, j + 1] × [i, i + 1], y downward."""
    length, width = shape
    queries = to_labels("queries", queries, length, "row")
    keys = to_labels("keys", keys, width, "column")
    cell = min(0.5, 5.0 / max(shape))
    size = (cell * width + (1.9 if colorbar else 0.9), cell * length + (1.0 if title else 0.7))
    given, ax = ax, axes_or_new(ax, size[0], size[1] + legend)
    cell = cell if given is None else cell_points(ax, shape) / 72
    ax.set(xlim=(0, width), ylim=(length, 0), aspect="equal")
    for axis, labels, count in ((ax.yaxis, queries, length), (ax.xaxis, keys, width)):
        step = 1 if labels or count <= 16 else -(-count // 4)
        at = np.arange(0, count, step)
        axis.set_ticks(at + 0.5, labels or [str(i) for i in at])
    if keys is not None and max(map(len, keys)) * 0.09 > cell:
        ax.tick_params(axis="x", rotation=90)
    ax.tick_params(length=0, labelsize=10, labelcolor=INK)
    ax.spines[:].set_visible(False)
    ax.set_ylabel(axis_labels[0], fontsize=10, color=INK)
    ax.set_xlabel(axis_labels[1], fontsize=10, color=INK)
    set_title(ax, title)
    return ax


def _heat(
    ax: Axes,
    array: np.ndarray,
    seen: np.ndarray,
    norm: Normalize,
    cmap: str | LinearSegmentedColormap,
    fmt: str | None,
) -> None:
    """Color the seen cells, hatch the others, write the numbers in legible ink."""
    shown = np.ma.masked_where(~seen | np.isnan(array), array)
    lines = {"edgecolors": "#d9d9d9", "linewidth": 0.8} if max(array.shape) <= 20 else {}
    mesh = ax.pcolormesh(shown, cmap=cmap, norm=norm, **lines)
    _hatch(ax, ~seen)
    fontsize = 10 if cell_points(ax, array.shape) > 26 else 9
    for i, j in np.argwhere(seen) if fmt is not None else ():
        value = array[i, j]
        luminance = np.power(mesh.cmap(norm(value))[:3], 2.2) @ (0.2126, 0.7152, 0.0722)
        color = INK if luminance > 0.2 or np.isnan(value) else "white"
        write(ax, j + 0.5, i + 0.5, format_number(value, fmt), fontsize=fontsize, color=color)


def _squares(where: np.ndarray) -> list[Rectangle]:
    return [Rectangle((j, i), 1, 1) for i, j in np.argwhere(where)]


def _hatch(ax: Axes, where: np.ndarray, *, face: str = MASKED_FACE) -> None:
    """Hatch the masked cells; with `face="none"` over what they hold."""
    if where.any():
        style = {"facecolor": face, "edgecolor": MASKED_EDGE, "linewidth": 0.5}
        ax.add_collection(PatchCollection(_squares(where), hatch="////", **style))


def _mark_cells(ax: Axes, where: np.ndarray, color: str, symbol: str) -> None:
    if where.any():
        ax.add_collection(PatchCollection(_squares(where), facecolor=color, edgecolor="white"))
    for i, j in np.argwhere(where):
        write(ax, j + 0.5, i + 0.5, symbol, fontsize=11)


def _mark_title(ax: Axes, head: int) -> None:
    """Put the head's marker before the title and its color around the panel."""
    place = {"xycoords": ax.title, "textcoords": "offset points", "ha": "right", "va": "center"}
    style = {"fontsize": 11, "color": head_color(head)}
    ax.annotate(HEAD_GLYPHS[head], (0, 0.5), xytext=(-4, 0), **place, **style)
    ax.spines[:].set(visible=True, color=head_color(head), linewidth=2)
