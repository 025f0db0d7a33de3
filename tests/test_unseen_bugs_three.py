"""The bugs of the third set: the right versions are right, and each bug shows where it says.

As for the second set: the references are torch's, and loops for the parts. Each bug is compared
with its right version where it must show (LOUD), and where it must not (QUIET).
"""

import math

import pytest
import torch
import unseen_bugs
import unseen_bugs_two
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from unseen_bugs_three import (
    BUGS,
    TWINS,
    CausalAttention,
    EinsumAttention,
    FusedAttention,
    MaskedCausalAttention,
    NamedAttention,
    PackedAttention,
    ShortAttention,
    attend_blocks,
    bias_attend,
    options_attend,
    own_backward,
    padding,
    split,
    window,
)

import mha_tutor

B, H, L, S = 3, 2, 6, 9
KEYS = (torch.arange(S) < torch.tensor([9, 4, 7])[:, None])[:, None, None, :]
SELF = (torch.arange(L) < torch.tensor([6, 2, 4])[:, None])[:, None, None, :]
EMPTY = KEYS & (torch.arange(L) != 2)[:, None]
PAST = torch.ones(L, L, dtype=torch.bool).tril()


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def qkv(keys=S, width=8, values=8):
    shapes = (L, width), (keys, width), (keys, values)
    return [seeded(B, H, *shape, seed=seed) for seed, shape in enumerate(shapes)]


def close(a, b):
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), atol=5e-6)


# --- the right versions --------------------------------------------------------------------------


def gradients(position, *args, keys=S, **options):
    """Return the gradient of one of query, key and value."""

    def call(candidate):
        leaves = [t.requires_grad_() for t in qkv(keys)]
        candidate(*leaves, *args, **options).square().sum().backward()
        return leaves[position].grad

    return call


def test_the_right_functions_equal_torch():
    functions = bias_attend, options_attend, own_backward, attend_blocks
    for keys, width, values in ((9, 8, 8), (8, 6, 5), (3, 4, 4)):
        q, k, v = qkv(keys, width, values)
        for right in functions:
            assert close(right(q, k, v), sdpa(q, k, v))
        assert close(options_attend(q, k, v, is_causal=True), sdpa(q, k, v, is_causal=True))
    for position in range(3):
        for right in functions:
            assert close(gradients(position)(right), gradients(position)(sdpa))
    for mask in (KEYS, EMPTY, seeded(B, H, L, S, seed=7), seeded(L, S, seed=8)):
        assert close(bias_attend(*qkv(), mask), sdpa(*qkv(), mask))
    assert abs(share_dropped(options_attend) - 0.1) < 0.02


def torch_layer(heads, weights, biases, out):
    """Make torch's layer of the parameters of another one."""
    layer = nn.MultiheadAttention(weights.shape[1], heads, batch_first=True)
    layer.in_proj_weight.copy_(weights)
    layer.in_proj_bias.copy_(torch.zeros_like(layer.in_proj_bias) if biases is None else biases)
    layer.out_proj.weight.copy_(out.weight)
    layer.out_proj.bias.zero_() if out.bias is None else layer.out_proj.bias.copy_(out.bias)
    return layer.eval()


