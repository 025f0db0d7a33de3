"""One stage of a recording: how a tensor lies in memory, and what each element is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from mha_tutor.figures.words import aligned, text_of

Names = tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """The tensor after one step.

    Attributes:
        step: the code of the step, such as `.transpose(1, 2)`; `x` for the first stage.
        names: a name for each axis, or None.
        is_view: the step moved nothing: the stage shares its memory with the stage before. The
            first stage is what you gave, and counts as a view.
        all_values: the value of each element of the first stage, in the order of its number.
    """

    step: str
    names: Names
    is_view: bool
    _numbers: torch.Tensor = field(repr=False)
    all_values: np.ndarray = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        return tuple(self._numbers.shape)

    @property
    def strides(self) -> tuple[int, ...]:
        """For each axis how far apart neighbors lie in memory, in elements."""
        return self._numbers.stride()

    @property
    def storage_offset(self) -> int:
        """Where in memory the element of index (0, 0, …) lies."""
        return self._numbers.storage_offset()

    @property
    def is_contiguous(self) -> bool:
        """Whether reading in the order of the index is reading memory in order."""
        return self._numbers.is_contiguous()

    @cached_property
    def elements(self) -> np.ndarray:
        """The number of each element: its place in the order of the first stage."""
        return self._numbers.numpy().copy()

    @cached_property
    def values(self) -> np.ndarray:
        """The value of each element."""
        return self.all_values[self.elements]

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where in memory each element lies, counted in elements from the start."""
        steps = np.meshgrid(
            *(np.arange(n) * s for n, s in zip(self.shape, self.strides, strict=True)),
            indexing="ij",
        )
        return np.asarray(sum(steps, start=np.zeros(self.shape, np.int64)) + self.storage_offset)

    @cached_property
    def memory(self) -> dict[int, int]:
        """The element at each offset that holds one; a slice's memory holds more than the slice."""
        size = self._numbers.untyped_storage().nbytes() // self._numbers.itemsize
        held = self._numbers.as_strided((size,), (1,), 0).tolist()
        return {offset: element for offset, element in enumerate(held) if element >= 0}

    @cached_property
    def _index_of(self) -> dict[int, tuple[int, ...]]:
        return {int(element): index for index, element in np.ndenumerate(self.elements)}

    def index_of(self, element: int) -> tuple[int, ...] | None:
        """Return the index of an element, given by its number; None where it was sliced away."""
        return self._index_of.get(element)

    def offset_of(self, element: int) -> int | None:
        """Return where in memory an element lies, given by its number."""
        index = self.index_of(element)
        return None if index is None else int(self.offsets[index])


def axis_names(stage: Stage) -> list[str]:
    """Return the name of each axis, or its number where it has none."""
    return [name or str(axis) for axis, name in enumerate(stage.names)]


def layout_words(stage: Stage, *, first: bool) -> str:
    """Say whether a step copied, and whether the result is contiguous."""
    moved = "" if first else "a view, " if stage.is_view else "a copy, "
    return moved + ("contiguous" if stage.is_contiguous else "not contiguous")


def offset_sum(stage: Stage, index: tuple[int, ...]) -> str:
    """Write the offset of an index as the sum that it is, such as "24+18+0 = 42"."""
    terms = [i * s for i, s in zip(index, stage.strides, strict=True)]
    terms = [stage.storage_offset] * (stage.storage_offset > 0) + terms
    total = str(sum(terms))
    return total if len(terms) < 2 else f"{'+'.join(map(str, terms))} = {total}"


def stages_text(stages: Sequence[Stage], chosen: int | None) -> str:
    """Write all stages, and the way of the chosen element through them."""
    parts = [_stage_text(stage, first=stage is stages[0]) for stage in stages]
    if chosen is not None:
        parts.append("\n".join(_way(stages, chosen)))
    return "\n\n".join(parts)


def _stage_text(stage: Stage, *, first: bool) -> str:
    rows = [("axes", axis_names(stage)), ("shape", stage.shape), ("strides", stage.strides)]
    lines = [f"{stage.step}    {layout_words(stage, first=first)}"]
    lines += [f"    {line}" for line in aligned(rows)]
    table = np.array2string(stage.values, formatter={"all": text_of}, max_line_width=88)
    lines += [f"    {line}" if line else "" for line in table.split("\n")]
    held = [text_of(stage.all_values[element]) for element in stage.memory.values()]
    offsets = list(stage.memory)
    span = f"{offsets[0]} to {offsets[-1]}" if len(offsets) > 1 else f"{offsets[0]}"
    shown = " ".join(held if len(held) <= 64 else [*held[:32], "...", *held[-8:]])
    lines.append(f"    memory, offset {span}: {shown}")
    return "\n".join(lines)


def _way(stages: Sequence[Stage], element: int) -> list[str]:
    lines = [f"{text_of(stages[0].all_values[element])} is at"]
    width = max(len(stage.step) for stage in stages)
    for stage in stages:
        index = stage.index_of(element)
        place = "no place: it was sliced away"
        if index is not None:
            place = f"index {index}, offset {offset_sum(stage, index)}"
        lines.append(f"    {stage.step:<{width}}    {place}")
    return lines
