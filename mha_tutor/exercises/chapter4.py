"""Exercises of chapter 4, *Score, scale, mix*."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mha_tutor.attention import additive_attention, scaled_dot_product_attention
from mha_tutor.exercises._exercise import Wrong, answer, draw, exercise, expect, given

__all__ = ["additive", "four_weights", "heads_last", "join_pieces", "safe_softmax"]

inf = float("inf")


# --- a warm-up with pencil and paper -------------------------------------------------------------

KEYS = ((0, 2), (-1, 0), (1, -1), (0, 1))  # of head 0, as the chapter prints them
TWO_DIGITS = 0.006


@exercise
def four_weights(candidate: Any) -> str:
    """Give the four weights that q = (1, 2) has for the keys of head 0, to two digits."""
    got = _numbers(given(candidate, (list, tuple, np.ndarray, Tensor), "[0.1, 0.2, 0.3, 0.4]"))
    raw = torch.tensor([k[0] + 2 * k[1] for k in KEYS]).double()
    exchanged = torch.tensor([2 * k[0] + k[1] for k in KEYS]).double()
    scaled = raw / math.sqrt(2)
    want = torch.softmax(scaled, dim=-1)
    if _near(got, want):
        return "They sum to 1: one unit of attention to give away."
    for sentence, wrong in {
        "these are the raw scores. Divide them by √2, then take the softmax.": raw,
        "these are the scaled scores. Turn them into shares: exp, then divide by the sum.": scaled,
        "the scores were not scaled: divide them by √D = √2 before exp.": torch.softmax(raw, -1),
        "the scores were divided by D = 2; divide by √D.": torch.softmax(raw / 2, -1),
        "the scores were divided by √E = √6. What counts is the width of the head: √D = √2.": (
            torch.softmax(raw / math.sqrt(6), -1)
        ),
        "the scores were multiplied by √2; divide by it.": torch.softmax(raw * math.sqrt(2), -1),
        "the √2 comes too late: it belongs to the scores, before exp.": (
            torch.softmax(raw, -1) / math.sqrt(2)
        ),
        "exp is done, the division is not: divide each by the sum of the four.": scaled.exp(),
        "the scores were divided by their sum. Take exp first: it makes them positive.": (
            raw / raw.sum()
        ),
        "the two numbers of q are exchanged: q = (1, 2).": torch.softmax(
            exchanged / math.sqrt(2), -1
        ),
    }.items():
        if _near(got, wrong):
            raise Wrong(sentence)
    if _near(got / 100, want):
        raise Wrong("these are percent; weights are shares of 1.")
    if abs(got.sum() - 1) > 4 * TWO_DIGITS:
        raise Wrong(
            f"they sum to {got.sum():.2f}; weights sum to 1. Divide by the sum of the exps."
        )
    off = _scores_off(got, raw)
    if not off:
        raise Wrong(
            "that is not it. The score of a key (a, b) is 1·a + 2·b. Divide the four scores by "
            "√2, take exp, and divide by the sum of the four."
        )
    again = "; and at ".join(
        f"k{j + 1} = ({a}, {b}): its score is 1·({a}) + 2·({b}) = {int(raw[j])}, and your weights "
        f"fit {score}"
        for j, score in off.items()
        for a, b in [KEYS[j]]
    )
    raise Wrong(f"look again at {again}.")


def _scores_off(got: Tensor, raw: Tensor) -> dict[int, int]:
    """Find one key, or two, with other scores that would give these weights: key → score."""
    for several in (1, 2):
        found = {}
        for keys in itertools.combinations(range(len(KEYS)), several):
            for scores in itertools.product(range(-6, 9), repeat=several):
                changed = raw.clone()
                changed[list(keys)] = torch.tensor(scores).double()
                weights = torch.softmax(changed / math.sqrt(2), dim=-1)
                if _near(got, weights):
                    distance = (got - weights).abs().max().item()
                    found[distance] = dict(zip(keys, scores, strict=True))
        if found:
            return found[min(found)]
    return {}


def _numbers(x: Any) -> Tensor:
    try:
        got = torch.tensor([float(number) for number in x], dtype=torch.float64)
    except (TypeError, ValueError):
        raise Wrong("it should hold four numbers, like [0.1, 0.2, 0.3, 0.4].") from None
    if got.numel() != len(KEYS):
        raise Wrong(f"there are four keys, so four weights; these are {got.numel()}.")
    return got


def _near(got: Tensor, want: Tensor) -> bool:
    return bool(((got - want).abs() <= TWO_DIGITS * want.abs().clamp(min=1)).all())


# --- a softmax that survives 10,000 --------------------------------------------------------------


@exercise
def safe_softmax(candidate: Any) -> str:
    """Write the softmax along an axis: `softmax(x, dim)`, x of any shape and any size."""
    x = draw(4, 4)  # square, so that a forgotten keepdim raises nothing
    e = x.exp()
    own, table, lost = ((x - top).exp() for top in (x.amax(1, keepdim=True), x.amax(), x.amax(1)))
    expect(
        answer(candidate, x, 1),
        torch.softmax(x, 1),
        "for a table of shape (4, 4) and dim=1",
        {
            "it works along dim=0, and dim=1 was asked for.": torch.softmax(x, 0),
            "exp is done, the division is not.": e,
            "the whole table is divided by one sum. Sum along `dim` only.": e / e.sum(),
            "the sum has lost its axis, and is lined up with the columns: pass keepdim=True.": (
                e / e.sum(1)
            ),
            "the maximum is subtracted and exp is done, the division by the sum is not.": own,
            "the maximum of the table is subtracted and exp is done, the division by the sum is "
            "not.": table,
            "the sum has lost its axis, and is lined up with the columns: pass keepdim=True to "
            "sum, too.": own / own.sum(1),
            "the maximum and the sum have lost their axis, and are lined up with the columns: pass "
            "keepdim=True to both.": lost / lost.sum(1),
            "the maximum has lost its axis, and is lined up with the columns: pass "
            "keepdim=True.": torch.softmax(x - x.amax(1), 1),
            "this is the logarithm of the softmax.": torch.log_softmax(x, 1),
            "the scores are divided by their sum; exp is missing.": x / x.sum(1, keepdim=True),
        },
    )
    for shape in ((2, 3, 5), (3, 7)):
        x = draw(*shape)
        for dim in (0, 1, -1):
            expect(
                answer(candidate, x, dim),
                torch.softmax(x, dim),
                f"for the shape {shape} and dim={dim}",
                {
                    f"it works along the last axis, whatever `dim` says; here dim={dim}.": (
                        torch.softmax(x, -1)
                    ),
                    f"it works along axis 1, whatever `dim` says; here dim={dim}.": (
                        torch.softmax(x, 1)
                    ),
                },
            )
    row = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    for shift in (1e4, -1e4):
        x = row + shift
        what = "exp is infinite, and ∞/∞" if shift > 0 else "every exp is 0, and 0/0"
        expect(
            answer(candidate, x, -1),
            torch.softmax(x, -1),
            f"for the row {x.int().tolist()[0]}",
            {
                f"at {int(shift):,} {what} is NaN. Subtract the row's largest number before exp.": (
                    x.exp() / x.exp().sum(-1, keepdim=True)
                ),
                "clipping makes all large numbers equal. Subtract the row's largest number "
                "instead: that changes no share.": torch.full_like(x, 1 / 3),
            },
        )
    x = torch.cat([row, row + 1e4])
    expect(
        answer(candidate, x, -1),
        torch.softmax(x, -1),
        "for one row near 0 and one near 10,000",
        {
            "the largest number of the whole table is subtracted, so that in the row near 0 every "
            "exp is 0. Each row needs its own: amax(dim, keepdim=True).": _shifted(x, x.amax()),
        },
    )
    x = torch.tensor([[-1e4, 0.0, 1e4]], dtype=torch.float64)
    expect(
        answer(candidate, x, -1),
        torch.softmax(x, -1),
        "for the row [-10000, 0, 10000]",
        {
            "the row's mean is subtracted, and exp overflows. Subtract the largest.": _shifted(
                x, x.mean()
            ),
            "the row's smallest number is subtracted; exp overflows. Take the largest.": _shifted(
                x, x.amin()
            ),
        },
    )
    x = torch.tensor([[-inf, 0.0, 1.0]], dtype=torch.float64)
    expect(answer(candidate, x, -1), torch.softmax(x, -1), "for the row [-inf, 0, 1]")
    return "Along every axis, from −10,000 to 10,000, and with −∞."


def _shifted(x: Tensor, shift: Tensor) -> Tensor:
    e = (x - shift).exp()
    return e / e.sum(-1, keepdim=True)


# --- attention where the heads come after the length ---------------------------------------------


@exercise
def heads_last(candidate: Any) -> str:
    """Attend with the heads behind the length.

    `attention(query, key, value)`, (B, L, H, D), (B, S, H, D), (B, S, H, V) → (B, L, H, V).
    """
    for L, S in ((5, 5), (8, 7)):
        B, H, D, V = 2, 3, 4, 6
        query, key, value = draw(B, L, H, D), draw(B, S, H, D, seed=1), draw(B, S, H, V, seed=2)
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        want = scaled_dot_product_attention(q, k, v).transpose(1, 2)
        raw = q @ k.mT  # (B, H, L, S)

        def mixed(weights: Tensor, v=v) -> Tensor:
            return (weights @ v).transpose(1, 2)

        def divided(by: float, raw=raw, mixed=mixed) -> Tensor:
            return mixed(torch.softmax(raw / by, -1))

        scores = raw / math.sqrt(D)
        mistakes = {
            "the scores are not divided by √D.": divided(1),
            "the scores are divided by D; divide by √D.": divided(D),
            "the scores are divided by √E; each head has D features, so divide by √D.": (
                divided(math.sqrt(H * D))
            ),
            "the scores are divided by √L or √S. The terms of a dot product are features: "
            "divide by √D.": divided(math.sqrt(L)),
            "the scores are divided by √H: in this layout axis −2 counts heads, the last one "
            "features.": divided(math.sqrt(H)),
            "the scores are multiplied by √D; divide.": divided(1 / math.sqrt(D)),
            "the softmax runs along the queries. Each query shares out one unit among the keys.": (
                mixed(torch.softmax(scores, -2))
            ),
            "the softmax runs along the heads. Each head has shares of its own: the softmax "
            "belongs on the axis of the keys.": mixed(torch.softmax(scores, 1)),
            "the softmax is missing.": mixed(scores),
            "the scale comes after the softmax; it belongs to the scores.": mixed(
                torch.softmax(raw, -1) / math.sqrt(D)
            ),
            "the heads stand before the length still: transpose back to (B, L, H, V).": (
                want.transpose(1, 2)
            ),
            "the last reshape reads the numbers in the order of (B, H, L, V) and fills them in "
            "anew. Axes change places by transpose.": want.transpose(1, 2).reshape(want.shape),
            "the heads are merged; leave them on an axis of their own.": want.flatten(2),
        }
        if L == S:
            over_heads = torch.softmax(query @ key.mT / math.sqrt(D), -1) @ value
            mistakes[
                "the last two axes are heads and features here, so `@` compares the heads of one "
                "token with each other. Bring L and D together first."
            ] = over_heads
        when = f"for B=2, L={L}, S={S}, H=3, D=4, V=6,"
        expect(answer(candidate, query, key, value), want, when, mistakes)
    return "It agrees with the usual layout, for L = S and L ≠ S."


# --- scores by addition, for any number of leading axes -------------------------------------------


@exercise
def additive(candidate: Any) -> str:
    """Attend by addition, with any leading axes.

    `attention(query, key, value, w_query, w_key, w_score)`,
    (…, L, Dq), (…, S, Dk), (…, S, V), (U, Dq), (U, Dk), (U,) → (…, L, V).
    """
    for leading in ((), (2, 3)):
        L, S, Dq, Dk, V, U = 5, 7, 4, 3, 2, 6
        query, key = draw(*leading, L, Dq), draw(*leading, S, Dk, seed=1)
        value = draw(*leading, S, V, seed=2)
        w_query, w_key, w_score = draw(U, Dq, seed=3), draw(U, Dk, seed=4), draw(U, seed=5)
        inputs = (query, key, value, w_query, w_key, w_score)
        want = additive_attention(*inputs)

        from_q, from_k = (query @ w_query.T).unsqueeze(-2), (key @ w_key.T).unsqueeze(-3)
        hidden = from_q + from_k  # (…, L, S, U)
        scores = torch.tanh(hidden) @ w_score

        def mixed(scores: Tensor, dim: int = -1, value=value) -> Tensor:
            return torch.softmax(scores, dim) @ value

        mistakes = {
            "tanh is missing. Without it every query gets the same weights.": mixed(
                hidden @ w_score
            ),
            "tanh comes too late: it acts on each of the U hidden numbers, before w_score sums "
            "them.": mixed(torch.tanh(hidden @ w_score)),
            "the projections go through tanh one by one; add them first.": mixed(
                (torch.tanh(from_q) + torch.tanh(from_k)) @ w_score
            ),
            "the projections are multiplied; add them.": mixed(
                torch.tanh(from_q * from_k) @ w_score
            ),
            "w_score is missing: the hidden numbers are summed without it.": mixed(
                torch.tanh(hidden).sum(-1)
            ),
            "the softmax runs along the queries; it belongs on the axis of the keys.": mixed(
                scores, -2
            ),
            "the scores are divided by √U. Additive attention has no scale.": mixed(
                scores / math.sqrt(U)
            ),
            "the scores are divided by √D. Additive attention has no scale.": mixed(
                scores / math.sqrt(Dq)
            ),
            "the softmax is missing.": scores @ value,
            "these are the weights; mix the values by them.": torch.softmax(scores, -1),
        }
        when = f"for leading axes {leading}," if leading else "for one head, without other axes,"
        try:
            expect(answer(candidate, *inputs), want, when, mistakes)
        except Wrong as wrong:
            if not leading or "raises" not in str(wrong):
                raise
            raise Wrong(
                "it is right for one head, and fails with axes in front, (2, 3, L, D): `[:, None]` "
                "counts axes from the left. Count from the right: unsqueeze(-2) and unsqueeze(-3)."
            ) from wrong
    return "It agrees with additive_attention, for one head and many."


# --- attention in two pieces ---------------------------------------------------------------------


@exercise
def join_pieces(candidate: Any) -> str:
    """Join what two pieces of the keys say.

    `join(out_1, lse_1, out_2, lse_2)`, (…, L, V), (…, L), (…, L, V), (…, L) → (…, L, V). A piece
    hands over its output and the logarithm of its sum of exp(score).
    """
    # Square, so that a forgotten axis raises nothing; then with a batch.
    for scores, value in (
        (draw(4, 9) * 2, draw(9, 4, seed=1)),
        (draw(2, 3, 9, seed=2) * 2, draw(2, 9, 5, seed=3)),
    ):
        pieces = _pieces(scores, value)
        shape = tuple(pieces[0].shape)
        want = torch.softmax(scores, -1) @ value
        when = f"for two outputs of shape {shape}"
        expect(answer(candidate, *pieces), want, when, _joined_wrongly(*pieces))
    large = _pieces(scores + 1e4, value)
    expect(
        answer(candidate, *large),
        want,
        "for scores near 10,000",
        {
            "exp of a number near 10,000 is infinite, and ∞/∞ is NaN. Subtract the larger of the "
            "two first, as in the safe softmax.": torch.full_like(want, torch.nan)
        },
    )
    _check_own_maximum(candidate, scores, value)
    out, lse = pieces[:2]
    empty = torch.zeros_like(out), torch.full_like(lse, -inf)
    for pair in ((out, lse, *empty), (*empty, out, lse)):
        expect(
            answer(candidate, *pair),
            out,
            "where one piece is all masked (lse = −∞)",
            {
                "a piece that is all masked (lse = −∞) must have no say, and the other piece "
                "stays as it is; here comes NaN. Look for ∞ − ∞, 0 · ∞ or ∞/∞; exp(lse_2 − lse_1), "
                "too, is ∞ where lse_1 = −∞.": (torch.full_like(out, torch.nan)),
                "a piece that is all masked (lse = −∞) must have no say; it is averaged in.": (
                    out / 2
                ),
            },
        )
    return "Two pieces give what all keys give at once."


def _check_own_maximum(candidate: Any, scores: Tensor, value: Tensor) -> None:
    """Put queries near 10,000, near 0 and near −10,000 into one table."""
    shift = torch.tensor([1e4, 0.0, -1e4], dtype=torch.float64)[:, None]
    pieces = _pieces(scores + shift, value)
    got = answer(candidate, *pieces)
    want = torch.softmax(scores, -1) @ value
    when = "where one query's scores are near 10,000, one's near 0, one's near −10,000,"
    if isinstance(got, Tensor) and got.shape == want.shape:
        finite = got.detach().isfinite()
        if finite[:, 0].all() and not finite[:, 1:].any():
            raise Wrong(
                f"{when} the others are NaN or infinite: one maximum for the whole table makes "
                "every exp of theirs 0. Each query needs its own: torch.maximum(lse_1, lse_2)."
            )
    expect(got, want, when)


def _pieces(scores: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attend to the first four keys and to the rest."""
    parts = []
    for own in (slice(0, 4), slice(4, None)):
        weights = torch.softmax(scores[..., own], -1)
        parts += [weights @ value[..., own, :], scores[..., own].logsumexp(-1)]
    return tuple(parts)


