"""The checkers of chapter 5: right answers pass, known mistakes are told by name."""

import pytest
import torch

import mha_tutor
from mha_tutor import exercises

inf = float("inf")


def positions(L, S=None):
    return torch.arange(L)[:, None], torch.arange(L if S is None else S)[None, :]


# --- hide_to_bias --------------------------------------------------------------------------------


def filled(number=-inf, hidden=lambda hide: hide):
    def bias(hide, dtype):
        return torch.zeros(hide.shape, dtype=dtype).masked_fill(hidden(hide), number)

    return bias


def by_where(number):
    return lambda hide, dtype: torch.where(hide, number, 0.0).to(dtype)


@pytest.mark.parametrize(
    "bias",
    [
        filled(),
        by_where(-inf),
        lambda hide, dtype: torch.log((~hide).to(dtype)),
        lambda hide, dtype: torch.tensor([0, -inf], dtype=dtype)[hide.int()],
    ],
)
def test_hide_to_bias_right(bias):
    assert exercises.hide_to_bias(bias)


@pytest.mark.parametrize(
    ("bias", "said"),
    [
        (filled(-1e9), "does not exist in float16"),
        (filled(-1e4), "-1e+04, a finite number"),
        (by_where(-1e9), "-1e+09, a finite number"),
        (lambda h, dtype: filled(torch.finfo(dtype).min)(h, dtype), "-6.55e+04, a finite number"),
        (filled(hidden=lambda hide: ~hide), "upside down"),
        (filled(inf), "+∞ draws all attention"),
        (lambda hide, dtype: hide.to(dtype) * -inf, "0 · ∞ is no number"),
        (lambda hide, dtype: (~hide).to(dtype), "forbids nothing"),
        (lambda hide, dtype: -hide.to(dtype), "forbids nothing"),
        (lambda hide, dtype: ~hide, "this is boolean still"),
        (lambda hide, dtype: torch.where(hide, -inf, 5.0).to(dtype), "add 0 there"),
        (lambda hide, dtype: torch.where(hide, -inf, 0.0), "torch.float32"),
        (lambda hide, dtype: filled()(hide, dtype)[None], "the shape is (1, 2, 3)"),
        (lambda hide, dtype: filled()(hide, dtype).numpy(), "an ndarray, not a tensor"),
        (lambda hide, dtype: filled()(hide.logical_not_(), dtype), "changes its input in place"),
    ],
)
def test_hide_to_bias_wrong(bias, said):
    text = repr(exercises.hide_to_bias(bias))
    assert text.startswith("✗")
    assert said in text


# --- padded_causal -------------------------------------------------------------------------------


def by_positions(lengths, L):
    i, j = positions(L)
    return (j <= i) & (j < lengths[:, None, None, None])


def by_package(lengths, L):
    return mha_tutor.combine_masks(mha_tutor.causal_mask(L), mha_tutor.padding_mask(lengths, L))


def by_loops(lengths, L):
    rows = [[[[j <= i and j < n for j in range(L)] for i in range(L)]] for n in lengths.tolist()]
    return torch.tensor(rows)


@pytest.mark.parametrize("mask", [by_positions, by_package, by_loops])
def test_padded_causal_right(mask):
    assert exercises.padded_causal(mask)


def combined(causal, real, combine=torch.logical_and):
    """Combine a rule for the future and one for the filler."""

    def mask(lengths, L):
        i, j = positions(L)
        n = lengths[:, None, None, None]
        future, filler = causal(i, j), real(i, j, n)
        return combine(future, filler).expand(len(lengths), 1, L, L)

    return mask


def past(i, j):
    return j <= i


def no_filler(i, j, n):
    return j < n


def without_axes(lengths, L):
    i, j = positions(L)
    return (j <= i) & (j < lengths[:, None])


def lined_up_with_queries(lengths, L):
    if len(lengths) != L:
        return by_positions(lengths, L)
    return without_axes(lengths, L)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (lambda n, L: ~by_positions(n, L), "upside down"),
        (combined(lambda i, j: j >= 0, no_filler), "the future is not"),
        (lambda n, L: mha_tutor.padding_mask(n, L), "the shape should be (B, 1, L, L)"),
        (combined(past, lambda i, j, n: j >= 0), "the filler is not"),
        (combined(lambda i, j: i <= j, no_filler), "i and j are exchanged"),
        (combined(lambda i, j: j < i, no_filler), "forbids each token to see itself"),
        (combined(past, lambda i, j, n: j <= n), "one filler token is seen"),
        (combined(past, lambda i, j, n: j < n - 1), "one real token is hidden"),
        (combined(past, lambda i, j, n: i < n), "Hide it as a key, a column"),
        (combined(past, lambda i, j, n: (i < n) & (j < n)), "Hide it as a key, a column"),
        (combined(past, no_filler, torch.logical_or), "both must allow it: “and”"),
        (combined(past, no_filler, torch.logical_xor), "“xor”"),
        (lambda n, L: by_positions(n, L)[:, 0], "the axis for the heads is missing"),
        (lambda n, L: by_positions(n[:1], L), "the lengths differ"),
        (lined_up_with_queries, "lined up with the queries"),
        (without_axes, "raises RuntimeError"),
        (lambda n, L: by_positions(n, L).float(), "forbid nothing"),
        (lambda n, L: by_positions(n, L).int(), "forbid nothing"),
        (lambda n, L: by_positions(torch.tensor([3, 5]), 5), "L=4"),
        (lambda n, L: by_positions(n, L).numpy(), "an ndarray, not a tensor"),
    ],
)
def test_padded_causal_wrong(mask, said):
    text = repr(exercises.padded_causal(mask))
    assert text.startswith("✗")
    assert said in text


