"""The unseen bugs themselves: the right versions are right, and each bug is one."""

import numpy as np
import pytest
import torch
from unseen_bugs import (
    BUGS,
    TWINS,
    Attention,
    CausalSelfAttention,
    GroupedQueryAttention,
    MultiHeadedAttention,
    attend,
    causal,
    einsum_attend,
    merge,
    padding,
    split,
    window,
)

import mha_tutor

DROPOUT = {"gpt-dropout-shared-by-heads", "annotated-dropout-normalized-again"}
LENGTHS = torch.tensor([3, 5, 4])
KEYS = mha_tutor.padding_mask(LENGTHS, 5)


def loop(q, k, v, mask=None):
    arrays = (t.detach().double().numpy() for t in (q, k, v))
    out = mha_tutor.attention_loop(*arrays, None if mask is None else mask.numpy())
    return torch.from_numpy(out)


def close(a, b):
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), atol=2e-6)


def through(x, q, k, v, out, heads, kv_heads=None, mask=None, memory=None):
    """Compute a layer with the loops; q, k, v and out are callables."""
    memory = x if memory is None else memory
    k, v = (mha_tutor.split_heads(p(memory), kv_heads or heads) for p in (k, v))
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    mixed = loop(mha_tutor.split_heads(q(x), heads), k, v, mask)
    return out(mha_tutor.merge_heads(mixed).to(x.dtype))


@torch.no_grad()
def test_the_right_layers_equal_the_loops():
    torch.manual_seed(0)
    x, memory = torch.randn(3, 5, 12), torch.randn(3, 5, 12)

    layer = CausalSelfAttention(12, 3, 0.2).eval()
    parts = [lambda t, i=i: layer.c_attn(t).chunk(3, -1)[i] for i in range(3)]
    right = through(x, *parts, layer.c_proj, 3, mask=mha_tutor.causal_mask(5))
    assert close(layer(x), right)

    layer = MultiHeadedAttention(3, 12).eval()
    right = through(x, *layer.linears, 3, mask=KEYS, memory=memory)
    assert close(layer(x, memory, memory, KEYS[:, 0]), right)

    layer = Attention(12, 3)
    parts = (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj)
    right = through(x, *parts, 3, mask=KEYS, memory=memory)
    assert close(layer(x, memory, memory, KEYS), right)

    layer = GroupedQueryAttention(12, 4, 2)
    parts = (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj)
    assert close(layer(x, KEYS), through(x, *parts, 4, 2, mask=KEYS))


def test_the_right_functions_equal_the_loops():
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 2, 4, 6), torch.randn(3, 2, 5, 6), torch.randn(3, 2, 5, 7)
    empty = torch.zeros(4, 5, dtype=torch.bool)
    for mask in (None, KEYS, mha_tutor.causal_mask(4, 5), empty, torch.randn(4, 5)):
        assert close(attend(q, k, v, mask), loop(q, k, v, mask))
    assert close(attend(q, k, v, is_causal=True), loop(q, k, v, mha_tutor.causal_mask(4, 5)))
    assert close(einsum_attend(q, k, v), loop(q, k, v))


def test_the_right_parts_equal_the_package():
    x = torch.randn(3, 4, 12)
    assert torch.equal(split(x, 3), mha_tutor.split_heads(x, 3))
    assert torch.equal(merge(split(x, 3)), x)
    assert torch.equal(causal(4, 6), mha_tutor.causal_mask(4, 6))
    assert torch.equal(padding(LENGTHS, 6), mha_tutor.padding_mask(LENGTHS, 6))
    assert torch.equal(window(7, 3), mha_tutor.sliding_window_mask(7, 3))


def answers(candidate, form):
    """Call a candidate on inputs that show the bugs."""
    torch.manual_seed(2)
    if form == "split":
        return [candidate(torch.randn(2, 4, 12), 3)]
    if form == "merge":
        return [candidate(torch.randn(2, 3, 4, 5))]
    if form == "causal":
        return [candidate(4, 6)]
    if form == "padding":
        return [candidate(LENGTHS, 6)]
    if form == "window":
        return [candidate(7, 3)]
    if form == "function":
        q, k, v = 2 * torch.randn(3, 3, 2, 5, 6)
        found = [candidate(q, k, v), candidate(4 * q, k, v)]
        if candidate.__code__.co_argcount > 3:
            found += [candidate(q, k, v, KEYS), candidate(q, k, v, torch.randn(5, 5))]
        return found
    candidate.eval()
    width = next(p.shape[1] for p in candidate.parameters() if p.ndim == 2)
    x, longer = torch.randn(3, 5, width), torch.randn(3, 7, width)
    if isinstance(candidate, CausalSelfAttention):
        return [candidate(x), candidate(longer)]
    if isinstance(candidate, GroupedQueryAttention):
        return [candidate(x)]
    mask = KEYS[:, 0] if isinstance(candidate, MultiHeadedAttention) else KEYS
    return [candidate(x, longer, longer), candidate(x, x, x, mask)]


def pair(bug):
    """Make the bug and its right version, with the same weights."""
    torch.manual_seed(3)
    wrong, right = bug.make(), TWINS[bug.name]()
    if bug.form == "module":
        names = right.state_dict().keys()  # a bug may have a parameter more
        right.load_state_dict({name: wrong.state_dict()[name] for name in names})
    return wrong, right


def test_the_set_is_well_formed():
    names = {mutant.name for mutant in mha_tutor.contract.MUTANTS}
    assert len(BUGS) == len(TWINS) == len({bug.name for bug in BUGS}) >= 16
    for bug in BUGS:
        assert bug.right_names <= names, bug.name
        assert bug.story.endswith("."), bug.name


@pytest.mark.parametrize("bug", [b for b in BUGS if b.name not in DROPOUT], ids=lambda b: b.name)
@torch.no_grad()
def test_each_bug_differs_from_its_right_version(bug):
    wrong, right = pair(bug)
    expected = answers(right, bug.form)
    if bug.name == "gpt-mask-of-first-call":
        with pytest.raises(RuntimeError, match="must match the size"):
            answers(wrong, bug.form)
        return
    found = answers(wrong, bug.form)
    assert not all(close(a, b) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
def sums_of_dropped_weights(layer):
    """Make the output of a layer the row sums of its weights after dropout, (B, L, E)."""
    layer.train()
    for parameter in layer.parameters():
        parameter.zero_()
    if isinstance(layer, CausalSelfAttention):
        layer.c_attn.bias[-12:] = 1.0
        out = layer.c_proj
    else:
        layer.linears[2].bias.fill_(1.0)
        out = layer.linears[3]
    out.weight.copy_(torch.eye(12))
    x = torch.zeros(2, 8, 12)
    torch.manual_seed(4)
    return (layer(x) if isinstance(layer, CausalSelfAttention) else layer(x, x, x)).numpy()


@pytest.mark.parametrize("bug", [b for b in BUGS if b.name in DROPOUT], ids=lambda b: b.name)
def test_each_bug_of_dropout_shows_in_training(bug):
    wrong, right = (sums_of_dropped_weights(layer) for layer in pair(bug))
    if bug.name == "gpt-dropout-shared-by-heads":
        assert np.array_equal(wrong[..., 0], wrong[..., 4])
        assert not np.array_equal(right[..., 0], right[..., 4])
    else:
        np.testing.assert_allclose(wrong, 1.0, rtol=1e-6)
        assert np.ptp(right) > 0.1
