"""What a property is, and how two tensors are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mha_tutor.contract.watch import CandidateError, OutOfTime

__all__ = [
    "PROPERTIES",
    "NotApplicable",
    "NotAsked",
    "Problem",
    "Property",
    "asked",
    "difference",
    "needs_causal",
    "needs_mask",
    "same",
]


@dataclass(frozen=True)
class Problem:
    """How a property fails.

    Attributes:
        detail: what was seen, in a sentence.
        clue: the bug of the catalog that this alone proves, or nothing. A proof needs a control:
            the same candidate does well where the bug would not show.
        kind: which of several ways to fail, for the conventions.
    """

    detail: str
    clue: str = ""
    kind: str = ""


class NotApplicable(Exception):
    """The property has no meaning for this candidate, as it is made; the text says why."""


class NotAsked(NotApplicable):
    """The property has a meaning, yet too little is known to ask it; the text says what is not."""


def needs_mask(subject) -> None:
    """Go on only if the candidate takes a mask, and it is known how."""
    if not subject.takes_mask:
        raise _lacks(subject, "no mask argument was found", "it takes no mask")


def needs_causal(subject) -> None:
    """Go on only if the candidate has an option for causal attention, and it is known which."""
    if not subject.takes_causal:
        raise _lacks(subject, "no causal argument was found", "it has no such argument")


def _lacks(subject, unknown: str, nature: str) -> NotApplicable:
    """Tell an argument that is not there from one that may have another name."""
    return NotAsked(unknown) if subject.puzzling else NotApplicable(nature)


@dataclass(frozen=True)
class Property:
    """Something that is true of every right attention.

    Attributes:
        name: short.
        promise: the sentence a reader sees.
        applies: "function", "module" or both, or "split", "merge", "mask".
        test: (subject, sizes, seed) → a `Problem`, or None where the property holds.
        shrinks: whether to look for a smaller case when it fails.
    """

    name: str
    promise: str
    applies: tuple[str, ...]
    test: Callable[[Any, Any, int], Problem | None]
    shrinks: bool = True


PROPERTIES: list[Property] = []


def asked(prop: Property, subject, sizes, seed: int) -> Problem | None:
    """Test a property; whatever the candidate does is a problem at most.

    Raises:
        NotApplicable: the property cannot be asked.
        OutOfTime: there is no time left.
    """
    try:
        return prop.test(subject, sizes, seed)
    except CandidateError as error:
        return Problem(str(error))
    except (NotApplicable, OutOfTime):
        raise
    except Exception as error:  # a candidate can return things that break any test
        return Problem(f"its answer cannot be judged: {type(error).__name__}: {error}")


def attends(promise: str, *forms: str, shrinks: bool = True):
    """Register a test as a property of functions and modules, or of the forms named."""

    def register(test):
        name = test.__name__.replace("_", " ")
        PROPERTIES.append(Property(name, promise, forms or ("function", "module"), test, shrinks))
        return test

    return register


def same(got: Tensor, want: Tensor, tol: float) -> bool:
    """Tell whether two tensors agree within rounding, NaN where the other has NaN."""
    if got.shape != want.shape:
        return False
    got, want = got.detach().double(), want.detach().double()
    if not torch.equal(got.isfinite(), want.isfinite()):
        return False
    if not torch.equal(got.isnan(), want.isnan()):
        return False
    finite = want.isfinite()
    got, want = got[finite], want[finite]
    if not len(want):
        return True
    scale = max(1.0, want.abs().max().item())
    return (got - want).abs().max().item() <= tol * scale


def difference(got: Tensor, want: Tensor, tol: float) -> str:
    """Say where two tensors differ most, or nothing where they agree."""
    if same(got, want, tol):
        return ""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    off = (got - want).abs().nan_to_num(float("inf"), posinf=float("inf"))
    limit = tol * max(1.0, want.nan_to_num(0.0, 0.0, 0.0).abs().max().item())
    wrong = int((off > limit).sum())
    index = torch.unravel_index(off.argmax(), off.shape)
    where = ", ".join(str(int(i)) for i in index)
    return (
        f"{wrong} of {want.numel()} numbers differ; output[{where}] is {got[index].item():.4g}, "
        f"the right one is {want[index].item():.4g}"
    )
