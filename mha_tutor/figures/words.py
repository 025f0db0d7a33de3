"""How numbers and axes are written in a figure."""

from collections.abc import Iterable, Sequence

import numpy as np


def text_of(value) -> str:
    """Write a number as it stands in a cell: whole numbers as they are, others to three digits.

    Example:
        >>> [text_of(value) for value in (7, 1013.0, np.float32(1 / 3), np.True_)]
        ['7', '1013', '0.333', 'T']
    """
    if isinstance(value, bool | np.bool_):
        return "T" if value else "F"
    if isinstance(value, int | np.integer):
        return str(value)
    if isinstance(value, complex | np.complexfloating):
        return f"{value:.2g}"
    whole = abs(value) < 1e6 and value == round(float(value))
    return str(round(float(value))) if whole else f"{value:.3g}"


def aligned(rows: Iterable[tuple[str, Iterable]]) -> list[str]:
    """Write rows of a label and some entries, so that the entries stand in columns."""
    table = [(label, [str(entry) for entry in entries]) for label, entries in rows]
    widths = [max(map(len, column)) for column in zip(*(row for _, row in table), strict=True)]
    label_width = max(len(label) for label, _ in table)
    return [
        "  ".join([f"{label:<{label_width}}", *map(str.rjust, row, widths)]).rstrip()
        for label, row in table
    ]


def axis_roles(names: Sequence[str]) -> str:
    """Say which axes are boxes, rows and columns."""
    if len(names) < 2:
        return f"along: {names[0]}" if names else ""
    boxes = f"boxes: {', '.join(names[:-2])}; " if len(names) > 2 else ""
    return f"{boxes}rows: {names[-2]}; columns: {names[-1]}"
