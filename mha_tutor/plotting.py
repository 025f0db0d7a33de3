"""The book's figures: block pictures, memory strips, scores, weights, masks, reach, curves.

Every function takes NumPy arrays or torch tensors, draws on `ax` (or on a figure of its own) and
returns the Axes; none shows or saves. Head h has one color everywhere, always paired with a label
or a marker. Masks are boolean, True = may attend. Shape letters: H heads, L queries, S keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike

__all__ = [
    "HEAD_COLORS",
    "HEAD_MARKERS",
    "head_color",
    "plot_cells",
    "plot_curves",
    "plot_equation",
    "plot_heads",
    "plot_mask",
    "plot_memory",
    "plot_reach",
    "plot_scores",
    "plot_weights",
]

HEAD_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
HEAD_MARKERS = ("o", "s", "^", "D")
_GLYPHS = ("●", "■", "▲", "◆")  # HEAD_MARKERS as text
_INK, _SOFT_INK = "#1a1a1a", "#595959"
_NEUTRAL_FACE, _NEUTRAL_EDGE = "#f2f2f2", "#999999"
_MASKED_FACE, _MASKED_EDGE = "#e0e0e0", "#999999"
_REACHED, _LEAK, _MISSED = "#8ecbf0", "#f2a900", "#ffffff"  # none of them a head's color
_CURVE_COLORS = ("#1a1a1a", "#8c510a", "#5e3c99", "#01665e", "#737373", "#b2182b")
_CURVE_MARKERS = ("o", "s", "^", "D", "v", "P")
_CURVE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
_MAX_WIDTH = 7.0  # inches; wider figures are too small to read on a phone


def head_color(h: int) -> str:
    """Return the color of head `h` (0 to 3), the same in every figure of the book.

    Raises:
        ValueError: there is no such color; more than four heads become small multiples.

    Example:
        >>> head_color(0)
        '#0072B2'
    """
    if not 0 <= h < len(HEAD_COLORS):
        raise ValueError(
            f"head must be 0 to {len(HEAD_COLORS) - 1} (more heads than colors: draw small "
            f"multiples with plot_heads), got {h}"
        )
    return HEAD_COLORS[h]


def plot_cells(
    matrix: ArrayLike,
    ax: Axes | None = None,
    *,
    row_heads: Sequence[int | None] | None = None,
    column_heads: Sequence[int | None] | None = None,
    cell_heads: ArrayLike | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    head_labels: Sequence[str] | None = None,
    title: str | None = None,
    fmt: str | None = None,
    fontsize: float | None = None,
    legend: bool = True,
) -> Axes:
    """Draw a matrix as boxes with its entries in them, tinted by head.

    Args:
        matrix: (rows, columns), or (rows,), drawn as a column; numbers, booleans or strings.
        ax: the Axes to draw on; a new figure without it.
        row_heads: a head for each row (None or -1: neutral), bracketed and named at the right.
        column_heads: a head for each column, bracketed and named below.
        cell_heads: a head for each cell, marked in its corner; broadcast to the matrix.
            At most one of the three may be given.
        row_labels: one label for each row, at the left.
        column_labels: one label for each column, above.
        head_labels: the name of each head, "head 0" and so on by default; "" draws none.
        title: the title.
        fmt: a format spec for the entries, such as ".1f"; by default whole numbers as they are,
            others with up to three digits.
        fontsize: of the entries, in points.
        legend: with `cell_heads`, name the markers below.

    Raises:
        ValueError: a wrong shape, a head without a color, or a wrong number of labels.

    Example:
        >>> ax = plot_cells([[0, 1, 2, 3]], column_heads=[0, 0, 1, 1])
        >>> [text.get_text() for text in ax.texts]
        ['0', '1', '2', '3', 'head 0', 'head 1']
        >>> plt.close(ax.figure)
    """
    block = _Block(
        matrix,
        row_heads=row_heads,
        column_heads=column_heads,
        cell_heads=cell_heads,
        row_labels=row_labels,
        column_labels=column_labels,
        head_labels=head_labels,
        fmt=fmt,
        fontsize=fontsize,
    )
    left, right, above, below = block.margins()
    rows, columns = block.text.shape
    names = _head_names(block.heads, head_labels) if block.marked and legend else {}
    x, y = (-left, columns + right), (-above, rows + below)
    ax = _cell_axes(ax, x, y, title=title, legend=names)
    block.draw(ax, 0, 0)
    return ax


def plot_equation(
    *terms: str | ArrayLike | Mapping[str, Any], ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw matrices and operators in a row, all cells of one size: the picture of an equation.

    Args:
        terms: a string is an operator; an array is drawn as by `plot_cells`; a mapping gives
            `matrix` and any of the keywords of `plot_cells` but `legend`. A term's `title` is its
            name, above it.
        ax: the Axes to draw on; a new figure without it.
        title: the title of the whole.

    Example:
        >>> W, x = np.array([[1, 2], [3, 4]]), np.array([10, 1])
        >>> ax = plot_equation({"matrix": W, "column_heads": [0, 1]}, x, "=", W @ x)
        >>> [text.get_text() for text in ax.texts][-3:]
        ['=', '12', '34']
        >>> plt.close(ax.figure)
    """
    if not terms:
        raise ValueError("plot_equation needs at least one term, got none")
    parts: list[tuple[str | _Block, float]] = []
    x = 0.0
    for term in terms:
        if isinstance(term, str):
            half = 0.2 + 0.1 * len(term)
            parts.append((term, x + half))
            x += 2 * half + 0.3
        else:
            options = dict(term) if isinstance(term, Mapping) else {"matrix": term}
            if "matrix" not in options:
                raise ValueError(f'a term must have the key "matrix", got {sorted(options)}')
            block = _Block(**options)
            left, right, _, _ = block.margins()
            parts.append((block, x + left))
            x += left + block.text.shape[1] + right + 0.3
    blocks = [part for part, _ in parts if isinstance(part, _Block)]
    height = max((block.text.shape[0] for block in blocks), default=1)
    above = max((block.margins()[2] for block in blocks), default=0)
    below = max((block.margins()[3] for block in blocks), default=0)
    ax = _cell_axes(ax, (0, x - 0.3), (-above, height + below), title=title)
    for part, at in parts:
        if isinstance(part, str):
            _text(ax, at, height / 2, part, fontsize=15)
        else:
            part.draw(ax, at, (height - part.text.shape[0]) / 2)
    return ax


