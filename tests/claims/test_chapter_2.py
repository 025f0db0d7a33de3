"""Chapter 2: what it says of all sizes, layouts and dtypes."""

import torch
from hypothesis import strategies as st
from torch.testing import assert_close

from mha_tutor import (
    causal_mask,
    draw,
    merge_heads,
    scaled_dot_product_attention,
    split_heads,
)

from .ledger import claim

SIZES = {
    "B": st.integers(1, 3),
    "L": st.integers(1, 6),
    "H": st.integers(1, 4),
    "D": st.integers(1, 4),
}
LARGE = {"L": st.integers(2, 6), "H": st.integers(2, 4), "D": st.integers(1, 3)}
DTYPES = {"dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.int64])}


def numbers(*shape, dtype=torch.int64):
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


def split_wrong(x, H):
    return x.reshape(x.shape[0], H, x.shape[1], -1)


def merge_wrong(x):
    B, H, L, D = x.shape
    return x.reshape(B, L, H * D)


def layer(x, H, split, merge):
    heads = split(x, H)
    return merge(scaled_dot_product_attention(heads, heads, heads, is_causal=True))


def reach(length, H, split, merge):
    x = draw(1, length, 2 * H, seed=0, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(lambda x: layer(x, H, split, merge), x)
    return (slopes[0, :, :, 0] != 0).any(3).any(1)


@claim(
    "02",
    "each head gets D = E / H = 2 features (head_dim) of every token",
    right=split_heads,
    broken=split_wrong,
    **SIZES,
    **DTYPES,
)
def test_split_is_slices(subject, B, L, H, D, dtype):
    x = numbers(B, L, H * D, dtype=dtype)
    assert torch.equal(subject(x, H), torch.stack(x.chunk(H, dim=-1), dim=1))


@claim(
    "02",
    "so it belongs to token (h · L + t) // H",
    right=split_wrong,
    broken=split_heads,
    L=st.integers(1, 7),
    H=st.integers(1, 5),
    D=st.integers(1, 3),
)
def test_rule_of_the_wrong_split(subject, L, H, D):
    token = numbers(L)[:, None].expand(L, H * D)[None].contiguous()
    rows = subject(token, H)[0]
    rule = (numbers(H, L) // H)[..., None].expand(H, L, D)
    assert torch.equal(rows, rule)


@claim(
    "02",
    "The package's two functions do the same, for any number of leading axes",
    right=merge_heads,
    broken=lambda heads: heads.flatten(-2),
    lead=st.lists(st.integers(1, 3), max_size=3),
    **LARGE,
)
def test_leading_axes(subject, lead, L, H, D):
    x = numbers(*lead, L, H * D)
    assert split_heads(x, H).shape == (*lead, H, L, D)
    assert torch.equal(subject(split_heads(x, H)), x)


@claim(
    "02",
    "and raise an error if H does not divide E",
    right=split_heads,
    broken=lambda x, H: x[..., : x.shape[-1] // H * H],  # drops what is left
    E=st.integers(1, 12),
    H=st.integers(2, 13),
)
def test_no_fraction_of_a_feature(subject, E, H):
    if E % H:
        raised = False
        try:
            subject(torch.zeros(2, 3, E), H)
        except ValueError:
            raised = True
        assert raised


@claim(
    "02",
    "`view` and `transpose` copy nothing",
    right=lambda x, B, L, H, D: x.view(B, L, H, D).transpose(1, 2),
    broken=lambda x, B, L, H, D: x.view(B, L, H, D).transpose(1, 2).contiguous(),
    **{**SIZES, **LARGE},
)
def test_views(subject, B, L, H, D):
    x = numbers(B, L, H * D)
    heads = subject(x, B, L, H, D)
    assert heads.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def can_fold(x, outer):
    inner = outer + 1
    free = 1 in (x.shape[outer], x.shape[inner])
    return free or x.stride(outer) == x.shape[inner] * x.stride(inner)


@claim(
    "02",
    "stepping off the end of the inner one lands where the outer one goes next: stride[outer] = "
    "size[inner] · stride[inner]",
    right=can_fold,
    broken=[lambda x, outer: x.is_contiguous(), lambda x, outer: True],
    axes=st.permutations(range(4)),
    outer=st.integers(0, 2),
    B=st.integers(1, 3),
    H=st.integers(1, 3),
)
def test_rule_of_folding(subject, axes, outer, B, H):
    x = numbers(B, 4, H, 2).permute(axes)
    shape = list(x.shape)
    shape[outer : outer + 2] = [shape[outer] * shape[outer + 1]]
    try:
        x.view(shape)
        folds = True
    except RuntimeError:
        folds = False
    assert subject(x, outer) == folds


@claim(
    "02",
    "Three lines make it, and do the same work",
    right=[
        lambda t, B, L: t.transpose(1, 2).reshape(B, L, -1),
        lambda t, B, L: t.transpose(1, 2).contiguous().view(B, L, -1),
        lambda t, B, L: t.transpose(1, 2).flatten(2),
    ],
    broken=[[lambda t, B, L: t.reshape(B, L, -1)]],
    **{**SIZES, **LARGE},
)
def test_three_merges(subject, B, L, H, D):
    x = numbers(B, L, H * D)
    heads = split_heads(x, H).contiguous()
    for merge in subject:
        assert torch.equal(merge(heads, B, L), x)


@claim(
    "02",
    "the round trip, a natural test, passes when both are wrong",
    right=(split_wrong, merge_wrong),
    broken=[(split_wrong, merge_heads), (split_heads, merge_wrong)],
    **LARGE,
)
def test_round_trip_of_two_mistakes(subject, L, H, D):
    split, merge = subject
    x = numbers(2, L, H * D)
    assert torch.equal(merge(split(x, H)), x)


@claim(
    "02",
    "The mistakes cancel in the order, so nothing leaks.",
    right=(split_wrong, merge_wrong),
    broken=[(split_wrong, merge_heads), (split_heads, merge_wrong)],
    L=st.integers(1, 8),
    H=st.integers(1, 5),
)
def test_two_mistakes_leak_nothing(subject, L, H):
    assert not (reach(L, H, *subject) & ~causal_mask(L)).any()


@claim(
    "02",
    "Shape and ones tell you nothing",
    right=[(a, b) for a in (split_heads, split_wrong) for b in (merge_heads, merge_wrong)],
    broken=[[(split_heads, lambda x: merge_heads(2 * x))]],
    **LARGE,
)
def test_ones(subject, L, H, D):
    ones = torch.ones(2, L, H * D)
    for split, merge in subject:
        assert_close(layer(ones, H, split, merge), ones)


@claim(
    "02",
    "With three tokens or more, two tests tell the right layer from the three others",
    right=lambda seen, may: torch.equal(seen, may),
    broken=[
        lambda seen, may: not (seen & ~may).any(),
        lambda seen, may: bool((seen | ~may).all()),
    ],
    L=st.integers(3, 8),
    H=st.integers(2, 5),
)
def test_allowed_set_tells_them_apart(subject, L, H):
    pairs = [(a, b) for a in (split_heads, split_wrong) for b in (merge_heads, merge_wrong)]
    verdicts = [subject(reach(L, H, *pair), causal_mask(L)) for pair in pairs]
    assert verdicts == [True, False, False, False]


@claim(
    "02",
    "With one head, or one token, both splits are equal",
    right=[(1, 5), (4, 1)],
    broken=[[(2, 2)], [(3, 4)]],
    B=st.integers(1, 3),
)
def test_nothing_to_exchange(subject, B):
    for H, L in subject:
        x = numbers(B, L, 2 * H)
        assert torch.equal(split_heads(x, H), split_wrong(x, H))


@claim(
    "02",
    "each token sees itself alone",
    right=(lambda x, H: x.unflatten(-1, (H, -1)), lambda x: x.flatten(-2)),
    broken=(split_heads, merge_heads),
    L=st.integers(2, 6),
    H=st.integers(1, 4),
)
def test_forgotten_transpose(subject, L, H):
    assert torch.equal(reach(L, H, *subject), torch.eye(L, dtype=torch.bool))


@claim(
    "02",
    "`reshape` copies where the strides do not fold",
    right=lambda heads: heads.reshape(-1, *heads.shape[2:]),
    broken=lambda heads: heads.contiguous().reshape(-1, *heads.shape[2:]),
    B=st.integers(1, 3),
    **LARGE,
)
def test_reshape_copies_only_then(subject, B, L, H, D):
    x = numbers(B, L, H * D)
    heads = split_heads(x, H)
    shared = subject(heads).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert shared == can_fold(heads, 0)


def place(x, index):
    steps = sum(i * s for i, s in zip(index, x.stride(), strict=True))
    return x.storage_offset() + steps


@claim(
    "deeper_strides",
    "The place of an element in its storage is",
    right=place,
    broken=lambda x, index: place(x, index) - x.storage_offset(),
    begin=st.integers(0, 3),
    axes=st.permutations(range(3)),
)
def test_place(subject, begin, axes):
    x = numbers(5, 4, 3)[begin:].permute(axes)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
        assert x[tuple(index)] == subject(x, index)


@claim(
    "02",
    "With two tokens and an odd number of heads even both mistakes reach the allowed set.",
    right=[3, 5, 7],
    broken=[[2], [4]],
)
def test_two_tokens(subject):
    for H in subject:
        assert torch.equal(reach(2, H, split_wrong, merge_wrong), causal_mask(2))
