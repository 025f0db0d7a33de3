"""Masks against their definitions, entry by entry."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mha_tutor import causal_mask, combine_masks, padding_mask, sliding_window_mask

sizes = st.integers(0, 6)


@given(L=sizes, S=sizes, offset=st.integers(-7, 7))
def test_causal_mask(L, S, offset):
    mask = causal_mask(L, S, offset=offset)
    assert mask.dtype == torch.bool
    assert mask.shape == (L, S)
    for i in range(L):
        assert mask[i].tolist() == [j <= i + offset for j in range(S)]


def test_causal_mask_is_square_by_default():
    assert torch.equal(causal_mask(5), causal_mask(5, 5))


def test_the_last_queries_of_a_cached_sequence():
    assert torch.equal(causal_mask(7)[-3:], causal_mask(3, 7, offset=7 - 3))


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), extra=st.integers(0, 3))
def test_padding_mask(lengths, extra):
    S = max(lengths) + extra
    mask = padding_mask(lengths, S)
    assert mask.dtype == torch.bool
    assert mask.shape == (len(lengths), 1, 1, S)
    for row, length in zip(mask[:, 0, 0], lengths, strict=True):
        assert row.tolist() == [j < length for j in range(S)]


def test_padding_mask_takes_a_tensor_and_the_greatest_length():
    assert torch.equal(padding_mask(torch.tensor([2, 3])), padding_mask([2, 3], 3))


@given(L=sizes, window=st.integers(1, 8))
def test_sliding_window_mask(L, window):
    mask = sliding_window_mask(L, window)
    assert mask.dtype == torch.bool
    assert mask.shape == (L, L)
    for i in range(L):
        assert mask[i].tolist() == [i - window + 1 <= j <= i for j in range(L)]


def test_combined_masks_allow_what_all_allow():
    causal, padding = causal_mask(5), padding_mask([3, 5], 5)
    combined = combine_masks(causal, padding)
    assert combined.shape == (2, 1, 5, 5)
    for b in range(2):
        for i in range(5):
            for j in range(5):
                assert combined[b, 0, i, j] == (causal[i, j] and padding[b, 0, 0, j])


def test_combining_leaves_its_arguments_alone():
    masks = [causal_mask(3), padding_mask([1], 3)]
    before = [mask.clone() for mask in masks]
    combine_masks(*masks)
    combine_masks(masks[0])
    assert all(torch.equal(a, b) for a, b in zip(before, masks, strict=True))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: causal_mask(-1), ValueError, "L must be at least 0, got -1"),
        (lambda: causal_mask(2, -3), ValueError, "S must be at least 0, got -3"),
        (lambda: causal_mask(2.0), TypeError, r"L must be an integer, got 2\.0"),
        (lambda: causal_mask(2, 2, offset=0.5), TypeError, r"offset must be an integer, got 0\.5"),
        (lambda: sliding_window_mask(3, 0), ValueError, "window must be at least 1, got 0"),
        (lambda: sliding_window_mask(3, True), TypeError, "window must be an integer, got True"),
        (lambda: padding_mask([1, 4], 3), ValueError, r"between 0 and S \(3\), got \[1, 4\]"),
        (lambda: padding_mask([-1, 3], 3), ValueError, r"between 0 and S \(3\), got \[-1, 3\]"),
        (lambda: padding_mask([[1]], 3), ValueError, r"got the shape \(1, 1\)"),
        (lambda: padding_mask([], 3), ValueError, r"got the shape \(0,\)"),
        (lambda: padding_mask([1.5], 3), TypeError, "lengths must be integers, got torch.float32"),
        (lambda: padding_mask(["a"]), TypeError, r"lengths must be integers, got \['a'\]"),
        (lambda: combine_masks(), ValueError, "at least one mask"),
        (
            lambda: combine_masks(causal_mask(3), torch.zeros(3, 3)),
            TypeError,
            "mask 1 must be a boolean tensor, got torch.float32",
        ),
        (lambda: combine_masks([True]), TypeError, "mask 0 must be a boolean tensor, got list"),
        (
            lambda: combine_masks(causal_mask(3), causal_mask(4)),
            ValueError,
            r"must broadcast together, got the shapes \[\(3, 3\), \(4, 4\)\]",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
