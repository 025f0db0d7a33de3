"""A claim: a sentence of a page, tried over many sizes, and shown to fail on a broken variant."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

BOOK = Path(__file__).resolve().parents[2] / "book"
SIZES = {
    "B": st.integers(1, 3),
    "H": st.integers(1, 4),
    "L": st.integers(1, 7),
    "S": st.integers(1, 7),
    "D": st.integers(1, 9),
    "seed": st.integers(0, 10_000),
    "dtype": st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
}


@cache
def cells(page: str) -> list[dict]:
    """Load the cells of the page whose file begins with `page`."""
    (path,) = BOOK.glob(f"{page}_*.ipynb")
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def said(page: str, sentence: str) -> bool:
    """Look a sentence up in the text of a page."""
    text = "\n".join("".join(c["source"]) for c in cells(page) if c["cell_type"] == "markdown")
    return " ".join(sentence.split()) in " ".join(text.split())


def code(page: str, *names: str, **given: Any) -> SimpleNamespace:
    """Run the cells of a page that define these names, and hand the names over."""
    space = dict(given)
    for cell in cells(page):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and any(
            f"def {name}(" in source or f"class {name}(" in source for name in names
        ):
            exec(source, space)
    return SimpleNamespace(**{name: space[name] for name in names})


def claim(page: str, sentence: str, *, right: Any, broken: Any, examples: int = 25) -> Callable:
    """Turn a check of (subject, sizes…) into a test: the sentence stands, and is no platitude.

    The check is tried on `right` over many sizes, where it must hold, and on `broken`, where it
    must fail. Its arguments after the first are drawn by name from `SIZES`, or by its defaults.
    """

    def decorate(check: Callable) -> Callable:
        parameters = list(inspect.signature(check).parameters.values())[1:]
        drawn = {
            p.name: SIZES[p.name] if p.default is p.empty else p.default for p in parameters
        }
        limits = settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        def run(subject: Any) -> None:
            if not drawn:
                return check(subject)
            limits(given(st.fixed_dictionaries(drawn))(lambda sizes: check(subject, **sizes)))()
            return None

        def test() -> None:
            assert said(page, sentence), f"no longer on the page: {sentence}"
            run(right)
            with pytest.raises(AssertionError):
                run(broken)

        test.__name__, test.__doc__ = check.__name__, sentence
        return test

    return decorate


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Draw normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-9) -> bool:
    """Compare, NaN for NaN."""
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
