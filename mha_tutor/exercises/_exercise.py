"""What all exercises share: ask the reader's function, compare, and say kindly what is missing."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Case",
    "Exercise",
    "Feedback",
    "Wrong",
    "agree",
    "alike",
    "answer",
    "draw",
    "exercise",
    "expect",
    "given",
    "shown",
    "truth",
    "whole",
]

TOL = 1e-6  # inputs are float64 and of size 1; rounding stays far below
SMALL = 12  # a tensor of at most so many numbers is printed
WIDTH = 78  # of a line in a notebook, as for its code
SHORT = 40  # and any other input of at most so many characters


@dataclass(frozen=True, repr=False)
class Feedback:
    """What the checker has to say; truthy if the answer is right.

    Attributes:
        done: whether it is.
        text: what was tried, or what is wrong or missing.
    """

    done: bool
    text: str

    def __bool__(self) -> bool:
        return self.done

    def __repr__(self) -> str:
        return self.text

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Break the text into lines where a notebook shows it."""
        printer.text(textwrap.fill(self.text, WIDTH, subsequent_indent="  "))


class Wrong(Exception):
    """The answer is wrong; the text says in what."""


class Missing(Exception):
    """There is no answer yet."""


def exercise(judge: Callable[[Any], str]) -> Callable[[Any], Feedback]:
    """Make a checker of a function that raises `Wrong`, or returns what it has tried."""

    def check(candidate: Any) -> Feedback:
        return _feedback(candidate, judge)

    check.__name__, check.__doc__ = judge.__name__, judge.__doc__
    check.__module__ = judge.__module__
    return check


def _feedback(candidate: Any, judge: Callable[[Any], str]) -> Feedback:
    name = getattr(candidate, "__name__", None) or "your answer"
    try:
        with torch.random.fork_rng(devices=[]):
            return Feedback(True, f"✓ {name}: right. {judge(candidate)}")
    except Missing as nothing:
        return Feedback(False, f"… {name}: {nothing}")
    except Wrong as wrong:
        return Feedback(False, f"✗ {name}: {wrong}")
    except Exception as error:  # an answer that no judge has thought of
        text = f"cannot be judged: {type(error).__name__}: {_first_line(error)}"
        return Feedback(False, f"✗ {name}: {text}")


def answer(candidate: Any, *inputs: Any, **options: Any) -> Any:
    """Call the reader's function on copies, and refuse what no exercise accepts.

    Raises:
        Missing: it returns nothing, or `...`, or raises NotImplementedError.
        Wrong: it is no function, raises, or changes its inputs.
    """
    if not callable(candidate):
        raise Wrong(f"pass the function itself, without calling it; this is {_kind(candidate)}.")
    copies = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    called = f"called with {_listed(inputs)}" if inputs else "called"
    try:
        got = candidate(*copies, **options)
    except NotImplementedError:
        got = ...
    except Exception as error:  # whatever the reader's code raises
        raise Wrong(f"{called} it raises {type(error).__name__}: {_first_line(error)}") from error
    if got is ...:
        raise Missing("returns nothing yet. Put your code where the dots are.")
    if got is None:
        raise Missing(
            "returns nothing yet. Put your code where the dots are; if it is there, a return is "
            "missing."
        )
    for before, after in zip(inputs, copies, strict=True):
        if isinstance(before, Tensor) and not _equal(before, after):
            raise Wrong(f"{called} it changes its input in place; make a new tensor instead.")
    return got


def given(candidate: Any, kind: type | tuple[type, ...], like: str) -> Any:
    """Return an answer that is no function: a number, a shape, a spec.

    Raises:
        Missing: it is `...` or None.
        Wrong: it is of another kind; the text says what one looks like.
    """
    if candidate is None or candidate is ...:
        raise Missing("nothing yet. Put your answer where the dots are.")
    if not isinstance(candidate, kind):
        raise Wrong(f"this is {_kind(candidate)}; the answer looks like {like}.")
    return candidate


