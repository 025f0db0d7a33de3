"""The pages as the ledger reads them: their words without markup, cut into sentences."""

import json
import re
from functools import cache
from pathlib import Path

BOOK = Path(__file__).resolve().parents[2] / "book"

# Words that claim more than one example can show. A page of the second edition that uses one
# has the sentence in the ledger, or in `derived.py`.
STRONG = re.compile(
    r"\b(?:always|never|whatever|exactly|cannot|can't|no matter|(?:for|at|with) (?:any|every)"
    r"|in general|nothing|regardless|impossible|guarantees?)\b",
    re.IGNORECASE,
)


def find(page):
    """Return the file of a page named by its beginning: "01", "intro", "deeper_strides"."""
    found = sorted(path for path in BOOK.iterdir() if path.name.startswith(page))
    found = [path for path in found if path.suffix in {".ipynb", ".md"}]
    if len(found) != 1:
        raise LookupError(f"page must name one page of the book, got {page!r}: {found}")
    return found[0]


@cache
def markdown(path):
    """Return the Markdown of a page, a piece for each cell; code cells are left out."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return (text,)
    cells = json.loads(text)["cells"]
    return tuple("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def squash(text):
    """Take the markup out: what is left is what a reader sees, with single spaces."""
    text = re.sub(r"\{[a-z:]+\}`([^`]*)`", r"\1", text)  # a role
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)  # a link, an image
    text = re.sub(r"</?[a-zA-Z][^>]*>", " ", text)
    text = re.sub(r"(?m)^\s*(?:#+|>|[-*+]|\d+\.)\s+", " ", text)  # what opens a line
    text = re.sub(r"[*`$|\\]|(?m:^:::.*$)", "", text)
    return re.sub(r"\s+", " ", text).strip()


@cache
def prose(path):
    """Return the words of a page as one squashed text."""
    blocks = [re.sub(r"(?ms)^```.*?^```\s*$", "", piece) for piece in markdown(path)]
    return squash("\n\n".join(blocks))


def stands(page, sentence):
    """Is the sentence, markup aside, on the page?"""
    return squash(sentence) in prose(find(page))


def strong_hits(text, covered):
    """Yield the sentences with a strong word outside every covered sentence.

    A question claims nothing, so one that ends with a question mark is left alone.
    """
    spans = [
        match.span()
        for sentence in covered
        for match in re.finditer(re.escape(squash(sentence)), text)
    ]
    for hit in STRONG.finditer(text):
        if any(start <= hit.start() < end for start, end in spans):
            continue
        before = max(text.rfind(mark, 0, hit.start()) for mark in (". ", "? ", ": "))
        sentence = re.match(r".*?(?:[.?](?=\s|$)|$)", text[before + 1 :].strip())[0]
        if not sentence.endswith("?"):
            yield f"{hit[0]!r} in: {sentence}"
