"""Exercises of chapter 5, *Mask what must not be seen*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mha_tutor.exercises._exercise import Case, Exercise, Wrong, answer, draw, exercise, expect
from mha_tutor.masks import causal_mask, combine_masks, padding_mask

__all__ = ["cached_causal", "hide_to_bias", "masked_weights", "padded_causal", "two_sided_window"]

inf = float("inf")
HALF = (torch.float16, torch.bfloat16)


# --- from True = hide to numbers to add ----------------------------------------------------------


@exercise
def hide_to_bias(candidate: Any) -> str:
    """Turn a mask in which True = hide into one to add to scores of a type: `bias(hide, dtype)`."""
    hide = torch.tensor([[False, True, True], [False, False, True]])
    for dtype in (torch.float16, torch.float32):
        want = torch.zeros(hide.shape, dtype=dtype).masked_fill(hide, -inf)
        when = f"for dtype={dtype}"
        try:
            got = answer(candidate, hide, dtype)
        except Wrong as wrong:
            if "overflow" not in str(wrong):
                raise
            raise Wrong(
                "the number you fill with does not exist in float16, which ends at 65,504. "
                "−∞ exists in every floating-point type."
            ) from wrong
        if isinstance(got, Tensor):
            _explain_bias(got, hide, want, when)
        expect(got, want, f"{when} and the mask [[0, 1, 1], [0, 0, 1]]")
    return "Zeros and −∞, in float16 and in float32."


def _explain_bias(got: Tensor, hide: Tensor, want: Tensor, when: str) -> None:
    if got.shape != want.shape or got.is_complex():
        return
    got = got.detach().cpu()
    if got.dtype == torch.bool:
        raise Wrong(
            "this is boolean still (and with True = may attend, if it is ~hide). Asked for are "
            "numbers to add to the scores."
        )
    numbers = got.double()
    if numbers.isnan().any():
        raise Wrong(f"{when} some numbers are NaN: 0 · ∞ is no number. Fill, don't multiply.")
    shown, hidden = numbers[~hide], numbers[hide]
    if (shown == -inf).all():
        raise Wrong("it is upside down: True means “hide” here, and you hide where it is False.")
    if (hidden == inf).any():
        raise Wrong("+∞ draws all attention to the hidden keys; −∞ takes it away.")
    if (numbers.abs() <= 1).all():
        raise Wrong(
            "zeros and ones are a legal mask that forbids nothing: the softmax only shifts by "
            "one. What must be added for a weight of exactly 0?"
        )
    if (shown != 0).any():
        raise Wrong("where nothing is hidden, the score must stay: add 0 there.")
    if hidden.isfinite().all():
        raise Wrong(
            f"the hidden entries are {hidden[0].item():.3g}, a finite number: where all keys are "
            "hidden, they share the attention. Fill with −∞."
        )
    if got.dtype != want.dtype:
        raise Wrong(f"{when} it returns {got.dtype}.")


# --- boolean masks --------------------------------------------------------------------------------


def _boolean(got: Any, when: str) -> Any:
    """Say what a mask of numbers would do."""
    if not isinstance(got, Tensor) or got.dtype == torch.bool or got.is_complex() or got.ndim < 2:
        return got
    if not ((got == 0) | (got == 1)).all():
        return got
    raise Wrong(
        f"these are zeros and ones of type {got.dtype}. As a mask, floating-point numbers are "
        "added to the scores and forbid nothing. Return booleans."
    )


def _positions(length: int, keys: int | None = None) -> tuple[Tensor, Tensor]:
    return torch.arange(length)[:, None], torch.arange(length if keys is None else keys)


def _pairs(rule: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Make a mask of a rule on i, j and the lengths (B, 1, 1, 1)."""

    def mask(lengths: Tensor, length: int) -> Tensor:
        got = rule(*_positions(length), lengths[:, None, None, None])
        return got.expand(len(lengths), 1, length, length)

    return mask


