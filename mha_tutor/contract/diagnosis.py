"""Name the bug: find the mutant, or the pair of mutants, that computes the same numbers.

The candidate is asked a few questions (plain, masked, causal, …), and so is every mutant of the
catalog, with the candidate's own weights. A mutant is named when it gives the candidate's answers
to all of them, to six digits, wrong answers included; a pair likewise. So a name is evidence, not
a guess. What the numbers cannot tell (dropout, state, seeds) comes from the clue of a property
that proves it. Where nothing fits the diagnosis is "unknown".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mha_tutor.contract.mutants import MUTANTS, Mutant
from mha_tutor.contract.properties.base import same
from mha_tutor.contract.properties.masking import lengths, random_mask
from mha_tutor.contract.report import Diagnosis, Finding
from mha_tutor.contract.subjects import Inputs, Subject
from mha_tutor.contract.watch import OutOfTime

__all__ = ["UNKNOWN", "diagnose"]

UNKNOWN = Diagnosis("unknown", "It matches no bug of the catalog.")
SEED = 7  # other inputs than the properties use
REFUSED = "refused"
Answer = Tensor | str


@dataclass(frozen=True)
class Question:
    """Something to ask of the candidate and of every suspect."""

    name: str
    ask: Callable[[Subject], Tensor]
    training: bool = False


def diagnose(subject: Subject, violated: Iterable[Finding]) -> tuple[Diagnosis, ...]:
    """Explain the violations by bugs of the catalog.

    Args:
        subject: the candidate.
        violated: what was found; their clues are used.

    Returns:
        The bugs, or `UNKNOWN` where something is violated that none of them explains.
    """
    violated = list(violated)
    if not violated:
        return ()
    proved = dict.fromkeys(finding.clue for finding in violated if finding.clue)
    names, explained = _by_numbers(subject)
    names = dict.fromkeys([*names, *proved])
    _drop_consequences(names)
    found = [_told(mutant) for mutant in MUTANTS if mutant.name in names]
    if not found or (not explained and not proved):
        return (*found, UNKNOWN)
    return tuple(found)


def _told(mutant: Mutant) -> Diagnosis:
    return Diagnosis(mutant.name, mutant.story, mutant.chapter)


# A clue that follows from another bug is no bug of its own.
CONSEQUENCES = {
    "empty-row-is-nan": {"softmax-overflows", "softmax-in-half-precision"},
    "softmax-overflows": {"softmax-in-half-precision"},
    "lengths-unchecked": {"value-from-key"},
}


def _drop_consequences(names: dict[str, None]) -> None:
    for effect, causes in CONSEQUENCES.items():
        if effect in names and causes & names.keys():
            del names[effect]


# --- by numbers ----------------------------------------------------------------------------------


def _by_numbers(subject: Subject) -> tuple[list[str], bool]:
    """Return the names of the mutants that compute the candidate's numbers, and whether all fit."""
    if subject.simulation(()) is None:
        return [], False
    try:
        bench = _Bench(subject)
        return bench.explain()
    except OutOfTime:
        return [], False


