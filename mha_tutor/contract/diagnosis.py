"""Name the bug: find the mutant, or the pair of mutants, that computes the same numbers.

What the numbers cannot tell (dropout, state, seeds) comes from the clue of a property that proves
it. Where nothing fits the diagnosis is "unknown".
"""

from __future__ import annotations

from collections.abc import Iterable

from mha_tutor.contract.bench import Bench, Explanation
from mha_tutor.contract.mutants import MUTANTS, Mutant
from mha_tutor.contract.report import Diagnosis, Finding
from mha_tutor.contract.subjects import Subject
from mha_tutor.contract.watch import OutOfTime

__all__ = ["UNKNOWN", "diagnose"]

UNKNOWN = Diagnosis("unknown", "It matches no bug of the catalog.")


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


def _by_numbers(subject: Subject) -> Explanation:
    if subject.simulation(()) is None:
        return Explanation()
    try:
        return Bench(subject).explain()
    except OutOfTime:
        return Explanation()
