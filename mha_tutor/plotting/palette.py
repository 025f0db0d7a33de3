"""The colors of the plots: those of the heads, inks, and what is neutral."""

from __future__ import annotations

from mha_tutor.palette import HEAD_COLORS

INK, SOFT_INK = "#1a1a1a", "#595959"
NEUTRAL_FACE, NEUTRAL_EDGE = "#f2f2f2", "#999999"


def head_color(h: int) -> str:
    """Return the color of head `h` (0 to 3), the same in every figure of the book.

    Raises:
        ValueError: there is no such color; more than four heads become small multiples.

    Example:
        >>> head_color(0)
        '#0072B2'
    """
    if not 0 <= h < len(HEAD_COLORS):
        raise ValueError(
            f"head must be 0 to {len(HEAD_COLORS) - 1} (more heads than colors: draw small "
            f"multiples with plot_heads), got {h}"
        )
    return HEAD_COLORS[h]