# --- cached_causal -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        lambda L, S: mha_tutor.causal_mask(L, S, offset=S - L),
        lambda L, S: torch.ones(L, S, dtype=torch.bool).tril(S - L),
        lambda L, S: torch.arange(S) <= torch.arange(S - L, S)[:, None],
        lambda L, S: ~torch.ones(L, S, dtype=torch.bool).triu(S - L + 1),
        lambda L, S: torch.tensor([[j - S <= i - L for j in range(S)] for i in range(L)]),
    ],
)
def test_cached_causal_right(mask):
    assert exercises.cached_causal(mask)


def triangle(diagonal):
    return lambda L, S: torch.ones(L, S, dtype=torch.bool).tril(diagonal(L, S))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (mha_tutor.causal_mask, "top left corner"),
        (triangle(lambda L, S: 0), "top left corner"),
        (triangle(lambda L, S: S - L + 1), "one key too many"),
        (triangle(lambda L, S: S - L - 1), "one key too few"),
        (triangle(lambda L, S: L - S), "shifted the wrong way"),
        (triangle(lambda L, S: S), "every query sees every key"),
        (lambda L, S: torch.ones(L, S, dtype=torch.bool), "every query sees every key"),
        (lambda L, S: torch.ones(L, S, dtype=torch.bool).triu(S - L + 1), "may attend"),
        (lambda L, S: torch.ones(L, S, dtype=torch.bool).triu(S - L), "turn the comparison around"),
        (lambda L, S: triangle(lambda L, S: S - L)(L, S).mT, "queries are the rows"),
        (lambda L, S: torch.ones(L, S).tril(S - L), "forbid nothing"),
        (lambda L, S: torch.ones(S, S, dtype=torch.bool).tril(), "the shape is (8, 8)"),
        (
            lambda L, S: torch.ones(S, S, dtype=torch.bool).tril()[-L:],
            "(2, 2); it should be (4, 2)",
        ),
        (lambda L, S: torch.ones(3, 8, dtype=torch.bool).tril(5), "the shape is (3, 8)"),
        (lambda L, S: torch.ones(L, S, dtype=torch.bool).tril(S - L).numpy(), "an ndarray"),
        (lambda L, S: torch.ones(L, S, dtype=torch.bool).tril(L), "for L=3 queries and S=8 keys"),
    ],
)
def test_cached_causal_wrong(mask, said):
    text = repr(exercises.cached_causal(mask))
    assert text.startswith("✗")
    assert said in text


# --- two_sided_window ----------------------------------------------------------------------------


def window(inside=None, either=None, combine=torch.logical_or):
    inside = inside or (lambda i, j, b, a: (i - b <= j) & (j <= i + a))
    either = either or (lambda i, j: (i == 0) | (j == 0))

    def mask(L, before, after):
        i, j = positions(L)
        return combine(inside(i, j, before, after).expand(L, L), either(i, j).expand(L, L))

    return mask


def window_by_bands(L, before, after):
    mask = torch.ones(L, L, dtype=torch.bool).tril(after).triu(-before)
    mask[0] = mask[:, 0] = True
    return mask


@pytest.mark.parametrize("mask", [window(), window_by_bands])
def test_two_sided_window_right(mask):
    assert exercises.two_sided_window(mask)