padded_causal = Exercise(
    task="Hide the future and the filler: `mask(lengths, L)`, (B,) and L = S → (B, 1, L, L).",
    # The second has as many sequences as tokens: there axes can be mixed up without an error.
    cases=[
        Case(f"for the lengths {lengths} and L={L}", (torch.tensor(lengths), L))
        for lengths, L in (([3, 5], 5), ([2, 4, 1, 3], 4))
    ],
    right=_pairs(lambda i, j, n: (j <= i) & (j < n)),
    mistakes={
        "it is upside down: True means “may attend” here, and you have True where a key is "
        "hidden.": _pairs(lambda i, j, n: ~((j <= i) & (j < n))),
        "the filler is hidden, the future is not.": _pairs(lambda i, j, n: j < n),
        "the filler is hidden, the future is not; and the shape should be (B, 1, L, L).": (
            lambda lengths, L: padding_mask(lengths, L)
        ),
        "the future is hidden, the filler is not.": _pairs(lambda i, j, n: (j <= i) & (n > 0)),
        "it hides the past, and lets each query see what comes after it: the positions i and j "
        "are exchanged.": _pairs(lambda i, j, n: (i <= j) & (j < n)),
        "it forbids each token to see itself: causal is j ≤ i, not j < i.": _pairs(
            lambda i, j, n: (j < i) & (j < n)
        ),
        "one filler token is seen as a key: with `lengths` real tokens, the real positions are "
        "j < lengths.": _pairs(lambda i, j, n: (j <= i) & (j <= n)),
        "one real token is hidden: with `lengths` real tokens, the real positions are "
        "j < lengths.": _pairs(lambda i, j, n: (j <= i) & (j < n - 1)),
        "the filler is hidden as a query, so its rows are empty, and an empty row is trouble. "
        "Hide it as a key, a column: j < lengths.": _pairs(lambda i, j, n: (j <= i) & (i < n)),
        "“or” lets a pair pass that one mask forbids; both must allow it: “and”.": _pairs(
            lambda i, j, n: (j <= i) | (j < n)
        ),
        "only one of the two masks may forbid here, as with “xor”; both must allow: “and”.": (
            _pairs(lambda i, j, n: (j <= i) ^ (j < n))
        ),
        "the axis for the heads is missing: (B, 1, L, L), or else B is lined up with the heads.": (
            lambda lengths, L: combine_masks(causal_mask(L), padding_mask(lengths, L))[:, 0]
        ),
        "every sequence has the same mask; the lengths differ.": lambda lengths, L: combine_masks(
            causal_mask(L), padding_mask(lengths, L)
        )[:1],
        "`lengths` has been lined up with the queries: B equals L here, so nothing is raised. "
        "Give it its axes, (B, 1, 1, 1).": lambda lengths, L: (
            causal_mask(L) & (torch.arange(L) < lengths[:, None])
            if len(lengths) == L
            else combine_masks(causal_mask(L), padding_mask(lengths, L))
        ),
    },
    praise="It hides the future and the filler, also where B = L.",
    read=_boolean,
)


def _shifted(rule: Callable[[Tensor, Tensor, int, int], Tensor]) -> Callable[[int, int], Tensor]:
    """Make a mask of a rule on i, j, the number of queries and the number of keys."""
    return lambda L, S: rule(*_positions(L, S), L, S).expand(L, S)


cached_causal = Exercise(
    task="Let L new queries at the end of S keys see the past: `mask(L, S)` → (L, S).",
    cases=[
        Case(f"for L={L} queries and S={S} keys", (L, S))
        for L, S in ((3, 8), (1, 6), (4, 4), (2, 5), (4, 2))
    ],
    right=_shifted(lambda i, j, L, S: j <= i + S - L),
    mistakes={
        "True means “may attend” here, and you have True where a key is hidden.": _shifted(
            lambda i, j, L, S: j > i + S - L
        ),
        "the triangle starts in the top left corner, as if the queries were the first tokens. "
        "They are the last: query i stands at position S − L + i.": _shifted(
            lambda i, j, L, S: j <= i
        ),
        "each query sees one key too many: its right neighbor.": _shifted(
            lambda i, j, L, S: j <= i + S - L + 1
        ),
        "each query sees one key too few: itself.": _shifted(lambda i, j, L, S: j < i + S - L),
        "every query sees every key. That is right for a single query; of several, the earlier "
        "must not see the later.": _shifted(lambda i, j, L, S: (i >= 0) & (j >= 0)),
        "each query sees what comes after it; turn the comparison around.": _shifted(
            lambda i, j, L, S: j >= i + S - L
        ),
        "the triangle is shifted the wrong way: query i stands S − L places further to the "
        "right, not to the left.": _shifted(lambda i, j, L, S: j <= i + L - S),
        "rows and columns are exchanged: queries are the rows.": lambda L, S: (
            causal_mask(L, S, offset=S - L).mT
        ),
    },
    praise="It ends in the bottom right corner, whatever L and S are.",
    read=_boolean,
)


def _window(
    sides: Callable[[Tensor, Tensor, int, int], Tensor], row: bool = True, column: bool = True
) -> Callable[[int, int, int], Tensor]:
    """Make a mask of a rule on i, j, before and after, with the row and column of token 0."""

    def mask(length: int, before: int, after: int) -> Tensor:
        i, j = _positions(length)
        got = sides(i, j, before, after).expand(length, length)
        return got | ((i == 0) & row) | ((j == 0) & column)

    return mask


