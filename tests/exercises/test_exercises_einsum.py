"""The checkers of chapter 3: right answers pass, known mistakes are told by name."""

import itertools
import math

import numpy as np
import pytest
import torch

import mha_tutor
from mha_tutor import exercises, explain_einsum
from mha_tutor.exercises.chapter3 import _SPECS


def says(feedback, sentence):
    """The answer is refused, in these words."""
    assert not feedback
    assert sentence in repr(feedback), feedback
    return True


# --- scores_spec


@pytest.mark.parametrize(
    "right",
    [
        "bhld,bhsd->bhls",
        "nhqd,nhkd->nhqk",
        "abcd, abed -> abce",
        "...ld,...sd->...ls",
        "BHLD,BHSD->BHLS",
    ],
)
def test_scores_spec(right):
    assert exercises.scores_spec(right)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("bhld,bhld->bhll", "letters of their own"),
        ("bhld,bhld->bhl", "letters of their own"),
        ("nqhd,nkhd->nhqk", "letter 'h' is 5 in operand 0 ('nqhd', shape (2, 3, 5, 11)) but 7"),
        ("bhld,bhsd->bhsl", "a row of this is a key"),
        ("bhld,bhsd->bls", "sums over the heads"),
        ("bhld,bhsd->hls", "sums over the batch:"),
        ("bhld,bhsd->ls", "the batch and the heads"),
        ("bhld,bhsd", "without an arrow"),
        ("bhld,bhse->bhls", "each is summed alone"),
        ("bhld,bgsd->bhls", "each head meets every head"),
        ("bhld,chsd->bhls", "each meets every other"),
        ("bhld,bhsd->bhlsd", "D is kept"),
        ("bhld,bhsd->blhs", "the heads stand after"),
        ("bhld,bhsd->bhld", "the shape is (2, 3, 5, 11)"),
        ("ij,jk->ik", "'ij' names 2 axes"),
        ("bhld->bhld", "1 operand(s), but 2"),
        ("bhldbhsd->bhls", "Put a comma between the two: 'bhld,bhsd'"),
        ("bhld,bhsd->bhlz", "letter 'z' of the output"),
        (42, "this is an int; the answer looks like 'ij,jk->ik'"),
    ],
)
def test_scores_spec_wrong(wrong, sentence):
    assert says(exercises.scores_spec(wrong), sentence)


# --- output_spec


@pytest.mark.parametrize(
    "right", ["bhld,hod->blo", "nhqd,hed->nqe", "a b c d, b e d -> a c e", "bhld,hod"]
)
def test_output_spec(right):
    assert exercises.output_spec(right)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("bhld,hod->bhlo", "h is kept: these are the shares"),
        ("bhld,hod->blho", "before they are added"),
        ("bhld,hod->bol", "exchanged"),
        ("bhld,god->blo", "the matrix of every head"),
        ("bhld,hoe->blo", "summed over it alone"),
        ("bhld,hod->lo", "sums over the batch"),
        ("bhld,hod->bo", "sums over the tokens"),
        ("bhld,hod->bl", "sums over the outputs"),
        ("bhld,hdo->blo", "letter 'd' is 7 in operand 0 ('bhld', shape (2, 3, 5, 7)) but 11"),
        ("bhld,ohd->blo", "letter 'h' is 3"),
        ("blhd,hod->blo", "letter 'h' is 5"),
        ("bld,od->blo", "'bld' names 3 axes"),
        ("bhldhod->blo", "Put a comma between the two: 'bhld,hod'"),
    ],
)
def test_output_spec_wrong(wrong, sentence):
    assert says(exercises.output_spec(wrong), sentence)


# --- flops


def sizes(spec, a, b):
    left, right = spec.split("->")[0].split(",")
    return dict(zip(left + right, [*a, *b], strict=True))


def flops(spec, a, b):
    return 2 * math.prod(sizes(spec, a, b).values())


FLOPS = {
    "letters": flops,
    "package": lambda spec, a, b: explain_einsum(spec, a, b).flops,
    "float": lambda spec, a, b: 2.0 * math.prod(sizes(spec, a, b).values()),
    "numpy": lambda spec, a, b: 2 * np.prod(list(sizes(spec, a, b).values())),
    "torch": lambda spec, a, b: 2 * torch.tensor([*sizes(spec, a, b).values()]).prod(),
}


