"""The bugs of the second set: the right versions are right, and each bug shows where it says.

The references are torch's: `scaled_dot_product_attention` and `nn.MultiheadAttention`, and loops
over single entries for the parts. Each bug is compared with its right version, which has the same
parameters, where it must show (LOUD), and, where there is such a place, where it must not (QUIET).
"""

import inspect
import math

import pytest
import torch
import unseen_bugs
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from unseen_bugs_two import (
    BUGS,
    TWINS,
    BertAttention,
    CrossAttention,
    LlamaAttention,
    PackedAttention,
    SelfAttention,
    ViTAttention,
    attend_causal,
    attend_in_chunks,
    attend_online,
    attention,
    bmm_attend,
    causal,
    merge,
    padding,
    plain,
    split,
    window,
)

import mha_tutor

B, H, L, S = 3, 2, 6, 9
KEYS = (torch.arange(S) < torch.tensor([9, 4, 7])[:, None])[:, None, None, :]
SELF = (torch.arange(L) < torch.tensor([6, 2, 4])[:, None])[:, None, None, :]
EMPTY = torch.zeros(L, L, dtype=torch.bool)


def seeded(*shape, dtype=torch.float32, seed=0, factor=1.0):
    return factor * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def qkv(queries=L, keys=S, width=8, values=8, heads=H, factor=1.0, dtype=torch.float32):
    shapes = (queries, width), (keys, width), (keys, values)
    return [
        seeded(B, heads, *shape, seed=seed, factor=factor, dtype=dtype)
        for seed, shape in enumerate(shapes)
    ]


def close(a, b):
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), atol=5e-6)


# --- the right versions --------------------------------------------------------------------------


def test_the_right_functions_equal_torch():
    for width, values in ((8, 8), (6, 5)):
        q, k, v = qkv(width=width, values=values)
        for right in (bmm_attend, attention, plain, attend_causal, attend_in_chunks, attend_online):
            assert close(right(q, k, v), sdpa(q, k, v))
        for right in (attend_causal, attend_in_chunks):
            assert close(right(q, k, v, is_causal=True), sdpa(q, k, v, is_causal=True))
        full = seeded(B, H, L, S, seed=7)
        for right in (bmm_attend, attention):
            for mask in (KEYS, KEYS[0, 0].expand(L, S), full, full[0, 0]):
                assert close(right(q, k, v, mask), sdpa(q, k, v, mask))
            assert close(right(q, k, v, EMPTY[:, :1].expand(L, S)), torch.zeros(B, H, L, values))
        assert close(bmm_attend(q[0, 0], k[0, 0], v[0, 0]), sdpa(q, k, v)[0, 0])


def torch_layer(width, heads, weights, biases, out):
    """Make torch's layer of the parameters of another one."""
    layer = nn.MultiheadAttention(width, heads, bias=biases is not None, batch_first=True)
    layer.in_proj_weight.copy_(weights)
    layer.out_proj.weight.copy_(out.weight)
    if biases is not None:
        layer.in_proj_bias.copy_(biases)
        layer.out_proj.bias.copy_(out.bias)
    return layer.eval()


@torch.no_grad()
def test_the_right_layers_equal_those_of_torch():
    torch.manual_seed(1)
    x, y, z = seeded(B, L, 12), seeded(B, S, 12, seed=1), seeded(B, S, 12, seed=2)
    layer = ViTAttention(12, 2).eval()
    same = torch_layer(12, 2, layer.qkv.weight, layer.qkv.bias, layer.proj)
    assert close(layer(x), same(x, x, x)[0])

    layer = SelfAttention(12, 3)
    assert close(layer(x), layer.attn(x, x, x)[0])

    layer = CrossAttention(12, 3).eval()
    assert close(layer(x, y, z), layer.attn(x, y, z)[0])
    found = layer(x, y, z, KEYS.expand(B, 1, L, S))
    assert close(found, layer.attn(x, y, z, key_padding_mask=~KEYS[:, 0, 0])[0])
    bias = seeded(L, S, seed=3)
    assert close(layer(x, y, z, bias), layer.attn(x, y, z, attn_mask=bias)[0])
    assert torch.equal(layer(x, x, x, EMPTY), layer.attn.out_proj.bias.expand(B, L, 12))

    layer = PackedAttention(12, 3)
    same = torch_layer(12, 3, layer.in_proj_weight, layer.in_proj_bias, layer.out_proj)
    assert close(layer(x, y, z, KEYS), same(x, y, z, key_padding_mask=~KEYS[:, 0, 0])[0])

    layer = BertAttention(12, 3)
    parts = layer.query, layer.key, layer.value
    weights, biases = (torch.cat([getattr(p, n) for p in parts]) for n in ("weight", "bias"))
    same = torch_layer(12, 3, weights, biases, layer.dense)
    assert close(layer(x, SELF), same(x, x, x, key_padding_mask=~SELF[:, 0, 0])[0])
    assert torch.equal(layer(x, EMPTY), layer.dense.bias.expand(B, L, 12))

    layer = LlamaAttention(12, 6, 3)
    wk, wv = (w.weight.view(3, 1, 2, 12).expand(3, 2, 2, 12) for w in (layer.wk, layer.wv))
    weights = torch.cat([layer.wq.weight, wk.reshape(12, 12), wv.reshape(12, 12)])
    same = torch_layer(12, 6, weights, None, layer.wo)
    future = torch.ones(L, L, dtype=torch.bool).triu(1)
    assert close(layer(x), same(x, x, x, attn_mask=future)[0])


