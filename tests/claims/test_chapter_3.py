"""Chapter 3: what it says of all specs and sizes."""

import itertools
import math

import torch
from hypothesis import strategies as st
from torch.testing import assert_close

from mha_tutor import explain_einsum, head_columns, head_rows, merge_heads

from .ledger import claim

F64 = torch.float64
SEED = {"seed": st.integers(0, 999)}
HEADS = {
    "n": st.integers(1, 3),
    "q": st.integers(1, 5),
    "k": st.integers(1, 5),
    "h": st.integers(1, 4),
    "d": st.integers(1, 4),
}
MANY = {**HEADS, "h": st.integers(2, 4), "k": st.integers(2, 5)}


def whole(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).to(F64)


def einsum_loop(spec, *operands):
    """The nest of loops, as the chapter writes it."""
    left, output = spec.split("->")
    terms = left.split(",")
    size = {}
    for term, operand in zip(terms, operands, strict=True):
        size.update(zip(term, operand.shape, strict=True))
    out = operands[0].new_zeros([size[letter] for letter in output])
    for values in itertools.product(*(range(n) for n in size.values())):
        at = dict(zip(size, values, strict=True))
        entries = [
            operand[tuple(at[c] for c in term)]
            for term, operand in zip(terms, operands, strict=True)
        ]
        out[tuple(at[c] for c in output)] += math.prod(entries)
    return out


@st.composite
def specs(draw):
    """Draw two operands with distinct letters each, and a result from their letters."""
    left = "".join(draw(st.permutations("abcd"))[: draw(st.integers(1, 3))])
    right = "".join(draw(st.permutations("abcd"))[: draw(st.integers(1, 3))])
    letters = sorted(set(left + right))
    out = "".join(draw(st.permutations(letters))[: draw(st.integers(0, len(letters)))])
    return f"{left},{right}->{out}"


@claim(
    "03",
    "A spec is a nested loop: one loop for each letter, one product a step",
    right=torch.einsum,
    broken=[
        lambda spec, a, b: torch.einsum(spec, a, b).abs(),
        lambda spec, a, b: einsum_loop(spec, a, b + 1),
    ],
    spec=specs(),
    examples=40,
    **SEED,
)
def test_loop_is_einsum(subject, spec, seed):
    left, right = spec.split("->")[0].split(",")
    size = dict(zip("abcd", (2, 3, 4, 2), strict=True))
    a = whole(*(size[c] for c in left), seed=seed)
    b = whole(*(size[c] for c in right), seed=seed + 1)
    assert torch.equal(subject(spec, a, b), einsum_loop(spec, a, b))


@claim(
    "03",
    "A letter that is missing there is summed",
    right=lambda a, b: torch.einsum("ij,jk->ijk", a, b).sum(1),
    broken=lambda a, b: torch.einsum("ij,jk->ijk", a, b).amax(1),
    **SEED,
    i=st.integers(1, 4),
    j=st.integers(1, 4),
)
def test_missing_letter(subject, seed, i, j):
    a, b = whole(i, j, seed=seed), whole(j, 3, seed=seed + 1)
    assert torch.equal(subject(a, b), a @ b)


@claim(
    "03",
    "(It also stretches axes of size 1, which this loop does not.)",
    right=torch.einsum,
    broken=einsum_loop,
    n=st.integers(2, 4),
    **SEED,
)
def test_size_one(subject, n, seed):
    a, b = whole(n, 2, seed=seed), whole(1, 2, seed=seed + 1)
    assert subject("ni,ni->n", a, b).shape == (n,)


@claim(
    "03",
    "nqhd,nkhd->nhqk sums over d: scores.",
    right="nqhd,nkhd->nhqk",
    broken=["nqhd,nkhd->nhkq", "nqhd,nkhe->nhqk"],
    **HEADS,
    **SEED,
)
def test_scores(subject, n, q, k, h, d, seed):
    queries, keys = whole(n, q, h, d, seed=seed), whole(n, k, h, d, seed=seed + 1)
    expected = queries.transpose(1, 2) @ keys.permute(0, 2, 3, 1)
    found = torch.einsum(subject, queries, keys)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


