"""The first page: its layer is right, its picture is described, its count is true."""

import re
from pathlib import Path

import pytest
import torch

from mha_tutor import MultiHeadAttention
from mha_tutor.plotting import describe_layer

from claims.count import claims  # isort: skip

ROOT = Path(__file__).resolve().parent.parent
INTRO = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
CODE = re.search(r"```python\n(.*?)```", INTRO, re.DOTALL)[1]


@pytest.fixture
def copied():
    """Run the code as a reader would who has copied it."""
    namespace = {}
    exec(CODE, namespace)
    return namespace["MultiHeadAttention"]


def test_layer_is_short_and_imports_nothing_of_ours():
    assert len(CODE.splitlines()) <= 30
    assert re.findall(r"^(?:from|import) (\w+)", CODE, re.MULTILINE) == ["torch"]


@pytest.mark.parametrize(("L", "S", "H", "D"), [(5, 7, 3, 11), (1, 1, 1, 1), (2, 5, 4, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_layer_is_right(copied, L, S, H, D, masked):
    torch.manual_seed(0)
    ours = MultiHeadAttention(H * D, H).double()
    theirs = copied(H * D, H).double()
    theirs.load_state_dict(ours.state_dict())
    query, key = torch.randn(2, L, H * D).double(), torch.randn(2, S, H * D).double()
    mask = torch.ones(L, S, dtype=torch.bool).tril() if masked else None
    expected = ours(query, key, key, attn_mask=mask)
    torch.testing.assert_close(theirs(query, key, key, mask), expected)


def test_layer_refuses_a_fraction(copied):
    with pytest.raises(ValueError, match="3 heads do not divide 10 features"):
        copied(10, 3)


def test_picture_is_described():
    assert f":alt: {describe_layer()}\n" in INTRO


def test_count_is_true():
    """`make claims` prints it."""
    said = re.search(r"(\d+) sentences that speak of more than their example", INTRO)
    assert int(said[1]) == len(claims())
