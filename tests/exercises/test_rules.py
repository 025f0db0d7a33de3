"""Every exercise, tried by its own rules: each mistake gets its own sentence."""

from itertools import combinations

import pytest
import torch

from mha_tutor import exercises
from mha_tutor.exercises._exercise import Exercise, Wrong, alike

ALL = {
    name: one for name in exercises.__all__ if isinstance(one := getattr(exercises, name), Exercise)
}
CALLED = {name: one for name, one in ALL.items() if one.parse is None}
every = pytest.mark.parametrize("exercise", ALL.values(), ids=ALL)
called = pytest.mark.parametrize("exercise", CALLED.values(), ids=CALLED)


@every
def test_the_right_answer_is_praised(exercise):
    feedback = exercise(exercise.right)
    assert feedback
    assert repr(feedback).endswith(f"right. {exercise.praise}")


@every
def test_every_mistake_gets_its_own_sentence(exercise):
    assert exercise.mistakes
    for sentence, wrong in exercise.mistakes.items():
        feedback = exercise(wrong)
        assert not feedback, sentence
        assert repr(feedback).endswith(sentence), f"{sentence}\n got: {feedback}"


@every
def test_no_two_mistakes_agree(exercise):
    outcomes = {sentence: exercise.outcomes(wrong) for sentence, wrong in exercise.mistakes.items()}
    for (one, mine), (other, theirs) in combinations(outcomes.items(), 2):
        assert not all(map(alike, mine, theirs)), f"{one}\n{other}"


@every
@pytest.mark.parametrize("nothing", [None, ...])
def test_nothing_is_not_yet_an_answer(exercise, nothing):
    answer = nothing if exercise.parse else lambda *inputs: nothing
    assert repr(exercise(answer)).startswith("…")
    assert "nothing yet" in repr(exercise(answer))


@called
def test_a_function_not_written_yet(exercise):
    def empty(*inputs):
        raise NotImplementedError

    assert "nothing yet" in repr(exercise(empty))


@called
def test_an_answer_that_raises_is_quoted(exercise):
    def broken(*inputs):
        raise ZeroDivisionError("by nought")

    text = repr(exercise(broken))
    assert text.startswith("✗")
    assert "raises ZeroDivisionError: by nought" in text


@every
def test_what_no_exercise_accepts(exercise):
    text = repr(exercise(object()))
    assert text.startswith("✗")
    assert "object" in text
    assert "cannot be judged" not in text


@called
@pytest.mark.parametrize("bad", ["a word", 1j, [object()], torch.zeros(1, 2, 3, 4, 5, 6)])
def test_answers_of_another_kind(exercise, bad):
    text = repr(exercise(lambda *inputs: bad))
    assert text.startswith("✗")
    assert "cannot be judged" not in text


NUMBERS = {"blocks_to_compute", "continue_repeat", "flops", "grouped_count", "least_loss"}
NUMBERS |= {"one_suffices", "table_bytes"}
TENSORS = {name: one for name, one in CALLED.items() if name not in NUMBERS}


@pytest.mark.parametrize("exercise", TENSORS.values(), ids=TENSORS)
def test_another_shape(exercise):
    def wider(*inputs):
        return exercise.right(*inputs)[..., None, None]

    text = repr(exercise(wider))
    assert "shape" in text, text


def test_a_wrong_answer_no_rule_knows():
    text = repr(exercises.table_bytes(lambda *inputs: 17))
    assert "whatever the input" in text


def test_alike_compares_failures_by_what_they_say():
    assert alike(Wrong("a"), Wrong("a"))
    assert not alike(Wrong("a"), Wrong("b"))
    assert not alike(torch.zeros(2), torch.zeros(3))
