"""What holds for every checker, whatever it is given."""

import numpy as np
import pytest
import torch
from torch import nn

from mha_tutor import exercises

NAMES = sorted(set(exercises.__all__) - {"Feedback"})
# Here the answer itself is asked for, not a function.
GIVEN = {"find_element", "four_weights", "output_spec", "scores_spec"}
NOT_FUNCTIONS = [
    5,
    "",
    "->",
    "x",
    "i,i,i->i",
    "bhld,bhld->bhzz",
    "ああああ,いいいい->ああああ",
    {},
    [[], {}, None, 1],
    (slice(None),) * 4,
    torch.ones(2, 2),
    nn.Linear(2, 2),
    lambda: 1,
    lambda *args: 1 / 0,
]
RETURNED = [
    5,
    5.5,
    float("nan"),
    True,
    "x",
    [torch.zeros(1), "x", 3],
    [[True, False]],
    {"q_proj.weight": 5},
    np.zeros((4, 4)),
    np.ones((2, 5), dtype=bool),
    torch.tensor([]),
    torch.zeros(4, 4, dtype=torch.complex64),
    torch.ones(12, 12).to_sparse(),
    torch.empty(2, 3, device="meta"),
    (torch.ones(2, 3, device="meta"), 5),
    nn.Linear(15, 15),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nothing", [None, ...], ids=repr)
def test_nothing_yet(name, nothing):
    feedback = getattr(exercises, name)(nothing if name in GIVEN else lambda *args: nothing)
    assert not feedback
    assert repr(feedback).startswith("… ")


@pytest.mark.parametrize("name", NAMES)
def test_odd_answers_are_wrong_and_raise_nothing(name):
    check = getattr(exercises, name)
    for odd in [*NOT_FUNCTIONS, *((lambda *args, x=x: x) for x in RETURNED)]:
        feedback = check(odd)
        assert not feedback, odd
        assert repr(feedback).startswith("✗ "), odd


def test_a_forgotten_return_is_told():
    def forgets(x):
        x.transpose(1, 2).flatten(2)

    assert "a return is missing" in repr(exercises.merge(forgets))
    assert "a return is missing" not in repr(exercises.merge(lambda x: ...))


def test_a_function_is_shown_by_its_name():
    def unlucky(split, merge):
        raise ValueError("no")

    assert "called with split_heads, merge_heads it raises ValueError: no" in repr(
        exercises.heads_test(unlucky)
    )