def _inside(i: Tensor, j: Tensor, before: int, after: int) -> Tensor:
    return (j >= i - before) & (j <= i + after)


two_sided_window = Exercise(
    task="Let each query see its neighbors and token 0, and token 0 all: `mask(L, before, after)`.",
    cases=[
        Case(f"for L={L}, before={before}, after={after}", (L, before, after))
        for L, before, after in ((9, 3, 2), (7, 0, 3), (5, 9, 9))
    ],
    right=_window(_inside),
    mistakes={
        "True means “may attend” here, and you have True where a key is hidden.": (
            lambda *sizes: ~_window(_inside)(*sizes)
        ),
        "the window is right; token 0, which sees all and is seen by all, is missing.": _window(
            _inside, row=False, column=False
        ),
        "everyone sees token 0, but token 0 does not see everyone: its row is missing.": _window(
            _inside, row=False
        ),
        "token 0 sees everyone, but not everyone sees token 0: its column is missing.": _window(
            _inside, column=False
        ),
        "`before` and `after` are exchanged (or rows and columns): query i sees the keys "
        "i − before to i + after.": _window(lambda i, j, b, a: _inside(i, j, a, b)),
        "`before` and `after` are exchanged, and token 0 is missing.": _window(
            lambda i, j, b, a: _inside(i, j, a, b), row=False, column=False
        ),
        "the window is one key too narrow before the query: `before` counts the keys before it, "
        "without itself.": _window(lambda i, j, b, a: (j > i - b) & (j <= i + a)),
        "the window is one key too narrow after the query.": _window(
            lambda i, j, b, a: (j >= i - b) & (j < i + a)
        ),
        "the window is one key too narrow on both sides.": _window(
            lambda i, j, b, a: (j > i - b) & (j < i + a)
        ),
        "the window has only its left side; `after` keys to the right belong to it.": _window(
            lambda i, j, b, a: (j >= i - b) & (j <= i)
        ),
        "the right side of the window has no end.": _window(lambda i, j, b, a: j >= i - b),
        "the left side of the window has no end.": _window(lambda i, j, b, a: j <= i + a),
        "the window reaches equally far to both sides; `before` and `after` differ.": _window(
            lambda i, j, b, a: (i - j).abs() <= b
        ),
        "“or” of the two sides is true everywhere; a key must be inside on both: “and”.": _window(
            lambda i, j, b, a: (j >= i - b) | (j <= i + a)
        ),
        "token 0 is combined with the window by “and”. A pair may meet for the one reason or for "
        "the other: “or”.": _window(
            lambda i, j, b, a: _inside(i, j, b, a) & ((i == 0) | (j == 0)), row=False, column=False
        ),
    },
    praise="Neighbors on both sides, and token 0 for all.",
    read=_boolean,
)


# --- weights without NaN -------------------------------------------------------------------------


@exercise
def masked_weights(candidate: Any) -> str:
    """Turn scores into weights, whatever is masked.

    `weights(scores, mask)`, (B, H, L, S) and a boolean mask that broadcasts → (B, H, L, S).
    """
    scores = draw(2, 3, 4, 5)
    mask = padding_mask([3, 5], 5) & causal_mask(4, 5)
    _compare_weights(candidate, scores, mask, "with a causal mask and padding")
    _compare_weights(candidate, scores, padding_mask([3, 5], 5), "with a mask (B, 1, 1, S)")
    empty = mask.clone()
    empty[0, :, :2] = False  # filler in front
    _compare_weights(candidate, scores, empty, "where queries 0 and 1 have no key left")
    _check_gradients(candidate, scores, empty)
    _check_garbage(candidate, scores, empty)
    for dtype in HALF:
        _check_half(candidate, scores, empty, dtype)
    _check_lowest(candidate, scores, mask)
    return "All five demands are met."


def _weights(scores: Tensor, mask: Tensor) -> Tensor:
    """Answer rightly."""
    empty = ~mask.any(-1, keepdim=True)
    hidden = scores.masked_fill(~mask, -inf)
    return torch.softmax(hidden.masked_fill(empty, 0), -1).masked_fill(empty, 0)


