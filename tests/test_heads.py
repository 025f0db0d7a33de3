"""Splitting, merging, and the weights of projections seen by head."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mha_tutor import head_columns, head_rows, merge_heads, split_heads

B, H, L, D = 2, 3, 5, 7


def test_head_h_holds_its_own_slice_of_every_token():
    x = torch.randn(B, L, H * D, generator=torch.Generator().manual_seed(0))
    heads = split_heads(x, H)
    assert heads.shape == (B, H, L, D)
    for h in range(H):
        assert torch.equal(heads[:, h], x[..., h * D : (h + 1) * D])


@pytest.mark.parametrize("make", [torch.arange, np.arange])
def test_numpy_and_torch_stay_what_they_are(make):
    x = make(B * L * H * D).reshape(B, L, H * D)
    heads = split_heads(x, H)
    assert type(heads) is type(x)
    assert type(merge_heads(heads)) is type(x)
    assert (merge_heads(heads) == x).all()


def test_split_is_a_view():
    x = torch.zeros(B, L, H * D)
    split_heads(x, H)[1, 2, 3, 4] = 1
    assert x[1, 3, 2 * D + 4] == 1


def test_non_contiguous_input():
    x = torch.arange(B * L * H * D).reshape(H * D, L, B).permute(2, 1, 0)
    assert torch.equal(split_heads(x, H)[1, 2], x[1, :, 2 * D :])


@given(
    leading=st.lists(st.integers(0, 3), max_size=3),
    length=st.integers(0, 4),
    num_heads=st.integers(1, 4),
    head_dim=st.integers(1, 4),
)
def test_merge_undoes_split(leading, length, num_heads, head_dim):
    shape = (*leading, length, num_heads * head_dim)
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    heads = split_heads(x, num_heads)
    assert heads.shape == (*leading, num_heads, length, head_dim)
    np.testing.assert_array_equal(merge_heads(heads), x)


def test_head_rows_project_to_one_head():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, L, 11, generator=generator)
    weight = torch.randn(H * D, 11, generator=generator)
    heads = split_heads(x @ weight.T, H)
    for h, rows in enumerate(head_rows(weight, H)):
        torch.testing.assert_close(x @ rows.T, heads[:, h])


def test_head_columns_sum_to_the_output_projection():
    generator = torch.Generator().manual_seed(2)
    heads = torch.randn(B, H, L, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(13, H * D, generator=generator, dtype=torch.float64)
    by_head = sum(heads[:, h] @ columns.T for h, columns in enumerate(head_columns(weight, H)))
    torch.testing.assert_close(by_head, merge_heads(heads) @ weight.T)


@pytest.mark.parametrize("function", [split_heads, head_rows, head_columns])
def test_heads_must_divide_the_features(function):
    with pytest.raises(ValueError, match=r"embed_dim \(10\) must be divisible by num_heads \(3\)"):
        function(torch.zeros(10, 10), 3)
    with pytest.raises(ValueError, match="num_heads must be at least 1, got 0"):
        function(torch.zeros(10, 10), 0)
    with pytest.raises(TypeError, match=r"num_heads must be an integer, got 2\.0"):
        function(torch.zeros(10, 10), 2.0)


def test_too_few_dimensions_are_named():
    with pytest.raises(ValueError, match=r"\(\.\.\., L, E\), got \(6,\)"):
        split_heads(torch.zeros(6), 3)
    with pytest.raises(ValueError, match=r"\(\.\.\., H, L, D\), got \(4, 6\)"):
        merge_heads(torch.zeros(4, 6))
    with pytest.raises(
        ValueError, match=r"weight must have the shape \(rows, columns\), got \(2, 3, 4\)"
    ):
        head_rows(torch.zeros(2, 3, 4), 3)


@pytest.mark.parametrize("call", [lambda x: split_heads(x, 2), merge_heads])
def test_only_arrays_are_taken(call):
    with pytest.raises(TypeError, match="x must be a NumPy array or a torch tensor, got list"):
        call([[[1, 2]]])