@claim(
    "03",
    "nhqk,nkhd->nqhd sums over k: the mix.",
    right="nhqk,nkhd->nqhd",
    broken="nhqk,nmhd->nqhd",  # a letter of its own for the values' tokens
    **MANY,
    **SEED,
)
def test_mix(subject, n, q, k, h, d, seed):
    weights, values = whole(n, h, q, k, seed=seed), whole(n, k, h, d, seed=seed + 1)
    expected = (weights @ values.transpose(1, 2)).transpose(1, 2)
    assert torch.equal(torch.einsum(subject, weights, values), expected)


@claim(
    "03",
    "n and h are batch in both, so each head works alone.",
    right="nqhd,nkhd->nhqk",
    broken=["nqhd,nkgd->nhqk"],
    **MANY,
    **SEED,
)
def test_heads_alone(subject, n, q, k, h, d, seed):
    """Other keys in head 0 change the scores of head 0 only."""
    queries, keys = whole(n, q, h, d, seed=seed) + 9, whole(n, k, h, d, seed=seed + 1)
    other = keys.clone()
    other[:, :, 0] += 1
    before, after = (torch.einsum(subject, queries, t) for t in (keys, other))
    assert torch.equal(before[:, 1:], after[:, 1:])
    assert not torch.equal(before[:, 0], after[:, 0])


@claim(
    "03",
    "h is summed, so the heads' scores are added: the score of one big head",
    right="nqhd,nkhd->nqk",
    broken="nqhd,nkgd->nqk",
    **MANY,
    **SEED,
)
def test_summed_head(subject, n, q, k, h, d, seed):
    queries, keys = whole(n, q, h, d, seed=seed), whole(n, k, h, d, seed=seed + 1)
    expected = queries.flatten(2) @ keys.flatten(2).mT
    assert torch.equal(torch.einsum(subject, queries, keys), expected)


@claim(
    "03",
    "Names do not matter if you write the arrow",
    right=lambda spec, names: spec.translate(names),
    broken=lambda spec, names: spec.split("->")[0].translate(names),  # no arrow
    letters=st.permutations("abcdxyzBL"),
    **HEADS,
    **SEED,
)
def test_names(subject, letters, n, q, k, h, d, seed):
    queries, keys = whole(n, q, h, d, seed=seed), whole(n, k, h, d, seed=seed + 1)
    names = str.maketrans("nqkhd", "".join(letters[:5]))
    expected = torch.einsum("nqhd,nkhd->nhqk", queries, keys)
    found = torch.einsum(subject("nqhd,nkhd->nhqk", names), queries, keys)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


@claim(
    "03",
    "Without the arrow torch keeps the letters that appear once, in alphabetical order",
    right=lambda spec: "".join(sorted(c for c in spec if c != "," and spec.count(c) == 1)),
    broken=lambda spec: "".join(c for c in spec if c != "," and spec.count(c) == 1),
    spec=specs(),
    examples=30,
    **SEED,
)
def test_no_arrow(subject, spec, seed):
    spec = spec.split("->")[0]
    size = dict(zip("abcd", (2, 3, 4, 5), strict=True))
    a, b = (
        whole(*(size[c] for c in term), seed=seed + i) for i, term in enumerate(spec.split(","))
    )
    found = torch.einsum(spec, a, b)
    expected = torch.einsum(f"{spec}->{subject(spec)}", a, b)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


@claim(
    "03",
    "so merging the heads is one reshape",
    right=lambda mixed: mixed.flatten(2),
    broken=lambda mixed: mixed.transpose(1, 2).flatten(2),
    **{**MANY, "q": st.integers(2, 5)},
    **SEED,
)
def test_merge(subject, n, q, k, h, d, seed):
    weights, values = whole(n, h, q, k, seed=seed), whole(n, k, h, d, seed=seed + 1)
    mixed = torch.einsum("nhqk,nkhd->nqhd", weights, values)
    expected = merge_heads(weights @ values.transpose(1, 2))
    found = subject(mixed)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


