"""The general sentences of chapter 5, each tried over many sizes."""

import math

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import mha_tutor
from mha_tutor import causal_mask, merge_heads, split_heads

from .ledger import claim
from .sizes import DTYPES, SEED, B, D, H, L, S, close, normal

DEEPER = "deeper_windows"
sdpa = F.scaled_dot_product_attention
TWO = st.integers(2, 6)


def qkv(B, H, L, S, D, seed, dtype=torch.float64):
    return [normal(B, H, n, D, seed=seed + i).to(dtype) for i, n in enumerate((L, S, S))]


def some_keys(*shape, seed):
    """A mask that leaves each row its first key."""
    mask = normal(*shape, seed=seed) > 0
    mask[..., 0] = True
    return mask


def by_formula(q, k, v, may):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~may, -math.inf).softmax(dim=-1) @ v


@claim(
    "05",
    'True means "may attend" in `F.scaled_dot_product_attention`',
    right=lambda may: may,
    broken=lambda may: ~may,
    B=B, H=H, L=L, S=TWO, D=D, seed=SEED, dtype=DTYPES,
)  # fmt: skip
def test_true_means_may_in_the_function(polarity, B, H, L, S, D, seed, dtype):
    q, k, v = qkv(B, H, L, S, D, seed, dtype)
    may = some_keys(L, S, seed=seed)
    out = sdpa(q, k, v, polarity(may)).double()
    expected = by_formula(q.double(), k.double(), v.double(), may)
    assert close(out, expected, 0.05 if dtype.itemsize == 2 else 1e-4)


def a_layer(H, D, seed, **options):
    layer = nn.MultiheadAttention(H * D, H, dtype=torch.float64, **options)
    with torch.no_grad():
        for n, p in enumerate(layer.parameters()):
            p.copy_(normal(*p.shape, seed=seed + n))
    return layer


def by_function(layer, x, may):
    packed = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (split_heads(part, layer.num_heads) for part in packed)
    return layer.out_proj(merge_heads(sdpa(q, k, v, may)))


@claim(
    "05",
    "Torch's function wants it inverted and with axes for heads and queries. The module wants it "
    "as it is, and a causal mask beside it, inverted.",
    right=lambda padding, causal: {"key_padding_mask": padding, "attn_mask": ~causal},
    broken=[
        lambda padding, causal: {"key_padding_mask": ~padding, "attn_mask": ~causal},
        lambda padding, causal: {"key_padding_mask": padding, "attn_mask": causal},
    ],
    B=B, H=H, L=TWO, D=D, seed=SEED, need_weights=st.booleans(),
)  # fmt: skip
def test_padding_and_causal_in_both(masks, B, H, L, D, seed, need_weights):
    layer, x = a_layer(H, D, seed, batch_first=True), normal(B, L, H * D, seed=seed)
    lengths = torch.randint(1, L + 1, (B,), generator=torch.Generator().manual_seed(seed))
    is_padding = torch.arange(L) >= lengths[:, None]
    may = ~is_padding[:, None, None, :] & causal_mask(L)
    out, _ = layer(x, x, x, need_weights=need_weights, **masks(is_padding, causal_mask(L)))
    assert close(out, by_function(layer, x, may))


@claim(
    "05",
    "(B·H, L, S), in which the sequence changes slowest: `repeat_interleave(H, dim=0)`, not "
    "`repeat`.",
    right=lambda m, H: m.repeat_interleave(H, dim=0),
    broken=lambda m, H: m.repeat(H, 1, 1),
    B=B, H=H, L=TWO, D=D, seed=SEED,
)  # fmt: skip
def test_order_of_a_mask_of_each_head(repeated, B, H, L, D, seed):
    layer, x = a_layer(H, D, seed, batch_first=True), normal(B, L, H * D, seed=seed)
    may = some_keys(B, L, L, seed=seed)
    out, _ = layer(x, x, x, attn_mask=repeated(~may, H))
    assert close(out, by_function(layer, x, may[:, None]))


@claim(
    "05",
    "With padding at the end, causal and combined differ only in rows of the padding itself",
    right=lambda real: real,
    broken=lambda real: real.flip(-1),
    L=TWO, seed=SEED,
)  # fmt: skip
def test_padding_at_the_end_under_a_causal_mask(place, L, seed):
    length = int(torch.randint(1, L, (), generator=torch.Generator().manual_seed(seed)))
    real = place(torch.arange(L) < length)
    differ = (causal_mask(L) ^ (causal_mask(L) & real)).any(dim=-1)
    assert not (differ & real).any()