def _compare_weights(candidate: Any, scores: Tensor, mask: Tensor, when: str) -> None:
    want = _weights(scores, mask)
    plain = torch.softmax(scores, -1)
    formula = torch.softmax(scores.masked_fill(~mask, -inf), -1)
    empty = ~mask.any(-1, keepdim=True)
    mistakes = {
        "nothing is masked.": plain,
        "the mask is upside down: True means “may attend”, so hide where it is False.": (
            torch.softmax(scores.masked_fill(mask, -inf), -1)
        ),
        "the mask is upside down: True means “may attend”, so hide where it is False (and empty "
        "rows are seen to).": _weights(scores, ~mask.expand(scores.shape)),
        "the mask comes after the softmax. The rows no longer sum to 1, and the hidden keys act "
        "through the denominator.": plain * mask,
        "the hidden scores are set to 0, and exp(0) is 1, not 0.": torch.softmax(scores * mask, -1),
        "the mask is added as zeros and ones, which forbids nothing.": (
            torch.softmax(scores + mask.double(), -1)
        ),
        "these are the masked scores; the softmax is missing.": scores.masked_fill(~mask, -inf),
        "the softmax runs along the queries; it belongs on the last axis.": (
            torch.softmax(scores.masked_fill(~mask, -inf), -2)
        ),
    }
    if empty.any():
        mean = formula.masked_fill(empty, 1 / scores.shape[-1])
        mistakes |= {
            "rows with no key left are NaN: 0/0, or −∞ − (−∞) if you subtract the maximum. Decide "
            "that they are zeros.": formula,
            "a row with no key left is the mean of what is hidden, as with a finite fill. It "
            "should be zeros.": mean,
            "a row with no key left ignores the mask. It should be zeros.": torch.where(
                empty, plain, formula
            ),
        }
    expect(answer(candidate, scores, mask), want, when, mistakes)


def _check_gradients(candidate: Any, scores: Tensor, mask: Tensor) -> None:
    leaf = scores.clone().requires_grad_()
    got = answer(candidate, leaf, mask)
    weighting = draw(*scores.shape, seed=1)
    if not got.requires_grad:
        raise Wrong("no gradient comes back to the scores: stay with torch's differentiable steps.")
    (got * weighting).sum().backward()
    if leaf.grad.isnan().any():
        raise Wrong(
            "the weights are right, the gradient holds NaN: the softmax has seen a row of −∞ "
            "alone. Give it harmless numbers there, and throw its answer away."
        )
    right = scores.clone().requires_grad_()
    (_weights(right, mask) * weighting).sum().backward()
    expect(
        leaf.grad,
        right.grad,
        "the weights are right; as for the gradient of the scores,",
        {"the weights are right, but every gradient is 0.": torch.zeros_like(scores)},
    )


def _check_garbage(candidate: Any, scores: Tensor, mask: Tensor) -> None:
    hidden = ~mask.expand(scores.shape)
    for number, name in ((1e6, "1,000,000"), (inf, "∞"), (torch.nan, "NaN")):
        got = answer(candidate, scores.masked_fill(hidden, number), mask)
        if not isinstance(got, Tensor) or got.isnan().any():
            raise Wrong(
                f"a hidden score of {name} turns weights into NaN. Write −∞ over what is hidden "
                "before the softmax; adding or multiplying keeps the old number in play."
            )
        expect(got, _weights(scores, mask), f"with {name} in the hidden scores")


def _check_half(candidate: Any, scores: Tensor, mask: Tensor, dtype: torch.dtype) -> None:
    scores = scores.to(dtype)
    try:
        got = answer(candidate, scores, mask)
    except Wrong as wrong:
        if "overflow" not in str(wrong):
            raise
        raise Wrong(
            f"it does not run in {dtype}: the number you fill with does not exist there. −∞ does."
        ) from wrong
    if not isinstance(got, Tensor) or got.dtype != dtype:
        kind = got.dtype if isinstance(got, Tensor) else type(got).__name__
        raise Wrong(f"for scores of type {dtype} it returns {kind}; keep the type.")
    if got.isnan().any():
        raise Wrong(f"in {dtype} some weights are NaN.")
    want = _weights(scores.double(), mask)
    if not torch.allclose(got.double(), want, rtol=0, atol=2 * torch.finfo(dtype).eps):
        raise Wrong(f"in {dtype} the weights are off by more than rounding explains.")


def _check_lowest(candidate: Any, scores: Tensor, mask: Tensor) -> None:
    """Let all visible scores be the lowest number there is: only −∞ lies below."""
    low = torch.full_like(scores, torch.finfo(scores.dtype).min)
    expect(
        answer(candidate, low, mask),
        _weights(low, mask),
        "where all visible scores are the lowest finite number,",
        {
            "the hidden scores are filled with a finite number. Where the visible scores are as "
            "low, the hidden keys get a share. Fill with −∞.": torch.softmax(low, -1) * mask
        },
    )