@pytest.mark.parametrize("name", FLOPS)
def test_flops(name):
    assert exercises.flops(FLOPS[name])


def of(letters, spec, a, b):
    return math.prod(sizes(spec, a, b)[letter] for letter in letters)


def summed(spec):
    return set(spec.split("->")[0]) - {","} - set(spec.split("->")[1])


def kept(spec):
    return spec.split("->")[1]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda *args: flops(*args) // 2, "half of it"),
        (lambda spec, a, b: 2 * math.prod(a) * math.prod(b), "all numbers of a with all of b"),
        (lambda spec, a, b: 2 * of(kept(spec), spec, a, b), "each entry of the result"),
        (lambda spec, a, b: 2 * of(summed(spec), spec, a, b), "the summed letters alone"),
        (lambda *args: 2 * sum(sizes(*args).values()), "nested loops multiply"),
        (
            lambda spec, a, b: math.prod(a) + math.prod(b) + of(kept(spec), spec, a, b),
            "read and written",
        ),
        (
            lambda spec, a, b: of(kept(spec), spec, a, b) * (2 * of(summed(spec), spec, a, b) - 1),
            "chapter 1",
        ),
        (lambda *args: 60, "it returns 60, whatever the input"),
        (lambda *args: flops(*args) + 0.5, "returns 60.5; a whole number"),
        (lambda *args: str(flops(*args)), "a str; a whole number"),
        (lambda *args: True, "a bool; a whole number"),
        (lambda *args: 3 * flops(*args), "for 'ij,jk->ik' with (2, 3) and (3, 5) it returns 180;"),
    ],
    ids=range(12),
)
def test_flops_wrong(wrong, sentence):
    assert says(exercises.flops(wrong), sentence)


# --- layer_by_einsum


def layer(x, w_q, w_k, w_v, w_o, act=lambda s: (s / 5**0.5).softmax(-1), mix=None):
    queries = torch.einsum("nqe,hde->nqhd", x, w_q)
    keys = torch.einsum("nke,hde->nkhd", x, w_k)
    values = torch.einsum("nke,hde->nkhd", x, w_v)
    weights = act(torch.einsum("nqhd,nkhd->nhqk", queries, keys))
    mixed = torch.einsum(mix or "nhqk,nkhd->nqhd", weights, values)
    return torch.einsum("nqhd,ohd->nqo", mixed, w_o)


def layer_by_package(x, w_q, w_k, w_v, w_o):
    q, k, v = (mha_tutor.split_heads(x @ w.flatten(0, 1).T, 3) for w in (w_q, w_k, w_v))
    heads = mha_tutor.scaled_dot_product_attention(q, k, v)
    return mha_tutor.merge_heads(heads) @ w_o.flatten(1).T


@pytest.mark.parametrize("right", [layer, layer_by_package])
def test_layer_by_einsum(right):
    assert exercises.layer_by_einsum(right)


def with_act(act, mix=None):
    return lambda *args: layer(*args, act=act, mix=mix)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (with_act(lambda s: s.softmax(-1)), "not divided by √D"),
        (with_act(lambda s: (s / 15**0.5).softmax(-1)), "divided by √E"),
        (with_act(lambda s: (s / 5).softmax(-1)), "divided by D"),
        (with_act(lambda s: (s * 5**0.5).softmax(-1)), "multiplied by √D"),
        (with_act(lambda s: (s / 5**0.5).softmax(-2)), "over the queries"),
        (with_act(lambda s: (s / 5**0.5).softmax(1)), "over the heads"),
        (with_act(lambda s: s / 5**0.5), "no softmax"),
        (with_act(lambda s: (s / 5**0.5).softmax(-1), "nhkq,nkhd->nqhd"), "have their queries"),
        (with_act(lambda s: (s.mT / 5**0.5).softmax(-1)), "letters are in the wrong order"),
        (with_act(lambda s: (s / 5**0.5).softmax(-1), "nhqk,nqhd->nqhd"), "nothing is mixed"),
        (
            with_act(lambda s: (s.sum(1, keepdim=True) / 5**0.5).softmax(-1).expand_as(s)),
            "one table of weights",
        ),
        (lambda x, q, k, v, o: layer(x, q, k, k, o), "keys are mixed"),
        (lambda x, q, k, v, o: layer(x, q, k, v, o).mT, "the shape is (2, 11, 7)"),
        (lambda x, q, k, v, o: layer(x, q, k, v, o.movedim(0, -1)), "raises RuntimeError"),
        (lambda x, q, k, v, o: layer(x, k, q, v, o), "or w_q and w_k are exchanged"),
    ],
    ids=range(15),
)
def test_layer_by_einsum_wrong(wrong, sentence):
    assert says(exercises.layer_by_einsum(wrong), sentence)


