"""Name the bug: find the mutant, or the pair of mutants, that computes the same numbers.

What the numbers cannot tell (dropout, state, seeds) comes from the clue of a property that proves
it. Where nothing fits the diagnosis is "unknown".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from mha_tutor.contract.bench import Bench, Explanation
from mha_tutor.contract.mutants import MUTANTS, Mutant, find_mutant
from mha_tutor.contract.mutants.catalog import sites
from mha_tutor.contract.properties import PROPERTIES, NotApplicable, asked
from mha_tutor.contract.report import Diagnosis, Finding
from mha_tutor.contract.subjects import Subject
from mha_tutor.contract.watch import OutOfTime

__all__ = ["UNKNOWN", "diagnose", "not_explained"]

UNKNOWN = Diagnosis("unknown", "It matches no bug of the catalog.")
NUMBERS_LEFT = Diagnosis("unknown", "There is more: some numbers are not explained by this.")


def diagnose(subject: Subject, violated: Iterable[Finding], seed: int = 0) -> tuple[Diagnosis, ...]:
    """Explain the violations by bugs of the catalog.

    Args:
        subject: the candidate.
        violated: what was found; their clues are used.
        seed: of the check.

    Returns:
        The bugs, and last one called "unknown" where something is violated that none of them
        explains.
    """
    violated = list(violated)
    if not violated:
        return ()
    proved = dict.fromkeys(finding.clue for finding in violated if finding.clue)
    by_numbers = _by_numbers(subject, [find_mutant(name) for name in proved])
    names = dict.fromkeys([*by_numbers.names, *proved])
    _drop_consequences(names)
    found = [
        _told(mutant, by_numbers.one_of and mutant.name not in proved)
        for mutant in MUTANTS
        if mutant.name in names
    ]
    if not found:
        return (UNKNOWN,)
    left = _unexplained(subject, violated, [find_mutant(name) for name in names], seed)
    if left:
        return (*found, not_explained(left))
    changing = CHANGING & {finding.name for finding in violated}
    if by_numbers.left and not changing:
        return (*found, NUMBERS_LEFT)
    if not by_numbers.complete and not proved:
        return (*found, UNKNOWN)
    return tuple(found)


def not_explained(properties: Sequence[str]) -> Diagnosis:
    """Return the diagnosis "unknown" for what the bugs found do not violate."""
    said = ", ".join(properties[:-1])
    said = f"{said} and {properties[-1]}" if said else properties[-1]
    verb = "are" if len(properties) > 1 else "is"
    return Diagnosis(UNKNOWN.name, f"There is more: {said} {verb} not explained by this.")


def _unexplained(
    subject: Subject, violated: list[Finding], mutants: list[Mutant], seed: int
) -> list[str]:
    """List the violated properties that hold with these bugs in the place of the candidate."""
    names = {mutant.name for mutant in mutants}
    left = {finding.name for finding in violated if finding.clue not in names}
    tests = {prop.name: prop for prop in PROPERTIES if prop.name in left}
    together = _apart([mutant.steps for mutant in mutants])
    ways = [(steps,) for mutant in mutants for steps in (mutant.steps, *mutant.variants)]
    for steps in [together, *ways] if len(together) > 1 else ways:
        for name in sorted(left):
            with contextlib.suppress(NotApplicable, OutOfTime):
                if asked(tests[name], subject.stand_in(steps), subject.main, seed) is not None:
                    left.remove(name)
        if not left:
            break
    return [finding.name for finding in violated if finding.name in left]


def _apart(steps: Iterable[type]) -> tuple[type, ...]:
    """Keep the steps that replace something that those before them do not."""
    kept: list[type] = []
    for each in steps:
        if not any(sites(each) & sites(other) for other in kept):
            kept.append(each)
    return tuple(kept)


def _told(mutant: Mutant, one_of: bool) -> Diagnosis:
    story = f"This or another one named here: {mutant.story}" if one_of else mutant.story
    return Diagnosis(mutant.name, story, mutant.chapter)


CHANGING = {"deterministic", "calls in turn"}  # where these fail a number is one of many
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


def _by_numbers(subject: Subject, proved: Sequence[Mutant]) -> Explanation:
    """Look for bugs that compute the candidate's numbers, alone or next to what is proved."""
    if subject.simulation(()) is None:
        return Explanation()
    try:
        alone = Bench(subject).explain()
        base = _apart(mutant.steps for mutant in proved if subject.form in mutant.forms)
        if alone.complete or not base:
            return alone
        beside = Bench(subject, base).explain()
    except OutOfTime:
        return Explanation()
    return beside if beside.complete else alone