@claim(
    "03",
    "a kept h is the stack of chapter 1",
    right=lambda x, w, h: torch.einsum("nqe,hde->nqhd", x, head_rows(w, h)).flatten(2),
    broken=lambda x, w, h: torch.einsum("nqe,hde->nqdh", x, head_rows(w, h)).flatten(2),
    h=st.integers(2, 4),
    d=st.integers(2, 4),
    **SEED,
)
def test_kept_head(subject, h, d, seed):
    x, w = whole(2, 3, 5, seed=seed), whole(h * d, 5, seed=seed + 1)
    assert torch.equal(subject(x, w, h), x @ w.T)


@claim(
    "03",
    "and a summed h its sum",
    right=lambda x, w: torch.einsum("nqhd,hod->nqo", x, w),
    broken=lambda x, w: torch.einsum("nqhd,god->nqo", x, w),
    h=st.integers(2, 4),
    d=st.integers(1, 4),
    **SEED,
)
def test_summed_projection(subject, h, d, seed):
    heads, w = whole(2, 3, h, d, seed=seed), whole(5, h * d, seed=seed + 1)
    assert torch.equal(subject(heads, head_columns(w, h)), heads.flatten(2) @ w.T)


@claim(
    "03",
    "what is left is the values, each at its own position",
    right="nhqk,nqhd->nqhd",
    broken="nhqk,nkhd->nqhd",
    n=st.integers(1, 3),
    q=st.integers(2, 5),
    **SEED,
)
def test_treacherous_slip(subject, n, q, seed):
    weights = whole(n, 3, q, q, seed=seed).softmax(-1)
    values = whole(n, q, 3, 2, seed=seed + 1)
    assert_close(torch.einsum(subject, weights, values), values)


PRIME = dict(zip("nhqkdeo", (2, 3, 5, 7, 11, 13, 17), strict=True))


def shape_of(spec, *shapes):
    try:
        return torch.einsum(spec, *(torch.zeros(shape) for shape in shapes)).shape
    except RuntimeError:
        return None


@claim(
    "03",
    "Prime sizes catch a letter of another axis",
    right=PRIME,
    broken=dict.fromkeys("nhqkdeo", 4),
    examples=60,
    spec=st.sampled_from(
        ["nqhd,nkhd->nhqk", "nhqk,nkhd->nqhd", "nqhd,hod->nqo", "nqe,hde->nqhd", "nqe,oe->nqo"]
    ),
    at=st.integers(0, 20),
    other=st.sampled_from("nhqkdeo"),
)
def test_primes_catch_an_old_letter(subject, spec, at, other):
    """Put another letter of the same spec in one place of an operand."""
    left = spec.split("->")[0]
    at %= len(left)
    if left[at] == "," or other == left[at] or other not in left:
        return
    term = left.split(",")[left[:at].count(",")]
    if other in term:
        return
    shapes = [[subject[c] for c in t] for t in left.split(",")]
    slip = spec[:at] + other + spec[at + 1 :]
    assert shape_of(slip, *shapes) != shape_of(spec, *shapes)


@claim(
    "03",
    "But sizes do not catch a letter that is *new*",
    right="nqhd,nkhe->nhqk",
    broken="nqhd,nkhq->nhqk",
)
def test_primes_miss_a_new_letter(subject):
    shapes = [[PRIME[c] for c in term] for term in ("nqhd", "nkhd")]
    assert shape_of(subject, *shapes) == shape_of("nqhd,nkhd->nhqk", *shapes)


@claim(
    "deeper_einsum_cost",
    "H · D is E, so the scores take 2·B·L·S·E FLOPs however E is split.",
    right=lambda B, L, S, E: 2 * B * L * S * E,
    broken=lambda B, L, S, E: B * L * S * E,
    B=st.integers(1, 3),
    L=st.integers(1, 9),
    S=st.integers(1, 9),
    H=st.integers(1, 5),
    D=st.integers(1, 5),
)
def test_flops_of_scores(subject, B, L, S, H, D):
    cost = explain_einsum("nqhd,nkhd->nhqk", (B, L, H, D), (B, S, H, D))
    assert cost.flops == subject(B, L, S, H * D)
