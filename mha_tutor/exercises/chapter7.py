"""Exercises of chapter 7, on what several heads buy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mha_tutor.exercises._exercise import Case, Exercise, Wrong, draw, whole

__all__ = ["continue_repeat", "least_loss"]


# --- what is lost with too few heads --------------------------------------------------------------


def _least_loss(taps: Tensor, num_heads: int, power: int = 2, keep: bool = False) -> float:
    """Return the share of the squared output that H fixed tables must miss (Eckart and Young)."""
    s = torch.linalg.svdvals(taps.flatten(1)) ** power
    share = s[:num_heads].sum() / s.sum()
    return float(share if keep else 1 - share)


def _number(got: Any, when: str) -> Tensor:
    """Read one number, as a tensor that is compared up to rounding."""
    try:
        return torch.tensor(float(got), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{when} it returns a {type(got).__name__}; a number is asked for.") from None


def _taps() -> Tensor:
    """Return three places of equal strength: orthogonal, so that each head missed costs a third."""
    return torch.eye(9, dtype=torch.float64)[:3].reshape(3, 3, 3)


M = draw(4, 4)

least_loss = Exercise(
    task="""Bound what H fixed tables miss: `least_loss(taps, num_heads)`, (K, E, E) → a share.

    The task wants the sum over k of taps[k] times the token k places back.
    """,
    cases=[
        Case("for three orthogonal places and one head", (_taps(), 1)),
        Case("for three orthogonal places and three heads", (_taps(), 3)),
        Case("for four random places and two heads", (draw(4, 3, 3, seed=1), 2)),
        Case("for the places (M, −M) and one head", (torch.stack([M, -M]), 1)),
        Case("for one place and four heads", (M[None], 4)),
    ],
    right=_least_loss,
    mistakes={
        "this is the share that is kept; asked for is the share that is missed, 1 minus it.": (
            lambda taps, heads: _least_loss(taps, heads, keep=True)
        ),
        "the singular values are not squared. The loss is squared, so its parts are, too.": (
            lambda taps, heads: _least_loss(taps, heads, power=1)
        ),
        "this is 1 − H / K. It holds for places of equal strength that are orthogonal; (M, −M) "
        "is one table.": lambda taps, heads: max(0.0, 1 - heads / len(taps)),
        "this drops the weakest places whole. Heads are not tied to places: one table can serve "
        "two, as in (M, −M).": lambda taps, heads: (
            1
            - float(
                (e := taps.flatten(1).square().sum(1).sort(descending=True).values)[:heads].sum()
                / e.sum()
            )
        ),
        "this keeps one head too few: H heads keep the H largest singular values.": (
            lambda taps, heads: _least_loss(taps, heads - 1)
        ),
        "this keeps the smallest singular values; the best tables keep the largest.": (
            lambda taps, heads: (
                1
                - float((s := torch.linalg.svdvals(taps.flatten(1)).square().flip(0))[:heads].sum())
                / float(s.sum())
            )
        ),
        "these are singular values of the sum of the taps. A head's table has a weight for each "
        "place: keep K as the rows, taps.flatten(1).": lambda taps, heads: _least_loss(
            taps.sum(0)[:, None] + 0 * taps[:1], heads
        ),
        "this is the loss itself, not its share: divide by the sum of all squares.": (
            lambda taps, heads: float(torch.linalg.svdvals(taps.flatten(1)).square()[heads:].sum())
        ),
    },
    praise="Also for (M, −M), which one table serves.",
    read=_number,
)


# --- what an induction head does ------------------------------------------------------------------


def _continue(tokens: Any, back: int = 1, first: bool = False, miss: int = -1) -> int:
    tokens = list(tokens)
    places = [i for i in range(len(tokens) - 1) if tokens[i] == tokens[-1]]
    if not places:
        return miss
    return tokens[(places[0] if first else places[-1]) + back]


def _pairs(tokens: Any) -> int:
    """Match the last two tokens in place of the last one."""
    for i in range(len(tokens) - 3, -1, -1):
        if tokens[i : i + 2] == tokens[-2:]:
            return tokens[i + 2]
    return -1


_SEQUENCES = [
    (5, 2, 7, 3, 5),
    (1, 4, 1, 6, 2, 1),
    (8, 3, 9),
    (2, 2),
    (4, 6, 1, 4, 7, 4, 6, 3, 6),
    (7, 0, 1, 7, 0),
]

continue_repeat = Exercise(
    task="""Say what an induction head proposes: `continue_repeat(tokens)`, a list → a token.

    It looks up where the last token stood before, the latest time, and proposes what came next;
    −1 if it did not stand before.
    """,
    cases=[Case(f"for tokens {list(t)}", (list(t),)) for t in _SEQUENCES],
    right=_continue,
    mistakes={
        "this proposes the token that was matched. An induction head reads the one after it.": (
            lambda tokens: _continue(tokens, back=0)
        ),
        "this reads the token before the match: the head looks one place too far to the left.": (
            lambda tokens: (
                tokens[j - 1]
                if (j := max((i for i, t in enumerate(tokens[:-1]) if t == tokens[-1]), default=-1))
                >= 0
                else -1
            )
        ),
        "of several places this takes the first; the latest is asked for.": (
            lambda tokens: _continue(tokens, first=True)
        ),
        "this finds the last token at its own place. Look at the tokens before it only.": (
            lambda tokens: -1
        ),
        "where nothing repeats, the answer is −1; this returns the last token.": (
            lambda tokens: _continue(tokens, miss=tokens[-1])
        ),
        "this matches the last two tokens; one is enough.": _pairs,
        "this returns a position; asked for is the token that stands there.": (
            lambda tokens: max(
                (i + 1 for i in range(len(tokens) - 1) if tokens[i] == tokens[-1]), default=-1
            )
        ),
    },
    praise="This is the whole algorithm: match, then read one place on.",
    read=whole,
)