def none(i, j):
    return (i < 0) & (j < 0)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (window(either=none), "token 0, which sees all and is seen by all, is missing"),
        (window(either=lambda i, j: j == 0), "its row is missing"),
        (window(either=lambda i, j: i == 0), "its column is missing"),
        (window(lambda i, j, b, a: (i - a <= j) & (j <= i + b)), "(or rows and columns)"),
        (window(lambda i, j, b, a: (i - a <= j) & (j <= i + b), none), "and token 0 is missing"),
        (window(lambda i, j, b, a: (i - b < j) & (j <= i + a)), "too narrow before"),
        (window(lambda i, j, b, a: (i - b <= j) & (j < i + a)), "too narrow after"),
        (window(lambda i, j, b, a: (i - b < j) & (j < i + a)), "too narrow on both"),
        (window(lambda i, j, b, a: (i - b <= j) & (j <= i)), "only its left side"),
        (window(lambda i, j, b, a: i - b <= j), "right side of the window has no end"),
        (window(lambda i, j, b, a: j <= i + a), "left side of the window has no end"),
        (window(lambda i, j, b, a: (i - j).abs() <= b), "equally far to both sides"),
        (window(lambda i, j, b, a: (i - b <= j) | (j <= i + a)), "“or” of the two sides"),
        (window(combine=torch.logical_and), "combined with the window by “and”"),
        (lambda L, b, a: ~window()(L, b, a), "True where a key is hidden"),
        (lambda L, b, a: window()(L, b, a).float(), "forbid nothing"),
        (lambda L, b, a: window()(L, b, a)[None], "the shape is (1, 9, 9)"),
        (lambda L, b, a: window()(9, 3, 2), "the shape is (9, 9)"),
    ],
)
def test_two_sided_window_wrong(mask, said):
    text = repr(exercises.two_sided_window(mask))
    assert text.startswith("✗")
    assert said in text


# --- masked_weights ------------------------------------------------------------------------------


def before_and_after(scores, mask):
    empty = ~mask.any(-1, keepdim=True)
    hidden = scores.masked_fill(~mask, -inf).masked_fill(empty, 0)
    return hidden.softmax(-1).masked_fill(empty, 0)


def then_where(scores, mask):
    weights = torch.where(mask, scores, -inf).softmax(-1)
    return torch.where(mask.any(-1, keepdim=True), weights, torch.zeros_like(weights))


def by_exp(scores, mask):
    hidden = scores.masked_fill(~mask, -inf)
    top = hidden.amax(-1, keepdim=True)
    e = (hidden - top.masked_fill(top.isneginf(), 0)).exp()
    total = e.sum(-1, keepdim=True)
    return e / total.masked_fill(total == 0, 1)


@pytest.mark.parametrize(
    "weights",
    [
        before_and_after,
        by_exp,
        lambda s, mask: s.masked_fill(~mask, -inf).softmax(-1).nan_to_num(0),
    ],
)
def test_masked_weights_right(weights):
    assert exercises.masked_weights(weights)


def formula(fill=-inf, dim=-1):
    return lambda s, mask: s.masked_fill(~mask, fill).softmax(dim)


def divided(scores, mask):
    e = scores.exp() * mask
    return e / e.sum(-1, keepdim=True)


def added(scores, mask):
    return scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -inf)


def added_then_where(scores, mask):
    return added(scores, mask).softmax(-1).masked_fill(~mask.any(-1, keepdim=True), 0)


def added_before_and_after(scores, mask):
    empty = ~mask.any(-1, keepdim=True)
    return added(scores, mask).masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)


def renormalized(scores, mask):
    weights = scores.softmax(-1) * mask
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)


def in_place(scores, mask):
    scores[~mask.expand_as(scores)] = -inf
    return scores.softmax(-1)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            lambda s, mask: s.masked_fill(~mask, torch.finfo(s.dtype).min).softmax(-1) * mask,
            "filled with a finite number",
        ),
        (lambda s, mask: s.softmax(-1), "nothing is masked"),
        (lambda s, mask: formula()(s, ~mask), "upside down"),
        (lambda s, mask: before_and_after(s, ~mask), "upside down"),
        (lambda s, mask: s.softmax(-1) * mask, "comes after the softmax"),
        (lambda s, mask: (s * mask).softmax(-1), "exp(0) is 1"),
        (lambda s, mask: (s + mask.to(s.dtype)).softmax(-1), "forbids nothing"),
        (lambda s, mask: s.masked_fill(~mask, -inf), "softmax is missing"),
        (formula(dim=-2), "runs along the queries"),
        (formula(), "rows with no key left are NaN"),
        (divided, "NaN: 0/0, or −∞ − (−∞) if you subtract the maximum"),
        (formula(-1e9), "mean of what is hidden"),
        (lambda s, mask: torch.where(mask, s, s - 1e6).softmax(-1), "ignores the mask"),
        (added_then_where, "the gradient holds NaN"),
        (lambda s, mask: before_and_after(s.detach(), mask), "no gradient comes back"),
        (added_before_and_after, "a hidden score of ∞ turns weights into NaN"),
        (renormalized, "with 1,000,000"),
        (lambda s, mask: formula(-1e9)(s, mask) * mask.any(-1, keepdim=True), "in torch.float16"),
        (lambda s, mask: before_and_after(s.float(), mask), "keep the type"),
        (lambda s, mask: before_and_after(s, mask[:, :, -1:]), "numbers are not"),
        (lambda s, mask: before_and_after(s, mask.squeeze(1)), "raises RuntimeError"),
        (lambda s, mask: before_and_after(s, mask).detach().numpy(), "an ndarray"),
        (in_place, "changes its input in place"),
    ],
)
def test_masked_weights_wrong(weights, said):
    text = repr(exercises.masked_weights(weights))
    assert text.startswith("✗")
    assert said in text