def plot_memory(
    values: ArrayLike,
    ax: Axes | None = None,
    *,
    heads: ArrayLike | None = None,
    head_labels: Sequence[str] | None = None,
    per_row: int = 12,
    offsets: bool = True,
    title: str | None = None,
    legend: bool = True,
) -> Axes:
    """Draw the elements of `values` in the order in which they lie in memory.

    A view is drawn by its strides: `x` and `x.transpose(1, 2)` give the same strip. Elements that
    share a place are drawn once.

    Args:
        values: any shape, at least one element.
        ax: the Axes to draw on; a new figure without it.
        heads: a head for each element (None or -1: neutral), broadcast to the shape of `values`.
        head_labels: the name of each head, "head 0" and so on by default.
        per_row: elements in a row of the drawing.
        offsets: write below each element how far from the start of the memory it lies, in elements.
        title: the title.
        legend: with `heads`, name the markers below.

    Example:
        >>> ax = plot_memory(np.arange(4).reshape(2, 2).T, offsets=False)
        >>> [text.get_text() for text in ax.texts]
        ['0', '1', '2', '3']
        >>> plt.close(ax.figure)
    """
    if per_row < 1:
        raise ValueError(f"per_row must be at least 1, got {per_row}")
    array = _array("values", values)
    place, first = np.unique(_memory_offsets(values, array.shape), return_index=True)
    head = _head_indices("heads", heads, array.shape).ravel()[first]
    cells = array.ravel()[first]
    columns, step = min(per_row, len(cells)), 1.6 if offsets else 1.15
    height = step * (-(-len(cells) // columns) - 1) + (1.4 if offsets else 1)
    names = _head_names(head, head_labels) if legend else {}
    ax = _cell_axes(ax, (0, columns), (0, height), title=title, legend=names)
    for start in range(0, len(cells), columns):
        part, y = slice(start, start + columns), step * (start // columns)
        _Block(cells[None, part], cell_heads=head[None, part]).draw(ax, 0, y)
        for j, offset in enumerate(place[part] if offsets else ()):
            _text(ax, j + 0.5, y + 1.02, str(offset), va="top", fontsize=9, color=_SOFT_INK)
    return ax


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
    array = _numbers("scores", scores, 2, "(L, S)")
    seen = _allowed(mask, array.shape) & ~np.isneginf(array)
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
    mask: ArrayLike | None = None,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    title: str | None = None,
    annotate: bool = True,
    fmt: str = ".2f",
    colorbar: bool = False,
) -> Axes:
    """Draw attention weights (after the softmax): queries as rows from the top, keys as columns.

    The color scale is always 0 to 1, so that figures can be compared. A masked cell is hatched
    gray, since "masked" and "0" are different things; if it holds a weight all the same (a leak),
    the weight stays visible under the hatching.

    Args:
        weights: (L, S), in [0, 1]; NaN is drawn as such.
        ax: the Axes to draw on; a new figure without it.
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
    array = _check_weights(_numbers("weights", weights, 2, "(L, S)"))
    allowed = _allowed(mask, array.shape)
    ax = _grid_axes(ax, array.shape, queries, keys, title, colorbar=colorbar)
    leak = ~allowed & (array > 0)
    _heat(ax, array, allowed | leak, Normalize(0, 1), "cividis", fmt if annotate else None)
    _hatch(ax, leak, face="none")
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
    array = _check_weights(_numbers("weights", weights, 3, "(H, L, S)"))
    heads, length, width = array.shape
    allowed = _allowed(mask, array.shape)
    names = _labels("titles", titles, heads, "head") or [f"head {h}" for h in range(heads)]
    columns = min(heads, 4)
    rows = -(-heads // columns)
    panel = min((_MAX_WIDTH - 1.6) / columns, max(1.3, 0.5 * width))
    size = (panel * columns + 1.6, rows * (panel * length / width + 0.4) + 0.5)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, layout="constrained", facecolor="white", squeeze=False
    )
    axes = grid.ravel()
    for unused in axes[heads:]:
        unused.remove()
    axes = axes[:heads]
    for h, ax in enumerate(axes):
        plot_weights(array[h], ax, mask=allowed[h], queries=queries, keys=keys, annotate=annotate)
        ax.set_title(names[h], fontsize=11, color=_INK)
        if heads <= len(HEAD_COLORS):
            _mark_title(ax, h)
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
    array = np.atleast_2d(_boolean("mask", mask))
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    array = _array("mask", array, ndim=(2,), shape="(L, S)")
    length, width = array.shape
    queries = ["all"] if queries is None and length == 1 < width else queries
    keys = ["all"] if keys is None and width == 1 < length else keys
    ax = _grid_axes(ax, array.shape, queries, keys, title)
    _mark_cells(ax, array, _REACHED, "✓")
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
    array = _array("reach", _boolean("reach", reach), ndim=(2,), shape="(L, S)")
    may = _allowed(allowed, array.shape, name="allowed")
    inside, outside = int(may.sum()), int((~may).sum())
    classes = [
        (array & may, _REACHED, "●", "reached", inside),
        (array & ~may, _LEAK, "✗", "leak", outside),
        (~array & may, _MISSED, "○", "missed", inside),
        (~array & ~may, _MASKED_FACE, "·", "rightly not reached", outside),
    ]
    if allowed is None:
        classes = [classes[0], (~array, _MASKED_FACE, "·", "not reached", array.size)]
    room, names = 0.2 * len(classes) if legend else 0, ("output token", "input token")
    ax = _grid_axes(ax, array.shape, None, None, title, axis_labels=names, legend=room)
    for where, color, symbol, _, _ in classes:
        _mark_cells(ax, where, color, symbol)
    if legend:
        handles = [
            Patch(
                facecolor=color,
                edgecolor=_NEUTRAL_EDGE,
                label=f"{symbol} {name}: {int(where.sum())} of {total}",
            )
            for where, color, symbol, name, total in classes
        ]
        down = ScaledTranslation(0, -32 / 72, ax.figure.dpi_scale_trans)  # clear of the labels
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 0}
        style = {"frameon": False, "fontsize": 10, "labelcolor": _INK, "handlelength": 1.2}
        ax.legend(handles=handles, bbox_transform=ax.transAxes + down, **place, **style)
    return ax


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
        >>> ax = plot_curves([1, 2, 4], {"a": [1, 2, 3]}, xlabel="H", ylabel="error", xscale="log2")
        >>> [text.get_text() for text in ax.texts]
        ['a']
        >>> plt.close(ax.figure)
    """
    x = _numbers("x", x, 1, "(N,)")
    if not 1 <= len(curves) <= len(_CURVE_COLORS):
        raise ValueError(f"curves must hold 1 to {len(_CURVE_COLORS)} curves, got {len(curves)}")
    colors = _labels("colors", colors, len(curves), "curve") or _CURVE_COLORS
    for name, scale in (("xscale", xscale), ("yscale", yscale)):
        if scale not in ("linear", "log", "log2"):
            raise ValueError(f'{name} must be "linear", "log" or "log2", got {scale!r}')
    lines = {label: _numbers(f"curves[{label!r}]", y, 1, "(N,)") for label, y in curves.items()}
    for label, y in lines.items():
        if y.shape != x.shape:
            raise ValueError(
                f"curves[{label!r}] must have one value for each x ({len(x)}), got {len(y)}"
            )
    ax = _axes(ax, 5.2, 3.4)
    for set_scale, scale in ((ax.set_xscale, xscale), (ax.set_yscale, yscale)):
        options = {"linear": {}, "log": {"base": 10}, "log2": {"base": 2}}[scale]
        set_scale("log" if options else "linear", **options)
    if xscale == "log2":
        ax.set_xticks(x, [f"{value:g}" for value in x])
        ax.xaxis.set_minor_locator(NullLocator())
    ends = []
    looks = zip(colors, _CURVE_STYLES, _CURVE_MARKERS, strict=False)
    for (label, y), (color, line, marker) in zip(lines.items(), looks, strict=False):
        style = {"color": color, "linestyle": line, "linewidth": 1.8}
        ax.plot(x, y, label=label, marker=marker, markersize=6, **style)
        finite = np.flatnonzero(np.isfinite(y))
        if len(finite):
            ends.append((label, x[finite[-1]], y[finite[-1]]))
    _label_ends(ax, ends)
    ax.set_xlabel(xlabel, fontsize=11, color=_INK)
    ax.set_ylabel(ylabel, fontsize=11, color=_INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e0e0e0", linewidth=0.8)
    ax.set_axisbelow(True)
    _set_title(ax, title)
    return ax


# Checks


def _array(
    name: str, value: Any, *, ndim: tuple[int, ...] | None = None, shape: str = ""
) -> np.ndarray:
    """Bring an array, a tensor on any device or nested lists to NumPy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float().numpy() if "bfloat16" in str(value.dtype) else value.numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array: {error}") from None
    if array.dtype.kind not in "biufU":
        raise TypeError(f"{name} must hold real numbers or strings, got dtype {array.dtype}")
    if ndim is not None and array.ndim not in ndim:
        raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got the shape {array.shape}")
    return array


def _numbers(name: str, value: Any, ndim: int, shape: str) -> np.ndarray:
    array = _array(name, value, ndim=(ndim,), shape=shape)
    if array.dtype.kind == "U":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array.astype(float)


def _check_weights(array: np.ndarray) -> np.ndarray:
    if np.any((array < 0) | (array > 1 + 1e-6)):
        raise ValueError(
            "weights must lie in [0, 1] (draw scores, from before the softmax, with plot_scores), "
            f"got values from {np.nanmin(array):.3g} to {np.nanmax(array):.3g}"
        )
    return array


def _boolean(name: str, value: Any) -> np.ndarray:
    array = _array(name, value)
    if array.dtype != bool:
        raise TypeError(f"{name} must be boolean (True = may), got dtype {array.dtype}")
    return array


def _allowed(mask: Any, shape: tuple[int, ...], *, name: str = "mask") -> np.ndarray:
    """Broadcast a mask to `shape`; leading axes of size 1 are dropped."""
    if mask is None:
        return np.ones(shape, dtype=bool)
    array = _boolean(name, mask)
    given = array.shape
    while array.ndim > len(shape) and array.shape[0] == 1:
        array = array[0]
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to {shape}, got the shape {given}") from None


def _labels(name: str, labels: Any, count: int, what: str) -> list[str] | None:
    if labels is None:
        return None
    if not hasattr(labels, "__len__"):
        raise TypeError(f"{name} must be a sequence, got {type(labels).__name__}")
    if len(labels) != count:
        raise ValueError(f"{name} must have one entry for each {what} ({count}), got {len(labels)}")
    return [str(label) for label in labels]


def _head_indices(name: str, heads: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Head indices of `shape`, -1 for neutral; each has a color."""
    if heads is None:
        return np.full(shape, -1)

    def neutral(head: Any) -> Any:
        if isinstance(head, list | tuple):
            return [neutral(h) for h in head]
        return -1 if head is None else head

    array = _array(name, neutral(heads))
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold head indices (whole numbers), got dtype {array.dtype}")
    for head in np.unique(array[array != -1]):
        head_color(head)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to {shape}, got {array.shape}") from None


def _memory_offsets(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Where each element lies, in elements from the start of the memory, in reading order."""
    if hasattr(values, "storage_offset"):
        strides, start = values.stride(), values.storage_offset()
    else:
        array = np.asarray(values)
        strides, start = [stride // array.itemsize for stride in array.strides], 0
    offset = np.full(shape, start)
    for index, stride in zip(np.indices(shape), strides, strict=True):
        offset += index * stride
    return (offset - min(offset.min(), 0)).ravel()  # negative strides: count from the lowest


# Drawing


class _Block:
    """A matrix of boxes that can be drawn anywhere on an Axes; a cell is one data unit."""

    def __init__(
        self,
        matrix: Any,
        *,
        row_heads: Any = None,
        column_heads: Any = None,
        cell_heads: Any = None,
        row_labels: Any = None,
        column_labels: Any = None,
        head_labels: Any = None,
        title: str | None = None,
        fmt: str | None = None,
        fontsize: float | None = None,
    ):
        given = {"row_heads": row_heads, "column_heads": column_heads, "cell_heads": cell_heads}
        names = " and ".join(name for name, heads in given.items() if heads is not None)
        if "and" in names:
            raise ValueError(f"at most one of {', '.join(given)} may be given, got {names}")
        array = _array("matrix", matrix, ndim=(1, 2), shape="(rows,) or (rows, columns)")
        array = array[:, None] if array.ndim == 1 else array
        rows, columns = array.shape
        _labels("row_heads", row_heads, rows, "row")
        _labels("column_heads", column_heads, columns, "column")
        by_row = _head_indices("row_heads", row_heads, (rows,))[:, None]
        by_column = _head_indices("column_heads", column_heads, (columns,))
        by_cell = _head_indices("cell_heads", cell_heads, (rows, columns))
        self.heads = np.maximum(np.maximum(by_row, by_column), by_cell)
        self.marked = cell_heads is not None
        names = _head_names(self.heads, head_labels)
        self.row_runs = _runs(by_row[:, 0], names)
        self.column_runs = _runs(by_column, names)
        self.row_labels = _labels("row_labels", row_labels, rows, "row") or []
        self.column_labels = _labels("column_labels", column_labels, columns, "column") or []
        self.title = title
        self.text = np.array([[_number(value, fmt) for value in row] for row in array])
        self.fontsize = fontsize or {1: 11, 2: 11, 3: 11, 4: 10}.get(
            max(map(len, self.text.flat)), 9
        )

    def margins(self) -> tuple[float, float, float, float]:
        """Room for labels at the left, right, top and bottom, in cells (a letter takes 0.17)."""
        left = 0.3 + 0.17 * max(map(len, self.row_labels)) if self.row_labels else 0.0
        right = 0.4 + 0.17 * max(len(run[0]) for run in self.row_runs) if self.row_runs else 0.0
        above = (0.5 if self.column_labels else 0.0) + (0.7 if self.title else 0.0)
        return left, right, above, 0.7 if self.column_runs else 0.0

    def draw(self, ax: Axes, x: float, y: float) -> None:
        rows, columns = self.text.shape
        for i, j in np.ndindex(rows, columns):
            head = self.heads[i, j]
            face, edge = _cell_colors(head)
            corner = (x + j + 0.05, y + i + 0.05)
            ax.add_patch(Rectangle(corner, 0.9, 0.9, facecolor=face, edgecolor=edge, linewidth=1.5))
            _text(ax, x + j + 0.5, y + i + 0.52, self.text[i, j], fontsize=self.fontsize)
            if self.marked and head >= 0:
                ax.plot(x + j + 0.2, y + i + 0.2, HEAD_MARKERS[head], color=edge, markersize=4)
        for i, label in enumerate(self.row_labels):
            _text(ax, x - 0.15, y + i + 0.5, label, ha="right")
        for j, label in enumerate(self.column_labels):
            _text(ax, x + j + 0.5, y - 0.1, label, va="bottom")
        for name, color, start, stop in self.row_runs:
            at = x + columns + 0.15
            ax.plot([at, at], [y + start + 0.1, y + stop - 0.1], color=color, linewidth=4)
            _text(ax, at + 0.15, y + (start + stop) / 2, name, ha="left")
        for name, color, start, stop in self.column_runs:
            at = y + rows + 0.15
            ax.plot([x + start + 0.1, x + stop - 0.1], [at, at], color=color, linewidth=4)
            _text(ax, x + (start + stop) / 2, at + 0.12, name, va="top")
        if self.title:
            above = 0.62 if self.column_labels else 0.12
            _text(ax, x + columns / 2, y - above, self.title, va="bottom", fontsize=11)


def _text(ax: Axes, x: float, y: float, text: str, **style: Any) -> None:
    style = {"ha": "center", "va": "center", "fontsize": 10, "color": _INK} | style
    ax.text(x, y, text, **style)


def _head_names(heads: np.ndarray, head_labels: Sequence[str] | None) -> dict[int, str]:
    """Name the heads that occur."""
    present = [int(head) for head in np.unique(heads) if head >= 0]
    if head_labels is None:
        return {head: f"head {head}" for head in present}
    if present and present[-1] >= len(head_labels):
        raise ValueError(
            f"head_labels must name head {present[-1]} too, got {len(head_labels)} labels"
        )
    return {head: str(head_labels[head]) for head in present}


def _runs(heads: np.ndarray, names: Mapping[int, str]) -> list[tuple[str, str, int, int]]:
    """Find the runs of equal heads as (name, color, start, stop), where there is a name."""
    cuts = [0, *(np.flatnonzero(np.diff(heads)) + 1).tolist(), len(heads)]
    return [
        (names[heads[start]], head_color(heads[start]), start, stop)
        for start, stop in pairwise(cuts)
        if names.get(heads[start])
    ]


def _number(value: Any, fmt: str | None) -> str:
    if isinstance(value, np.str_):
        return str(value)
    if fmt is None:
        fmt = "" if isinstance(value, np.integer | np.bool_) else ".3g"
    text = format(value, fmt).replace("nan", "NaN")
    return text.lstrip("-") if not text.strip("-0.") else text  # no "-0.0"


def _cell_colors(head: int) -> tuple[Any, Any]:
    """Face and edge of a cell: a light tint of the head's color, and the color itself."""
    if head < 0:
        return _NEUTRAL_FACE, _NEUTRAL_EDGE
    color = to_rgb(head_color(head))
    return tuple(0.78 + 0.22 * channel for channel in color), color


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Return `ax`, or the Axes of a new figure of that size in inches, white in dark mode too."""
    if ax is not None:
        if not isinstance(ax, Axes):
            raise TypeError(f"ax must be one matplotlib Axes, got {type(ax).__name__}")
        return ax
    return plt.subplots(figsize=(width, height), layout="constrained", facecolor="white")[1]


def _cell_points(ax: Axes, shape: tuple[int, ...]) -> float:
    """Estimate the size of a cell before the layout is made."""
    box = ax.get_window_extent()
    return min(box.width / shape[1], box.height / shape[0]) * 72 / ax.figure.dpi


def _set_title(ax: Axes, title: str | None) -> None:
    if title:
        ax.set_title(title, fontsize=11, color=_INK)


def _cell_axes(
    ax: Axes | None,
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    title: str | None,
    legend: Mapping[int, str] | None = None,
) -> Axes:
    """Prepare Axes without a frame, one data unit a cell, y downward, markers named below."""
    legend = {head: name for head, name in (legend or {}).items() if name}
    widths = [0.9 + 0.17 * len(name) for name in legend.values()]
    at = (x[0] + x[1] - sum(widths)) / 2
    bottom = y[1] + (0.8 if legend else 0)
    span = max(x[1] - x[0], sum(widths)) + 0.1
    cell = min(0.46, (_MAX_WIDTH - 0.1) / span)
    ax = _axes(ax, cell * span + 0.1, cell * (bottom - y[0]) + (0.45 if title else 0.15))
    middle = (x[0] + x[1]) / 2
    ax.set(xlim=(middle - span / 2, middle + span / 2), ylim=(bottom + 0.05, y[0] - 0.05))
    ax.set_aspect("equal")
    ax.set_axis_off()
    _set_title(ax, title)
    for (head, name), width in zip(legend.items(), widths, strict=True):
        ax.plot(at + 0.3, y[1] + 0.45, HEAD_MARKERS[head], color=head_color(head), markersize=7)
        _text(ax, at + 0.55, y[1] + 0.45, name, ha="left")
        at += width
    return ax


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
    queries = _labels("queries", queries, length, "row")
    keys = _labels("keys", keys, width, "column")
    cell = min(0.5, 5.0 / max(shape))
    size = (cell * width + (1.9 if colorbar else 0.9), cell * length + (1.0 if title else 0.7))
    given, ax = ax, _axes(ax, size[0], size[1] + legend)
    cell = cell if given is None else _cell_points(ax, shape) / 72
    ax.set(xlim=(0, width), ylim=(length, 0), aspect="equal")
    for axis, labels, count in ((ax.yaxis, queries, length), (ax.xaxis, keys, width)):
        step = 1 if labels or count <= 16 else -(-count // 4)
        at = np.arange(0, count, step)
        axis.set_ticks(at + 0.5, labels or [str(i) for i in at])
    if keys is not None and max(map(len, keys)) * 0.09 > cell:
        ax.tick_params(axis="x", rotation=90)
    ax.tick_params(length=0, labelsize=10, labelcolor=_INK)
    ax.spines[:].set_visible(False)
    ax.set_ylabel(axis_labels[0], fontsize=10, color=_INK)
    ax.set_xlabel(axis_labels[1], fontsize=10, color=_INK)
    _set_title(ax, title)
    return ax


def _heat(
    ax: Axes, array: np.ndarray, seen: np.ndarray, norm: Normalize, cmap: str, fmt: str | None
) -> None:
    """Color the seen cells, hatch the others, write the numbers in legible ink."""
    shown = np.ma.masked_where(~seen | np.isnan(array), array)
    lines = {"edgecolors": "white", "linewidth": 1} if max(array.shape) <= 20 else {}
    mesh = ax.pcolormesh(shown, cmap=cmap, norm=norm, **lines)
    _hatch(ax, ~seen)
    fontsize = 10 if _cell_points(ax, array.shape) > 26 else 9
    for i, j in np.argwhere(seen) if fmt is not None else ():
        value = array[i, j]
        luminance = np.power(mesh.cmap(norm(value))[:3], 2.2) @ (0.2126, 0.7152, 0.0722)
        color = _INK if luminance > 0.2 or np.isnan(value) else "white"
        _text(ax, j + 0.5, i + 0.5, _number(value, fmt), fontsize=fontsize, color=color)


def _squares(where: np.ndarray) -> list[Rectangle]:
    return [Rectangle((j, i), 1, 1) for i, j in np.argwhere(where)]


def _hatch(ax: Axes, where: np.ndarray, *, face: str = _MASKED_FACE) -> None:
    """Hatch the masked cells; with `face="none"` over what they hold."""
    if where.any():
        style = {"facecolor": face, "edgecolor": _MASKED_EDGE, "linewidth": 0.5}
        ax.add_collection(PatchCollection(_squares(where), hatch="////", **style))


def _mark_cells(ax: Axes, where: np.ndarray, color: str, symbol: str) -> None:
    if where.any():
        ax.add_collection(PatchCollection(_squares(where), facecolor=color, edgecolor="white"))
    for i, j in np.argwhere(where):
        _text(ax, j + 0.5, i + 0.5, symbol, fontsize=11)


def _mark_title(ax: Axes, head: int) -> None:
    """Put the head's marker before the title and its color around the panel."""
    place = {"xycoords": ax.title, "textcoords": "offset points", "ha": "right", "va": "center"}
    style = {"fontsize": 11, "color": head_color(head)}
    ax.annotate(_GLYPHS[head], (0, 0.5), xytext=(-4, 0), **place, **style)
    ax.spines[:].set(visible=True, color=head_color(head), linewidth=2)


def _label_ends(ax: Axes, ends: list[tuple[str, float, float]]) -> None:
    """Name curves at their last points, moved apart where they would overlap."""
    ax.autoscale_view()
    height = ax.get_window_extent().height * 72 / ax.figure.dpi  # points
    to_axes = ax.transData + ax.transAxes.inverted()
    spots = sorted((to_axes.transform((x, y))[1] * height, label, x, y) for label, x, y in ends)
    style = {"textcoords": "offset points", "va": "center", "fontsize": 10, "color": _INK}
    placed = -np.inf
    for at, label, x, y in spots:
        placed = max(at, placed + 14)
        ax.annotate(label, (x, y), xytext=(9, placed - at), **style)
