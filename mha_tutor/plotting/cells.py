"""Block pictures and memory strips: tensors as boxes with numbers in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from mha_tutor.palette import HEAD_MARKERS
from mha_tutor.plotting.canvas import MAX_WIDTH, axes_or_new, format_number, set_title, write
from mha_tutor.plotting.inputs import to_array, to_head_indices, to_labels
from mha_tutor.plotting.palette import (
    NEUTRAL_EDGE,
    NEUTRAL_FACE,
    SOFT_INK,
    head_color,
)


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
        >>> import matplotlib.pyplot as plt
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
        >>> import matplotlib.pyplot as plt
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
            write(ax, at, height / 2, part, fontsize=15)
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
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_memory(np.arange(4).reshape(2, 2).T, offsets=False)
        >>> [text.get_text() for text in ax.texts]
        ['0', '1', '2', '3']
        >>> plt.close(ax.figure)
    """
    if per_row < 1:
        raise ValueError(f"per_row must be at least 1, got {per_row}")
    array = to_array("values", values)
    place, first = np.unique(_memory_offsets(values, array.shape), return_index=True)
    head = to_head_indices("heads", heads, array.shape).ravel()[first]
    cells = array.ravel()[first]
    columns, step = min(per_row, len(cells)), 1.6 if offsets else 1.15
    height = step * (-(-len(cells) // columns) - 1) + (1.4 if offsets else 1)
    names = _head_names(head, head_labels) if legend else {}
    ax = _cell_axes(ax, (0, columns), (0, height), title=title, legend=names)
    for start in range(0, len(cells), columns):
        part, y = slice(start, start + columns), step * (start // columns)
        _Block(cells[None, part], cell_heads=head[None, part]).draw(ax, 0, y)
        for j, offset in enumerate(place[part] if offsets else ()):
            write(ax, j + 0.5, y + 1.02, str(offset), va="top", fontsize=9, color=SOFT_INK)
    return ax


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
        array = to_array("matrix", matrix, ndim=(1, 2), shape="(rows,) or (rows, columns)")
        array = array[:, None] if array.ndim == 1 else array
        rows, columns = array.shape
        to_labels("row_heads", row_heads, rows, "row")
        to_labels("column_heads", column_heads, columns, "column")
        by_row = to_head_indices("row_heads", row_heads, (rows,))[:, None]
        by_column = to_head_indices("column_heads", column_heads, (columns,))
        by_cell = to_head_indices("cell_heads", cell_heads, (rows, columns))
        self.heads = np.maximum(np.maximum(by_row, by_column), by_cell)
        self.marked = cell_heads is not None
        names = _head_names(self.heads, head_labels)
        self.row_runs = _runs(by_row[:, 0], names)
        self.column_runs = _runs(by_column, names)
        self.row_labels = to_labels("row_labels", row_labels, rows, "row") or []
        self.column_labels = to_labels("column_labels", column_labels, columns, "column") or []
        self.title = title
        self.text = np.array([[format_number(value, fmt) for value in row] for row in array])
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
            write(ax, x + j + 0.5, y + i + 0.52, self.text[i, j], fontsize=self.fontsize)
            if self.marked and head >= 0:
                ax.plot(x + j + 0.2, y + i + 0.2, HEAD_MARKERS[head], color=edge, markersize=4)
        for i, label in enumerate(self.row_labels):
            write(ax, x - 0.15, y + i + 0.5, label, ha="right")
        for j, label in enumerate(self.column_labels):
            write(ax, x + j + 0.5, y - 0.1, label, va="bottom")
        for name, color, start, stop in self.row_runs:
            at = x + columns + 0.15
            ax.plot([at, at], [y + start + 0.1, y + stop - 0.1], color=color, linewidth=4)
            write(ax, at + 0.15, y + (start + stop) / 2, name, ha="left")
        for name, color, start, stop in self.column_runs:
            at = y + rows + 0.15
            ax.plot([x + start + 0.1, x + stop - 0.1], [at, at], color=color, linewidth=4)
            write(ax, x + (start + stop) / 2, at + 0.12, name, va="top")
        if self.title:
            above = 0.62 if self.column_labels else 0.12
            write(ax, x + columns / 2, y - above, self.title, va="bottom", fontsize=11)


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


def _cell_colors(head: int) -> tuple[Any, Any]:
    """Face and edge of a cell: a light tint of the head's color, and the color itself."""
    if head < 0:
        return NEUTRAL_FACE, NEUTRAL_EDGE
    color = to_rgb(head_color(head))
    return tuple(0.78 + 0.22 * channel for channel in color), color


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
    cell = min(0.46, (MAX_WIDTH - 0.1) / span)
    ax = axes_or_new(ax, cell * span + 0.1, cell * (bottom - y[0]) + (0.45 if title else 0.15))
    middle = (x[0] + x[1]) / 2
    ax.set(xlim=(middle - span / 2, middle + span / 2), ylim=(bottom + 0.05, y[0] - 0.05))
    ax.set_aspect("equal")
    ax.set_axis_off()
    set_title(ax, title)
    for (head, name), width in zip(legend.items(), widths, strict=True):
        ax.plot(at + 0.3, y[1] + 0.45, HEAD_MARKERS[head], color=head_color(head), markersize=7)
        write(ax, at + 0.55, y[1] + 0.45, name, ha="left")
        at += width
    return ax
