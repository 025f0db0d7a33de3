"""Properties of good manners: inputs, state, the outside world, bad input."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from mha_tutor.contract.properties.base import NotApplicable, Problem, attends, difference, same
from mha_tutor.contract.subjects import Inputs, first_tensor
from mha_tutor.contract.watch import CandidateError, what_changed
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
            return Problem(
                f"{name} is changed in place",
                clue="inputs-modified" if subject.form == "function" else "query-modified",
            )
    return None


@attends("An input that is not contiguous gives the same result.")
def not_contiguous(subject, sizes, seed):
    inputs = subject.draw(sizes, seed)
    want = subject.call(inputs)
    try:
        got = subject.call(inputs.map(lambda x: x.mT.contiguous().mT))
    except CandidateError as error:
        refused = "view" in str(error) or "contiguous" in str(error)
        return Problem(str(error), clue="contiguous-only" if refused else "")
    detail = difference(got, want, subject.tol)
    return Problem(detail) if detail else None


@attends("The same input gives the same output, whatever was computed in between.")
def deterministic(subject, sizes, seed):
    inputs, other = subject.draw(sizes, seed), subject.draw(sizes, seed + 1)
    torch.manual_seed(seed)
    first = subject.call(inputs)
    again = subject.call(inputs)
    subject.call(other)
    third = subject.call(inputs)
    if same(first, again, subject.tol) and same(first, third, subject.tol):
        return None
    torch.manual_seed(seed)
    repeated = subject.call(inputs)
    if same(repeated, first, subject.tol):
        return Problem("two equal calls differ, by random numbers")
    return Problem("two equal calls differ: something is kept between calls", clue="state-kept")


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
def others_names(subject, sizes, seed):
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
    return Problem(
        "a value that is shorter than the key is accepted without a word", clue="lengths-unchecked"
    )


@attends("A mask together with `is_causal` is refused.")
def mask_with_causal(subject, sizes, seed):
    if not (subject.takes_mask and subject.takes_causal):
        raise NotApplicable("it does not take both")
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
        return Problem("the mask is dropped without a word", "causal-replaces-mask", "dropped")
    allowed = mask & causal_mask(L, S, device=subject.device)
    if same(got, subject.call(inputs, allowed), subject.tol):
        return Problem("both are applied without a word", kind="both")
    return Problem("both are accepted, and something else comes out")


@attends("A mask of the wrong shape is refused.")
def mask_shape_refused(subject, sizes, seed):
    if not subject.takes_mask:
        raise NotApplicable("it takes no mask")
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
