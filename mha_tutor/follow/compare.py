"""Two ways to reshape one tensor, side by side, and which elements part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mha_tutor.figures.figure import Figure
from mha_tutor.follow.drawing import (
    HEAD,
    HOW,
    drawn_elements,
    heads_of,
    part_words,
    stage_element,
    stage_panel,
)
from mha_tutor.follow.recording import Recording
from mha_tutor.follow.stages import Stage, axis_names, stages_text

__all__ = ["Comparison", "compare"]

MOST_LINES = 4  # of what got mixed


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Two recordings of one tensor that end in one shape; made by `compare`.

    Attributes:
        right: the recording that is meant.
        wrong: the other one.
    """

    right: Recording
    wrong: Recording

    @property
    def names(self) -> list[str]:
        """The name of each axis of the result, as the right one has it."""
        return axis_names(self.right.stages[-1])

    @cached_property
    def moved(self) -> dict[str, np.ndarray]:
        """For each axis of the result: which elements end at another index on it.

        The elements are in the order and the shape of the first stage.
        """
        first = self.right.stages[0]
        ends = [_ends(recording.stages[-1]) for recording in (self.right, self.wrong)]
        differs = ends[0] != ends[1]  # (elements, axes)
        return {name: differs[:, i].reshape(first.shape) for i, name in enumerate(self.names)}

    @property
    def misplaced(self) -> np.ndarray:
        """Which elements end in another row: another head, another token or another sequence."""
        rows = list(self.moved.values())[:-1]
        return np.any(rows, axis=0) if rows else np.zeros(self.right.stages[0].shape, bool)

    def found(self) -> list[str]:
        """Return the differences in words: how many elements, and what got mixed."""
        total, misplaced = self.misplaced.size, int(self.misplaced.sum())
        if not misplaced:
            return [f"All {total} elements end in the same row in both."]
        counts = {name: int(where.sum()) for name, where in self.moved.items()}
        counts.popitem()
        words = ", ".join(f"{n} at another {name}" for name, n in counts.items() if n)
        return [
            f"{misplaced} of {total} elements end in another row: {words}.",
            *_mixed(self.right.stages[-1], self.wrong.stages[-1], self.names),
        ]

    def __repr__(self) -> str:
        parts = ["Right:\n\n" + stages_text(self.right.stages, self.right.chosen)]
        parts.append("Wrong:\n\n" + stages_text(self.wrong.stages, self.right.chosen))
        parts.append("\n".join(self.found()))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        return _figure(self).html()


def compare(right: Recording, wrong: Recording) -> Comparison:
    """Put two recordings of one tensor side by side, and mark what ends in another place.

    Args:
        right: what is meant; its names of axes, its heads and its chosen element count.
        wrong: another way from the same tensor to the same shape.

    Returns:
        A `Comparison`. Show it in a notebook, print it, or use `moved` and `misplaced`.

    Raises:
        ValueError: the recordings start from different tensors or end in different shapes.
        TypeError: an argument is not a recording.

    Example:
        >>> from mha_tutor import follow
        >>> x = follow((2, 4, 6), "BLE")
        >>> right = x.view(2, 4, 3, 2, names="BLHD").transpose(1, 2)
        >>> both = compare(right, x.view(2, 3, 4, 2, names="BHLD"))
        >>> int(both.misplaced.sum()), int(both.moved["H"].sum()), int(both.moved["L"].sum())
        (40, 24, 32)
        >>> print(both.found()[1])
        In each B. Right: each H holds L 0, 1, 2, 3. Wrong: H 0 holds L 0, 1; H 1 holds L 1, 2; \
H 2 holds L 2, 3.
    """
    for name, recording in (("right", right), ("wrong", wrong)):
        if not isinstance(recording, Recording):
            raise TypeError(
                f"{name} must be a recording, as `follow` makes one, got {type(recording).__name__}"
            )
    first, other = right.stages[0], wrong.stages[0]
    same = first.shape == other.shape and first.strides == other.strides
    if not same or not np.array_equal(first.values, other.values, equal_nan=True):
        raise ValueError("the two recordings must start from the same tensor")
    if right.shape != wrong.shape:
        raise ValueError(f"the two must end in one shape, got {right.shape} and {wrong.shape}")
    if right.stages[-1].elements.size != first.elements.size:
        raise ValueError("a comparison needs all elements, and slicing drops some")
    return Comparison(right, wrong)


def _ends(stage: Stage) -> np.ndarray:
    """Return the index of each element, in the order of their numbers: (elements, axes)."""
    return np.argwhere(np.ones(stage.shape, bool))[np.argsort(stage.elements, axis=None)]


def _mixed(right: Stage, wrong: Stage, names: list[str]) -> list[str]:
    """Say which tokens (or other rows) each head (or other box) of the wrong result holds."""
    if len(names) < 2:
        return []
    row = len(names) - 2
    unit = row - 1 if HEAD in right.names[:row] else row  # what is told apart: a box or a row
    true, got = _ends(right), _ends(wrong)
    lines: dict[str, str] = {}
    for outer in np.ndindex(right.shape[:unit]):
        where = ", ".join(f"{name} {i}" for name, i in zip(names, outer, strict=False))
        phrases = []
        for ends in (true, got):
            inside = (ends[:, :unit] == outer).all(axis=1)
            phrases.append(
                [
                    f"{names[unit]} {i} holds {names[row]} {_list(true[inside & own][:, row])}"
                    for i in range(right.shape[unit])
                    for own in [ends[:, unit] == i]
                ]
            )
        meant, found = phrases
        contents = {phrase.split(" holds ")[1] for phrase in meant}
        if len(contents) == 1:
            meant = [f"each {names[unit]} holds {contents.pop()}"]
        lines[where] = f"Right: {'; '.join(meant)}. Wrong: {'; '.join(found)}."
    if len(set(lines.values())) == 1:
        where, words = lines.popitem()
        return [f"In each {where.rpartition(' ')[0]}. {words}" if where else words]
    told = [f"In {where}. {words}" for where, words in lines.items()]
    return told[:MOST_LINES] + ["And so on."] * (len(told) > MOST_LINES)


def _list(numbers: np.ndarray) -> str:
    return ", ".join(map(str, sorted(set(numbers.tolist()))))


def _figure(both: Comparison) -> Figure:
    right, wrong = both.right.stages, both.wrong.stages
    ends = [right[0], _end("right", right), _end("wrong", wrong)]
    drawn = drawn_elements(ends)
    head_of, heads = heads_of(right, drawn)
    misplaced = both.misplaced.ravel()
    lines = max(len(right), len(wrong)) - 1
    panels = []
    for end, stages in zip(ends, [right[:1], right, wrong], strict=True):
        steps = [stage.step for stage in stages[1:]]
        panels.append(
            stage_panel(
                end, drawn, first=len(stages) == 1, steps=[*steps, *[" "] * (lines - len(steps))]
            )
        )
    places = " or ".join(both.names[:-1])
    lead = f"Compare: {HOW} Dashed: at another {places} than in the right one."
    return Figure(
        label="elements of x",
        lead=" ".join([lead, *part_words(ends, drawn)]),
        panels=panels,
        elements=[
            stage_element(
                ends, n, head_of.get(n), n == both.right.chosen, marked=bool(misplaced[n])
            )
            for n in drawn
        ],
        heads=heads,
        marked_panels=frozenset([2]),
        footer=tuple(both.found()),
    )


def _end(name: str, stages: Sequence[Stage]) -> Stage:
    """Return the last stage as the result of one step, from the first."""
    return replace(stages[-1], step=name, is_view=all(stage.is_view for stage in stages))
