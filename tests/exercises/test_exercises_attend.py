"""The checkers of chapter 4: right answers pass, known mistakes are told by name."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import mha_tutor
from mha_tutor import exercises

inf = float("inf")


def test_a_checker_leaves_random_numbers_and_settings_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        assert exercises.heads_last(heads_by_einsum)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(3), expected)


def test_a_notebook_shows_short_lines():
    feedback = exercises.heads_last(heads_by_einsum)
    shown = []
    feedback._repr_pretty_(SimpleNamespace(text=shown.append), False)
    lines = shown[0].splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 78
    assert " ".join(line.strip() for line in lines) == repr(feedback)


# --- four_weights --------------------------------------------------------------------------------

RAW = torch.tensor([4.0, -1.0, -1.0, 2.0])
RIGHT = torch.softmax(RAW / math.sqrt(2), -1)


def scored(*scores):
    """Give the weights of these scores, to two digits."""
    weights = torch.softmax(torch.tensor(scores) / math.sqrt(2), -1)
    return [round(weight, 2) for weight in weights.tolist()]


@pytest.mark.parametrize(
    "answer",
    [
        [0.77, 0.02, 0.02, 0.19],
        (0.768, 0.022, 0.022, 0.187),
        RIGHT,
        RIGHT.numpy(),
        list(RIGHT),
    ],
    ids=["two digits", "three", "tensor", "array", "list of tensors"],
)
def test_four_weights_right(answer):
    assert exercises.four_weights(answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (torch.softmax(RAW, -1), "not scaled"),
        ([0.87, 0.01, 0.01, 0.12], "not scaled"),
        (torch.softmax(RAW / 2, -1), "divided by D = 2"),
        (torch.softmax(RAW / 6**0.5, -1), "√E"),
        (RAW, "raw scores"),
        (RAW / 2**0.5, "scaled scores"),
        ((RAW / 2**0.5).exp(), "divide each by the sum"),
        (RAW / RAW.sum(), "Take exp first"),
        (RIGHT * 100, "percent"),
        ([77, 2, 2, 19], "percent"),
        ([0.77, 0.19, 0.02, 0.02], "look again at k2 = (-1, 0): its score is"),
        ([0.77, 0.19, 0.02, 0.02], "; and at k4 = (0, 1): its score is"),
        (scored(4, -1, 3, 2), "look again at k3 = (1, -1): its score is 1·(1) + 2·(-1) = -1, and"),
        (scored(4, -1, 3, 2), "your weights fit 3."),
        (scored(4, 1, -1, 2), "look again at k2 = (-1, 0)"),
        (scored(2, -1, -1, 2), "look again at k1 = (0, 2)"),
        (scored(4, -1, -1, 1), "look again at k4 = (0, 1)"),
        ([0.4, 0.3, 0.2, 0.1], "that is not it"),
        ([0.7, 0.7, 0.02, 0.2], "weights sum to 1"),
        ([0.5, 0.5], "four keys, so four weights"),
        ([[1, 2], [3, 4]], "four numbers"),
        (0.77, "the answer looks like"),
        ([math.nan] * 4, "that is not it"),
    ],
)
def test_four_weights_wrong(answer, said):
    assert said in repr(exercises.four_weights(answer))


# --- safe_softmax --------------------------------------------------------------------------------


def softmax_of(shift, keepdim=True, sum_dim=None):
    """Write a softmax that subtracts `shift(x, dim)`."""

    def softmax(x, dim):
        e = torch.exp(x - shift(x, dim))
        return e / e.sum(dim if sum_dim is None else sum_dim, keepdim=keepdim)

    return softmax


def by_logarithm(x, dim):
    return torch.exp(x - torch.logsumexp(x, dim, keepdim=True))


@pytest.mark.parametrize(
    "softmax",
    [
        torch.softmax,
        softmax_of(lambda x, dim: x.amax(dim, keepdim=True)),
        softmax_of(lambda x, dim: x.max(dim, keepdim=True).values),
        by_logarithm,
    ],
)
def test_safe_softmax_right(softmax):
    assert exercises.safe_softmax(softmax)


def in_place(x, dim):
    x -= x.amax(dim, keepdim=True)
    return torch.softmax(x, dim)


@pytest.mark.parametrize(
    ("softmax", "said"),
    [
        (softmax_of(lambda x, dim: 0), "at 10,000 exp is infinite"),
        (softmax_of(lambda x, dim: x.amax()), "largest number of the whole table"),
        (softmax_of(lambda x, dim: x.amin(dim, keepdim=True)), "smallest number is subtracted"),
        (softmax_of(lambda x, dim: x.mean(dim, keepdim=True)), "mean is subtracted"),
        (softmax_of(lambda x, dim: x.amax(dim)), "maximum has lost its axis"),
        (softmax_of(lambda x, dim: 0, keepdim=False), "sum has lost its axis"),
        (lambda x, dim: x.exp() / x.exp().sum(), "divided by one sum"),
        (lambda x, dim: torch.softmax(x.clamp(max=80), dim), "clipping"),
        (lambda x, dim: torch.softmax(x, 0), "it works along dim=0"),
        (lambda x, dim: torch.softmax(x, -1), "last axis, whatever `dim`"),
        (lambda x, dim: torch.softmax(x, 1), "axis 1, whatever `dim`"),
        (torch.log_softmax, "logarithm"),
        (lambda x, dim: (x - x.amax(dim, keepdim=True)).exp(), "the division by the sum is not"),
        (lambda x, dim: (x - x.amax()).exp(), "the division by the sum is not"),
        (
            softmax_of(lambda x, dim: x.amax(dim, keepdim=True), keepdim=False),
            "pass keepdim=True to sum, too",
        ),
        (softmax_of(lambda x, dim: x.amax(), keepdim=False), "sum has lost its axis"),
        (softmax_of(lambda x, dim: x.amax(dim), keepdim=False), "maximum and the sum have lost"),
        (lambda x, dim: torch.softmax(x + 1e-3 * x.cos(), dim), "the numbers are not"),
        (lambda x, dim: x.exp(), "the division is not"),
        (in_place, "changes its input in place"),
        (lambda x, dim: torch.softmax(x, dim).numpy(), "an ndarray, not a tensor"),
        (lambda x: torch.softmax(x, -1), "raises TypeError"),
    ],
)
def test_safe_softmax_wrong(softmax, said):
    assert said in repr(exercises.safe_softmax(softmax))


# --- heads_last ----------------------------------------------------------------------------------


def heads_by_einsum(query, key, value):
    scores = torch.einsum("blhd,bshd->bhls", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhls,bshv->blhv", scores.softmax(-1), value)


def heads_by_transpose(query, key, value, library=F):
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return library.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def heads_by_permute(query, key, value):
    return heads_by_transpose(query, key, value, mha_tutor).contiguous()


@pytest.mark.parametrize("attention", [heads_by_einsum, heads_by_transpose, heads_by_permute])
def test_heads_last_right(attention):
    assert exercises.heads_last(attention)


def heads_with(divisor=lambda q: q.shape[-1] ** 0.5, dim=-1, after=lambda out: out):
    def attention(query, key, value):
        scores = torch.einsum("blhd,bshd->bhls", query, key) / divisor(query)
        weights = scores.softmax(dim)
        return after(torch.einsum("bhls,bshv->blhv", weights, value))

    return attention


def scaled_late(query, key, value):
    return heads_with(lambda q: 1)(query, key, value) / query.shape[-1] ** 0.5


def by_reshape(query, key, value):
    out = heads_by_einsum(query, key, value)
    return out.transpose(1, 2).reshape(out.shape)


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        (F.scaled_dot_product_attention, "the last two axes are heads and features"),
        (mha_tutor.scaled_dot_product_attention, "the last two axes are heads and features"),
        (heads_with(lambda q: 1), "not divided by √D"),
        (heads_with(lambda q: q.shape[-1]), "divided by D; divide by √D"),
        (heads_with(lambda q: (q.shape[-2] * q.shape[-1]) ** 0.5), "divided by √E"),
        (heads_with(lambda q: q.shape[1] ** 0.5), "divided by √L or √S"),
        (heads_with(lambda q: q.shape[-2] ** 0.5), "divided by √H"),
        (heads_with(lambda q: q.shape[-1] ** -0.5), "multiplied by √D"),
        (heads_with(dim=-2), "runs along the queries"),
        (heads_with(dim=1), "runs along the heads"),
        (scaled_late, "scale comes after the softmax"),
        (heads_with(after=lambda out: out.transpose(1, 2)), "transpose back"),
        (by_reshape, "Axes change places by transpose"),
        (heads_with(after=lambda out: out.flatten(2)), "the heads are merged"),
        (lambda q, k, v: heads_by_einsum(q, k, v).float().int(), "int32; torch.float64"),
        (lambda q, k, v: heads_by_einsum(q, k, v) + 1e-3, "the numbers are not"),
        (lambda q, k, v: heads_by_einsum(q, k, v[:, :5]), "(2, 7, 3, 6) it raises RuntimeError"),
    ],
)
def test_heads_last_wrong(attention, said):
    assert said in repr(exercises.heads_last(attention))


# --- additive ------------------------------------------------------------------------------------


def added(
    combine=lambda q, k, w: torch.tanh(q + k) @ w, dim=-1, axes=(-2, -3), scale=lambda q, w: 1.0
):
    def attention(query, key, value, w_query, w_key, w_score):
        q = (query @ w_query.T).unsqueeze(axes[0])
        k = (key @ w_key.T).unsqueeze(axes[1])
        scores = combine(q, k, w_score) * scale(query, w_score)
        return scores.softmax(dim) @ value

    return attention


def added_by_einsum(query, key, value, w_query, w_key, w_score):
    q = torch.einsum("...ld,ud->...lu", query, w_query)
    k = torch.einsum("...sd,ud->...su", key, w_key)
    hidden = torch.tanh(q[..., :, None, :] + k[..., None, :, :])
    return torch.einsum("...lsu,u->...ls", hidden, w_score).softmax(-1) @ value


@pytest.mark.parametrize("attention", [added(), added_by_einsum, mha_tutor.additive_attention])
def test_additive_right(attention):
    assert exercises.additive(attention)


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        (added(lambda q, k, w: (q + k) @ w), "tanh is missing"),
        (added(lambda q, k, w: torch.tanh((q + k) @ w)), "tanh comes too late"),
        (added(lambda q, k, w: (q.tanh() + k.tanh()) @ w), "one by one; add them first"),
        (added(lambda q, k, w: (q * k).tanh() @ w), "multiplied; add them"),
        (added(lambda q, k, w: (q + k).tanh().sum(-1)), "w_score is missing"),
        (added(dim=-2), "runs along the queries"),
        (added(scale=lambda q, w: len(w) ** -0.5), "divided by √U"),
        (added(scale=lambda q, w: q.shape[-1] ** -0.5), "divided by √D"),
        (added(axes=(1, 0)), "Count from the right"),
        (lambda q, k, v, a, b, c: added_by_einsum(q, k, v, b, a, c), "raises RuntimeError"),
        (lambda q, *rest: added_by_einsum(q, *rest).numpy(), "an ndarray, not a tensor"),
        (lambda q, *rest: torch.zeros(5, 2).double(), "it should be [-0.105"),
    ],
)
def test_additive_wrong(attention, said):
    assert said in repr(exercises.additive(attention))


# --- join_pieces ---------------------------------------------------------------------------------


def joined(shares):
    """Join with `shares(lse_1, lse_2)`, a pair of weights for each query."""

    def join(out_1, lse_1, out_2, lse_2):
        w_1, w_2 = shares(lse_1, lse_2)
        return w_1[..., None] * out_1 + w_2[..., None] * out_2

    return join


def by_sigmoid(lse_1, lse_2):
    return torch.sigmoid(lse_1 - lse_2), torch.sigmoid(lse_2 - lse_1)


def by_softmax(lse_1, lse_2):
    return torch.stack([lse_1, lse_2]).softmax(0)


def by_total(lse_1, lse_2):
    total = torch.logaddexp(lse_1, lse_2)
    return (lse_1 - total).exp(), (lse_2 - total).exp()


def by_maximum(lse_1, lse_2):
    top = torch.maximum(lse_1, lse_2)
    e_1, e_2 = (lse_1 - top).exp(), (lse_2 - top).exp()
    return e_1 / (e_1 + e_2), e_2 / (e_1 + e_2)


@pytest.mark.parametrize("shares", [by_sigmoid, by_softmax, by_total, by_maximum])
def test_join_pieces_right(shares):
    assert exercises.join_pieces(joined(shares))


def by_exp(lse_1, lse_2):
    return lse_1.exp() / (lse_1.exp() + lse_2.exp()), lse_2.exp() / (lse_1.exp() + lse_2.exp())


def lined_up_wrongly(out_1, lse_1, out_2, lse_2):
    share = torch.sigmoid(lse_1 - lse_2)
    return share * out_1 + (1 - share) * out_2


def by_one_maximum(lse_1, lse_2):
    top = torch.maximum(lse_1, lse_2).max()
    e_1, e_2 = (lse_1 - top).exp(), (lse_2 - top).exp()
    return e_1 / (e_1 + e_2), e_2 / (e_1 + e_2)


def by_one_total(lse_1, lse_2):
    top = torch.maximum(lse_1, lse_2).max()
    total = top + ((lse_1 - top).exp() + (lse_2 - top).exp()).log()
    return (lse_1 - total).exp(), (lse_2 - total).exp()


def by_ratio(lse_1, lse_2):  # ∞/∞ where the first piece is masked
    ratio = (lse_2 - lse_1).exp()
    return 1 / (1 + ratio), ratio / (1 + ratio)


def by_a_product(lse_1, lse_2):  # 0 · ∞ where a piece is masked
    share = torch.sigmoid(lse_1 - lse_2)
    return share, (1 - share) * (lse_2 - lse_2).exp()


@pytest.mark.parametrize(
    ("join", "said"),
    [
        (lambda o, m, p, n: o + p, "that makes two"),
        (lambda o, m, p, n: (o + p) / 2, "plain mean"),
        (joined(lambda m, n: (m / (m + n), n / (m + n))), "It is a logarithm"),
        (joined(lambda m, n: by_sigmoid(n, m)), "shares are exchanged"),
        (joined(lambda m, n: (m.exp(), n.exp())), "do not sum to 1"),
        (
            joined(lambda m, n: ((m - n).clamp(max=0).exp(), (n - m).clamp(max=0).exp())),
            "after sub",
        ),
        (joined(by_exp), "∞/∞ is NaN"),
        (joined(by_one_maximum), "one maximum for the whole table"),
        (joined(by_one_total), "one maximum for the whole table"),
        (joined(by_ratio), "0 · ∞ or ∞/∞; exp(lse_2 − lse_1), too, is ∞"),
        (joined(by_a_product), "∞ − ∞, 0 · ∞ or ∞/∞"),
        (lined_up_wrongly, "share[..., None]"),
        (lambda o, m, p, n: o, "left out"),
        (lambda o, m, p, n: joined(by_sigmoid)(o, m, p, n).numpy(), "an ndarray, not a tensor"),
        (lambda o, m, p, n: o.mul_(2), "changes its input in place"),
    ],
)
def test_join_pieces_wrong(join, said):
    assert said in repr(exercises.join_pieces(join))
