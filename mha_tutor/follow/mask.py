"""Which element of a mask governs which score: broadcasting, element by element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mha_tutor.figures.boxes import cell_width, corner, nested_boxes
from mha_tutor.figures.figure import Element, Figure, Panel
from mha_tutor.figures.words import aligned, axis_roles

__all__ = ["MaskFollower", "follow_mask"]

MOST, PART = 96, 48  # scores that are drawn: of a whole, of what is too large
SMALL_TABLE = 600  # scores up to which the text gives the whole table


@dataclass(frozen=True, eq=False, repr=False)
class MaskFollower:
    """A mask and the scores that it governs; made by `follow_mask`.

    Attributes:
        mask: boolean, as it was given; True = may attend.
        scores_shape: the shape it is broadcast to.
        names: of the axes of the scores.
        chosen: the score that is lit when the figure appears, or None.
    """

    mask: np.ndarray
    scores_shape: tuple[int, ...]
    names: tuple[str, ...]
    chosen: tuple[int, ...] | None = None

    def governor(self, *index: int) -> tuple[int, ...]:
        """Return the index of the mask element that governs the score at this index.

        Raises:
            ValueError: there is no such score.
        """
        fits = len(index) == len(self.scores_shape) and all(
            0 <= i < n for i, n in zip(index, self.scores_shape, strict=True)
        )
        if not fits:
            raise ValueError(f"there is no score {index} in scores of shape {self.scores_shape}")
        own = index[len(index) - self.mask.ndim :]
        return tuple(0 if n == 1 else i for i, n in zip(own, self.mask.shape, strict=True))

    def point_at(self, *index: int) -> MaskFollower:
        """Choose the score that is lit when the figure appears."""
        self.governor(*index)
        return MaskFollower(self.mask, self.scores_shape, self.names, index)

    def __repr__(self) -> str:
        full = np.broadcast_to(self.mask, self.scores_shape)
        lines = aligned(
            [
                ("axis", self.names),
                ("scores", self.scores_shape),
                ("mask", self._padded(self.mask.shape)),
                ("", self._ways()),
            ]
        )
        marks = {"bool": lambda allowed: "T" if allowed else "F"}
        for label, table in (("mask", self.mask), ("what it says of each score", full)):
            text = np.array2string(table, formatter=marks, threshold=SMALL_TABLE)
            lines += [f"{label}:", *(f"    {line}".rstrip() for line in text.split("\n"))]
        if self.chosen is not None:
            source = self.governor(*self.chosen)
            lines.append(f"score {list(self.chosen)} is governed by mask {list(source)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return _figure(self).html()

    def _padded(self, entries: Sequence) -> list:
        """Put a dash where the mask lacks an axis."""
        return ["-"] * (len(self.scores_shape) - self.mask.ndim) + list(entries)

    def _ways(self) -> list[str]:
        """Say for each axis what the mask does there."""
        pairs = zip(self._padded(self.mask.shape), self.scores_shape, strict=True)
        return ["own" if size == full else "stretched" for size, full in pairs]


def follow_mask(
    mask: torch.Tensor | np.ndarray,
    scores_shape: Sequence[int],
    names: str | Sequence[str] = "BHLS",
) -> MaskFollower:
    """Show which mask element governs each score, when the mask is broadcast to the scores.

    Args:
        mask: boolean, True = may attend; of a shape that broadcasts to that of the scores.
        scores_shape: such as (B, H, L, S).
        names: of the axes of the scores, the last of which are used.

    Returns:
        A `MaskFollower`. Show it in a notebook, print it, or ask it for a `governor`.

    Raises:
        TypeError: the mask is not boolean.
        ValueError: it does not broadcast to the scores.

    Example:
        >>> mask = torch.tensor([[True, True, False], [True, True, True]]).reshape(2, 1, 1, 3)
        >>> follow_mask(mask, (2, 4, 3, 3)).governor(1, 2, 0, 2)
        (1, 0, 0, 2)
    """
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else mask
    if not isinstance(array, np.ndarray) or array.dtype != bool:
        kind = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"mask must be a boolean tensor or array (True = may attend), got {kind}")
    shape = tuple(scores_shape)
    try:
        fits = np.broadcast_shapes(array.shape, shape) == shape and array.ndim <= len(shape)
    except ValueError:
        fits = False
    if not fits or not array.size:
        raise ValueError(f"a mask of shape {array.shape} does not broadcast to scores of {shape}")
    if len(names) < len(shape):
        raise ValueError(f"names must be at least {len(shape)}, got {names!r}")
    return MaskFollower(array, shape, tuple(names)[len(names) - len(shape) :])


def _figure(f: MaskFollower) -> Figure:
    sizes = f.scores_shape
    if math.prod(sizes) > MOST:
        sizes = corner(sizes, PART)
    mask_sizes = [
        min(n, s) for n, s in zip(f.mask.shape, sizes[len(sizes) - f.mask.ndim :], strict=True)
    ]
    drawn = list(np.ndindex(*sizes))
    width = cell_width("T")
    mask_names = list(f.names[len(f.names) - f.mask.ndim :])
    panels = [
        Panel(
            title="scores",
            notes=("choose an entry", axis_roles(f.names)),
            block=nested_boxes([range(n) for n in sizes], f.names, width),
            cell_width=width,
            table=(*_table(f, "shape", f.scores_shape), "index"),
            reading=(2, 7),
            reading_width=3 * len(sizes),
        ),
        Panel(
            title="mask",
            notes=("T may attend, F may not", axis_roles(mask_names)),
            block=nested_boxes([range(n) for n in mask_sizes], mask_names, width),
            cell_width=width,
            table=(*_table(f, "shape", f._padded(f.mask.shape)), "index"),
            reading=(2, 7),
            reading_width=3 * len(sizes),
            still=tuple(
                (index, _letter(f.mask[index]), "" if f.mask[index] else "x")
                for index in np.ndindex(*mask_sizes)
            ),
        ),
    ]
    lead = "Choose a score, and see which mask element governs it: point, tap, or use Tab and the "
    lead += "arrow keys."
    if len(drawn) < math.prod(f.scores_shape):
        total = math.prod(f.scores_shape)
        lead += f" Too large to draw: this is a part, {len(drawn)} of {total:,} scores."
    return Figure(
        label="scores",
        lead=lead,
        panels=panels,
        elements=[_element(f, index) for index in drawn],
        marked_panels=frozenset([0]),
        mark="hatched",
    )


def _element(f: MaskFollower, index: tuple[int, ...]) -> Element:
    source = f.governor(*index)
    letter = _letter(f.mask[source])
    return Element(
        name=f"score {', '.join(map(str, index))}",
        text=letter,
        cells=(index, None),
        places=(None, None),
        readings=(_reading(f, index), _reading(f, f._padded(source))),
        sources=((1, source, letter),),
        marked=letter == "F",
        chosen=index == f.chosen,
    )


def _table(f: MaskFollower, label: str, sizes: Sequence) -> list[str]:
    return aligned([("axis ", f.names), (label, sizes), ("", f.scores_shape)])[:2]


def _reading(f: MaskFollower, index: Sequence) -> str:
    return aligned([("axis ", f.names), ("", index), ("", f.scores_shape)])[1][7:]


def _letter(allowed: bool) -> str:
    return "T" if allowed else "F"
