"""The figure of a recording: a panel for each stage, an element for each number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mha_tutor.figures.boxes import Block, cell_width, corner, memory_strip, nested_boxes
from mha_tutor.figures.figure import Element, Figure, Panel
from mha_tutor.figures.words import aligned, axis_roles, text_of
from mha_tutor.follow.stages import Stage, axis_names, layout_words, offset_sum
from mha_tutor.palette import HEAD_COLORS

MOST, PART = 64, 48  # elements that are drawn: of a whole, of what is too large
MOST_CELLS = 320  # the same, counted in all stages
MOST_STAGES = 10
HOW = "point, tap, or use Tab and the arrow keys."
HEAD = "H"  # the name of the axis that gives the colors


def recording_figure(stages: Sequence[Stage], chosen: int | None) -> Figure:
    """Return the figure of all stages; of too many, the first and the last ones."""
    skipped = len(stages) - MOST_STAGES
    if skipped > 0:
        stages = [stages[0], *stages[skipped + 1 :]]
    drawn = drawn_elements(stages)
    head_of, heads = heads_of(stages, drawn)
    lead = [f"Follow an element: {HOW}", *part_words(stages, drawn)]
    if skipped > 0:
        lead.append(f"The {skipped} stages after the first are not drawn.")
    return Figure(
        label="elements of x",
        lead=" ".join(lead),
        panels=[stage_panel(s, drawn, first=s is stages[0]) for s in stages],
        elements=[stage_element(stages, n, head_of.get(n), n == chosen) for n in drawn],
        heads=heads,
        faded=faded_places(stages, drawn),
    )


def stage_panel(
    stage: Stage,
    drawn: Sequence[int],
    *,
    first: bool,
    title: str | None = None,
    steps: Sequence[str] = (),
) -> Panel:
    """Return the panel of one stage."""
    texts = [text_of(stage.all_values[n]) for n in drawn]
    width = cell_width(texts)
    block, is_grid = _block(stage, drawn, width)
    part = ""
    if is_grid and len(block.cells) < stage.elements.size:
        used = zip(axis_names(stage), zip(*block.cells, strict=True), strict=True)
        part = "drawn: " + "; ".join(f"{name} {runs(set(indices))}" for name, indices in used)
    table = [*aligned(table_rows(stage))[:-1], "index", "offset"]
    held = [offset for offset, n in stage.memory.items() if n in set(drawn)]
    sums = [offset_sum(stage, i) for n in drawn if (i := stage.index_of(n)) is not None]
    roles = axis_roles(axis_names(stage)) if is_grid else "in the order of the index"
    return Panel(
        title=stage.step if title is None else title,
        notes=(*steps, layout_words(stage, first=first), *filter(None, (roles, part))),
        block=block,
        cell_width=width,
        table=tuple(table),
        reading=(3, 9),
        reading_width=max(map(len, sums)),
        memory="memory" if first else f"memory, {'unchanged' if stage.is_view else 'new'}",
        strip=memory_strip(held, texts),
    )


def stage_element(
    stages: Sequence[Stage], n: int, head: int | None, chosen: bool, *, marked: bool = False
) -> Element:
    """Return one element as it stands in each stage."""
    places = [{held: offset for offset, held in s.memory.items()}.get(n) for s in stages]
    return Element(
        name=text_of(stages[0].all_values[n]),
        text=text_of(stages[0].all_values[n]),
        cells=tuple(stage.index_of(n) for stage in stages),
        places=tuple(places),
        readings=tuple(reading(stage, stage.index_of(n)) for stage in stages),
        head=head,
        marked=marked,
        chosen=chosen,
    )


def table_rows(stage: Stage) -> list[tuple[str, list]]:
    """Return the axes, shape and strides, and a row as wide as any index."""
    widest = [n - 1 for n in stage.shape]
    return [
        ("axis   ", axis_names(stage)),
        ("shape", list(stage.shape)),
        ("strides", list(stage.strides)),
        ("index", widest),
    ]


def reading(stage: Stage, index: tuple[int, ...] | None) -> str:
    """Say where an element stands in a stage, in columns with the table."""
    if index is None:
        return "sliced away"
    line = aligned([*table_rows(stage), ("index", list(index))])[-1]
    return f"{line[9:]}\n{offset_sum(stage, index)}"


def _block(stage: Stage, drawn: Sequence[int], width: float) -> tuple[Block, bool]:
    """Place the elements that are drawn: as boxes and a matrix, or in a line if they are few."""
    indices = [i for n in drawn if (i := stage.index_of(n)) is not None]
    used = [sorted({index[axis] for index in indices}) for axis in range(len(stage.shape))]
    if math.prod(map(len, used)) <= 2 * len(indices):
        return nested_boxes(used, stage.names, width), True
    line = nested_boxes([range(len(indices))], [None], width)
    cells = {index: line.cells[(k,)] for k, index in enumerate(sorted(indices))}
    return Block(line.width, line.height, cells), False


def runs(numbers: Iterable[int]) -> str:
    """Write numbers shortly.

    Example:
        >>> runs({0, 1, 2, 3, 64, 65, 128})
        '0–3, 64–65, 128'
    """
    found: list[list[int]] = []
    for number in sorted(numbers):
        if not found or number > found[-1][-1] + 1:
            found.append([number])
        found[-1][1:] = [number]
    return ", ".join(f"{r[0]}–{r[-1]}" if r[0] < r[-1] else str(r[0]) for r in found)


# --- What is drawn, and in which color ----------------------------------------------------


def drawn_elements(stages: Sequence[Stage]) -> list[int]:
    """Return the numbers of the elements to draw: all, or a corner of the stage with most axes."""
    most = MOST_CELLS // len(stages)
    if stages[0].elements.size <= min(MOST, most):
        return list(range(stages[0].elements.size))
    axes = max(len(stage.shape) for stage in stages)
    fine = [stage for stage in stages if len(stage.shape) == axes][-1]
    part = fine.elements[tuple(map(slice, corner(fine.shape, min(PART, most))))]
    return sorted(part.ravel().tolist())


def part_words(stages: Sequence[Stage], drawn: Sequence[int]) -> list[str]:
    """Say that only a part is drawn, and which, or nothing."""
    total = stages[0].elements.size
    if len(drawn) == total:
        return []
    return [f"Too large to draw: this is a part, {len(drawn)} of {total:,} elements."]


def faded_places(stages: Sequence[Stage], drawn: Sequence[int]) -> frozenset[tuple[int, int]]:
    """Return the places that a stage's memory holds and the stage does not show."""
    return frozenset(
        (i, offset)
        for i, stage in enumerate(stages)
        for offset, n in stage.memory.items()
        if n in set(drawn) and stage.index_of(n) is None
    )


def heads_of(stages: Sequence[Stage], drawn: Sequence[int]) -> tuple[dict[int, int], int]:
    """Return the head of each element drawn, from the first stage that tells, and how many."""
    for stage in stages:
        if HEAD in stage.names:
            axis = stage.names.index(HEAD)
            head_of = {n: index[axis] for n in drawn if (index := stage.index_of(n)) is not None}
            count = max(head_of.values(), default=0) + 1
            return (head_of, count) if count <= len(HEAD_COLORS) else ({}, 0)
    return {}, 0