def test_the_right_parts_equal_loops():
    x, heads = seeded(B, L, 12), split(seeded(B, L, 12), 3)
    assert heads.shape == (B, 3, L, 4)
    for h in range(3):
        assert torch.equal(heads[:, h], x[..., 4 * h : 4 * h + 4])
    assert torch.equal(merge(heads), x)
    for i in range(7):
        assert [bool(c) for c in causal(7, 9)[i]] == [j <= i for j in range(9)]
        assert [bool(c) for c in window(7, 3)[i]] == [i - 3 < j <= i for j in range(7)]
    assert torch.equal(causal(5), causal(5, 5))
    for b, length in enumerate((3, 5, 4)):
        found = padding(torch.tensor([3, 5, 4]), 6)[b, 0, 0]
        assert [bool(c) for c in found] == [j < length for j in range(6)]


# --- where each bug shows, and where it does not -------------------------------------------------


def on(*args, **options):
    """Call a candidate; clones, because some write into what they are given."""

    def call(candidate):
        return candidate(*(a.clone() if torch.is_tensor(a) else a for a in args), **options)

    return call


def quietly(*args, train=False):
    """Call a layer without gradients, in evaluation or in training, with a seed."""

    def call(layer):
        layer.train(train)
        torch.manual_seed(5)
        with torch.no_grad():
            return layer(*args)

    return call


def argument_after(position, *args):
    """Return what an argument is after the call."""

    def call(candidate):
        clones = [a.clone() for a in args]
        candidate(*clones)
        return clones[position]

    return call


def gradient_of(position):
    def call(candidate):
        leaves = [t.requires_grad_() for t in qkv()]
        candidate(*leaves).square().sum().backward()
        found = leaves[position].grad
        return torch.zeros_like(leaves[position]) if found is None else found

    return call


def second_call(layer):
    layer.eval()
    with torch.no_grad():
        layer(x16)
        return layer(x16)


def width_of_a_number(dtype):
    return lambda candidate: torch.tensor(candidate(*qkv(dtype=dtype)).dtype.itemsize)


def applied(*size):
    """Attend under a mask, as torch reads it: booleans or numbers to add."""
    q, k, v = qkv(*size)
    return lambda candidate: sdpa(q, k, v, candidate(*size))


