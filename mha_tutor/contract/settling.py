"""Choose between the places in which the weights of a layer may be.

A layer says with names, or with the order of its parts, which map makes the query; a packed map
is cut in one of several ways. Nobody can tell the right one from the weights alone, and all of
them are in use, so each is tried: a reading fits if with it the layer is right, or wrong in the
way of a known bug, number for number.
"""

from __future__ import annotations

import torch

from mha_tutor.contract.bench import SUSPECTS
from mha_tutor.contract.properties.base import same
from mha_tutor.contract.readings import Reading
from mha_tutor.contract.watch import CandidateError

__all__ = ["settled"]

SEED = 5


def settled(subject):
    """Return the subject under the reading that fits, or judged from outside where none does."""
    guesses = subject.adapter.readings
    if not guesses:
        return subject
    if len(guesses) == 1 and guesses[0].sure:
        return subject.read_as(guesses[0])
    inputs = subject.draw(subject.main, SEED)
    try:
        answer = subject.fresh().call(inputs)
    except CandidateError:
        return subject.read_as(guesses[0] if guesses[0].sure else None)

    def fits(reading: Reading, steps: tuple[type, ...]) -> bool:
        try:
            with torch.no_grad():
                guess = subject.read_as(reading).simulation(steps).call(inputs)
            return same(guess, answer, subject.tol)
        except (CandidateError, RuntimeError, ValueError, ZeroDivisionError):
            return False

    for reading in guesses:
        if fits(reading, ()):
            return subject.read_as(reading)
    for reading in guesses:
        if reading.likely and any(fits(reading, (suspect.steps,)) for suspect in SUSPECTS):
            return subject.read_as(reading)
    return subject.read_as(guesses[0] if guesses[0].sure else None)
