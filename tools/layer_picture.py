"""Draw the whole layer for the first page of the book."""

from pathlib import Path

import matplotlib

from mha_tutor.plotting import plot_layer

PICTURE = Path(__file__).resolve().parents[1] / "book" / "_static" / "layer.png"

if __name__ == "__main__":
    matplotlib.use("agg")
    # No name of the matplotlib that drew it: a second run is no diff.
    plot_layer().figure.savefig(PICTURE, dpi=144, metadata={"Software": None})
