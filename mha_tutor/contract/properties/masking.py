"""Properties of masks: which way is True, every shape, additive, causal, empty rows."""

from __future__ import annotations

from dataclasses import replace

import torch

from mha_tutor.contract.properties.base import (
    NotApplicable,
    NotAsked,
    Problem,
    attends,
    difference,
    needs_causal,
    needs_mask,
    same,
)
from mha_tutor.contract.properties.values import equal_values, what_one_gives
from mha_tutor.contract.watch import CandidateError
from mha_tutor.masks import causal_mask, padding_mask

GREAT = 16.0


def lengths(subject, sizes) -> tuple[int, int]:
    """Return L and S as the candidate sees them."""
    return sizes.L, sizes.L if subject.self_attention else sizes.S


def random_mask(subject, sizes, seed, ndim: int = 4) -> torch.Tensor:
    """Draw a boolean mask, (B, 1, L, S) or (L, S); every query may attend to something."""
    L, S = lengths(subject, sizes)
    shape = (sizes.B, 1, L, S) if ndim == 4 else (L, S)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.5
    columns = torch.arange(L) if subject.self_attention else torch.arange(L) % S
    mask[..., torch.arange(L), columns] = True
    return mask.to(subject.device)


@attends("In a boolean mask True means “may attend”.")
def polarity(subject, sizes, seed):
    needs_mask(subject)
    L, S = lengths(subject, sizes)
    if S < 2:
        return None
    inputs = subject.draw(sizes, seed)
    mask = random_mask(subject, sizes, seed, subject.mask_ndim)
    if subject.self_attention:
        # The complement must be a mask for itself too: leave it something to attend to.
        mask = torch.eye(L, dtype=torch.bool, device=subject.device) | mask
    if S > 1 and not subject.self_attention:
        mask[..., 0], mask[..., 1] = True, False
    got = subject.call(inputs, mask)
    want = subject.expected(inputs, mask)
    if want is not None:
        if same(got, want, subject.tol):
            return None
        turned = same(got, subject.expected(inputs, ~mask), subject.tol)
    else:
        turned = _reads_upside_down(subject, inputs, L, S)
    if turned:
        return Problem("True is taken as “may not attend”", clue="mask-inverted")
    return None


def _reads_upside_down(subject, inputs, L: int, S: int) -> bool:
    """Judge from outside: hide one key, and see whether it alone is heard."""
    hidden = S - 1
    everything = torch.ones(L, S, dtype=torch.bool, device=subject.device)
    mask = everything.clone()
    mask[:, hidden] = False

    def reacts(j: int, mask=mask) -> bool:
        def changed(x):
            x = x.clone()
            x[..., j, :] += 1.0
            return x

        rows = [i for i in range(L) if not (subject.self_attention and i == j)]
        after = subject.call(inputs.keys_mapped(changed), mask)[..., rows, :]
        return not same(after, subject.call(inputs, mask)[..., rows, :], subject.tol)

    others = range(S - 1)
    if not reacts(hidden) or any(reacts(j) for j in others):
        return False
    return any(reacts(j, ~everything) for j in others)  # it does listen to the others, else


@attends("Masked attention equals the loops: masks (L, S), by batch, and padding.")
def mask(subject, sizes, seed):
    needs_mask(subject)
    for each in dict.fromkeys([sizes, sizes.square]):
        problem = _masked_parity(subject, each, seed)
        if problem:
            return problem
    return None


def _masked_parity(subject, sizes, seed):
    inputs = subject.draw(sizes, seed)
    _, S = lengths(subject, sizes)
    few = random_mask(subject, sizes, seed, 2)
    masks = {"an (L, S) mask": few}
    if subject.mask_ndim > 2:
        masks["a (B, 1, L, S) mask"] = random_mask(subject, sizes, seed)
        if not subject.causal:
            real = [max(1, S - b) for b in range(sizes.B)]
            masks["a padding mask"] = padding_mask(real, S, device=subject.device)
    if subject.form == "function":
        turned = [random_mask(subject, sizes, seed + h) for h in range(sizes.H)]
        masks["a (B, H, L, S) mask"] = torch.cat(turned, dim=1)
    for name, chosen in masks.items():
        want = subject.expected(inputs, chosen)
        if want is None:
            raise NotAsked(subject.unknown)
        detail = difference(subject.call(inputs, chosen), want, subject.tol)
        if detail:
            return Problem(f"with {name}: {detail}")
    great = inputs.map(lambda x: x * GREAT)  # a hidden key has a great score too
    want = subject.expected(great, few)
    detail = difference(subject.call(great, few), want, subject.tol * GREAT**2)
    return Problem(f"with queries and keys {GREAT:g} times as long: {detail}") if detail else None


@attends("A mask of floating-point numbers is added to the scores.")
def additive_mask(subject, sizes, seed):
    needs_mask(subject)
    inputs = subject.draw(sizes, seed)
    L, S = lengths(subject, sizes)
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(L, S, generator=generator, dtype=torch.float64)
    bias = bias.to(subject.device, subject.dtype)
    want = subject.expected(inputs, bias)
    if want is None:
        raise NotAsked(subject.unknown)
    try:
        got = subject.call(inputs, bias)
    except CandidateError as error:
        raise NotApplicable(f"it refuses such a mask: {error}") from None
    detail = difference(got, want, subject.tol)
    return Problem(detail) if detail else None


