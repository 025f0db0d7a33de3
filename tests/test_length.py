"""A chapter is short enough to be read: its core, and with it its *Deeper* pages."""

import importlib.util
import json
from pathlib import Path

import pytest
from claims.editions import (
    CORE_CELLS,
    CORE_WORDS,
    FIRST_EDITION_WORDS,
    SECOND_EDITION,
)
from claims.pages import find

ROOT = Path(__file__).resolve().parent.parent
yaml = pytest.importorskip("yaml")
spec = importlib.util.spec_from_file_location("length", ROOT / "tools" / "length.py")
length = importlib.util.module_from_spec(spec)
spec.loader.exec_module(length)

CHAPTERS = sorted(SECOND_EDITION & FIRST_EDITION_WORDS.keys())


def deeper(page):
    """Return the notebooks that stand beneath a chapter in the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    for part in toc["parts"]:
        for chapter in part["chapters"]:
            if chapter["file"] == f"book/{find(page).stem}":
                files = [
                    ROOT / f"{section['file']}.ipynb" for section in chapter.get("sections", [])
                ]
                return [path for path in files if path.exists()]
    raise LookupError(page)


@pytest.mark.parametrize("page", CHAPTERS)
def test_core_is_short(page):
    words, cells, _ = length.measure(find(page))
    assert words <= CORE_WORDS
    assert cells <= CORE_CELLS


@pytest.mark.parametrize("page", CHAPTERS)
def test_second_edition_is_shorter(page):
    words = sum(length.measure(path)[0] for path in [find(page), *deeper(page)])
    assert words <= 0.85 * FIRST_EDITION_WORDS[page]


def notebook(*cells):
    return {
        "cells": [
            {"cell_type": kind, "source": source, "metadata": {"tags": list(tags)}}
            for kind, source, *tags in cells
        ]
    }


def test_words_are_those_of_the_core_without_folded_answers(tmp_path):
    path = tmp_path / "a.ipynb"
    cells = [
        ("markdown", "# One two\n\n<details>\n<summary>no</summary>\nno no\n</details>"),
        ("code", "hidden()", "remove-cell"),
        ("code", "shown()"),
        ("markdown", "Three = `four`.\n\n:::{admonition} no\n:class: dropdown\nno no\n:::\n"),
        ("markdown", "Five.\n\n## Your turn\n\nNo."),
        ("code", "after()"),
    ]
    path.write_text(json.dumps(notebook(*cells)))
    assert length.measure(path) == (5, 1, 8)
