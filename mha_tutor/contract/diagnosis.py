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
from mha_tutor.contract.mutants.catalog import sites
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
    by_numbers = _by_numbers(subject)
    names = dict.fromkeys([*by_numbers.names, *proved])
    _drop_consequences(names)
    found = [
        _told(mutant, by_numbers.one_of and mutant.name not in proved)
        for mutant in MUTANTS
        if mutant.name in names
    ]
    if not found or (not by_numbers.complete and not proved):
        return (*found, UNKNOWN)
    return tuple(found)


def _told(mutant: Mutant, one_of: bool) -> Diagnosis:
    story = f"This or another one named here: {mutant.story}" if one_of else mutant.story
    return Diagnosis(mutant.name, story, mutant.chapter)


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


@dataclass(frozen=True)
class Explanation:
    """The names of the mutants that compute the candidate's numbers.

    Attributes:
        names: all of them.
        complete: whether they explain every number.
        one_of: whether each of them alone does, so that the numbers do not tell which it is.
    """

    names: tuple[str, ...] = ()
    complete: bool = False
    one_of: bool = False


def _by_numbers(subject: Subject) -> Explanation:
    if subject.simulation(()) is None:
        return Explanation()
    try:
        return _Bench(subject).explain()
    except OutOfTime:
        return Explanation()


@dataclass(frozen=True)
class Suspect:
    """A way in which a bug of the catalog is written."""

    name: str
    steps: type
    forms: frozenset[str]

    @property
    def sites(self) -> frozenset[str]:
        """Which steps it replaces."""
        return sites(self.steps)


SUSPECTS = [
    Suspect(mutant.name, steps, mutant.forms)
    for mutant in MUTANTS
    if {"function", "module"} & mutant.forms
    for steps in (mutant.steps, *mutant.variants)
]


@dataclass(frozen=True)
class Trace:
    """On which questions a suspect is wrong, and on which it says what the candidate says."""

    suspect: Suspect
    active: list[bool]
    fits: list[bool]


class _Bench:
    """The candidate's answers, and those of the suspects beside them."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.questions = [q for q in _questions(subject) if self._may_ask(q)]
        self.suspects = [suspect for suspect in SUSPECTS if subject.form in suspect.forms]
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

    def _may_ask(self, question: Question) -> bool:
        """Leave out a question that the candidate has the right to refuse."""
        refusable = question.name == "additive"
        return not refusable or _answer(self.subject.fresh(), question) is not REFUSED

    @property
    def wrong_numbers(self) -> list[int]:
        """Which questions are answered, and answered wrongly."""
        pairs = enumerate(zip(self.wrong, self.candidate, strict=True))
        return [i for i, (wrong, answer) in pairs if wrong and isinstance(answer, Tensor)]

    def ask(self, steps: tuple[type, ...]) -> list[Answer]:
        calm = self.subject.simulation(steps)
        trained = self.subject.simulation(steps, training=True)
        return [_answer(trained if q.training else calm, q) for q in self.questions]

    def agree(self, one: Answer, other: Answer) -> bool:
        if isinstance(one, str) or isinstance(other, str):
            return isinstance(one, str) and isinstance(other, str)
        return same(one, other, self.subject.tol)

    def explain(self) -> Explanation:
        if not any(self.wrong):
            return Explanation(complete=True)  # what is wrong lies elsewhere
        if not self.wrong_numbers:
            return Explanation()  # it only refuses, and that has many reasons
        fitting = dict.fromkeys(
            suspect.name
            for suspect in self.suspects
            if self._may_be(suspect) and self._numbers_agree(self.ask((suspect.steps,)))
        )
        if fitting:
            return Explanation(tuple(fitting), complete=True, one_of=len(fitting) > 1)
        given = [self.ask((s.steps,)) for s in self.suspects]
        active = [
            [not self.agree(a, r) for a, r in zip(answers, self.right, strict=True)]
            for answers in given
        ]
        fits = [
            [self.agree(a, c) for a, c in zip(answers, self.candidate, strict=True)]
            for answers in given
        ]
        traces = [Trace(*each) for each in zip(self.suspects, active, fits, strict=True)]
        traces = [trace for trace in traces if any(trace.active)]
        pair = self._pair(traces)
        if pair:
            return Explanation(pair, complete=True)
        return Explanation(tuple(self._part(traces)))

    def _may_be(self, *suspects: Suspect) -> bool:
        """Ask one question that the candidate answers wrongly, to spare most suspects the rest."""
        hardest = self.wrong_numbers[0]
        question = self.questions[hardest]
        steps = tuple(suspect.steps for suspect in suspects)
        suspected = self.subject.simulation(steps, training=question.training)
        return self.agree(_answer(suspected, question), self.candidate[hardest])

    def _pair(self, traces: list[Trace]) -> tuple[str, str] | None:
        """Find two mutants that together give all answers."""
        for a, b in itertools.combinations(traces, 2):
            if a.suspect.name == b.suspect.name or a.suspect.sites & b.suspect.sites:
                continue
            possible = all(
                (acts_a and acts_b)
                or (acts_a and fits_a)
                or (acts_b and fits_b)
                or not (acts_a or acts_b or wrong)
                for acts_a, fits_a, acts_b, fits_b, wrong in zip(
                    a.active, a.fits, b.active, b.fits, self.wrong, strict=True
                )
            )
            if not possible or not self._may_be(a.suspect, b.suspect):
                continue
            if self._numbers_agree(self.ask((a.suspect.steps, b.suspect.steps))):
                return a.suspect.name, b.suspect.name
        return None

    def _numbers_agree(self, answers: list[Answer]) -> bool:
        """Tell whether all answers are the candidate's."""
        return all(self.agree(x, c) for x, c in zip(answers, self.candidate, strict=True))

    def _part(self, traces: list[Trace]) -> list[str]:
        """Find a mutant that explains some answers exactly, and contradicts none."""
        best: set[str] = set()
        most = 0
        for trace in traces:
            proof = sum(
                a and f and isinstance(c, Tensor)
                for a, f, c in zip(trace.active, trace.fits, self.candidate, strict=True)
            )
            contradicted = any(
                a and not f and not w
                for a, f, w in zip(trace.active, trace.fits, self.wrong, strict=True)
            )
            if proof == 0 or contradicted:
                continue
            if proof > most:
                best, most = {trace.suspect.name}, proof
            elif proof == most:
                best.add(trace.suspect.name)
        return list(best) if len(best) == 1 else []


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
        if great := options.pop("great", 0.0):
            inputs = inputs.map(lambda x: x * great)
        if options.pop("grouped", False):
            q, k, v = inputs
            q = torch.cat([q, q.flip(-1)], dim=1)
            inputs = Inputs(q, k[:, :2].contiguous(), v[:, :2].contiguous())

        def ask(each: Subject) -> Tensor:
            return each.call(inputs, **options)

        questions.append(Question(name, ask, training))

    if subject.form == "function":
        add("equal widths", replace(main, V=main.D))
        if subject.takes_mask:
            turned = [random_mask(subject, main, SEED + h) for h in range(main.H)]
            add("masked by head", main, mask=torch.cat(turned, dim=1))
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
    add("great scores", main, great=30.0)
    if subject.takes_mask:
        add("masked great scores", main, great=30.0, mask=random_mask(subject, main, SEED, 2))
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
