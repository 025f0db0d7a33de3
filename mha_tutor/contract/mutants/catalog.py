"""What a mutant is, and the list of all of them.

A mutant replaces one or two of the `Steps`. It can be had as a function, a layer, a pair of
split and merge, or a mask function, and two mutants combine into one with both bugs. `forms`
says where the bug can be seen at all: a layer that swaps key and value, its projections included,
is a layer with other names, so nothing outside shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from mha_tutor.contract.steps import Layer, Steps, as_function

__all__ = ["FORMS", "MUTANTS", "Mutant", "combine", "find_mutant", "mutant", "variant"]

FUNCTION, MODULE, BLACK_BOX = "function", "module", "black box"
SPLIT, MERGE, MASK = "split", "merge", "mask"
FORMS = (FUNCTION, MODULE, BLACK_BOX, SPLIT, MERGE, MASK)


@dataclass(frozen=True)
class Mutant:
    """An attention with one bug.

    Attributes:
        name: short, with hyphens.
        story: what is wrong, in a sentence.
        chapter: of the book, that explains it.
        forms: in which it can be seen; see `FORMS`.
        steps: what it does differently, to be put in front of `Steps` or `Layer`.
        seen: where it is found in public, an address; empty if not known.
        variants: the same bug written in other ways, for the diagnosis to know it by.
    """

    name: str
    story: str
    chapter: int
    forms: frozenset[str]
    steps: type
    seen: str = ""
    variants: tuple[type, ...] = ()

    def function(self) -> Callable[..., Tensor]:
        """Return it with the face of `torch.nn.functional.scaled_dot_product_attention`."""
        return as_function(self._with(Steps))

    def layer(self, embed_dim: int, num_heads: int, **options) -> Layer:
        """Return it as a layer with the usual four projections."""
        return self._with(Layer)(embed_dim, num_heads, **options)

    def split(self, x: Tensor, num_heads: int) -> Tensor:
        """(B, L, E) → (B, H, L, D), with the bug."""
        return self._with(Steps)().split(x, num_heads)

    def merge(self, x: Tensor) -> Tensor:
        """(B, H, L, D) → (B, L, E), with the bug."""
        return self._with(Steps)().merge(x)

    def causal(self, L: int, S: int | None = None) -> Tensor:
        """Return a causal mask, with the bug."""
        return self._with(Steps)().causal(L, S)

    def padding(self, lengths, S: int) -> Tensor:
        """Return a padding mask, with the bug."""
        return self._with(Steps)().padding(lengths, S)

    def window(self, L: int, window: int) -> Tensor:
        """Return a sliding-window mask, with the bug."""
        return self._with(Steps)().window(L, window)

    def _with(self, base: type) -> type:
        return type(self.name, (self.steps, base), {})

    @property
    def sites(self) -> frozenset[str]:
        """Which steps it replaces."""
        return sites(self.steps)


def sites(steps: type) -> frozenset[str]:
    """List what a class of steps replaces."""
    classes = (c for c in steps.__mro__ if c is not object)
    return frozenset(name for c in classes for name in vars(c) if not name.startswith("__"))


def combine(first: Mutant, second: Mutant) -> Mutant:
    """Return a mutant with the bugs of both.

    Raises:
        ValueError: both replace the same step, so one would hide the other.
    """
    common = first.sites & second.sites
    if common:
        raise ValueError(f"{first.name} and {second.name} both replace {', '.join(sorted(common))}")
    return Mutant(
        f"{first.name} + {second.name}",
        f"{first.story} {second.story}",
        first.chapter,
        first.forms & second.forms,
        type("Both", (first.steps, second.steps), {}),
    )


def find_mutant(name: str) -> Mutant:
    """Return the mutant of that name.

    Raises:
        ValueError: there is none.
    """
    for known in MUTANTS:
        if known.name == name:
            return known
    raise ValueError(f"no mutant is called {name!r}; see mha_tutor.contract.MUTANTS")


MUTANTS: list[Mutant] = []


def mutant(name: str, story: str, chapter: int, *forms: str, seen: str = ""):
    """Enter a class of steps into the catalog; see `Mutant` for the arguments."""

    def register(steps: type) -> type:
        MUTANTS.append(Mutant(name, story, chapter, frozenset(forms), steps, seen))
        return steps

    return register


def variant(name: str):
    """Enter a class of steps as another way to write the bug of that name."""

    def register(steps: type) -> type:
        known = find_mutant(name)
        more = replace(known, variants=(*known.variants, steps))
        MUTANTS[MUTANTS.index(known)] = more
        return steps

    return register
