"""What every picture is drawn with: Axes, titles, text, numbers."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from mha_tutor.plotting.palette import INK

MAX_WIDTH = 7.0  # inches; wider figures are too small to read on a phone


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """Return `ax`, or the Axes of a new figure of that size in inches, white in dark mode too."""
    if ax is not None:
        if not isinstance(ax, Axes):
            raise TypeError(f"ax must be one matplotlib Axes, got {type(ax).__name__}")
        return ax
    return plt.subplots(figsize=(width, height), layout="constrained", facecolor="white")[1]


def set_title(ax: Axes, title: str | None) -> None:
    """Set a title, if there is one."""
    if title:
        ax.set_title(title, fontsize=11, color=INK)


def cell_points(ax: Axes, shape: tuple[int, ...]) -> float:
    """Estimate the size of a cell before the layout is made."""
    box = ax.get_window_extent()
    return min(box.width / shape[1], box.height / shape[0]) * 72 / ax.figure.dpi


def write(ax: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write centered text, unless the style says otherwise."""
    style = {"ha": "center", "va": "center", "fontsize": 10, "color": INK} | style
    ax.text(x, y, text, **style)


def format_number(value: Any, fmt: str | None) -> str:
    """Write the number in a cell; a string stays what it is."""
    if isinstance(value, np.str_):
        return str(value)
    if fmt is None:
        fmt = "" if isinstance(value, np.integer | np.bool_) else ".3g"
    text = format(value, fmt).replace("nan", "NaN")
    return text.lstrip("-") if not text.strip("-0.") else text  # no "-0.0"
