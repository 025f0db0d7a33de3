"""What becomes of each letter of an einsum spec."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from mha_tutor.plotting.canvas import axes_or_new, set_title, write

# Roles by color and by line, so that neither has to be seen alone.
PENS = {
    "batch": {"color": "#1a1a1a", "linestyle": "-"},
    "kept": {"color": "#5e3c99", "linestyle": "--"},
    "summed": {"color": "#8c510a", "linestyle": ":"},
}


def plot_spec(
    spec: str, names: Sequence[str] = ("", "", ""), ax: Axes | None = None, *, title: str = ""
) -> Axes:
    """Draw where each letter of a spec of two operands goes: batch, kept or summed.

    Args:
        spec: such as "ij,jk->ik"; a letter that is summed must stand in both operands.
        names: of the left operand, the right operand and the result.
        ax: the Axes to draw on; a new figure without it.
        title: the title; the spec by default.

    Raises:
        ValueError: the spec has no arrow or not two operands.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_spec("ij,jk->ik")
        >>> sorted({text.get_text() for text in ax.texts})
        ['', 'i', 'j', 'k', 'kept', 'Σ summed']
        >>> plt.close(ax.figure)
    """
    try:
        terms, out = spec.split("->")
        left, right = terms.split(",")
    except ValueError:
        raise ValueError(
            f"spec must have two operands and an arrow, as in 'ij,jk->ik', got {spec!r}"
        ) from None
    ax = axes_or_new(ax, 5.0, 2.7)
    start = (len(left) + 1 + len(right) - len(out)) / 2
    tops = {
        "left": {letter: i for i, letter in enumerate(left)},
        "right": {letter: len(left) + 1 + i for i, letter in enumerate(right)},
    }
    bottom = {letter: start + i for i, letter in enumerate(out)}
    for side, row in tops.items():
        for letter, x in row.items():
            role = _role(letter, left, right, out)
            _letter(ax, letter, x, 2, role)
            if letter in out:
                ax.plot([x, bottom[letter]], [2, 0], linewidth=2, **PENS[role])
            elif side == "left":  # a summed letter ties the operands together
                end = tops["right"][letter]
                ax.plot([x, x, end, end], [2, 2.75, 2.75, 2], linewidth=2, **PENS[role])
                style = {"color": PENS[role]["color"], "backgroundcolor": "white"}
                write(ax, (x + end) / 2, 2.75, "Σ summed", **style)
    for letter, x in bottom.items():
        role = _role(letter, left, right, out)
        _letter(ax, letter, x, 0, role)
        write(ax, x, -0.65, role, color=PENS[role]["color"])
    write(ax, (len(left) - 1) / 2, 3.3, names[0])
    write(ax, len(left) + (len(right) + 1) / 2, 3.3, names[1])
    write(ax, start - 1, 0, names[2], ha="right")
    ax.set(xlim=(-0.8, len(left) + len(right) + 0.8), ylim=(-0.9, 3.6))
    ax.axis("off")
    set_title(ax, title or spec)
    return ax


def _role(letter: str, left: str, right: str, out: str) -> str:
    if letter not in out:
        return "summed"
    return "batch" if letter in left and letter in right else "kept"


def _letter(ax: Axes, letter: str, x: float, y: float, role: str) -> None:
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": PENS[role]["color"]}
    write(ax, x, y, letter, fontsize=14, bbox=box, zorder=3)
