"""The readable attention: against the loop oracle, against torch, and against its own promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mha_tutor import (
    additive_attention,
    attention_loop,
    attention_weights,
    causal_mask,
    combine_masks,
    padding_mask,
    scaled_dot_product_attention,
    sliding_window_mask,
)

B, H, L, S, D, DV = 2, 3, 5, 7, 11, 13


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def inputs(leading=(B, H), *, kv_leading=None, value_dim=DV, dtype=torch.float64, seed=0):
    kv_leading = leading if kv_leading is None else kv_leading
    return (
        draw(*leading, L, D, dtype=dtype, seed=seed),
        draw(*kv_leading, S, D, dtype=dtype, seed=seed + 1),
        draw(*kv_leading, S, value_dim, dtype=dtype, seed=seed + 2),
    )


def random_mask(*shape, seed=3):
    """A boolean mask that leaves each query its first key."""
    mask = draw(*shape, seed=seed) > -0.3
    mask[..., 0] = True
    return mask


def with_empty_row(mask):
    mask = mask.clone()
    mask[..., 2, :] = False
    return mask


MASKS = {
    "none": None,
    "boolean": random_mask(B, H, L, S),
    "over batch": random_mask(H, L, S),
    "over heads": random_mask(B, 1, L, S),
    "over batch and heads": random_mask(L, S),
    "over queries": random_mask(B, 1, 1, S),
    "over keys": random_mask(L, 1),
    "keys alone": random_mask(S),
    "empty row": with_empty_row(random_mask(B, H, L, S)),
    "nothing at all": torch.zeros(L, S, dtype=torch.bool),
    "additive": draw(B, H, L, S, seed=4),
    "additive over heads": draw(B, 1, L, S, seed=4),
    "additive -inf": torch.zeros(L, S, dtype=torch.float64).masked_fill(
        ~with_empty_row(random_mask(L, S)), -torch.inf
    ),
    "sliding window": sliding_window_mask(S, 3)[-L:],
    "padding and causal": combine_masks(causal_mask(L, S), padding_mask([3, 7], S)),
}


def oracle(query, key, value, attn_mask=None, scale=None):
    arrays = [x.detach().double().numpy() for x in (query, key, value)]
    mask = None if attn_mask is None else attn_mask.numpy()
    return torch.from_numpy(attention_loop(*arrays, mask, scale))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
class TestEveryMask:
    def test_equals_the_loop(self, mask):
        query, key, value = inputs()
        output = scaled_dot_product_attention(query, key, value, mask)
        torch.testing.assert_close(output, oracle(query, key, value, mask))

    def test_equals_torch_forward_and_backward(self, mask):
        ours, theirs = (inputs() for _ in range(2))
        for x in (*ours, *theirs):
            x.requires_grad_()
        output = scaled_dot_product_attention(*ours, mask)
        wide = None if mask is None else mask.expand(B, H, L, S)  # torch wants two axes or more
        expected = F.scaled_dot_product_attention(*theirs, wide)
        torch.testing.assert_close(output, expected)
        output.square().sum().backward()
        expected.square().sum().backward()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.grad, other.grad)

    def test_weights_mix_the_values_to_the_output(self, mask):
        query, key, value = inputs()
        weights = attention_weights(query, key, mask)
        assert weights.shape == (B, H, L, S)
        torch.testing.assert_close(
            weights @ value, scaled_dot_product_attention(query, key, value, mask)
        )

    def test_rows_sum_to_one_or_are_empty(self, mask):
        query, key, _ = inputs()
        sums = attention_weights(query, key, mask).sum(-1)
        if mask is None:
            has_keys = torch.ones_like(sums)
        else:
            allowed = mask if mask.dtype == torch.bool else mask > -torch.inf
            has_keys = allowed.expand(B, H, L, S).any(-1).double()
        torch.testing.assert_close(sums, has_keys)


@pytest.mark.parametrize("leading", [(), (H,), (B, H), (2, 1, 3, 2)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_any_number_of_leading_dimensions(leading, is_causal):
    query, key, value = inputs(leading)
    output = scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    mask = causal_mask(L, S) if is_causal else None
    assert output.shape == (*leading, L, DV)
    torch.testing.assert_close(output, oracle(query, key, value, mask))


def test_leading_dimensions_broadcast():
    query, key, value = inputs((B, H), kv_leading=(B, 1))
    wide = (x.expand(B, H, S, x.shape[-1]) for x in (key, value))
    torch.testing.assert_close(
        scaled_dot_product_attention(query, key, value),
        scaled_dot_product_attention(query, *wide),
    )


def test_every_argument_in_torchs_order_and_by_torchs_name():
    query, key, value = inputs()
    mask = MASKS["boolean"]
    torch.testing.assert_close(
        scaled_dot_product_attention(
            query, key, value, mask, 0.0, False, scale=0.7, enable_gqa=False
        ),
        F.scaled_dot_product_attention(
            query, key, value, mask, 0.0, False, scale=0.7, enable_gqa=False
        ),
    )
    named = {"attn_mask": None, "dropout_p": 0.0, "is_causal": True, "scale": 0.7}
    torch.testing.assert_close(
        scaled_dot_product_attention(query=query, key=key, value=value, **named),
        F.scaled_dot_product_attention(query=query, key=key, value=value, **named),
    )


@pytest.mark.parametrize(("num_queries", "num_keys"), [(L, S), (S, L)])
def test_is_causal_is_aligned_at_the_top_left(num_queries, num_keys):
    query, key, value = draw(num_queries, D), draw(num_keys, D), draw(num_keys, DV)
    output = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(
        output, oracle(query, key, value, causal_mask(num_queries, num_keys))
    )
    torch.testing.assert_close(
        output,
        F.scaled_dot_product_attention(query[None], key[None], value[None], None, 0, True)[0],
    )


@pytest.mark.parametrize("scale", [0.0, 0.3, -2.0])
def test_scale(scale):
    query, key, value = inputs()
    torch.testing.assert_close(
        scaled_dot_product_attention(query, key, value, scale=scale),
        oracle(query, key, value, scale=scale),
    )


@pytest.mark.parametrize("num_kv_heads", [1, 2, 3, 6])
def test_grouped_query_attention(num_kv_heads):
    query, key, value = inputs((B, 6), kv_leading=(B, num_kv_heads))
    output = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    for h in range(6):
        shared = h // (6 // num_kv_heads)
        torch.testing.assert_close(
            output[:, h], oracle(query[:, h], key[:, shared], value[:, shared])
        )
    torch.testing.assert_close(
        output, F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    )
    weights = attention_weights(query, key, enable_gqa=True)
    assert weights.shape == (B, 6, L, S)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(0, S), (L, 0), (0, 0)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_no_queries_or_no_keys(num_queries, num_keys, is_causal):
    query, key, value = draw(B, num_queries, D), draw(B, num_keys, D), draw(B, num_keys, DV)
    output = scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    assert torch.equal(output, torch.zeros(B, num_queries, DV, dtype=torch.float64))


def test_non_contiguous_inputs():
    query, key, value = inputs()
    strided = [x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0) for x in (query, key, value)]
    assert not any(x.is_contiguous() for x in strided)
    torch.testing.assert_close(
        scaled_dot_product_attention(*strided), scaled_dot_product_attention(query, key, value)
    )


def test_inputs_are_left_alone():
    tensors = [*inputs(), MASKS["additive -inf"]]
    before = [x.clone() for x in tensors]
    scaled_dot_product_attention(*tensors, dropout_p=0.5)
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


def _rounding_bound(query, key, value, allowed, dtype):
    """Bound the error of each output: what rounding can do, to first order, step by step.

    With u half the distance between 1 and the next number: a product of D terms is off by at most
    D u Σ|q k|, scaling it twice by u more; the shift by the maximum adds u |s - m|; exp, its sum
    over S keys and the quotient S + 8 units of relative error; the mix S more. Inputs, weights
    and outputs of the half precisions are rounded once each, to their own u.
    """
    own, u = (torch.finfo(t).eps / 2 for t in (dtype, torch.promote_types(dtype, torch.float32)))
    query, key, value = (x.double() for x in (query, key, value))
    D, S = query.shape[-1], key.shape[-2]
    scores = (query @ key.mT / D**0.5).masked_fill(~allowed, -torch.inf)
    weights = scores.softmax(-1)
    off = (D + 2) * u * (query.abs() @ key.abs().mT) / D**0.5
    off = off + u * (scores - scores.amax(-1, keepdim=True)).abs().masked_fill(~allowed, 0)
    relative = off + (weights * off).sum(-1, keepdim=True) + (2 * S + 8) * u
    rounded = 2 * own if own > u else 0.0
    return (weights * (relative + rounded)) @ value.abs()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [1, 10])
@pytest.mark.parametrize("is_causal", [False, True])
def test_error_is_within_what_rounding_can_do(dtype, spread, is_causal):
    query, key, value = (draw(B, H, 64, 32, seed=s, dtype=dtype) for s in range(3))
    query = query * spread  # larger scores, where a softmax in half precision would fail
    allowed = causal_mask(64) if is_causal else torch.ones(64, 64, dtype=torch.bool)
    bound = _rounding_bound(query, key, value, allowed, dtype)
    if dtype == torch.float64:
        bound = 2 * bound  # the loops round as well
    output = scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    assert output.dtype == dtype
    assert ((output.double() - oracle(query, key, value, allowed)).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [1, 10])
@pytest.mark.parametrize("is_causal", [False, True])
def test_error_is_at_most_twice_that_of_torch(dtype, spread, is_causal):
    # In the mean over draws: the ratio of two roundings on one draw is luck. Float64 is left out,
    # since there the loops that both are held against are off by as much.
    mask = causal_mask(64) if is_causal else None
    ours, theirs = 0.0, 0.0
    for seed in range(4):
        query, key, value = (draw(B, H, 64, 32, seed=3 * seed + i, dtype=dtype) for i in range(3))
        query = query * spread
        exact = oracle(query, key, value, mask)
        for function in (scaled_dot_product_attention, F.scaled_dot_product_attention):
            error = (function(query, key, value, is_causal=is_causal).double() - exact).square()
            if function is scaled_dot_product_attention:
                ours += error.sum().item()
            else:
                theirs += error.sum().item()
    assert ours <= 2**2 * theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_keep_the_dtype(dtype):
    query, key, _ = inputs(dtype=dtype)
    assert attention_weights(query, key).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_of_ten_thousand(dtype):
    query = torch.tensor([[100.0]], dtype=dtype, requires_grad=True)
    key = torch.tensor([[100.0], [-100.0]], dtype=dtype, requires_grad=True)
    value = torch.tensor([[2.0], [7.0]], dtype=dtype)
    output = scaled_dot_product_attention(query, key, value)
    assert output.item() == 2
    output.backward()
    assert query.grad.item() == 0
    assert key.grad.tolist() == [[0], [0]]


@pytest.mark.parametrize("additive", [False, True])
def test_a_row_with_nothing_to_attend_to_gives_zeros_and_zero_gradients(additive):
    mask = with_empty_row(random_mask(L, S))
    if additive:
        mask = torch.zeros(L, S, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    tensors = [x.requires_grad_() for x in inputs()]
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        output = scaled_dot_product_attention(*tensors, mask)
        assert torch.equal(output[..., 2, :], torch.zeros(B, H, DV, dtype=torch.float64))
        output.square().sum().backward()
    for x in tensors:
        assert x.grad.isfinite().all()
    assert torch.equal(tensors[0].grad[..., 2, :], torch.zeros(B, H, D, dtype=torch.float64))


def test_a_masked_key_has_no_influence_and_gets_no_gradient():
    query, key, value = (x.requires_grad_() for x in inputs())
    mask = random_mask(L, S)
    mask[:, 4] = False
    output = scaled_dot_product_attention(query, key, value, mask)
    output.square().sum().backward()
    assert (key.grad[..., 4, :] == 0).all()
    assert (value.grad[..., 4, :] == 0).all()
    changed = key.detach().clone()
    changed[..., 4, :] = torch.nan
    assert torch.equal(scaled_dot_product_attention(query, changed, value, mask), output)


def test_nan_in_a_masked_value_spreads_as_in_torch():
    query, key, value = inputs(value_dim=D)
    value[..., 4, :] = torch.nan
    mask = torch.ones(L, S, dtype=torch.bool)
    mask[:, 4] = False
    assert scaled_dot_product_attention(query, key, value, mask).isnan().all()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert F.scaled_dot_product_attention(query, key, value, mask).isnan().all()


@pytest.mark.parametrize("name", ["none", "empty row", "over heads", "additive -inf"])
def test_first_and_second_derivatives(name):
    mask = MASKS[name]
    mask = mask if mask is None else mask[..., :3, :4]
    tensors = [draw(B, H, n, 2).requires_grad_() for n in (3, 4, 4)]

    def attend(*tensors):
        return scaled_dot_product_attention(*tensors, mask)

    assert torch.autograd.gradcheck(attend, tensors)
    assert torch.autograd.gradgradcheck(attend, tensors)


def test_an_additive_mask_gets_its_gradient():
    query, key, value = inputs((), value_dim=2)
    mask = MASKS["additive"][0, 0].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda mask: scaled_dot_product_attention(query, key, value, mask), mask
    )


def test_dropout_drops_weights_and_scales_up_the_rest():
    query, key = draw(400, D), draw(S, D)
    identity = torch.eye(S, dtype=torch.float64)  # the output is then the weights themselves
    weights = attention_weights(query, key)
    torch.manual_seed(0)
    dropped = scaled_dot_product_attention(query, key, identity, dropout_p=0.25)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], (weights / 0.75)[kept])
    # 2800 draws: five standard deviations of the share are 0.041.
    assert abs(kept.double().mean().item() - 0.75) < 0.041


def test_dropout_of_everything_and_of_nothing():
    query, key, value = inputs()
    assert (scaled_dot_product_attention(query, key, value, dropout_p=1.0) == 0).all()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    scaled_dot_product_attention(query, key, value, dropout_p=0.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_exports():
    tensors = inputs(dtype=torch.float32)
    exported = torch.export.export(_Attend(), tensors).module()
    torch.testing.assert_close(exported(*tensors), _Attend()(*tensors))


class _Attend(torch.nn.Module):
    def forward(self, query, key, value):
        return scaled_dot_product_attention(query, key, value, is_causal=True)


# Properties that need no second implementation to compare with.

seeds = st.integers(0, 10_000)


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_keys_and_values_may_be_permuted_together(seed):
    query, key, value = inputs(seed=seed)
    order = torch.randperm(S, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        scaled_dot_product_attention(query, key[..., order, :], value[..., order, :]),
        scaled_dot_product_attention(query, key, value),
    )


@given(seed=seeds, shift=st.floats(-1e3, 1e3))
@settings(max_examples=30, deadline=None)
def test_a_constant_added_to_a_row_of_scores_changes_nothing(seed, shift):
    query, key, value = inputs(seed=seed)
    shifts = shift * draw(L, 1, seed=seed)
    torch.testing.assert_close(
        scaled_dot_product_attention(query, key, value, shifts),
        scaled_dot_product_attention(query, key, value),
    )


@given(seed=seeds, spread=st.floats(0.1, 30))
@settings(max_examples=30, deadline=None)
def test_outputs_lie_between_the_values(seed, spread):
    query, key, value = inputs(seed=seed)
    output = scaled_dot_product_attention(query * spread, key, value)
    # A convex combination lies between the extremes along every direction, not only the axes.
    directions = draw(DV, 50, seed=seed)
    seen, bounds = output @ directions, value @ directions
    assert (seen <= bounds.amax(-2, keepdim=True) + 1e-12).all()
    assert (seen >= bounds.amin(-2, keepdim=True) - 1e-12).all()


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_random_masks_equal_the_loop(seed):
    query, key, value = inputs((H,), seed=seed)
    mask = draw(H, L, S, seed=seed) > 0.5  # rows left empty happen often
    torch.testing.assert_close(
        scaled_dot_product_attention(query, key, value, mask), oracle(query, key, value, mask)
    )


# Additive attention.


def additive_inputs():
    return draw(B, L, 3), draw(B, S, 2), draw(B, S, DV), draw(11, 3), draw(11, 2), draw(11)


def test_additive_attention_equals_its_formula_term_by_term():
    query, key, value, w_query, w_key, w_score = additive_inputs()
    mask = with_empty_row(random_mask(B, L, S))
    output = additive_attention(query, key, value, w_query, w_key, w_score, mask)
    for b in range(B):
        for i in range(L):
            exponentials = [
                math.exp(w_score @ torch.tanh(w_query @ query[b, i] + w_key @ key[b, j]))
                * mask[b, i, j].item()
                for j in range(S)
            ]
            total = sum(exponentials) or 1.0
            expected = sum(e / total * value[b, j] for j, e in enumerate(exponentials))
            torch.testing.assert_close(output[b, i], expected)


def test_additive_attention_is_differentiable():
    tensors = [x.requires_grad_() for x in additive_inputs()]
    assert torch.autograd.gradcheck(additive_attention, tensors)


def test_additive_attention_keeps_low_precision_inputs_in_their_dtype():
    tensors = [x.to(torch.bfloat16) for x in additive_inputs()]
    assert additive_attention(*tensors).dtype == torch.bfloat16


# Bad input.

q, k, v = torch.zeros(3, 5, 2), torch.zeros(3, 7, 2), torch.zeros(3, 7, 4)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((np.ones((5, 2)), k, v), {}, TypeError, "query must be a torch tensor, got ndarray"),
        ((q, None, v), {}, TypeError, "key must be a torch tensor, got NoneType"),
        ((q.int(), k, v), {}, TypeError, "query must be floating point, got torch.int32"),
        (
            (q.double(), k, v),
            {},
            TypeError,
            "query and key must have the same dtype, got torch.float64 and torch.float32",
        ),
        (
            (q, k, v.half()),
            {},
            TypeError,
            "key and value must have the same dtype, got torch.float32 and torch.float16",
        ),
        (
            (q, k.to("meta"), v.to("meta")),
            {},
            ValueError,
            "query and key must be on the same device, got cpu and meta",
        ),
        ((q[0, 0], k, v), {}, ValueError, r"query must have at least two dimensions, got \(2,\)"),
        (
            (torch.zeros(3, 5, 6), k, v),
            {},
            ValueError,
            "query and key must have the same head_dim, got 6 and 2",
        ),
        ((q, k, v[:, :6]), {}, ValueError, "must have the same length S, got 7 and 6"),
        (
            (q, k, v[:1]),
            {},
            ValueError,
            r"same leading dimensions, got \(3, 7, 2\) and \(1, 7, 4\)",
        ),
        ((q, k[:2], v[:2]), {}, ValueError, r"enable_gqa=True\), got \(3, 5, 2\) and \(2, 7, 2\)"),
        ((q, k[:2], v[:2]), {"enable_gqa": True}, ValueError, "must be a multiple .* got 3 and 2"),
        ((q[0], k[0], v[0]), {"enable_gqa": True}, ValueError, "enable_gqa needs a head axis"),
        ((q[..., :0], k[..., :0], v), {}, ValueError, "head_dim must be at least 1"),
        ((q, k, v), {"dropout_p": 1.5}, ValueError, r"between 0 and 1, got 1\.5"),
        ((q, k, v), {"dropout_p": "0"}, TypeError, "dropout_p must be a number, got '0'"),
        ((q, k, v), {"scale": "1"}, TypeError, "scale must be a number, got '1'"),
        ((q, k, v), {"dropout_p": -0.1}, ValueError, r"between 0 and 1, got -0\.1"),
        (
            (q, k, v, torch.ones(5, 7, dtype=torch.bool)),
            {"is_causal": True},
            ValueError,
            "attn_mask and is_causal=True cannot be used together",
        ),
        ((q, k, v, torch.ones(5, 7, dtype=torch.int64)), {}, TypeError, "got torch.int64"),
        ((q, k, v, [[True] * 7] * 5), {}, TypeError, "attn_mask must be a torch tensor, got list"),
        (
            (q, k, v, torch.zeros(7, 5)),
            {},
            ValueError,
            r"broadcastable to the scores \(3, 5, 7\), got \(7, 5\)",
        ),
        ((q, k, v, torch.zeros(2, 3, 5, 7)), {}, ValueError, r"got \(2, 3, 5, 7\)"),
    ],
)
def test_bad_input(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(*args, **kwargs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({3: torch.zeros(11, 4)}, ValueError, r"w_query must be \(U, 3\)"),
        ({4: torch.zeros(9, 2)}, ValueError, r"w_key must be \(U, 2\)"),
        ({5: torch.zeros(11, 1)}, ValueError, r"and w_score \(U,\), got \(11, 3\) and \(11, 1\)"),
        ({2: torch.zeros(B, 6, DV)}, ValueError, "same length S, got 7 and 6"),
        ({0: torch.zeros(3, L, 3)}, ValueError, "leading dimensions of query and key"),
        ({5: torch.zeros(11).double()}, TypeError, "query and w_score must have the same dtype"),
        ({6: torch.zeros(S, L)}, ValueError, r"broadcastable to the scores \(2, 5, 7\)"),
    ],
)
def test_bad_input_to_additive_attention(change, error, message):
    args = [*(x.float() for x in additive_inputs()), None]
    for position, x in change.items():
        args[position] = x
    with pytest.raises(error, match=message):
        additive_attention(*args)


def _rounded_once(out, exact):
    """Whether a bfloat16 result is the exact one to the last digit, a nearest rounding of it."""
    return ((out.double() - exact).abs() <= exact.abs() * 2**-8 * 1.01 + 1e-5).all()


def test_half_precision_is_rounded_once_at_the_end():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 31, 16).bfloat16().unbind()
    q, k, v = (x.double() for x in (query, key, value))
    assert _rounded_once(
        scaled_dot_product_attention(query, key, value), (q @ k.mT / 4).softmax(-1) @ v
    )


def test_additive_attention_takes_its_softmax_and_mixture_in_float32():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 31, 5).bfloat16().unbind()
    w_query, w_key, w_score = torch.eye(5).bfloat16(), -torch.eye(5).bfloat16(), torch.ones(5)
    scores = torch.tanh(query[:, None] - key[None]) @ w_score.bfloat16()
    out = additive_attention(query, key, value, w_query, w_key, w_score.bfloat16())
    assert _rounded_once(out, scores.double().softmax(-1) @ value.double())


def test_no_features_are_enough_where_the_scale_is_given():
    out = scaled_dot_product_attention(
        torch.ones(3, 0), torch.ones(2, 0), torch.tensor([[2.0], [4.0]]), scale=1.0
    )
    assert out.tolist() == [[3.0]] * 3
