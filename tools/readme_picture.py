"""Copy the figure that README.md shows out of the notebook that draws it."""

import base64
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "book" / "01_split_y_equals_ax.ipynb"
FIGURE = "fig-slabs"
PICTURE = ROOT / "book" / "_static" / "slabs.png"


def stored_figure() -> bytes:
    """Return the PNG that the notebook stores for the figure."""
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") == FIGURE:
            return base64.b64decode(cell["outputs"][0]["data"]["image/png"])
    raise SystemExit(f"{NOTEBOOK.name} has no figure named {FIGURE!r}")


if __name__ == "__main__":
    PICTURE.write_bytes(stored_figure())