class _Bench:
    """The candidate's answers, and those of the suspects beside them."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.questions = _questions(subject)
        trained = subject.in_training() or subject
        self.candidate = [
            _answer((trained if question.training else subject).fresh(), question)
            for question in self.questions
        ]
        self.right = self.ask(())
        self.wrong = [
            not self.agree(mine, right)
            for mine, right in zip(self.candidate, self.right, strict=True)
        ]

    def ask(self, steps: tuple[type, ...]) -> list[Answer]:
        calm = self.subject.simulation(steps)
        trained = self.subject.simulation(steps, training=True)
        return [_answer(trained if q.training else calm, q) for q in self.questions]

    def agree(self, one: Answer, other: Answer) -> bool:
        if isinstance(one, str) or isinstance(other, str):
            return isinstance(one, str) and isinstance(other, str)
        return same(one, other, self.subject.tol)

    def explain(self) -> tuple[list[str], bool]:
        if not any(self.wrong):
            return [], True  # the numbers are right: what is wrong lies elsewhere
        quick = [m for m in SUSPECTS if self._may_be(m)]
        fitting = {m.name: self.ask((m.steps,)) for m in quick}
        fitting = {name: a for name, a in fitting.items() if self._numbers_agree(a)}
        if fitting:
            return self._simplest(fitting), True
        answers = {m.name: self.ask((m.steps,)) for m in SUSPECTS}
        active = {
            name: [not self.agree(a, r) for a, r in zip(given, self.right, strict=True)]
            for name, given in answers.items()
        }
        active = {name: acts for name, acts in active.items() if any(acts)}
        fits = {
            name: [self.agree(a, c) for a, c in zip(answers[name], self.candidate, strict=True)]
            for name in active
        }
        pair = self._pair(active, fits)
        if pair:
            return list(pair), True
        return self._part(active, fits), False

    def _may_be(self, *mutants: Mutant) -> bool:
        """Ask one question that the candidate answers wrongly, to spare most suspects the rest."""
        hardest = max(
            (i for i, wrong in enumerate(self.wrong) if wrong),
            key=lambda i: isinstance(self.candidate[i], Tensor),
        )
        question = self.questions[hardest]
        steps = tuple(mutant.steps for mutant in mutants)
        suspect = self.subject.simulation(steps, training=question.training)
        return self.agree(_answer(suspect, question), self.candidate[hardest])

    def _simplest(self, answers: dict[str, list[Answer]]) -> list[str]:
        """Of several mutants with equal answers take the one that is wrong least often."""

        def wrong(name: str) -> int:
            return sum(not self.agree(a, r) for a, r in zip(answers[name], self.right, strict=True))

        return [min(answers, key=wrong)]

    def _pair(self, active, fits) -> tuple[str, str] | None:
        """Find two mutants that together give all answers."""
        by_name = {m.name: m for m in SUSPECTS}
        number = range(len(self.questions))
        for first, second in itertools.combinations(active, 2):
            a, b = active[first], active[second]
            possible = all(
                (a[i] and b[i])
                or (a[i] and fits[first][i])
                or (b[i] and fits[second][i])
                or not (a[i] or b[i] or self.wrong[i])
                for i in number
            )
            if not possible or by_name[first].sites & by_name[second].sites:
                continue
            suspects = by_name[first], by_name[second]
            if not self._may_be(*suspects):
                continue
            if self._numbers_agree(self.ask(tuple(mutant.steps for mutant in suspects))):
                return first, second
        return None

    def _numbers_agree(self, answers: list[Answer]) -> bool:
        """Tell whether all answers are the candidate's, one of them a wrong number."""
        return all(self.agree(x, c) for x, c in zip(answers, self.candidate, strict=True)) and any(
            w and isinstance(c, Tensor) for w, c in zip(self.wrong, self.candidate, strict=True)
        )

    def _part(self, active, fits) -> list[str]:
        """Find a mutant that explains some answers exactly, and contradicts none."""
        best: list[str] = []
        most = 0
        for name, acts in active.items():
            proof = sum(
                a and f and isinstance(c, Tensor)
                for a, f, c in zip(acts, fits[name], self.candidate, strict=True)
            )
            contradicted = any(
                a and not f and not w for a, f, w in zip(acts, fits[name], self.wrong, strict=True)
            )
            if proof == 0 or contradicted:
                continue
            if proof > most:
                best, most = [name], proof
            elif proof == most:
                best.append(name)
        return best if len(best) == 1 else []


SUSPECTS = [m for m in MUTANTS if {"function", "module"} & m.forms]


def _answer(subject: Subject, question: Question) -> Answer:
    try:
        with torch.no_grad():
            return question.ask(subject)
    except OutOfTime:
        raise
    except Exception:  # a candidate's gradient may fail in any way
        return REFUSED


def _questions(subject: Subject) -> list[Question]:
    main, square = subject.main, subject.main.square
    questions = []

    def add(name: str, sizes, *, training=False, **options) -> None:
        inputs = subject.draw(sizes, SEED)
        if options.pop("great", False):
            inputs = inputs.map(lambda x: x * 30)
        if options.pop("grouped", False):
            q, k, v = inputs
            q = torch.cat([q, q.flip(-1)], dim=1)
            inputs = Inputs(q, k[:, :2].contiguous(), v[:, :2].contiguous())

        def ask(each: Subject) -> Tensor:
            return each.call(inputs, **options)

        questions.append(Question(name, ask, training))

    if subject.form == "function":
        add("equal widths", replace(main, V=main.D))
    shapes = [main] if main == square else [main, square]
    for sizes in shapes:
        add("plain", sizes)
        if subject.takes_mask:
            chosen = random_mask(subject, sizes, SEED, subject.mask_ndim)
            add("masked", sizes, mask=chosen)
            L, S = lengths(subject, sizes)
            nothing = random_mask(subject, sizes, SEED, 2)
            nothing[L - 1] = False
            add("nothing to attend to", sizes, mask=nothing)
            generator = torch.Generator().manual_seed(SEED)
            numbers = torch.randn(L, S, generator=generator, dtype=torch.float64)
            add("additive", sizes, mask=numbers.to(subject.device, subject.dtype))
            if subject.form == "module":
                add("masked in training", sizes, training=True, mask=chosen)
        if subject.takes_causal:
            add("causal", sizes, is_causal=True)
    add("great scores", main, great=True)
    if subject.takes_gqa:
        add("grouped", main, grouped=True, enable_gqa=True)
    questions.append(Question("gradients", _gradients))
    return questions


def _gradients(subject: Subject) -> Tensor:
    """Return the gradients of some sum of the output for all inputs, in one row."""
    with torch.enable_grad():
        inputs = subject.draw(subject.main, SEED).map(lambda x: x.requires_grad_())
        out = subject.call(inputs)
        total = (out * torch.linspace(-1, 1, out.numel()).to(out).view(out.shape)).sum()
        if not total.requires_grad:
            return torch.zeros(sum(x.numel() for x in inputs.present), dtype=out.dtype)
        grads = torch.autograd.grad(total, inputs.present, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])
