"""Properties of dropout: when, where, how much, and each weight on its own.

Where the candidate can be opened (see `Subject.opened`), its output is its weights, and what
dropout does to each of them is seen. Elsewhere only means and coincidences can be judged.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from mha_tutor.contract.properties.base import NotApplicable, Problem, attends, needs_mask, same
from mha_tutor.contract.sizes import Sizes
from mha_tutor.contract.subjects import Inputs
from mha_tutor.contract.watch import CandidateError

P = 0.4
CALLS, SEQUENCES = 5, 60  # with equal inputs, each dropped anew
SIGMAS = 7  # less often than once in 10¹¹ by chance
NOT_FINITE = "without dropout its output is not finite"


@attends("Without training there is no dropout.", "module", shrinks=False)
def no_dropout_in_eval(subject, sizes, seed):
    quiet = subject.with_dropout(0.5, training=False)
    if quiet is None:
        raise NotApplicable("it has no dropout")
    inputs = subject.draw(sizes, seed)
    calm, again = subject.call(inputs), subject.call(inputs)
    first, second = quiet.call(inputs), quiet.call(inputs)
    if not same(calm, again, subject.tol):
        raise NotApplicable("it is not deterministic, with or without dropout")
    if same(first, second, subject.tol) and same(first, calm, subject.tol):
        return None
    if same(first, second, subject.tol):
        return Problem("its dropout changes the output in evaluation")
    return Problem("dropout is active in evaluation", clue="dropout-in-eval")


@attends(
    "Dropout drops weights, and scales the others up: on average nothing changes.", shrinks=False
)
def dropout(subject, sizes, seed):
    seen = _seen(subject, seed)
    if seen:
        return _judge_weights(seen)
    return _acts_on_values(subject, seed) or _judge_mean(subject, sizes, seed)


@attends("Each weight is dropped on its own, whatever becomes of the others.", shrinks=False)
def dropout_apart(subject, sizes, seed):
    seen = _seen(subject, seed)
    return _judge_agreement(seen) if seen else _judge_coincidences(subject, sizes, seed)


# --- the weights are seen ------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Weights without dropout, (H, L, S), and drawn again and again, (draws, H, L, S)."""

    calm: Tensor
    drawn: Tensor

    @property
    def dropped(self) -> Tensor:
        """Which weights are 0 that are none without dropout."""
        return (self.drawn.abs() <= 1e-9) & (self.calm > 1e-6)

    @property
    def possible(self) -> Tensor:
        """(H, L, S): which weights there are."""
        return self.calm > 1e-6


def _seen(subject, seed) -> Seen | None:
    """Look at the weights of a candidate; None where they cannot be read from its output."""
    if subject.with_dropout(P) is None:
        raise NotApplicable("it has no dropout")
    opened = subject.opened(seed)
    if opened is None:
        return None
    candidate, inputs, read = opened
    calm = _single(read(candidate.fresh().call(inputs)))
    if calm is None or calm.min() < -1e-9 or not _equal(calm.sum(-1), calm.new_tensor(1.0)):
        return None
    many = _many(inputs, SEQUENCES)
    # A layer may drop features of its output as well: then look at its other places alone.
    for only in (None, 0, 1, 2):
        dropping = candidate.with_dropout(P, only)
        if dropping is None:
            continue
        torch.manual_seed(seed)
        drawn = _single(torch.cat([read(dropping.call(many)) for _ in range(CALLS)]))
        if drawn is not None and (only is None or not _equal(drawn, calm)):
            return Seen(calm[0], drawn)
    return None


def _acts_on_values(subject, seed) -> Problem | None:
    """Tell whether there is dropout of features before the output projection.

    Each weight is read twice, so weights that are dropped stay equal in both readings, and
    features do not. Dropout behind the output projection is the layer's own affair: with a
    projection that gives all features the same sum it is seen to make them differ.
    """
    opened, summed = subject.opened(seed), subject.opened(seed, summed=True)
    if opened is None or summed is None:
        return None
    candidate, inputs, read = opened
    if _single(read(candidate.fresh().call(inputs))) is None:
        return None
    many = _many(inputs, SEQUENCES)
    for only in (0, 1, 2):
        dropping = candidate.with_dropout(P, only)
        if dropping is None or _single(read(dropping.call(many))) is not None:
            continue
        out = summed[0].with_dropout(P, only).call(many)
        if subject.form == "function" or _equal(out, out[..., :1].expand_as(out)):
            return Problem("it drops features of the values, before or after they are mixed")
    return None


def _single(twice: Tensor) -> Tensor | None:
    """Return the weights that were read twice; None where the two differ, or are no numbers."""
    first, second = twice.detach().double().chunk(2, dim=-1)
    return first if first.isfinite().all() and _equal(first, second) else None


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-9)