def _joined_wrongly(out_1: Tensor, lse_1: Tensor, out_2: Tensor, lse_2: Tensor):
    def mixed(w_1: Tensor, w_2: Tensor) -> Tensor:
        return w_1[..., None] * out_1 + w_2[..., None] * out_2

    share = torch.sigmoid(lse_1 - lse_2)  # of the first piece
    top = torch.maximum(lse_1, lse_2)
    mistakes = {
        "the two outputs are added. Each piece has one full unit of attention: that makes two.": (
            out_1 + out_2
        ),
        "this is the plain mean. A piece counts as much as its sum of exp(score).": (
            (out_1 + out_2) / 2
        ),
        "the pieces are weighted by lse itself. It is a logarithm: take exp.": mixed(
            lse_1 / (lse_1 + lse_2), lse_2 / (lse_1 + lse_2)
        ),
        "the shares are exchanged: each output got the other one's.": mixed(1 - share, share),
        "the shares do not sum to 1: divide by the sum of the two.": mixed(
            lse_1.exp(), lse_2.exp()
        ),
        "the shares do not sum to 1: after subtracting the larger lse, divide by the sum of the "
        "two.": mixed((lse_1 - top).exp(), (lse_2 - top).exp()),
        "one of the two outputs is left out.": out_1,
    }
    if out_1.ndim == 2 and out_1.shape[0] == out_1.shape[1]:
        mistakes[
            "the shares are lined up with the features, not the queries: write share[..., None]."
        ] = share * out_1 + (1 - share) * out_2
    return mistakes
