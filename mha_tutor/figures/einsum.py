"""The figure of an einsum: choose an entry of the result, see what it is summed from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch

from mha_tutor.figures.boxes import cell_width, corner, nested_boxes
from mha_tutor.figures.figure import Element, Figure, Panel
from mha_tutor.figures.words import aligned, axis_roles, text_of
from mha_tutor.palette import HEAD_COLORS

MOST, PART = 96, 48  # entries of the result that are drawn: of a whole, of what is too large
MOST_SOURCES = 400  # cells that they light up
MOST_TERMS = 4  # of a sum that is written out
HEAD = "hH"  # the letters that give the colors


def einsum_figure(full_spec: str, operands: Sequence[torch.Tensor]) -> Figure:
    """Return the figure; where the result or the sums are too large, that of a corner.

    Args:
        full_spec: without dots or spaces, with its output.
        operands: torch tensors; where one is of device "meta" no values are shown.
    """
    inputs, output = full_spec.split("->")
    terms = inputs.split(",")
    sizes = _sizes(terms, operands)
    shown = _shown(sizes, output, len(terms))
    return _Drawing(terms, output, sizes, shown, operands).figure()


def _sizes(terms: Sequence[str], operands: Sequence[torch.Tensor]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        for name, size in zip(term, x.shape, strict=True):
            sizes[name] = size if sizes.get(name, 1) == 1 else sizes[name]
    return sizes


def _shown(sizes: dict[str, int], output: str, operands: int) -> dict[str, int]:
    """Return how much of each letter is drawn."""
    summed = [name for name in sizes if name not in output]
    kept = tuple(sizes[name] for name in output)
    kept = kept if math.prod(kept) <= MOST else corner(kept, PART)
    each = max(1, MOST_SOURCES // (math.prod(kept) * operands))
    rest = corner([sizes[name] for name in summed], each)
    return dict(zip([*output, *summed], [*kept, *rest], strict=True))


class _Drawing:
    """What the parts of the figure share."""

    def __init__(self, terms, output, sizes, shown, operands):
        self.terms, self.output, self.sizes, self.shown = terms, output, sizes, shown
        self.operands = [
            None if x.is_meta else self._drawn_part(term, x)
            for term, x in zip(terms, operands, strict=True)
        ]
        self.shapes = [tuple(x.shape) for x in operands]
        self.summed = [name for name in sizes if name not in output]
        self.head = next((n for n in HEAD if sizes.get(n, 99) <= len(HEAD_COLORS)), None)
        self.result = None
        if all(x is not None and x.dtype != torch.bool for x in self.operands):
            self.result = torch.einsum(",".join(terms) + "->" + output, *self.operands)

    def _drawn_part(self, term: str, x: torch.Tensor) -> torch.Tensor:
        """Cut the letters of the result to what is drawn; sums stay whole."""
        part = [slice(self.shown[n] if n in self.output else None) for n in term]
        x = x.detach().cpu()[tuple(part)]
        return x.float() if x.dtype == torch.bfloat16 else x

    def figure(self) -> Figure:
        drawn = [dict(zip(self.output, i, strict=True)) for i in np.ndindex(*self._range())]
        lead = "Choose an entry of out, and see what it is computed from: point, tap, or use Tab "
        lead += f"and the arrow keys.{self._part_words(len(drawn))}"
        return Figure(
            label="entries of out",
            lead=lead,
            panels=[self._result_panel(), *map(self._operand_panel, range(len(self.terms)))],
            elements=[self._element(index) for index in drawn],
            heads=self.sizes[self.head] if self.head else 0,
        )

    def _range(self) -> list[int]:
        return [self.shown[name] for name in self.output]

    def _part_words(self, drawn: int) -> str:
        if self.shown == self.sizes:
            return ""
        total = math.prod(self.sizes[name] for name in self.output)
        words = f" Too large to draw: this is a part, {drawn:,} of {total:,} entries"
        cut = [n for n in self.summed if self.shown[n] < self.sizes[n]]
        words += "".join(f", and {self.shown[n]} of the {self.sizes[n]} {n}" for n in cut)
        return f"{words}."

    def _result_panel(self) -> Panel:
        indices = list(np.ndindex(*self._range()))
        width = cell_width([self._result_text(index) for index in indices])
        sums = [self._sum(dict(zip(self.output, index, strict=True))) for index in indices]
        shape = [self.sizes[name] for name in self.output]
        return Panel(
            title="out",
            notes=("choose an entry", axis_roles(self.output)),
            block=nested_boxes([range(n) for n in self._range()], self.output, width),
            cell_width=width,
            table=(*self._table(self.output, shape), "index", "sum"),
            reading=(2, 7),
            reading_width=max(map(len, sums)),
        )

    def _operand_panel(self, i: int) -> Panel:
        term, shape = self.terms[i], self.shapes[i]
        ranges = [
            range(min(self.shown[name], size)) for name, size in zip(term, shape, strict=True)
        ]
        cells = list(product(*ranges))
        texts = [self._operand_text(i, index) for index in cells]
        width = cell_width(texts)
        note = ", ".join(name for name in dict.fromkeys(term) if name in self.summed)
        return Panel(
            title=f"x{i}",
            notes=(f"summed over {note}" if note else "nothing summed", axis_roles(term)),
            block=nested_boxes(ranges, term, width),
            cell_width=width,
            table=(*self._table(term, shape), "index"),
            reading=(2, 7),
            reading_width=3 * len(term),
            still=tuple(
                (index, text, self._tint(term, index))
                for index, text in zip(cells, texts, strict=True)
            ),
        )

    def _element(self, at: dict[str, int]) -> Element:
        index = tuple(at.values())
        sources = []
        for step in product(*(range(self.shown[name]) for name in self.summed)):
            here = at | dict(zip(self.summed, step, strict=True))
            for i in range(len(self.terms)):
                place = self._place(i, here)
                sources.append((i + 1, place, self._operand_text(i, place)))
        text = self._result_text(index)
        readings = [f"{self._row(self.output, index)}\n{self._sum(at)}"]
        for i, term in enumerate(self.terms):
            place = self._place(i, at)
            entries = [":" if n in self.summed else p for n, p in zip(term, place, strict=True)]
            readings.append(self._row(term, entries))
        return Element(
            name=", ".join(map(str, index)) if self.result is None else text,
            text=text,
            cells=(index, *[None] * len(self.terms)),
            places=(None,) * (1 + len(self.terms)),
            readings=tuple(readings),
            sources=tuple(dict.fromkeys(sources)),
            head=at.get(self.head) if self.head else None,
        )

    def _place(self, i: int, at: dict[str, int]) -> tuple[int, ...]:
        """Return where operand i is read; a stretched axis has one entry, read again and again."""
        pairs = zip(self.terms[i], self.shapes[i], strict=True)
        return tuple(0 if size == 1 else at.get(name, 0) for name, size in pairs)

    def _sum(self, at: dict[str, int]) -> str:
        """Write the sum out, if it is short and its numbers are known."""
        letters = ", ".join(self.summed)
        count = math.prod(self.sizes[name] for name in self.summed)
        if self.result is None or count > MOST_TERMS:
            return f"{count} products, over {letters}" if letters else "1 product"
        products = []
        for step in product(*(range(self.sizes[name]) for name in self.summed)):
            here = at | dict(zip(self.summed, step, strict=True))
            factors = [self._operand_text(i, self._place(i, here)) for i in range(len(self.terms))]
            products.append("·".join(factors))
        return f"{'+'.join(products)} = {self._result_text(tuple(at.values()))}"

    def _operand_text(self, i: int, index: tuple[int, ...]) -> str:
        x = self.operands[i]
        return "·" if x is None else text_of(x[index].item())

    def _result_text(self, index: tuple[int, ...]) -> str:
        return "·" if self.result is None else text_of(self.result[index].item())

    def _tint(self, term: str, index: tuple[int, ...]) -> str:
        if not self.head or self.head not in term:
            return ""
        at = term.index(self.head)
        return f"q{index[at]}"

    def _table(self, names: str, shape: Sequence[int]) -> list[str]:
        return aligned([("axis ", names), ("shape", shape), ("", shape)])[:2]

    def _row(self, names: str, entries: Sequence) -> str:
        widest = [self.sizes[name] for name in names]
        return aligned([("axis ", names), ("", entries), ("", widest)])[1][7:]