@torch.no_grad()
def test_the_right_layers_equal_those_of_torch():
    torch.manual_seed(1)
    x, y, z = seeded(B, L, 12), seeded(B, S, 12, seed=1), seeded(B, S, 12, seed=2)

    layer = PackedAttention(12, 3)
    same = torch_layer(3, layer.in_proj_weight, layer.in_proj_bias, layer.out_proj)
    assert close(layer(x, y, z, KEYS), same(x, y, z, key_padding_mask=~KEYS[:, 0, 0])[0])
    assert close(layer(x, x, x), same(x, x, x)[0])

    for layer, names in (
        (EinsumAttention(12, 3), ("to_q", "to_k", "to_v", "to_out")),
        (NamedAttention(12, 3), ("query", "key", "value", "out")),
        (ShortAttention(12, 3), ("wq", "wk", "wv", "wo")),
        (CausalAttention(12, 3), ("c_attn", "c_proj")),
        (MaskedCausalAttention(12, 3), ("q_proj", "k_proj", "v_proj", "out_proj")),
        (FusedAttention(12, 3), ("qkv", "proj")),
    ):
        *parts, out = (getattr(layer, name) for name in names)
        biases = None if parts[0].bias is None else torch.cat([p.bias for p in parts])
        same = torch_layer(3, torch.cat([p.weight for p in parts]), biases, out)
        future = ~PAST if isinstance(layer, CausalAttention | MaskedCausalAttention) else None
        assert close(layer(x), same(x, x, x, attn_mask=future)[0])
        if len(parts) == 3 and not isinstance(layer, ShortAttention):
            hidden = ~SELF[:, 0, 0]
            expected = same(x, x, x, attn_mask=future, key_padding_mask=hidden)[0]
            assert close(layer(x, SELF), expected)
            assert torch.equal(layer(x, SELF & False), out.bias.expand(B, L, 12))


def test_the_right_parts_equal_loops():
    x, heads = seeded(B, L, 12), split(seeded(B, L, 12), 3)
    for h in range(3):
        assert torch.equal(heads[:, h], x[..., 4 * h : 4 * h + 4])
    for i in range(7):
        assert [bool(c) for c in window(7, 3)[i]] == [i - 3 < j <= i for j in range(7)]
    for b, length in enumerate((3, 5, 4)):
        found = padding(torch.tensor([3, 5, 4]), 6)[b, 0, 0]
        assert [bool(c) for c in found] == [j < length for j in range(6)]


# --- where each bug shows, and where it does not -------------------------------------------------


def on(*args, **options):
    return lambda candidate: candidate(*args, **options)


def quietly(*args, calls=1):
    """Call a layer in evaluation, without gradients, and return what the last call does."""

    def call(layer):
        layer.eval()
        with torch.no_grad():
            return [layer(*args) for _ in range(calls)][-1]

    return call


def share_dropped(function):
    """Return the share of weights dropped at a rate of 0.1; the values make them the output."""
    torch.manual_seed(5)
    q, k = seeded(20, 50, 8), seeded(20, 50, 8, seed=1)
    return (function(q, k, torch.eye(50).expand(20, 50, 50), dropout_p=0.1) == 0).float().mean()


def dropped_by_half(function):
    torch.manual_seed(5)
    return function(*qkv(), dropout_p=0.5)


def gradients_on_after(before):
    """Say whether gradients are on after a call."""

    def call(function):
        with torch.set_grad_enabled(before):
            function(*qkv())
            return torch.tensor(torch.is_grad_enabled())

    return call


def in_bfloat16(layer):
    with torch.no_grad():
        try:
            return layer.bfloat16()(x16.bfloat16())
        except RuntimeError:
            return torch.full_like(x16, math.nan)


def first_output_after(second):
    """Return the output of a first call as it is after a second one."""

    def call(layer):
        layer.eval()
        with torch.no_grad():
            first = layer(x10)
            layer(second)
            return first

    return call


x8, x10, x12, x14, x15, x16 = (seeded(B, L, width) for width in (8, 10, 12, 14, 15, 16))
y15, z15 = seeded(B, S, 15, seed=1), seeded(B, L, 15, seed=2)
FULL = seeded(B, H, L, S, seed=7)
ZERO_KEY = [t * (1 - torch.eye(S)[:, 3:4]) if i == 1 else t for i, t in enumerate(qkv())]
LENGTHS = torch.tensor([3, 5, 4])

