"""The sizes that inputs are drawn in: different primes first, then the smallest that still fail."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

__all__ = ["MAIN", "Sizes", "ladder", "primes_without"]


@dataclass(frozen=True)
class Sizes:
    """One size for each letter; `V` is the width of a value head."""

    B: int = 2
    H: int = 3
    L: int = 5
    S: int = 7
    D: int = 11
    V: int = 13

    @property
    def square(self) -> Sizes:
        """The same with as many keys as queries."""
        return replace(self, S=self.L)

    def text(self, letters: str) -> str:
        """Name the sizes of these letters, such as `B=2 L=5`."""
        return " ".join(f"{letter}={getattr(self, letter)}" for letter in letters)

    def total(self) -> int:
        """Return a measure of how much a reader has to look at."""
        return sum(getattr(self, field.name) for field in fields(self))


MAIN = Sizes()

_SMALL = [
    Sizes(1, 1, 1, 1, 1, 1),
    Sizes(1, 1, 2, 2, 1, 1),
    Sizes(1, 1, 1, 2, 2, 2),
    Sizes(1, 2, 1, 2, 2, 2),
    Sizes(2, 1, 1, 2, 1, 1),
    Sizes(1, 1, 2, 3, 2, 2),
    Sizes(1, 1, 3, 3, 2, 2),
    Sizes(1, 2, 2, 2, 2, 2),
    Sizes(2, 1, 2, 2, 2, 2),
    Sizes(1, 2, 2, 3, 2, 2),
    Sizes(2, 2, 2, 2, 2, 2),
    Sizes(2, 2, 2, 3, 2, 3),
    Sizes(2, 2, 3, 4, 2, 3),
]


def ladder(main: Sizes, letters: str) -> list[Sizes]:
    """List sizes from the smallest up to `main`; other letters than these keep main's size."""
    fixed = {f.name: getattr(main, f.name) for f in fields(main) if f.name not in letters}
    steps = dict.fromkeys(replace(small, **fixed) for small in _SMALL)
    return [*sorted(steps, key=Sizes.total), main]


def primes_without(*taken: int) -> list[int]:
    """List primes, leaving out those that a layer already uses for something else."""
    return [p for p in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29) if p not in taken]