def expect(
    got: Any, want: Tensor, when: str, mistakes: Mapping[str, Tensor | None] | None = None
) -> None:
    """Compare an answer with the right one.

    Args:
        got: what the reader's function returned.
        want: what it should.
        when: on which input, in words: "for x = torch.arange(48).reshape(2, 4, 6)".
        mistakes: sentence → what a reader gets who makes that mistake. The first that fits is told.

    Raises:
        Wrong: it is no tensor, has another shape or dtype kind, or other numbers.
    """
    if not isinstance(got, Tensor):
        raise Wrong(f"{when} it returns {_kind(got)}, not a tensor.")
    got = got.detach().cpu()
    if got.is_complex():
        raise Wrong(f"{when} it returns {got.dtype}; {want.dtype} is asked for.")
    if got.shape == want.shape and got.is_floating_point() == want.is_floating_point():
        if (got.dtype == torch.bool) != (want.dtype == torch.bool):
            raise Wrong(f"{when} it returns {got.dtype}; {want.dtype} is asked for.")
        if _close(got, want):
            return
    for sentence, wrong in (mistakes or {}).items():
        if wrong is not None and got.shape == wrong.shape and _close(got, wrong):
            raise Wrong(f"{sentence}")
    if got.shape != want.shape:
        raise Wrong(f"{when} the shape is {tuple(got.shape)}; it should be {tuple(want.shape)}.")
    if got.is_floating_point() != want.is_floating_point():
        raise Wrong(f"{when} it returns {got.dtype}; {want.dtype} is asked for.")
    if got.is_floating_point() and got.isnan().any() and not want.isnan().any():
        raise Wrong(f"{when} some numbers are NaN.")
    if want.numel() <= SMALL:
        raise Wrong(f"{when} it returns {_numbers(got)}; it should be {_numbers(want)}.")
    first = tuple((~_near(got, want)).nonzero()[0].tolist())
    raise Wrong(
        f"{when} the shape is right, the numbers are not: entry {list(first)} is "
        f"{_number(got[first])}, and should be {_number(want[first])}."
    )


def agree(
    candidate: Any,
    cases: Mapping[str, tuple],
    right: Callable[..., Any],
    read: Callable[[Any, str], Any],
    mistakes: Mapping[str, Callable[..., Any]],
) -> None:
    """Compare a function that answers with True, False or a number, on several cases.

    Args:
        candidate: the reader's function.
        cases: the case in words, as in `expect` → the inputs.
        right: gives the right answer to them.
        read: `truth` or `whole`.
        mistakes: sentence → a wrong rule. The first that answers all cases as the reader's function
            does is told.

    Raises:
        Wrong: it answers one of the cases wrong.
    """
    got = [read(answer(candidate, *inputs), when) for when, inputs in cases.items()]
    want = [right(*inputs) for inputs in cases.values()]
    if got == want:
        return
    for sentence, rule in mistakes.items():
        if got == [rule(*inputs) for inputs in cases.values()]:
            raise Wrong(sentence)
    if len(set(got)) == 1:
        raise Wrong(f"it returns {got[0]}, whatever the input.")
    for when, is_, should in zip(cases, got, want, strict=True):
        if is_ != should:
            raise Wrong(f"{when} it returns {is_}; it should be {should}.")


@dataclass(frozen=True)
class Case:
    """One question that an answer is asked.

    Attributes:
        when: on which input, in words: "for x = torch.arange(48).reshape(2, 4, 6)".
        inputs: what the answer is called with.
        ask: how, if not plainly: `ask(function, *inputs)`. Right and wrong rules are asked alike.
    """

    when: str
    inputs: tuple[Any, ...]
    ask: Callable[..., Any] = lambda function, *inputs: function(*inputs)


