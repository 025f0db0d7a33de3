"""The whole layer in one picture: the map of the book."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, Rectangle

from mha_tutor.plotting.canvas import axes_or_new, write
from mha_tutor.plotting.palette import INK, NEUTRAL_EDGE, NEUTRAL_FACE, head_color

# Each part of the layer, in the order of the computation, in words.
LAYER_PARTS = {
    "tokens": "the tokens X, one a row",
    "rows": "W_Q, W_K and W_V, cut by rows into a block for each head",
    "heads": "queries, keys and values as three stacked sheets, a sheet for each head",
    "scores": "a sheet of scores for each head, from its queries and keys",
    "weights": "a sheet of weights for each head, the softmax of its scores",
    "mix": "each head's values mixed by its weights",
    "concatenate": "the heads' results side by side",
    "columns": "W_O, cut by columns into a block for each head",
    "sum": "the shares of the heads, added up to the output Y",
}

HEADS, TOKENS, FEATURES, DIM = 3, 4, 6, 2
CELL, SMALL, SHIFT = 0.35, 0.23, 0.3  # sides of a cell; how far a sheet sticks out
LEFT, MIDDLE, RIGHT = 1.9, 5.05, 8.2  # the three columns of the picture
PALE = 0.16  # what is left of a color that is not lit
OWNERS = [feature // DIM for feature in range(FEATURES)]  # the head of each feature
WEIGHTS = np.array(  # head 0 looks one back, head 1 at itself and on, head 2 at the first
    [
        [[0.9, 0.0, 0.1, 0.0], [0.9, 0.1, 0.0, 0.0], [0.0, 0.9, 0.1, 0.0], [0.1, 0.0, 0.8, 0.1]],
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.1, 0.9]],
        [[0.8, 0.1, 0.1, 0.0], [0.8, 0.0, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1], [0.6, 0.1, 0.2, 0.1]],
    ]
)


def plot_layer(lit: str | Collection[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw multi-head attention from X to Y, three heads as stacked sheets, with parts lit.

    Args:
        lit: the part, or the parts, in full color, named as in `LAYER_PARTS`: tokens, rows,
            heads, scores, weights, mix, concatenate, columns, sum. All of them by default.
        ax: the Axes to draw on; a new figure without it.

    Raises:
        ValueError: there is no such part.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_layer(lit="weights")
        >>> "softmax" in [text.get_text() for text in ax.texts]
        True
        >>> plt.close(ax.figure)
    """
    parts = _to_parts(lit)  # refused before a figure is opened
    picture = _Picture(axes_or_new(ax, 5.0, 7.1), parts)
    picture.draw()
    return picture.ax


def describe_layer(lit: str | Collection[str] | None = None) -> str:
    """Say in words what `plot_layer(lit)` shows: its alternative text.

    Args:
        lit: as for `plot_layer`.

    Raises:
        ValueError: there is no such part.

    Example:
        >>> describe_layer("weights").endswith(
        ...     "In full color: a sheet of weights for each head, the softmax of its scores."
        ... )
        True
    """
    parts = _to_parts(lit)
    text = (
        "Multi-head attention from top to bottom. Tokens X go through W_Q, W_K and W_V, cut by "
        "rows; queries, keys and values are stacks of three sheets, one for each head; queries "
        "and keys give scores, the softmax of scores gives weights, weights mix values; the "
        "results are concatenated, multiplied by W_O, cut by columns, and summed to Y."
    )
    if len(parts) < len(LAYER_PARTS):
        text += f" In full color: {'; '.join(LAYER_PARTS[part] for part in parts)}."
    return text


def _to_parts(lit: str | Collection[str] | None) -> list[str]:
    chosen = set(LAYER_PARTS) if lit is None else {lit} if isinstance(lit, str) else set(lit)
    if unknown := sorted(chosen - set(LAYER_PARTS)):
        raise ValueError(f"lit must name parts among {', '.join(LAYER_PARTS)}, got {unknown[0]!r}")
    return [part for part in LAYER_PARTS if part in chosen]


def _mix(color: str, amount: float) -> tuple[float, ...]:
    """Return the color on white, as if it were that opaque."""
    return tuple(1 - amount * (1 - channel) for channel in to_rgb(color))


