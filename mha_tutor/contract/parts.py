"""The contract of the parts: split, merge, and mask functions; small enough to diagnose by eye."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mha_tutor import heads, masks
from mha_tutor.contract.diagnosis import UNKNOWN, not_explained
from mha_tutor.contract.mutants import MUTANTS
from mha_tutor.contract.report import Diagnosis, Finding, Verdict
from mha_tutor.contract.watch import CandidateError, Clock, quiet_call, what_changed

__all__ = ["MASK_KINDS", "check_mask_function", "check_merge", "check_split"]

SIZES = [(1, 1, 1, 1), (1, 2, 2, 1), (2, 2, 2, 1), (1, 2, 2, 2), (2, 3, 4, 2), (2, 3, 5, 7)]
MASK_KINDS = {
    "causal": (masks.causal_mask, [(1,), (2,), (3,), (4,), (2, 3), (3, 2), (3, 5), (5, 3)]),
    "padding": (
        masks.padding_mask,
        [([1], 1), ([1], 2), ([1, 2], 2), ([0, 2], 3), ([3, 1, 2], 4), ([5, 2], 7)],
    ),
    "window": (
        masks.sliding_window_mask,
        [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (3, 5), (7, 3)],
    ),
}
Findings = list[Finding]


def check_split(split: Callable, clock: Clock) -> tuple[Findings, list[Diagnosis]]:
    """Check (B, L, E), H → (B, H, L, D)."""
    return _check("split", split, [_split_case(*sizes) for sizes in SIZES], clock)


def check_merge(merge: Callable, clock: Clock) -> tuple[Findings, list[Diagnosis]]:
    """Check (B, H, L, D) → (B, L, E)."""
    takes_heads = _positional(merge) > 1
    return _check("merge", merge, [_merge_case(takes_heads, *sizes) for sizes in SIZES], clock)


def check_mask_function(
    function: Callable, kind: str, clock: Clock
) -> tuple[Findings, list[Diagnosis]]:
    """Check a function that makes a mask, True = may attend; `kind` is a key of `MASK_KINDS`."""
    cases = [_mask_case(kind, arguments) for arguments in _arguments(kind, function)]
    return _check(kind, function, cases, clock)


PROMISES = {
    "split": "Head h gets features h·D to (h + 1)·D - 1 of every token: (B, L, E) → (B, H, L, D).",
    "merge": "Each token gets its heads side by side again: (B, H, L, D) → (B, L, E).",
    "causal": "Query i sees the keys j ≤ i, also where L ≠ S.",
    "padding": "The first keys of each sequence may be seen, the padding may not: (B, 1, 1, S).",
    "window": "Query i sees itself and the window - 1 keys before it.",
}


@dataclass(frozen=True)
class Case:
    """A call, in words and as arguments, and its right answer."""

    text: str
    arguments: tuple[Any, ...]
    want: Tensor

    def ask(self, function: Callable, clock: Clock) -> Tensor:
        """Call with copies, and insist on a tensor."""
        arguments = (a.clone() if isinstance(a, Tensor) else a for a in self.arguments)
        got, _ = quiet_call(function, *arguments, clock=clock)
        if not isinstance(got, Tensor):
            kind = "None" if got is None else f"a {type(got).__name__}"
            raise CandidateError(f"it returns {kind} instead of a tensor")
        return got

    def problem(self, function: Callable, clock: Clock) -> str:
        """Say what is wrong with the answer, or nothing."""
        try:
            got = self.ask(function, clock)
        except CandidateError as error:
            return str(error)
        if got.shape != self.want.shape:
            return f"the shape is {tuple(got.shape)}, the right one {tuple(self.want.shape)}"
        if torch.equal(got.double(), self.want.double()):
            return ""
        return f"it gives\n{_drawn(got)}\nthe right answer is\n{_drawn(self.want)}"


def _drawn(x: Tensor) -> str:
    """Write a small tensor of whole numbers, one row of its last two axes to a line."""
    while x.ndim > 2 and x.shape[0] == 1:
        x = x[0]
    x = x.int() if x.dtype == torch.bool or torch.equal(x, x.round()) else x
    return str(x.tolist())


def _split_case(B: int, H: int, L: int, D: int) -> Case:
    x = torch.arange(B * L * H * D, dtype=torch.float64).reshape(B, L, H * D)
    text = f"x = torch.arange({x.numel()}).reshape{tuple(x.shape)}, {H} heads"
    return Case(text, (x, H), heads.split_heads(x, H))


def _merge_case(takes_heads: bool, B: int, H: int, L: int, D: int) -> Case:
    x = torch.arange(B * L * H * D, dtype=torch.float64).reshape(B, H, L, D)
    text = f"x = torch.arange({x.numel()}).reshape{tuple(x.shape)}"
    return Case(text, (x, H) if takes_heads else (x,), heads.merge_heads(x))


def _mask_case(kind: str, arguments: tuple) -> Case:
    want = MASK_KINDS[kind][0](*arguments)
    said = ", ".join(map(str, arguments))
    if kind == "padding":
        arguments = (torch.tensor(arguments[0]), *arguments[1:])
    return Case(f"arguments ({said})", arguments, want)


def _arguments(kind: str, function: Callable) -> list[tuple]:
    """List what a mask function is called with; one for L alone is asked for squares only."""
    arguments = MASK_KINDS[kind][1]
    if kind != "causal":
        return arguments
    if _positional(function) > 1:
        return [a * 2 if len(a) == 1 else a for a in arguments]
    if _positional(function, most=True) < 2:
        return [a for a in arguments if len(a) == 1]
    return arguments


def _positional(function: Callable, most: bool = False) -> int:
    """Count the arguments that must be given, or that may be."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2 if most else 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if most and any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return 9
    return sum(p.kind in kinds and (most or p.default is p.empty) for p in parameters)


