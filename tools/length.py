"""Count the words and the code cells of each page: `python tools/length.py`.

The core of a chapter is its Markdown from the title to before *Your turn*; an answer that is
folded away (`<details>`, a dropdown) does not count. Code cells are those a reader sees.
"""

import json
import re
import sys
from pathlib import Path

BOOK = Path(__file__).resolve().parent.parent / "book"
END = re.compile(r"^## Your turn\s*$", re.MULTILINE)
FOLDED = re.compile(
    r"<details>.*?</details>|^(:{3,}|`{3,})\{[^}]*\}[^\n]*\n(?::[^\n]*\n)*?:class:[^\n]*dropdown"
    r".*?^\1\s*$|^(:{3,}|`{3,})\{dropdown\}.*?^\2\s*$",
    re.DOTALL | re.MULTILINE,
)


def words(markdown):
    """Count the words of a text: what is between spaces and has a letter or a digit."""
    return sum(bool(re.search(r"\w", word)) for word in FOLDED.sub(" ", markdown).split())


def core(notebook):
    """Return the cells of the core: all before *Your turn*, or all if there is none."""
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and (end := END.search(source)):
            return [*cells, {"cell_type": "markdown", "source": source[: end.start()]}]
        cells.append(cell)
    return cells


def measure(path):
    """Return the words of the core, its code cells, and the words of the whole page."""
    notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    part = core(notebook)

    def text(cells):
        return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")

    shown = [
        cell
        for cell in part
        if cell["cell_type"] == "code" and "remove-cell" not in cell["metadata"].get("tags", [])
    ]
    return words(text(part)), len(shown), words(text(notebook["cells"]))


if __name__ == "__main__":
    pages = [Path(name) for name in sys.argv[1:]] or sorted(BOOK.glob("*.ipynb"))
    print(" core  cells  page   (words of the core, its code cells, words of the page)")
    for page in pages:
        print("{:5}  {:5} {:5}   {}".format(*measure(page), page.stem))
