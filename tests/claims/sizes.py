"""What claims are tried at: sizes of 1 included, S apart from L, D not a power of two."""

import json
from types import SimpleNamespace

import torch
from hypothesis import strategies as st

from .pages import BOOK

B, H = st.integers(1, 3), st.integers(1, 4)
L, S, D = st.integers(1, 7), st.integers(1, 7), st.integers(1, 9)
SEED = st.integers(0, 10_000)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


def normal(*shape, seed, dtype=torch.float64):
    """Draw normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a, b, tolerance=1e-9):
    """Compare, NaN for NaN."""
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def from_page(page, *names, **given):
    """Run the cells of a page that define these functions or classes; hand them over."""
    (path,) = BOOK.glob(f"{page}*.ipynb")
    space = dict(given)
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and any(
            f"def {name}(" in source or f"class {name}(" in source for name in names
        ):
            exec(source, space)
    return SimpleNamespace(**{name: space[name] for name in names})
