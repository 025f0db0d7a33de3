"""The oracle, held against numbers worked out by hand and against its own definition."""

import math

import numpy as np
import pytest
import torch

from mha_tutor import attention_loop


def test_two_keys_by_hand():
    # Scores 0 and ln 3 (scale 1) give the weights 1/4 and 3/4.
    query = [[1.0]]
    key = [[0.0], [math.log(3)]]
    value = [[4.0, 0.0], [0.0, 8.0]]
    np.testing.assert_allclose(attention_loop(query, key, value, scale=1.0), [[1.0, 6.0]])


def test_scale_defaults_to_one_over_the_root_of_head_dim():
    query, key = np.ones((1, 16)), np.stack([np.zeros(16), np.full(16, math.log(3) / 4)])
    value = [[4.0], [0.0]]
    np.testing.assert_allclose(attention_loop(query, key, value), [[1.0]])


def test_each_batch_and_head_is_on_its_own():
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, 3, n, 5)) for n in (4, 7, 7))
    output = attention_loop(query, key, value)
    for b in range(2):
        for h in range(3):
            alone = attention_loop(query[b, h], key[b, h], value[b, h])
            np.testing.assert_array_equal(output[b, h], alone)


def test_boolean_mask_true_means_may_attend():
    query, key, value = np.ones((1, 1)), np.ones((2, 1)), np.array([[3.0], [5.0]])
    assert attention_loop(query, key, value, np.array([[True, False]])) == [[3.0]]


def test_additive_mask_is_added_to_the_scaled_score():
    query, key, value = np.zeros((1, 1)), np.zeros((2, 1)), np.array([[4.0], [0.0]])
    bias = np.array([[0.0, math.log(3)]])
    np.testing.assert_allclose(attention_loop(query, key, value, bias), [[1.0]])


def test_nothing_to_attend_to_gives_zeros():
    query, key, value = np.ones((2, 1)), np.ones((3, 1)), np.ones((3, 4))
    mask = np.array([[True, True, False], [False, False, False]])
    assert attention_loop(query, key, value, mask).tolist() == [[1.0] * 4, [0.0] * 4]
    assert attention_loop(query, key[:0], value[:0]).tolist() == [[0.0] * 4] * 2


def test_large_scores_do_not_overflow():
    query, key = np.array([[1e4]]), np.array([[1.0], [-1.0]])
    value = np.array([[2.0], [7.0]])
    assert attention_loop(query, key, value) == [[2.0]]


@pytest.mark.parametrize("mask_shape", [(5, 7), (1, 7), (5, 1), (7,), (3, 1, 1), (2, 1, 5, 7)])
def test_masks_broadcast_as_numpy_broadcasts(mask_shape):
    rng = np.random.default_rng(1)
    query, key, value = (rng.normal(size=(2, 3, n, 2)) for n in (5, 7, 7))
    mask = rng.random(mask_shape) < 0.7
    expanded = np.broadcast_to(mask, (2, 3, 5, 7))
    np.testing.assert_array_equal(
        attention_loop(query, key, value, mask), attention_loop(query, key, value, expanded)
    )


@pytest.mark.parametrize("mask_shape", [(5, 6), (4, 2, 3, 5, 7), (2, 5, 7)])
def test_a_mask_that_does_not_fit_is_refused(mask_shape):
    query, key, value = (np.ones((2, 3, n, 2)) for n in (5, 7, 7))
    with pytest.raises(ValueError, match=r"attn_mask must be broadcastable to \(2, 3, 5, 7\)"):
        attention_loop(query, key, value, np.ones(mask_shape, dtype=bool))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((5,), (7, 2), (7, 2)), "at least two axes"),
        (((5, 2), (7, 3), (7, 2)), "must agree in"),
        (((5, 2), (7, 2), (6, 2)), "must agree in"),
        (((2, 5, 2), (3, 7, 2), (2, 7, 2)), "must agree in"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        attention_loop(*map(np.ones, shapes))


@pytest.mark.parametrize("name", ["query", "key", "value", "attn_mask"])
def test_what_cannot_become_an_array_is_refused_by_name(name):
    arguments = {"query": torch.ones(5, 2), "key": torch.ones(7, 2), "value": torch.ones(7, 2)}
    arguments |= {"attn_mask": torch.zeros(5, 7)}
    attention_loop(**arguments)
    arguments[name].requires_grad_()
    with pytest.raises(TypeError, match=f"^{name} must be an array of numbers: Can't call numpy"):
        attention_loop(**arguments)