@claim(
    "05",
    "But when `B` equals `L`, `(B, S)` is read as `(L, S)`",
    right=lambda real: real,
    broken=lambda real: real[:, None, None, :],
    B=TWO, H=H, S=TWO, D=D, seed=SEED,
)  # fmt: skip
def test_a_padding_mask_is_read_as_queries(given, B, H, S, D, seed):
    q, k, v = qkv(B, H, B, S, D, seed)
    real = some_keys(B, S, seed=seed)
    assert close(sdpa(q, k, v, given(real)), sdpa(q, k, v, real.expand(B, H, B, S)))


@claim(
    "05",
    "with `L` = 1 the (B, S) mask *enlarges* the scores.",
    right=lambda real: real,
    broken=lambda real: real[:, None, None, :],
    B=TWO, H=H, S=S,
)  # fmt: skip
def test_a_padding_mask_enlarges_the_scores(given, B, H, S):
    scores, real = torch.zeros(B, H, 1, S), torch.ones(B, S, dtype=torch.bool)
    assert scores.masked_fill(~given(real), -math.inf).shape == (B, H, B, S)


def erased(q, k, v, may):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).masked_fill(~may, 0) @ v


@claim(
    "05",
    "A masked key has no influence and no gradient if its score is finite and −∞ is written "
    "over it.",
    right=by_formula,
    broken=[erased, lambda q, k, v, may: sdpa(q, k, v, (~may).double() * -20.0)],
    B=B, H=H, L=L, S=TWO, D=D, seed=SEED,
)  # fmt: skip
def test_a_masked_key_does_nothing(attention, B, H, L, S, D, seed):
    q, k, v = qkv(B, H, L, S, D, seed)
    kept = some_keys(S, seed=seed)
    kept[-1] = False
    may, k2, v2 = kept.expand(L, S), k.clone(), v.clone()
    k2[:, :, ~kept], v2[:, :, ~kept] = 1e3, -1e6
    k2.requires_grad_()
    out = attention(q, k2, v2, may)
    assert torch.equal(out, attention(q, k, v, may))
    out.square().sum().backward()
    assert (k2.grad[:, :, ~kept] == 0).all()


@claim(
    "05",
    "A mask acts on the scores, before the softmax, as $-\\infty$. After the softmax the future "
    "leaks through the denominator.",
    right=by_formula,
    broken=erased,
    B=B, H=H, L=TWO, D=D, seed=SEED,
)  # fmt: skip
def test_before_the_softmax(attention, B, H, L, D, seed):
    q, k, v = qkv(B, H, L, L, D, seed)
    k2, v2 = k.clone(), v.clone()
    k2[:, :, -1], v2[:, :, -1] = normal(2, B, H, D, seed=seed + 9)
    before, after = (attention(q, *kv, causal_mask(L)) for kv in ((k, v), (k2, v2)))
    assert close(before[:, :, :-1], after[:, :, :-1])


@claim(
    "05",
    "a LayerNorm in front of the attention removes a constant, and the probe sees nothing.",
    right=lambda token: token + 1,
    broken=lambda token: normal(*token.shape, seed=1),
    B=B, L=TWO, D=st.integers(3, 9), seed=SEED,
)  # fmt: skip
def test_adding_one_is_no_probe(change, B, L, D, seed):
    x = normal(B, L, D, seed=seed)
    changed = x.clone()
    changed[:, -1] = change(x[:, -1])
    normed = [F.layer_norm(t, (D,), eps=0.0) for t in (x, changed)]
    assert close(*[(t + sdpa(n, n, n))[:, :-1] for t, n in zip((x, changed), normed, strict=True)])


@claim(
    "05",
    "A mask of ones and zeros in floating point forbids nothing.",
    right=lambda may: may.double(),
    broken=lambda may: may,
    B=B, H=H, L=L, S=TWO, D=D, seed=SEED,
)  # fmt: skip
def test_ones_and_zeros_forbid_nothing(given, B, H, L, S, D, seed):
    q, k, _ = qkv(B, H, L, S, D, seed)
    assert (mha_tutor.attention_weights(q, k, given(some_keys(L, S, seed=seed))) > 0).all()