def deviation_in_a_head(layer):
    """Drop in training where all values are equal: a head's features then stay equal."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.qkv.bias[-12:] = 1.0
        layer.proj.weight.copy_(torch.eye(12))
    return quietly(torch.zeros(B, L, 12), train=True)(layer).unflatten(-1, (2, 6)).std(-1)


FULL = seeded(B, H, L, S, seed=7)
x12, x16, x18 = (seeded(B, L, width) for width in (12, 16, 18))
y12, y18 = (seeded(B, S, width, seed=1) for width in (12, 18))
LENGTHS = torch.tensor([3, 5, 4])

LOUD = {
    "bmm-beta-of-0": on(*qkv(), KEYS),
    "bmm-scale-from-values": on(*qkv(values=4)),
    "bmm-scales-a-view": argument_after(0, *qkv()),
    "bmm-scores-into-the-mask": argument_after(3, *qkv(), FULL),
    "bmm-alibi-left-in": on(*qkv()),
    "short-mask-equal-to-0": on(*qkv(), FULL),
    "short-zero-times-infinity": on(*qkv(), KEYS),
    "short-mask-as-bytes": on(*qkv(), KEYS),
    "short-always-float32": width_of_a_number(torch.float64),
    "short-whole-root": on(*qkv(width=8)),
    "short-values-detached": gradient_of(2),
    "plain-softmax-dim-1": on(*qkv()),
    "plain-largest-of-all-rows": on(*qkv(factor=12.0)),
    "plain-root-of-scale-on-query": on(*qkv()),
    "causal-not-for-one-query": on(*qkv(queries=1), is_causal=True),
    "chunks-forget-their-start": on(*qkv(), is_causal=True),
    "online-sum-not-shrunk": on(*qkv()),
    "vit-heads-before-three": quietly(x12),
    "vit-scaled-twice": quietly(x12),
    "vit-dropout-on-mixed-values": deviation_in_a_head,
    "wrapped-batch-second": quietly(x12),
    "wrapped-mask-repeated": quietly(x12, y12, y12, KEYS),
    "bert-minus-10000": quietly(x16, EMPTY),
    "bert-mask-not-extended": quietly(x16, SELF),
    "bert-norm-inside": quietly(x16),
    "bert-output-bias-twice": quietly(x16),
    "llama-cache-kept": second_call,
    "llama-sink": quietly(x16),
    "llama-values-rotated": quietly(x16),
    "llama-fused-dropout": quietly(x16),
    "llama-fused-in-eval": quietly(x16),
    "packed-value-with-bias-of-key": quietly(x18, y18, y18),
    "packed-output-read-by-feature": quietly(x18, y18, y18),
    "packed-queries-among-keys": quietly(x18, y18, y18),
    "packed-head-lost-its-mask": quietly(x18, y18, y18, KEYS),
    "split-unflattened-backwards": on(x12, 3),
    "merge-length-first": on(seeded(B, H, L, 5)),
    "causal-of-floats": applied(L, S),
    "causal-only-in-the-square": on(4, 6),
    "padding-on-the-left": on(LENGTHS, 6),
    "window-of-the-last-query": on(7, 3),
}

QUIET = {
    "bmm-beta-of-0": on(*qkv()),
    "bmm-scale-from-values": on(*qkv(), KEYS),
    "bmm-scales-a-view": on(*qkv(), FULL),
    "bmm-scores-into-the-mask": argument_after(3, *qkv(), FULL[0, 0]),
    "short-mask-equal-to-0": on(*qkv(), KEYS),
    "short-zero-times-infinity": on(*qkv(), FULL),
    "short-mask-as-bytes": on(*qkv(), FULL),
    "short-always-float32": width_of_a_number(torch.float32),
    "short-whole-root": on(*qkv(width=16)),
    "short-values-detached": gradient_of(0),
    "plain-largest-of-all-rows": on(*qkv()),
    "causal-not-for-one-query": on(*qkv(queries=2), is_causal=True),
    "chunks-forget-their-start": on(*qkv(queries=4), is_causal=True),
    "online-sum-not-shrunk": on(*qkv(keys=4)),
    "vit-dropout-on-mixed-values": quietly(x12),
    "wrapped-mask-repeated": quietly(x12, y12, y12, KEYS[0, 0].expand(L, S)),
    "bert-minus-10000": quietly(x16, SELF),
    "bert-mask-not-extended": quietly(x16, seeded(L, L)),
    "llama-cache-kept": quietly(x16),
    "llama-values-rotated": quietly(x16[:, :1]),
    "llama-fused-in-eval": quietly(x16, train=True),
    "packed-queries-among-keys": quietly(x18, x18, x18),
    "packed-head-lost-its-mask": quietly(x18, y18, y18),
    "causal-only-in-the-square": on(6, 4),
    "padding-on-the-left": on(torch.tensor([6, 6]), 6),
    "window-of-the-last-query": on(5, 5),
}


def pair(bug):
    """Make the bug and its right version, with the same parameters."""
    torch.manual_seed(3)
    wrong, right = bug.make(), TWINS[bug.name]()
    if bug.form == "module":
        with torch.no_grad():
            for name, parameter in wrong.named_parameters():
                if "bias" in name and "LayerNorm" not in name:
                    parameter.uniform_(-0.5, 0.5)  # torch starts some at 0
        names = right.state_dict().keys()  # a bug may have a parameter more
        right.load_state_dict({name: wrong.state_dict()[name] for name in names})
    return wrong, right


def test_the_set_is_well_formed():
    names = {mutant.name for mutant in mha_tutor.contract.MUTANTS}
    mine = {bug.name for bug in BUGS}
    assert len(BUGS) == len(mine) >= 20
    assert mine == TWINS.keys() == LOUD.keys() >= QUIET.keys()
    assert not mine & ({bug.name for bug in unseen_bugs.BUGS} | names)
    for bug in BUGS:
        assert bug.right_names <= names, bug.name
        assert bug.story.endswith("."), bug.name
        assert "\n" not in bug.story, bug.name
    assert len(BUGS) / 4 < sum(bool(bug.right_names) for bug in BUGS) < len(BUGS) / 2


@pytest.mark.parametrize("bug", BUGS, ids=lambda b: b.name)
def test_each_bug_shows_where_it_says(bug):
    wrong, right = pair(bug)
    found, expected = LOUD[bug.name](wrong), LOUD[bug.name](right)
    assert found.shape == expected.shape
    assert torch.isfinite(expected).all()
    assert not close(found, expected)


@pytest.mark.parametrize("bug", [b for b in BUGS if b.name in QUIET], ids=lambda b: b.name)
def test_each_bug_is_silent_elsewhere(bug):
    wrong, right = pair(bug)
    assert close(QUIET[bug.name](wrong), QUIET[bug.name](right))


@pytest.mark.parametrize("bug", [b for b in BUGS if b.form == "module"], ids=lambda b: b.name)
def test_each_layer_trains_in_the_right_shape(bug):
    layer = pair(bug)[0].train()
    width = next(p.shape[1] for p in layer.parameters() if p.ndim == 2)
    x = seeded(B, L, width)
    args = (x, x, x) if "query" in inspect.signature(layer.forward).parameters else (x,)
    out = layer(*args)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_dropout_on_mixed_values_breaks_the_features_of_a_head_apart():
    bug = next(b for b in BUGS if b.name == "vit-dropout-on-mixed-values")
    wrong, right = (deviation_in_a_head(layer) for layer in pair(bug))
    assert math.isclose(right.max(), 0.0, abs_tol=1e-6)
    assert wrong.max() > 0.1
