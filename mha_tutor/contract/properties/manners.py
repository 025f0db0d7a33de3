"""Properties of good manners: inputs, state, the outside world, bad input."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from mha_tutor.contract.properties.base import (
    NotApplicable,
    Problem,
    attends,
    difference,
    needs_causal,
    needs_mask,
    same,
)
from mha_tutor.contract.properties.masking import random_mask
from mha_tutor.contract.subjects import Inputs, first_tensor
from mha_tutor.contract.watch import CandidateError, seeded, what_changed
from mha_tutor.masks import causal_mask

NAMES = ("query", "key", "value")


@attends("The caller's tensors are left as they were.")
def inputs_kept(subject, sizes, seed):
    inputs = subject.draw(sizes, seed)
    before = inputs.map(torch.clone)
    with torch.no_grad():
        first_tensor(subject.raw(inputs))
    for name, x, old in zip(NAMES, inputs, before, strict=True):
        if x is not None and not torch.equal(x, old):
            clue = "inputs-modified" if subject.form == "function" else ""
            if subject.form == "module" and name == "query":
                clue = "query-modified"
            return Problem(f"{name} is changed in place", clue)
    return _mask_kept(subject, inputs, sizes, seed) if subject.takes_mask else None


def _mask_kept(subject, inputs: Inputs, sizes, seed) -> Problem | None:
    """Look at masks of every shape and kind, also at one that is expanded."""
    for words, mask in _masks(subject, sizes, seed):
        before = mask.clone()
        try:
            with torch.no_grad():
                subject.raw(inputs.copied(), mask)
        except CandidateError as error:
            if "memory location" in str(error):  # torch's words for writing to what is expanded
                return Problem(f"{words} is written to, and {error}")
            continue  # it may refuse some masks; other properties ask that
        if not torch.equal(mask, before):
            clue = "inputs-modified" if subject.form == "function" else ""
            return Problem(f"{words} is changed in place", clue)
    return None


def _masks(subject, sizes, seed) -> Iterator[tuple[str, torch.Tensor]]:
    few = random_mask(subject, sizes, seed, 2)
    L, S = few.shape
    heads = sizes.H if subject.form == "function" else subject.adapter.num_heads or 1
    shapes = {2: {"(L, S)": (L, S)}, 3: {"(B, L, S)": (sizes.B, L, S)}}
    full = {"(B, 1, L, S)": (sizes.B, 1, L, S), "(B, H, L, S)": (sizes.B, heads, L, S)}
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(L, S, generator=generator, dtype=torch.float64)
    for kind, mask in (("boolean", few), ("additive", numbers.to(subject.dtype))):
        for name, shape in shapes.get(subject.mask_ndim, shapes[2] | full).items():
            one = mask.to(subject.device)
            yield f"a mask {name}, {kind},", one.expand(shape).contiguous()
            if len(shape) > 2:
                yield f"a mask {name}, {kind} and expanded,", one.clone().expand(shape)


@attends("An input that is not contiguous gives the same result.")
def not_contiguous(subject, sizes, seed):
    inputs = subject.draw(sizes, seed)
    want = subject.call(inputs)
    try:
        got = subject.call(inputs.map(lambda x: x.mT.contiguous().mT))
    except CandidateError as error:
        refused = "view size is not compatible" in str(error)
        return Problem(str(error), clue="contiguous-only" if refused else "")
    detail = difference(got, want, subject.tol)
    return Problem(detail) if detail else None


@attends("The same input gives the same output, whatever was computed in between.")
def deterministic(subject, sizes, seed):
    inputs, other = subject.draw(sizes, seed), subject.draw(sizes, seed + 1)

    def answers():
        with seeded(seed):
            first, again = subject.call(inputs), subject.call(inputs)
            subject.call(other)
            return first, again, subject.call(inputs)

    first, again, third = answers()
    if same(first, again, subject.tol) and same(first, third, subject.tol):
        return None
    with seeded(seed):
        repeated = subject.call(inputs)
    if same(repeated, first, subject.tol):
        return Problem("two equal calls differ, by random numbers")
    if not (first.isfinite().all() and again.isfinite().all()):
        return Problem("two equal calls differ, and the numbers are not finite")
    return Problem("two equal calls differ: something is kept between calls", clue="state-kept")


@attends("One instance serves sequences of every length and batches of every size, in any order.")
def calls_in_turn(subject, sizes, seed):
    short = replace(sizes, B=1, L=min(sizes.L, 2), S=min(sizes.S, 3))
    long = replace(sizes, L=sizes.L + 2, S=sizes.S + 2)
    turns = [(short, "a short sequence"), (long, "a longer one")]
    turns += [(replace(short, B=sizes.B + 1), "more sequences"), (short, "the short one again")]
    kinds = [{}] if not subject.takes_causal else [{"is_causal": True}, {}]
    if not all(_is_right(subject, subject.draw(sizes, seed), options) for options in kinds):
        return None  # it is wrong or random from the start; other properties say so
    told = ""
    for each, words in turns:
        told = f"{told}, then {words}" if told else f"called with {words}"
        inputs = subject.draw(each, seed)
        for options in kinds:
            try:
                alone = _alone(subject, inputs, options)
            except CandidateError as error:
                raise NotApplicable(f"alone with {words} {error}") from None
            try:
                detail = difference(subject.call(inputs, **options), alone, subject.tol)
            except CandidateError as error:
                detail = str(error)
            if detail:
                clue = "state-kept" if subject.form == "module" else ""
                return Problem(f"{told}: {detail}", clue)
    return None


def _alone(subject, inputs: Inputs, options) -> torch.Tensor:
    """Return what an instance gives that has not been called before.

    A function has no other instance: it is compared with the right answer.
    """
    if subject.form == "function":
        return subject.expected(inputs, **options)
    return subject.fresh().call(inputs, **options)


def _is_right(subject, inputs: Inputs, options) -> bool:
    """Tell whether a call can be compared with another: the same each time, or plainly right."""
    return same(
        subject.fresh().call(inputs, **options), _alone(subject, inputs, options), subject.tol
    )


@attends("It leaves no trace: nothing printed, no seed set, no setting changed.", shrinks=False)
def no_trace(subject, sizes, seed):
    inputs = subject.draw(sizes, seed)
    changes = _changes(subject, inputs)
    if not changes:
        return None
    said = "; ".join(sentence for sentence, _ in changes)
    return Problem(said, clue=next((clue for _, clue in changes if clue), ""))


def _changes(subject, inputs: Inputs) -> list[tuple[str, str]]:
    if subject.form == "function":
        return what_changed(subject.function, *inputs, clock=subject.clock)
    x = inputs.present
    q, k, v = x if len(x) == 3 else (x[0], x[0], x[0])
    call = subject.adapter.call
    return what_changed(call, subject.module, q, k, v, None, False, clock=subject.clock)


@attends(
    "A parameter that belongs to something else changes nothing, whatever its name.",
    "module",
    shrinks=False,
)
def parameter_names(subject, sizes, seed):
    inputs = subject.draw(sizes, seed)
    want = subject.call(inputs)
    other = copy.copy(subject)
    other.module = copy.deepcopy(subject.module)
    like = next(subject.module.parameters(), torch.empty(0, dtype=subject.dtype))
    for name in ("weight_of_others", "a_query_of_others", "zz_bias"):
        parameter = nn.Parameter(torch.ones(3, 2, dtype=like.dtype, device=like.device))
        other.module.register_parameter(name, parameter)
    if same(other.call(inputs), want, subject.tol):
        return None
    return Problem("an unrelated parameter changes the output")


@attends("A key and a value of different length are refused.")
def lengths_refused(subject, sizes, seed):
    if subject.self_attention:
        raise NotApplicable("it is self-attention")
    if sizes.S < 3:
        return None
    query, key, value = subject.draw(replace(sizes, V=sizes.D), seed)
    shorter = value[..., :-1, :].contiguous()
    try:
        got = first_tensor(subject.raw(Inputs(query, key, shorter)))
    except CandidateError:
        return None
    if same(got, subject.call(Inputs(query, key[..., :-1, :].contiguous(), shorter)), subject.tol):
        return Problem("the keys are cut to the length of the value without a word", kind="cut")
    clue = "lengths-unchecked" if _value_matters(subject, sizes, seed) else ""
    return Problem("a value that is shorter than the key is accepted without a word", clue)


def _value_matters(subject, sizes, seed) -> bool:
    """Tell whether the value is used at all, and chance is not."""
    inputs, other = subject.draw(sizes, seed), subject.draw(sizes, seed + 1)
    out, again = subject.call(inputs), subject.call(inputs)
    changed = subject.call(inputs._replace(value=other.value))
    return same(out, again, subject.tol) and not same(out, changed, subject.tol)


@attends("A mask together with `is_causal` is refused.")
def mask_with_causal(subject, sizes, seed):
    needs_mask(subject)
    needs_causal(subject)
    L, S = sizes.L, sizes.L if subject.self_attention else sizes.S
    if S < 2:
        return None
    inputs = subject.draw(replace(sizes, V=sizes.D), seed)
    mask = torch.ones(L, S, dtype=torch.bool, device=subject.device)
    mask[:, 1:] = False
    try:
        got = first_tensor(subject.raw(inputs, mask, True))
    except CandidateError:
        return None
    if same(got, subject.call(inputs, is_causal=True), subject.tol):
        plain = subject.call(inputs)
        works = not same(subject.call(inputs, mask), plain, subject.tol)
        works = works and not same(got, plain, subject.tol)
        clue = "causal-replaces-mask" if works else ""
        return Problem("the mask is dropped without a word", clue, "dropped")
    allowed = mask & causal_mask(L, S, device=subject.device)
    if same(got, subject.call(inputs, allowed), subject.tol):
        return Problem("both are applied without a word", kind="both")
    return Problem("both are accepted, and something else comes out")


@attends("A mask of the wrong shape is refused.")
def mask_shape_refused(subject, sizes, seed):
    needs_mask(subject)
    L, S = sizes.L, sizes.L if subject.self_attention else sizes.S
    inputs = subject.draw(sizes, seed)
    mask = torch.ones(L + 1, S + 2, dtype=torch.bool, device=subject.device)
    try:
        subject.raw(inputs, mask)
    except CandidateError:
        return None
    return Problem(f"a mask ({L + 1}, {S + 2}) for scores ({L}, {S}) is accepted without a word")


@attends("An input of the wrong width is refused.")
def width_refused(subject, sizes, seed):
    query, key, value = subject.draw(sizes, seed)
    wide = torch.cat([query, query], dim=-1)
    try:
        subject.raw(Inputs(wide, key, value))
    except CandidateError:
        return None
    return Problem("a query twice as wide as it should be is accepted without a word")