# --- einsum_by_matmul


def by_matmul(spec, a, b, order=None, final=True, alone=True, merge_in_order=True):
    left, out = spec.split("->")
    s, t = left.split(",")
    if alone:
        for c in set(s) - set(t + out):
            a, s = a.sum(s.index(c)), s.replace(c, "")
        for c in set(t) - set(s + out):
            b, t = b.sum(t.index(c)), t.replace(c, "")
    size = dict(zip(s + t, a.shape + b.shape, strict=True))
    batch = [c for c in s if c in t and c in out]
    rows, cols = [c for c in s if c not in t], [c for c in t if c not in s]
    inner = [c for c in s if c in t and c not in out]
    inner_b = inner if merge_in_order else [c for c in t if c in inner]

    def stack(x, letters, *groups):
        x = x.permute([letters.index(c) for group in groups for c in group])
        return x.reshape([math.prod(size[c] for c in group) for group in groups])

    made = stack(a, s, batch, rows, inner) @ stack(b, t, batch, inner_b, cols)
    made = made.reshape([size[c] for c in batch + rows + cols])
    return made.permute([(batch + rows + cols).index(c) for c in out]) if final else made


def by_broadcasting(spec, a, b):
    left, out = spec.split("->")
    s, t = left.split(",")
    letters = sorted(set(s + t))

    def lay(x, term):
        x = x.permute([term.index(c) for c in letters if c in term])
        return x[tuple(slice(None) if c in term else None for c in letters)]

    made = lay(a, s) * lay(b, t)
    inner = [i for i, c in enumerate(letters) if c not in out]
    made = made.sum(inner) if inner else made
    rest = [c for c in letters if c in out]
    return made.permute([rest.index(c) for c in out])


@pytest.mark.parametrize("right", [by_matmul, by_broadcasting])
def test_einsum_by_matmul(right):
    assert exercises.einsum_by_matmul(right)


def by_loop(spec, a, b):
    """What the chapter's einsum_loop does."""
    left, output = spec.split("->")
    s, t = left.split(",")
    size = dict(zip(s + t, a.shape + b.shape, strict=True))
    out = a.new_zeros([size[c] for c in output])
    for values in itertools.product(*(range(n) for n in size.values())):
        at = dict(zip(size, values, strict=True))
        x, y = (m[tuple(at[c] for c in term)] for m, term in ((a, s), (b, t)))
        out[tuple(at[c] for c in output)] += x * y
    return out


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (torch.einsum, "this calls an einsum"),
        (lambda spec, a, b: torch.einsum(spec, a, b), "this calls an einsum"),
        (by_loop, "a loop over entries"),
        (lambda *args: by_matmul(*args, final=False), "in the order 'ik': permute the result"),
        (lambda *args: by_matmul(*args, alone=False), "stands in one operand only"),
        (lambda *args: by_matmul(*args, merge_in_order=False), "permute both to one order"),
        (lambda spec, a, b: a @ b, "for 'ij,jk->ki'"),
        (
            lambda spec, a, b: (a @ b).reshape([2, 5] if spec[-2:] == "ik" else [5, 2]),
            "'ij,jk->ki'",
        ),
        (
            lambda spec, a, b: (
                a @ (b.mT if spec[3:5] == "kj" else b) if spec[-1] == "k" else (a @ b).T
            ),
            "nothing is kept",
        ),
        (lambda spec, a, b: by_matmul(spec, a, b).numpy(), "not a tensor"),
        (lambda spec, a, b: by_matmul(spec, a.zero_(), b), "in place"),
    ],
    ids=range(11),
)
def test_einsum_by_matmul_wrong(wrong, sentence):
    assert says(exercises.einsum_by_matmul(wrong), sentence)


def test_the_specs_have_all_roles():
    roles = set()
    for spec, a, b, _ in _SPECS:
        roles |= {(letter.role, *letter.used_by) for letter in explain_einsum(spec, a, b).letters}
    assert len(roles) == 6  # batch; kept in a, in b; summed in both, in a, in b