@attends("`is_causal` lets query i see the keys j ≤ i, also where L ≠ S.")
def causal(subject, sizes, seed):
    needs_causal(subject)
    one = [] if subject.self_attention else [replace(sizes, L=1)]  # a query that sees one key
    for each in dict.fromkeys([sizes.square, sizes, *one]):
        inputs = subject.draw(each, seed)
        got = subject.call(inputs, is_causal=True)
        want = subject.expected(inputs, is_causal=True)
        if want is None:
            if not subject.takes_mask:
                raise NotAsked(subject.unknown)
            seen = causal_mask(*lengths(subject, each), device=subject.device)
            want = subject.call(inputs, seen)
        detail = difference(got, want, subject.tol)
        if detail:
            L, S = lengths(subject, each)
            return Problem(f"for L={L}, S={S}: {detail}")
    return None


@attends("A query with nothing to attend to gets zeros, and zero gradients, never NaN.")
def empty_row(subject, sizes, seed):
    needs_mask(subject)
    inputs = subject.draw(sizes, seed)
    L, _ = lengths(subject, sizes)
    mask = random_mask(subject, sizes, seed, 2)
    row = 0 if subject.causal else L - 1
    mask[row] = False
    watched = inputs.map(lambda x: x.clone().requires_grad_())
    out = subject.call(watched, mask)
    with torch.no_grad():  # some layers take another path then
        if subject.call(inputs, mask).isnan().any() or out.isnan().any():
            out = out * float("nan")
    if out.isnan().any():
        mask[row, 0] = True
        filled = subject.call(inputs, mask)
        clue = "empty-row-is-nan" if filled.isfinite().all() else ""
        return Problem("it gives NaN", clue, kind="nan")
    want = subject.expected(inputs, mask)
    if want is None:
        raise NotAsked(subject.unknown)
    if not same(out, want, subject.tol):
        return Problem(f"it does not give zeros: {difference(out, want, subject.tol)}", kind="mean")
    if out.requires_grad:
        for grad in torch.autograd.grad(out.sum(), watched.present, allow_unused=True):
            if grad is not None and grad.isnan().any():
                return Problem("the output is right, the gradients are NaN", kind="nan")
    return None


@attends("The weights sum to 1 under a mask too.")
def masked_rows_sum_to_1(subject, sizes, seed):
    needs_mask(subject)
    inputs = equal_values(subject, subject.draw(sizes, seed))
    got = subject.call(inputs, random_mask(subject, sizes, seed, 2))
    if same(got, what_one_gives(subject, inputs).expand_as(got), subject.tol):
        return None
    return Problem("equal values come out changed when a mask is given")


@attends("A mask leaves alone what it allows: with everything allowed nothing changes.")
def full_mask(subject, sizes, seed):
    needs_mask(subject)
    inputs = subject.draw(sizes, seed)
    L, S = lengths(subject, sizes)
    everything = torch.ones(L, S, dtype=torch.bool, device=subject.device)
    detail = difference(subject.call(inputs, everything), subject.call(inputs), subject.tol)
    return Problem(detail.replace("the right one", "without a mask it")) if detail else None


@attends("Hiding a key is the same as leaving it out.")
def hidden_is_absent(subject, sizes, seed):
    needs_mask(subject)
    if subject.causal:
        raise NotApplicable("it is causal")
    for each in dict.fromkeys([sizes, sizes.square]):
        problem = _hidden_is_absent(subject, each, seed)
        if problem:
            return problem
    return None


def _hidden_is_absent(subject, sizes, seed):
    L, S = lengths(subject, sizes)
    if S < 2:
        return None
    inputs = subject.draw(sizes, seed)
    mask = torch.ones(L, S, dtype=torch.bool, device=subject.device)
    mask[:, -1] = False
    got = subject.call(inputs, mask)
    want = subject.call(inputs.keys_mapped(lambda x: x[..., :-1, :].contiguous()))
    if subject.self_attention:
        got = got[..., :-1, :]
    detail = difference(got, want, subject.tol)
    return Problem(detail.replace("the right one", "without the key it")) if detail else None


@attends("In a batch each sequence has its own mask.")
def masks_by_sequence(subject, sizes, seed):
    needs_mask(subject)
    if subject.mask_ndim == 2:
        raise NotApplicable("its mask has no batch axis")
    if sizes.B < 2:
        return None
    inputs = subject.draw(sizes, seed)
    mask = random_mask(subject, sizes, seed)
    together = subject.call(inputs, mask)
    for b in range(sizes.B):
        alone = subject.call(inputs.map(lambda x, b=b: x[b : b + 1]), mask[b : b + 1])
        if not same(alone[0], together[b], subject.tol):
            return Problem(f"sequence {b} alone gives other numbers than in the batch")
    return None