def _judge_weights(seen: Seen) -> Problem | None:
    calm, drawn, dropped = seen.calm.expand_as(seen.drawn), seen.drawn, seen.dropped
    if _equal(drawn, calm):
        return Problem("dropout changes nothing in training", clue="dropout-ignored")
    if not dropped.any():
        clue = "dropout-before-softmax" if _acts_on_scores(seen) else ""
        return Problem("dropout changes the weights, yet it never drops one", clue)
    kept = seen.possible & ~dropped
    factor = drawn[kept] / calm[kept]
    share = dropped[seen.possible.expand_as(dropped)].double().mean().item()
    low, high, right = factor.min().item(), factor.max().item(), 1 / (1 - P)
    as_told = abs(share - P) < 0.1  # far more than chance
    if abs(low - right) < 1e-4 > abs(high - right) and as_told:
        return None
    clue = ""
    if abs(low - 1) < 1e-4 > abs(high - 1) and as_told:
        clue = "dropout-unscaled"
    if abs(low - 1 / P) < 1e-4 > abs(high - 1 / P) and abs(share - (1 - P)) < 0.1:
        clue = "dropout-keeps-p"
    said = f"{low:.3g}" if high - low < 1e-4 else f"{low:.3g} to {high:.3g}"
    return Problem(
        f"told to drop {P:.0%} of the weights it drops {share:.0%}, and multiplies the others by "
        f"{said}; right is {right:.3g}",
        clue,
    )


def _acts_on_scores(seen: Seen) -> bool:
    """Tell whether the weights are a softmax of scores some of which were set to 0.

    Of n scores 2ⁿ sets can be dropped. With none dropped the weights are those of the scores
    divided by 1 - P, which is a power of the calm weights; with all dropped they are equal.
    """
    L, S = seen.calm.shape[-2:]
    full = [i for i in range(L) if seen.possible[:, i].all()]
    for h, i in itertools.product(range(len(seen.calm)), full):
        rows = seen.drawn[:, h, i]
        none = seen.calm[h, i] ** (1 / (1 - P))
        none = none / none.sum()
        every = torch.full_like(none, 1 / S)
        if len(rows.mul(1e6).round().unique(dim=0)) > 2**S:
            return False
        for row, probability in ((none, (1 - P) ** S), (every, P**S)):
            found = ((rows - row).abs() <= 1e-5).all(-1).double().mean().item()
            if abs(found - probability) > SIGMAS * (0.25 / len(rows)) ** 0.5:
                return False
            if found == 0:
                return False
    return bool(full)


def _judge_agreement(seen: Seen) -> Problem | None:
    """Compare the weights that are dropped, two by two: as often alike as chance has it."""
    dropped = seen.dropped
    share = dropped[seen.possible.expand_as(dropped)].double().mean().item()
    if not 0.1 < share < 0.9:
        raise NotApplicable("it does not drop weights as it is told; see dropout")
    chance = share**2 + (1 - share) ** 2
    calls = dropped.unflatten(0, (CALLS, SEQUENCES))
    alike = (calls[:, 1:] == calls[:, :-1]).flatten(0, 1)
    alike = alike[seen.possible.expand_as(alike)]
    if _is_odd(alike, chance):
        return _shared("two sequences", alike, "batch")
    axes = (("heads", 1, "heads"), ("queries", 2, "queries"), ("keys", 3, "keys"))
    for name, axis, clue in axes:
        for i, j in itertools.combinations(range(dropped.shape[axis]), 2):
            if axis == 1 and _equal(seen.calm[i], seen.calm[j]):
                continue  # one pattern for both heads: another bug
            both = seen.possible.select(axis - 1, i) & seen.possible.select(axis - 1, j)
            alike = dropped.select(axis, i) == dropped.select(axis, j)
            if _is_odd(alike[both.expand_as(alike)], chance):
                return _shared(f"two {name}", alike[both.expand_as(alike)], clue)
    return None


def _is_odd(alike: Tensor, chance: float) -> bool:
    if not len(alike):
        return False
    spread = (chance * (1 - chance) / len(alike)) ** 0.5
    return abs(alike.double().mean().item() - chance) > SIGMAS * spread


def _shared(what: str, alike: Tensor, axis: str) -> Problem:
    always = bool(alike.all())
    share = "always" if always else f"in {alike.double().mean().item():.0%} of all cases"
    return Problem(
        f"{share} the weights of {what} are dropped or kept together",
        clue=f"dropout-shared-by-{axis}" if always else "",
    )


# --- from outside --------------------------------------------------------------------------------