LOUD = {
    "bias-nan-to-num": gradients(0, EMPTY),
    "bias-of-head-0": on(*qkv(), FULL),
    "bias-for-keys-of-zeros": on(*ZERO_KEY),
    "options-gradients-switched-on": gradients_on_after(False),
    "options-dropout-keeps-p": share_dropped,
    "backward-without-row-sum": gradients(0),
    "blocks-padding-counted": on(*qkv()),
    "in-proj-same-by-shape": quietly(x15, z15, z15),
    "in-proj-cross-without-bias": quietly(x15, y15, y15),
    "to-q-values-summed": quietly(x12),
    "query-key-value-relu": quietly(x14),
    "wq-scale-folded-each-time": quietly(x8, calls=2),
    "c-attn-refuses-half": in_bfloat16,
    "q-proj-mask-for-causal": quietly(x16, SELF),
    "qkv-output-reused": first_output_after(x10.flip(0)),
    "split-slices-overlap": on(x12, 3),
    "padding-of-the-longest": on(LENGTHS, 6),
    "window-full-from-the-start": on(7, 3),
}

QUIET = {
    "bias-nan-to-num": [on(*qkv(), EMPTY), gradients(0, KEYS), gradients(2, EMPTY)],
    "bias-of-head-0": [on(*qkv(), KEYS), on(*qkv(), FULL[:, :1])],
    "bias-for-keys-of-zeros": [on(*qkv(), FULL)],
    "options-gradients-switched-on": [
        gradients_on_after(True),
        on(*qkv(), is_causal=True),
        gradients(1),
    ],
    "options-dropout-keeps-p": [on(*qkv(), is_causal=True), dropped_by_half],
    "backward-without-row-sum": [on(*qkv()), gradients(2)],
    "blocks-padding-counted": [on(*qkv(8))],
    "in-proj-same-by-shape": [quietly(x15, x15, x15), quietly(x15, y15, y15)],
    "in-proj-cross-without-bias": [quietly(x15, x15, x15)],
    "wq-scale-folded-each-time": [quietly(x8)],
    "c-attn-refuses-half": [quietly(x16)],
    "q-proj-mask-for-causal": [quietly(x16), quietly(x16, SELF & PAST)],
    "qkv-output-reused": [quietly(x10, calls=2), first_output_after(x10[:2])],
    "split-slices-overlap": [on(x12, 1)],
    "padding-of-the-longest": [on(torch.tensor([4, 4]), 6)],
    "window-full-from-the-start": [on(5, 1)],
}


def pair(bug):
    """Make the bug and its right version, with the same parameters."""
    torch.manual_seed(3)
    wrong, right = bug.make(), TWINS[bug.name]()
    if bug.form == "module":
        right.load_state_dict(wrong.state_dict())
    return wrong, right


def test_the_set_is_well_formed():
    names = {mutant.name for mutant in mha_tutor.contract.MUTANTS}
    mine = {bug.name for bug in BUGS}
    before = {bug.name for bug in unseen_bugs.BUGS + unseen_bugs_two.BUGS}
    assert len(BUGS) == len(mine) == 18
    assert mine == TWINS.keys() == LOUD.keys() >= QUIET.keys()
    assert not mine & (before | names)
    for bug in BUGS:
        assert bug.right_names <= names, bug.name
        assert bug.story.endswith("."), bug.name
        assert "\n" not in bug.story, bug.name


@pytest.mark.parametrize("bug", BUGS, ids=lambda b: b.name)
def test_each_bug_shows_where_it_says(bug):
    wrong, right = pair(bug)
    found, expected = LOUD[bug.name](wrong), LOUD[bug.name](right)
    assert found.shape == expected.shape
    assert torch.isfinite(expected).all()
    assert not close(found, expected)


@pytest.mark.parametrize("bug", [b for b in BUGS if b.name in QUIET], ids=lambda b: b.name)
def test_each_bug_is_silent_elsewhere(bug):
    for quiet in QUIET[bug.name]:
        wrong, right = pair(bug)
        assert close(quiet(wrong), quiet(right))


@pytest.mark.parametrize("bug", [b for b in BUGS if b.form == "module"], ids=lambda b: b.name)
def test_each_layer_trains_in_the_right_shape(bug):
    layer = pair(bug)[0].train()
    x = seeded(B, L, next(p.shape[1] for p in layer.parameters() if p.ndim == 2))
    out = layer(x, x, x) if "in-proj" in bug.name else layer(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