@dataclass(frozen=True, eq=False, repr=False)
class Exercise:
    """A checker: a right rule, and each known mistake once, as a sentence and a wrong rule.

    Attributes:
        task: what is asked for, in a line.
        cases: what every answer is tried on.
        right: the right rule.
        mistakes: sentence → wrong rule. Of the rules that answer the first case that went wrong as
            the reader's does, the one that agrees with it on most cases is told; where an answer is
            one number, a rule has to agree on all cases.
        praise: what a right answer is told.
        read: makes of what came out what is compared, or raises `Wrong`.
        parse: makes a function of an answer that is none: a number, a shape, a spec.
        hint: a last look at what came out, case by case, for a sentence that no rule can say.
    """

    task: str
    cases: Sequence[Case]
    right: Any
    mistakes: Mapping[str, Any]
    praise: str
    read: Callable[[Any, str], Any] = lambda got, when: got
    parse: Callable[[Any], Callable[..., Any]] | None = None
    hint: Callable[[list[Any]], str | None] = lambda outcomes: None

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.task)

    def __call__(self, candidate: Any) -> Feedback:
        """Judge an answer."""
        return _feedback(candidate, self._judge)

    def outcomes(self, answer_: Any) -> list[Any]:
        """Return what an answer gives in each case; where it gives nothing, the `Wrong`."""
        function = self.parse(answer_) if self.parse else answer_
        return [self._outcome(function, case) for case in self.cases]

    def _outcome(self, function: Any, case: Case) -> Any:
        try:
            got = case.ask(functools.partial(answer, function), *case.inputs)
            got = self.read(got, case.when)
            return got.detach().cpu() if isinstance(got, Tensor) else got
        except Wrong as wrong:
            return wrong

    def _judge(self, candidate: Any) -> str:
        got, want = self.outcomes(candidate), self.outcomes(self.right)
        wrong = [i for i in range(len(want)) if not _right(got[i], want[i])]
        if not wrong:
            return self.praise
        first = wrong[0]
        votes = {}
        for sentence, rule in self.mistakes.items():
            theirs = self.outcomes(rule)
            same = list(map(alike, got, theirs))
            # One number or truth value can agree by chance: then all cases must.
            if same[first] and (all(same) or isinstance(got[first], Tensor | Wrong)):
                votes[sentence] = sum(same)
        if votes:
            raise Wrong(max(votes, key=votes.__getitem__))
        if sentence := self.hint(got):
            raise Wrong(sentence)
        if isinstance(got[first], Wrong):
            raise got[first]
        if not isinstance(want[first], Tensor):
            if len(got) > 1 and all(one == got[0] for one in got):
                raise Wrong(f"it returns {got[0]}, whatever the input.")
            when = self.cases[first].when
            raise Wrong(f"{when} it returns {got[first]}; it should be {want[first]}.")
        expect(got[first], want[first], self.cases[first].when)
        raise AssertionError("expect and _right disagree")


def alike(one: Any, other: Any) -> bool:
    """Say whether two answers come out the same, or fail in the same way."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and not one.is_complex() and _close(one, other)
    if isinstance(one, Wrong) and isinstance(other, Wrong):
        return str(one) == str(other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    return type(one) is type(other) and one == other


def _right(got: Any, want: Tensor) -> bool:
    if isinstance(got, Tensor) and isinstance(want, Tensor):
        kinds = [(x.dtype == torch.bool, x.is_floating_point()) for x in (got, want)]
        return kinds[0] == kinds[1] and alike(got, want)
    return alike(got, want)


def truth(got: Any, when: str) -> bool:
    """Read a True or False, also one of torch or NumPy."""
    value = _item(got)
    if not isinstance(value, bool):
        raise Wrong(f"{when} it returns {_kind(value)}; True or False is asked for.")
    return value


def whole(got: Any, when: str) -> int:
    """Read a whole number, of whatever type."""
    value = _item(got)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        kind = value if isinstance(value, float) else _kind(value)
        raise Wrong(f"{when} it returns {kind}; a whole number is asked for.")
    return int(value)


def shown(x: Any) -> str:
    """Write an input in a few words."""
    if isinstance(x, Tensor):
        return f"a tensor of shape {tuple(x.shape)}"
    if callable(x):
        return getattr(x, "__name__", _kind(x))
    return repr(x) if len(repr(x)) <= SHORT else _kind(x)


def _listed(inputs: tuple[Any, ...]) -> str:
    if len(inputs) > 1 and all(isinstance(x, Tensor) for x in inputs):
        return "tensors of shapes " + ", ".join(str(tuple(x.shape)) for x in inputs)
    return ", ".join(shown(x) for x in inputs)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers in float64, the same ones whatever the reader has set."""
    gen = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=gen, dtype=torch.float64, device="cpu")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _item(x: Any) -> Any:
    """Return the number in a tensor or array of one; anything else as it is."""
    try:
        return x.item()
    except (AttributeError, RuntimeError, ValueError):
        return x


def _kind(x: Any) -> str:
    kind = type(x).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' or kind == 'ndarray' else 'a'} {kind}"


def _number(x: Tensor) -> str:
    return f"{x.item():.4g}" if x.is_floating_point() else str(x.item())


def _numbers(x: Tensor) -> str:
    if x.is_floating_point():  # no digits that another machine would round differently
        return str([round(number, 3) for number in x.flatten().tolist()])
    return str(x.tolist())


def _near(got: Tensor, want: Tensor) -> Tensor:
    if got.is_floating_point() or want.is_floating_point():
        return torch.isclose(got.double(), want.double(), rtol=TOL, atol=TOL, equal_nan=True)
    return got == want


def _close(got: Tensor, want: Tensor) -> bool:
    return bool(_near(got, want).all())


def _equal(before: Tensor, after: Tensor) -> bool:
    return before.shape == after.shape and bool(_near(after, before).all())