@claim(
    "05",
    "A row with nothing left gives NaN by the formula, zeros by torch's function (CPU, 2.13), the "
    "mean of what was hidden with a finite `masked_fill`.",
    right=(-math.inf, -1e4),
    broken=[(-1e4, -1e4), (-math.inf, -math.inf)],
    B=B, H=H, L=L, S=TWO, D=D, seed=SEED, dtype=DTYPES,
)  # fmt: skip
def test_rows_with_nothing_left(fills, B, H, L, S, D, seed, dtype):
    q, k, v = qkv(B, H, L, S, D, seed, dtype)
    nothing = torch.zeros(L, S, dtype=torch.bool)
    scores = (q @ k.mT).float()
    assert scores.masked_fill(~nothing, fills[0]).softmax(-1).isnan().all()
    mean = scores.masked_fill(~nothing, fills[1]).softmax(-1)
    assert close(mean, torch.full_like(mean, 1 / S), 1e-6)
    for backend in ([SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION], list(SDPBackend.__members__)):
        if backend[0] in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(backend):
                out = sdpa(q, k, v, nothing)
        else:
            out = sdpa(q, k, v, nothing)
        assert (out == 0).all()


@claim(
    "05",
    "torch's function on the CPU (2.13) *adds*, and gives NaN for a masked key of 3e38.",
    right=3e38,
    broken=1.0,
)
def test_a_masked_key_that_overflows(size):
    q, k, v = (normal(1, 1, 4, 2, seed=n, dtype=torch.float32) for n in range(3))
    q, k[:, :, 3] = q.abs(), size
    may = causal_mask(4)
    assert sdpa(q, k, v, may)[:, :, :3].isnan().any()


def offset_mask(L, S):
    return causal_mask(L, S, offset=S - L)


@claim(
    "05",
    "With a cache, causal means bottom right: `offset = S - L`.",
    right=offset_mask,
    broken=[lambda L, S: causal_mask(L, S), lambda L, S: torch.ones(L, S, dtype=torch.bool)],
    B=B, H=H, new=st.integers(1, 4), past=st.integers(0, 4), D=D, seed=SEED,
)  # fmt: skip
def test_a_cache_changes_nothing(mask, B, H, new, past, D, seed):
    q, k, v = qkv(B, H, new + past, new + past, D, seed)
    full = sdpa(q, k, v, is_causal=True)[:, :, past:]
    assert close(sdpa(q[:, :, past:], k, v, mask(new, new + past)), full)


@claim(
    "05",
    "On the CPU (2.13) the default kernel applies both and the MATH backend raises; the package "
    "raises.",
    right=True,
    broken=False,
)
def test_attn_mask_with_is_causal(causal):
    q, k, v = qkv(2, 3, 5, 5, 4, seed=0)
    real = some_keys(5, seed=1).expand(5, 5)
    assert close(sdpa(q, k, v, real, is_causal=causal), by_formula(q, k, v, real & causal_mask(5)))
    with sdpa_kernel(SDPBackend.MATH):
        refused = _raises(lambda: sdpa(q, k, v, real, is_causal=causal))
    package = mha_tutor.scaled_dot_product_attention
    assert refused
    assert _raises(lambda: package(q, k, v, real, is_causal=causal))


def _raises(call):
    try:
        call()
    except (RuntimeError, ValueError):
        return True
    return False


@claim(
    "05",
    "the fill lies far below every score (by 110 in float32, where exp underflows to 0)",
    right=110.0,
    broken=80.0,
    seed=SEED,
)
def test_a_finite_fill_that_is_safe(below, seed):
    s = normal(5, seed=seed, dtype=torch.float32)
    s[0] = s.max() - below
    assert s.softmax(dim=-1)[0] == 0


@claim(
    DEEPER,
    "with a window of $w$ and $n$ layers the receptive field has $1 + n(w-1)$ tokens, or all of "
    "the past if that is fewer",
    right=lambda w, n: 1 + n * (w - 1),
    broken=lambda w, n: n * w,
    w=st.integers(1, 5), n=st.integers(1, 5), length=st.integers(1, 24),
)  # fmt: skip
def test_receptive_field(field, w, n, length):
    step = mha_tutor.sliding_window_mask(length, window=w).double()
    reached = (torch.linalg.matrix_power(step, n) > 0).sum(dim=-1).tolist()
    assert reached == [min(field(w, n), i + 1) for i in range(length)]