def _check(
    name: str, function: Callable, cases: list[Case], clock: Clock
) -> tuple[Findings, list[Diagnosis]]:
    findings = _findings(name, function, cases, clock)
    if not any(finding.verdict == Verdict.VIOLATED for finding in findings):
        return findings, []
    return findings, _named(name, function, cases, findings, clock)


def _findings(name: str, function: Callable, cases: list[Case], clock: Clock) -> Findings:
    findings = [_values(name, function, cases, clock)]
    if name in ("split", "merge"):
        findings += _tensor_manners(name, function, cases[-1], clock)
    else:
        findings += _mask_manners(function, cases[-1], clock)
    findings.append(_no_trace(function, cases[-1], clock))
    return findings


def _finding(name: str, promise: str, problem: str, example: str = "", clue: str = "") -> Finding:
    verdict = Verdict.VIOLATED if problem else Verdict.HOLDS
    return Finding(name, promise, verdict, problem, example if problem else "", clue)


def _values(name: str, function: Callable, cases: list[Case], clock: Clock) -> Finding:
    for case in cases:  # from the smallest
        problem = case.problem(function, clock)
        if problem:
            return _finding(name, PROMISES[name], problem, case.text)
    return _finding(name, PROMISES[name], "")


def _tensor_manners(name: str, function: Callable, case: Case, clock: Clock) -> Iterator[Finding]:
    x, *rest = case.arguments
    works = "it raises" not in case.problem(function, clock)
    strided = Case(case.text, (x.mT.contiguous().mT, *rest), case.want)
    problem = strided.problem(function, clock)
    refused = works and "view size is not compatible" in problem
    yield _finding(
        "not contiguous",
        "An input that is not contiguous gives the same result.",
        problem,
        clue="contiguous-only" if refused else "",
    )

    own = x.clone()
    problem = ""
    try:
        quiet_call(function, own, *rest, clock=clock)
        problem = "" if torch.equal(own, x) else "the input is changed in place"
    except CandidateError as error:
        problem = str(error)
    yield _finding("inputs kept", "The caller's tensor is left as it was.", problem)

    small = Case(case.text, (x.float(), *rest), case.want.float())
    try:
        got = small.ask(function, clock)
        problem = "" if got.dtype == torch.float32 else f"float32 comes out as {got.dtype}"
    except CandidateError as error:
        problem = str(error)
    yield _finding("dtype kept", "The output has the dtype of the input.", problem)

    watched = x.clone().requires_grad_()
    try:
        got, _ = quiet_call(function, watched, *rest, clock=clock)
        problem = "" if isinstance(got, Tensor) and got.requires_grad else "the gradient is cut"
    except CandidateError as error:
        problem = str(error)
    yield _finding("gradients", "Gradients pass through.", problem)

    if name == "split":
        uneven = Case("", (torch.zeros(2, 3, 10), 3), torch.zeros(1))
        try:
            uneven.ask(function, clock)
            problem = "10 features for 3 heads are accepted without a word"
        except CandidateError:
            problem = ""
        yield _finding("uneven refused", "A width that H does not divide is refused.", problem)


def _mask_manners(function: Callable, case: Case, clock: Clock) -> Iterator[Finding]:
    try:
        got = case.ask(function, clock)
        problem = "" if got.dtype == torch.bool else f"it is {got.dtype}"
    except CandidateError as error:
        problem = str(error)
    yield _finding("boolean", "The mask is boolean.", problem)


def _no_trace(function: Callable, case: Case, clock: Clock) -> Finding:
    promise = "It leaves no trace: nothing printed, no seed set, no setting changed."
    try:
        changes = what_changed(function, *case.arguments, clock=clock)
    except CandidateError as error:
        return _finding("no trace", promise, str(error))
    return _finding("no trace", promise, "; ".join(sentence for sentence, _ in changes))


def _named(
    name: str, function: Callable, cases: list[Case], findings: Findings, clock: Clock
) -> list[Diagnosis]:
    """Name the mutants that give the candidate's answers to every case."""
    names = {finding.clue for finding in findings if finding.clue}
    if findings[0].verdict == Verdict.VIOLATED:
        answers = [_answer(case, function, clock) for case in cases]
        for mutant in MUTANTS:
            theirs = [_answer(case, getattr(mutant, name), clock) for case in cases]
            if all(_agree(a, b) for a, b in zip(answers, theirs, strict=True)):
                names.add(mutant.name)
                break
    mutants = [mutant for mutant in MUTANTS if mutant.name in names]
    found = [Diagnosis(m.name, m.story, m.chapter) for m in mutants]
    explained = {
        finding.name
        for mutant in mutants
        for finding in _findings(name, getattr(mutant, name), cases, clock)
        if finding.verdict == Verdict.VIOLATED
    }
    left = [
        finding.name
        for finding in findings
        if finding.verdict == Verdict.VIOLATED
        and not (finding.clue and finding.clue in names)
        and finding.name not in explained
    ]
    if not found:
        return [UNKNOWN]
    return [*found, not_explained(left)] if left else found


def _answer(case: Case, function: Callable, clock: Clock) -> Tensor | None:
    try:
        return case.ask(function, clock)
    except CandidateError:
        return None


def _agree(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one.double(), other.double())