def _judge_mean(subject, sizes, seed) -> Problem | None:
    dropping = subject.with_dropout(P)
    torch.manual_seed(seed)
    single = _many(_equal_tokens(subject, sizes, seed, 1), 400)
    inputs = _many(subject.draw(_few(sizes, 3), seed), 1500)
    calm_single, calm = subject.call(single), subject.call(inputs)
    if not (calm_single.isfinite().all() and calm.isfinite().all()):
        raise NotApplicable(NOT_FINITE)
    varies = not same(dropping.call(single), calm_single, subject.tol)
    drawn = dropping.call(inputs)
    if not varies:
        if same(drawn, calm, subject.tol):
            return Problem("dropout changes nothing in training", clue="dropout-ignored")
        return Problem(
            "with a single key, whose weight is 1, dropout has no effect: it acts before the "
            "softmax"
        )
    mean, spread = drawn.mean(0), drawn.std(0) / len(drawn) ** 0.5
    if ((mean - calm[0]).abs() <= SIGMAS * spread + 1e-6).all():
        return None
    return Problem("over many draws the mean of the output is not the output without dropout")


def _judge_coincidences(subject, sizes, seed) -> Problem | None:
    """Let many tokens be equal, and look for outputs that are equal as well, by no chance."""
    dropping = subject.with_dropout(P)
    inputs = _equal_tokens(subject, sizes, seed, 3)
    calm = subject.call(inputs)
    if not calm.isfinite().all():
        raise NotApplicable(NOT_FINITE)
    torch.manual_seed(seed)
    drawn = dropping.call(_many(inputs, 200))
    if same(drawn, calm.expand_as(drawn), subject.tol):
        raise NotApplicable("it changes nothing; see dropout")
    axis = drawn.ndim - 2

    def alike(out: Tensor) -> bool:
        return same(out.select(axis, 1), out.select(axis, 2), subject.tol)

    if not subject.causal and alike(calm) and alike(drawn):
        return Problem("equal queries always get equal outputs: they share their dropout")
    if same(drawn[1:], drawn[:-1], subject.tol):
        return Problem("equal sequences always get equal outputs: they share their dropout")
    heads = subject.adapter.num_heads if subject.form == "module" else None
    if heads and heads <= 6:
        drawn = dropping.call(_many(_equal_tokens(subject, sizes, seed, 1), 2000))
        outcomes = len(drawn.detach().double().mul(1e5).round().flatten(1).unique(dim=0))
        if 1 < outcomes < 2**heads:
            return Problem(
                f"with a single key there are {outcomes} different outputs, where {heads} heads "
                f"with dropout of their own have {2**heads}"
            )
    return None


def _few(sizes, number: int) -> Sizes:
    return Sizes(B=1, H=sizes.H, L=number, S=number, D=sizes.D, V=sizes.V)


def _equal_tokens(subject, sizes, seed, number: int) -> Inputs:
    inputs = subject.draw(_few(sizes, 1), seed)
    return inputs.map(lambda x: x.repeat(*[1] * (x.ndim - 2), number, 1))


def _many(inputs: Inputs, times: int) -> Inputs:
    return inputs.map(lambda x: x.repeat(times, *[1] * (x.ndim - 1)))


# --- masks ---------------------------------------------------------------------------------------


@attends("With dropout the mask still holds.", shrinks=False)
def mask_with_dropout(subject, sizes, seed):
    dropping = subject.with_dropout(0.3)
    if dropping is None:
        raise NotApplicable("it has no dropout")
    needs_mask(subject)
    L, S = sizes.L, sizes.L if subject.self_attention else sizes.S
    hidden = 0 if subject.causal else S - 1
    mask = torch.ones(L, S, dtype=torch.bool, device=subject.device)
    mask[:, hidden] = False
    if subject.self_attention:
        mask[hidden, hidden] = True
    inputs = subject.draw(sizes, seed)
    rows = [i for i in range(L) if not (subject.self_attention and i == hidden)]

    def moved(x):
        x = x.clone()
        x[..., hidden, :] += 1.0
        return x

    def answer(of, *args):
        torch.manual_seed(seed)
        return of.call(*args)[..., rows, :]

    other = inputs.keys_mapped(moved)
    try:
        masked = answer(dropping, inputs, mask)
        if same(masked, answer(dropping, other, mask), subject.tol):
            return None
    except CandidateError as error:
        return Problem(str(error))
    ignored = same(masked, answer(dropping, inputs), subject.tol)
    still = subject.in_training() or subject
    works = same(answer(still, inputs, mask), answer(still, other, mask), subject.tol)
    return Problem(
        f"key {hidden} is masked, and has influence in training with dropout",
        clue="mask-ignored-with-dropout" if ignored and works else "",
    )