class _Picture:
    """What is drawn, where; a unit is half an inch, y grows downward."""

    def __init__(self, ax: Axes, lit: Sequence[str]) -> None:
        self.ax, self.lit = ax, lit
        ax.set(xlim=(0, 10), ylim=(14.2, 0), aspect="equal")
        ax.axis("off")

    def draw(self) -> None:
        everything = range(TOKENS)
        self.table("tokens", MIDDLE, 0.55, [None] * FEATURES)
        self.label("tokens", MIDDLE, 0.3, "tokens $X$  (L, E)")

        projections = [(LEFT, "Q", "queries"), (MIDDLE, "K", "keys"), (RIGHT, "V", "values")]
        for x, letter, name in projections:
            self.arrow("rows", (MIDDLE, 2.05), (x, 2.62))
            self.weight("rows", x, 2.7, by_rows=True)
            self.label("rows", x - 0.85, 3.39, f"$W_{letter}$", ha="right")
            self.arrow("heads", (x, 4.18), (x, 4.68))
            for h in reversed(range(HEADS)):
                sheet = [[0.55] * DIM for _ in everything]
                self.sheet("heads", x, 5.35, h, sheet)
            self.label("heads", x - 0.85, 5.95, name, ha="right", rotation=90)
        self.label("rows", 9.95, 3.39, "rows", ha="right", weight="bold")
        self.label("heads", 9.95, 5.6, "H\nheads", ha="right", weight="bold")

        self.arrow("scores", (LEFT, 6.85), (LEFT, 7.4))
        self.arrow("scores", (MIDDLE - 0.4, 6.85), (LEFT + 0.75, 7.5))
        for h in reversed(range(HEADS)):
            self.sheet("scores", LEFT, 8.1, h, WEIGHTS[h] * 0.35 + 0.1)
            self.sheet("weights", MIDDLE, 8.1, h, WEIGHTS[h])
            self.sheet("mix", RIGHT, 8.1, h, [[0.55] * DIM for _ in everything])
        self.label("scores", LEFT - 0.2, 9.75, "scores $q·k$")
        self.arrow("weights", (LEFT + 1.2, 8.4), (MIDDLE - 1.15, 8.4))
        self.label("weights", 3.63, 7.95, "softmax", fontsize=9.5)
        self.label("weights", MIDDLE - 0.2, 9.75, "weights $A$")
        self.arrow("mix", (MIDDLE + 1.2, 8.4), (RIGHT - 0.85, 8.4))
        self.arrow("mix", (RIGHT, 6.85), (RIGHT, 7.4))
        self.label("mix", RIGHT, 9.75, "mix $A_h v_h$")

        self.arrow("concatenate", (RIGHT, 9.98), (RIGHT, 10.45))
        self.table("concatenate", RIGHT, 10.55, OWNERS)
        self.label("concatenate", RIGHT, 12.2, "concatenate")
        self.arrow("columns", (RIGHT - 1.15, 11.25), (MIDDLE + 0.85, 11.25))
        self.weight("columns", MIDDLE, 10.56, by_rows=False)
        self.label("columns", MIDDLE, 12.2, "$W_O$  columns")
        self.arrow("sum", (MIDDLE - 0.85, 11.25), (LEFT + 1.65, 11.25))
        for h in reversed(range(HEADS)):
            self.sheet("sum", LEFT - 0.1, 10.9, h, [[0.3] * FEATURES for _ in everything])
        self.label("sum", LEFT - 0.1, 12.55, "sum  Σ")
        self.arrow("sum", (LEFT + 0.55, 12.45), (MIDDLE - 1.2, 13.2))
        self.table("sum", MIDDLE, 12.65, [None] * FEATURES)
        self.label("sum", MIDDLE + 1.2, 13.35, "output $Y$  (L, E)", ha="left")

    def strength(self, part: str) -> float:
        return 1.0 if part in self.lit else PALE

    def cells(self, part, x, y, side, faces, edge) -> None:
        """Draw rows of cells from the upper left corner, one face color each."""
        strength = self.strength(part)
        for i, row in enumerate(faces):
            for j, face in enumerate(row):
                corner = (x + j * side, y + i * side)
                style = {"facecolor": face, "edgecolor": edge, "linewidth": 0.6}
                self.ax.add_patch(Rectangle(corner, side, side, **style))
        width, height = len(faces[0]) * side, len(faces) * side
        frame = {"fill": False, "edgecolor": edge, "linewidth": 1.4 if strength == 1 else 0.8}
        self.ax.add_patch(Rectangle((x, y), width, height, **frame))

    def table(self, part, x, y, owners) -> None:
        """Draw tokens by features; a feature has its head's color, or none."""
        strength = self.strength(part)
        colors = [NEUTRAL_FACE if h is None else head_color(h) for h in owners]
        faces = [
            [
                _mix(c, strength * (1 if h is None else 0.55))
                for c, h in zip(colors, owners, strict=True)
            ]
        ] * TOKENS
        edge = _mix(NEUTRAL_EDGE, max(strength, 0.4))
        self.cells(part, x - FEATURES * CELL / 2, y, CELL, faces, edge)

    def weight(self, part, x, y, *, by_rows) -> None:
        """Draw a weight of features by features, cut into blocks of the heads' colors."""
        amount = self.strength(part) * 0.75
        row = [_mix(head_color(h), amount) for h in OWNERS]
        faces = [[face] * FEATURES for face in row] if by_rows else [row] * FEATURES
        self.cells(part, x - FEATURES * SMALL / 2, y, SMALL, faces, "white")

    def sheet(self, part, x, y, h, values) -> None:
        """Draw head h's sheet in a stack, head 0 in front, on a ramp from white to its color."""
        strength = self.strength(part)
        faces = [[_mix(head_color(h), strength * v) for v in row] for row in values]
        x0 = x - len(faces[0]) * CELL / 2 + (h - 1) * SHIFT
        edge = _mix(head_color(h), max(strength, 0.3))
        self.cells(part, x0, y - h * SHIFT, CELL, faces, edge)

    def label(self, part, x, y, text, **style) -> None:
        color = INK if part in self.lit else "#8c8c8c"
        write(self.ax, x, y, text, **({"color": color} | style))

    def arrow(self, part, start, end) -> None:
        lit = part in self.lit
        style = {"arrowstyle": "-|>", "mutation_scale": 10, "shrinkA": 0, "shrinkB": 0}
        line = {"linewidth": 1.4 if lit else 1, "color": INK if lit else "#bdbdbd"}
        self.ax.add_patch(FancyArrowPatch(start, end, **style, **line))
