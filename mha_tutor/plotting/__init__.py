"""The book's figures: block pictures, memory strips, scores, weights, masks, reach, curves.

Every function takes NumPy arrays or torch tensors, draws on `ax` (or on a figure of its own) and
returns the Axes; none shows or saves. Head h has one color everywhere, always paired with a label
or a marker. Masks are boolean, True = may attend. Shape letters: H heads, L queries, S keys.
"""

from mha_tutor.palette import HEAD_COLORS, HEAD_MARKERS
from mha_tutor.plotting.cells import plot_cells, plot_equation, plot_memory
from mha_tutor.plotting.curves import plot_curves
from mha_tutor.plotting.heatmaps import plot_heads, plot_mask, plot_reach, plot_scores, plot_weights
from mha_tutor.plotting.layer import LAYER_PARTS, describe_layer, plot_layer
from mha_tutor.plotting.palette import head_color
from mha_tutor.plotting.wiring import plot_spec

__all__ = [
    "HEAD_COLORS",
    "HEAD_MARKERS",
    "LAYER_PARTS",
    "describe_layer",
    "head_color",
    "plot_cells",
    "plot_curves",
    "plot_equation",
    "plot_heads",
    "plot_layer",
    "plot_mask",
    "plot_memory",
    "plot_reach",
    "plot_scores",
    "plot_spec",
    "plot_weights",
]
