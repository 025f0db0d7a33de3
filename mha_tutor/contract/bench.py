"""The candidate's numbers beside those of every suspect.

The candidate is asked a few questions (plain, masked, causal, …), and so is every mutant of the
catalog, with the candidate's own weights. A mutant is named when it gives the candidate's answers
to all of them, to six digits, wrong answers included; a pair likewise. So a name is evidence, not
a guess.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from mha_tutor.contract.mutants import MUTANTS
from mha_tutor.contract.mutants.catalog import sites
from mha_tutor.contract.properties.base import same
from mha_tutor.contract.questions import REFUSED, Answer, Question, answer, questions
from mha_tutor.contract.subjects import Subject

__all__ = ["SUSPECTS", "Bench", "Explanation", "Suspect"]


@dataclass(frozen=True)
class Explanation:
    """The names of the mutants that compute the candidate's numbers.

    Attributes:
        names: all of them.
        complete: whether they explain every number.
        one_of: whether each of them alone does, so that the numbers do not tell which it is.
        left: whether numbers were compared, and some of them are left unexplained.
    """

    names: tuple[str, ...] = ()
    complete: bool = False
    one_of: bool = False
    left: bool = False


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


class Bench:
    """The candidate's answers, and those of the suspects beside them."""

    def __init__(self, subject: Subject, base: tuple[type, ...] = ()) -> None:
        """Ask the candidate; `base` are steps of bugs that are proved already."""
        self.subject, self.base = subject, base
        self.questions = [q for q in questions(subject) if self._may_ask(q)]
        taken = {site for steps in base for site in sites(steps)}
        self.suspects = [
            suspect
            for suspect in SUSPECTS
            if subject.form in suspect.forms and not suspect.sites & taken
        ]
        trained = subject.in_training() or subject
        self.candidate = [
            answer((trained if question.training else subject).fresh(), question)
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
        return not refusable or answer(self.subject.fresh(), question) is not REFUSED

    @property
    def wrong_numbers(self) -> list[int]:
        """Which questions are answered, and answered wrongly."""
        pairs = enumerate(zip(self.wrong, self.candidate, strict=True))
        return [i for i, (wrong, given) in pairs if wrong and isinstance(given, Tensor)]

    def ask(self, steps: tuple[type, ...]) -> list[Answer]:
        """Return what these steps of mutants answer, with the candidate's weights."""
        steps = (*steps, *self.base)
        calm = self.subject.simulation(steps)
        trained = self.subject.simulation(steps, training=True)
        return [answer(trained if q.training else calm, q) for q in self.questions]

    def agree(self, one: Answer, other: Answer) -> bool:
        """Tell whether two answers are the same, or both refusals."""
        if isinstance(one, str) or isinstance(other, str):
            return isinstance(one, str) and isinstance(other, str)
        return same(one, other, self.subject.tol)

    def explain(self) -> Explanation:
        """Look for one mutant that gives all answers, then for two, then for one that helps."""
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
        return Explanation(tuple(self._part(traces)), left=True)

    def _may_be(self, *suspects: Suspect) -> bool:
        """Ask one question that the candidate answers wrongly, to spare most suspects the rest."""
        hardest = self.wrong_numbers[0]
        question = self.questions[hardest]
        steps = (*(suspect.steps for suspect in suspects), *self.base)
        suspected = self.subject.simulation(steps, training=question.training)
        return self.agree(answer(suspected, question), self.candidate[hardest])

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
