"""Where things stand in a figure: nested boxes, a strip of memory, panels in rows.

All lengths are in em of the figure's font.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

CELL = 1.9  # height and least width of a cell: over 24 pixels at the figure's 13
SMALL = 0.85  # the font of memory strips and labels, against the figure's
CHARACTER = 0.62  # the width of one, against its font's size
STRIP, BOXES = 16.6, 17.6  # what these are wrapped to: three panels fit a page of the book
PAD, GAP, LABEL = 0.2, 0.1, 1.3
BETWEEN = 0.8  # panels

Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """A box around cells, and what is written at its top."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Block:
    """The picture of one array: where each index stands, and the boxes around."""

    width: float
    height: float
    cells: dict[tuple[int, ...], Point]
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True)
class Strip:
    """The picture of memory: where each offset stands, and the offset that each row starts at."""

    width: float
    height: float
    cells: dict[int, Point]
    rows: tuple[tuple[float, int], ...]
    cell_width: float


def cell_width(texts: Iterable[str]) -> float:
    """Return the width that the longest of the texts needs, in em."""
    return round(max(CELL, CHARACTER * max(map(len, texts), default=1) + 0.5), 1)


def nested_boxes(
    coordinates: Sequence[Sequence[int]], names: Sequence[str | None], width: float
) -> Block:
    """Place the cells of an array: the last two axes are a matrix, those before are boxes.

    Args:
        coordinates: for each axis the indices to draw.
        names: a name for each axis, or None; a box without one is labeled with its index.
        width: of a cell.
    """
    boxes = max(0, len(coordinates) - 2)
    keys = list(product(*coordinates[boxes:]))
    # a matrix has rows of its own; a single axis is wrapped
    per_row = len(coordinates[-1]) if len(coordinates) > 1 else max(1, int(BOXES / width))
    cells = {
        key: (_rounded(n % per_row * width), _rounded(n // per_row * CELL))
        for n, key in enumerate(keys)
    }
    block = Block(
        _rounded(min(per_row, len(keys)) * width), _rounded(-(-len(keys) // per_row) * CELL), cells
    )
    for axis in reversed(range(boxes)):
        block = _boxed(block, tuple(coordinates[axis]), names[axis])
    return block


def _boxed(inner: Block, indices: tuple[int, ...], name: str | None) -> Block:
    """Repeat a block, one box for each index, in rows as wide as a panel allows."""
    labels = [f"{name} {i}" if name else f"[{i}]" for i in indices]
    text = SMALL * CHARACTER * max(map(len, labels), default=1) + 2 * PAD
    width = max(inner.width + 2 * PAD, text)
    height = inner.height + LABEL + PAD
    columns = _columns(len(indices), width)
    cells, frames = {}, []
    for n, (i, label) in enumerate(zip(indices, labels, strict=True)):
        x, y = (n % columns) * (width + GAP), (n // columns) * (height + GAP)
        frames.append(Frame(*map(_rounded, (x, y, width, height)), label))
        dx, dy = x + (width - inner.width) / 2, y + LABEL
        cells |= {
            (i, *key): (_rounded(a + dx), _rounded(b + dy)) for key, (a, b) in inner.cells.items()
        }
        for f in inner.frames:
            label = f"[{i}, {f.label[1:]}" if f.label[0] == "[" and not name else f.label
            frames.append(Frame(_rounded(f.x + dx), _rounded(f.y + dy), f.width, f.height, label))
    rows = -(-len(indices) // columns)
    return Block(
        _rounded(columns * (width + GAP) - GAP),
        _rounded(rows * (height + GAP) - GAP),
        cells,
        tuple(frames),
    )


def _columns(count: int, width: float) -> int:
    """Return how many boxes stand in a row: all, or a divisor of all, or what fits."""
    fit = max(1, int((BOXES + GAP) / (width + GAP)))
    if fit >= count:
        return max(count, 1)
    best = max(n for n in range(1, fit + 1) if count % n == 0)
    return fit if best == 1 and count > 3 else best


def memory_strip(offsets: Iterable[int], texts: Iterable[str]) -> Strip:
    """Place the elements that lie at these offsets in storage order; a gap shows as a space.

    Args:
        offsets: where there are elements, in any order.
        texts: what will be written in the cells.
    """
    places = sorted(offsets)
    width = _rounded(SMALL * CHARACTER * max(map(len, texts), default=1) + 0.15)
    left = _rounded(SMALL * CHARACTER * len(str(places[-1])) + 0.25)
    fit = max(1, int((STRIP - left) / width))
    even = max(n for n in range(1, fit + 1) if len(places) % n == 0)
    per_row = even if 2 * even >= fit else fit
    cells, rows = {}, []
    x = y = 0.0
    in_row = 0
    for before, offset in pairwise([None, *places]):
        jump = 0.6 if in_row and offset != before + 1 else 0.0
        if not rows or in_row == per_row or x + jump + width > STRIP + 0.01:
            y = len(rows) * 1.5
            rows.append((_rounded(y), offset))
            x, in_row, jump = left, 0, 0.0
        cells[offset] = (_rounded(x + jump), _rounded(y))
        x, in_row = x + jump + width, in_row + 1
    right = max(a for a, _ in cells.values()) + width
    return Strip(_rounded(right), _rounded(1.5 * len(rows)), cells, tuple(rows), width)


def shelves(widths: Sequence[float]) -> dict[float, list[list[int]]]:
    """Put panels in rows, for every width of the page at which the rows change.

    Args:
        widths: of the panels.

    Returns:
        The rows, each a list of panels, under the least width of the page that they need. The
        first is for pages as narrow as they come.

    Example:
        >>> shelves([10, 10, 10])
        {0.0: [[0], [1], [2]], 20.8: [[0, 1], [2]], 31.6: [[0, 1, 2]]}
    """
    ends = [(i, j) for j in range(len(widths) + 1) for i in range(j)]
    needs = {sum(widths[i:j]) + BETWEEN * (j - i - 1) for i, j in ends}
    layouts: dict[float, list[list[int]]] = {}
    for page in [0.0, *sorted(needs)]:
        rows: list[list[int]] = []
        for i, width in enumerate(widths):
            used = sum(widths[k] + BETWEEN for k in rows[-1]) if rows else 0
            if not rows or used + width > page + 0.01:
                rows.append([])
            rows[-1].append(i)
        if rows not in layouts.values():
            layouts[_rounded(page)] = rows
    return layouts


def _rounded(number: float) -> float:
    return round(number, 1)


def corner(shape: Sequence[int], most: int) -> tuple[int, ...]:
    """Return sizes that cut from an array a corner of so many elements at most, about a cube.

    Example:
        >>> corner((1, 60, 8, 64), 48)
        (1, 3, 4, 4)
    """
    sizes = [1] * len(shape)
    while True:  # let the shortest side grow, the last axes first
        count = math.prod(sizes)
        can_grow = [
            (size, -axis)
            for axis, size in enumerate(sizes)
            if size < shape[axis] and count // size * (size + 1) <= most
        ]
        if not can_grow:
            return tuple(sizes)
        sizes[-min(can_grow)[1]] += 1
