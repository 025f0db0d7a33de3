"""The face of a candidate, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mha_tutor.contract.sizes import MAIN, Sizes, ladder
from mha_tutor.contract.watch import CandidateError, Clock
from mha_tutor.masks import causal_mask


class Inputs(NamedTuple):
    """What a candidate attends with; key and value are None in self-attention."""

    query: Tensor
    key: Tensor | None = None
    value: Tensor | None = None

    @property
    def present(self) -> list[Tensor]:
        """The tensors that are there."""
        return [x for x in self if x is not None]

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Apply a function to each tensor."""
        return Inputs(*(None if x is None else function(x) for x in self))

    def copied(self) -> Inputs:
        """Copy each tensor once, so that what was one tensor stays one."""
        copies = {id(x): x.clone() for x in self.present}
        return Inputs(*(None if x is None else copies[id(x)] for x in self))

    def keys_mapped(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Apply a function to what is attended to, in self-attention the only tensor."""
        if self.key is None:
            return Inputs(function(self.query))
        return Inputs(self.query, function(self.key), function(self.value))


class Subject:
    """A candidate with the face that the properties need.

    Attributes:
        form: "function" or "module".
        title: the candidate in words.
        letters: the sizes that can be chosen freely.
        main: the sizes to test at first.
        tol: relative difference that is still rounding.
        self_attention: whether query, key and value are one tensor.
        takes_mask, takes_causal: whether there is such an argument.
        causal: whether the candidate is causal by itself.
        conventions: property → what the candidate's documentation says where it differs.
        notes: how it was understood.
        missing: what could not be found out, and how to say it.
        unknown: why its weights are not known.
        puzzling: arguments that it takes and nobody understands; a mask may be one of them.
    """

    form: str
    title: str
    letters: str
    main: Sizes = MAIN
    tol: float = 2e-6
    dtype = torch.float64
    self_attention = False
    takes_mask = takes_causal = takes_dropout = takes_scale = takes_gqa = True
    causal = False
    positions = False
    trainable = False
    mask_ndim = 4
    unknown = "its weights are not known"

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device = device
        self.clock = clock
        self.conventions: dict[str, str] = {}
        self.notes: list[str] = []
        self.missing: list[str] = []
        self.puzzling: tuple[str, ...] = ()

    # --- inputs ---------------------------------------------------------------------------

    def ladder(self) -> list[Sizes]:
        """List the sizes to look for the smallest failing case in."""
        return ladder(self.main, self.letters)

    def draw(self, sizes: Sizes, seed: int, dtype: torch.dtype | None = None) -> Inputs:
        """Draw inputs of unit variance, on the CPU, so that every device sees the same."""
        raise NotImplementedError

    def _randn(self, seed: int, shapes: list[tuple[int, ...]], dtype=None) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        tensors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        return Inputs(*(x.to(self.device, dtype or self.dtype) for x in tensors))

    # --- answers --------------------------------------------------------------------------

    def raw(self, inputs: Inputs, mask=None, is_causal=False, **options) -> Any:
        """Call the candidate and return whatever it returns."""
        raise NotImplementedError

    def output_shape(self, inputs: Inputs) -> tuple[int, ...]:
        """Return the shape that a right answer has."""
        raise NotImplementedError

    def call(self, inputs: Inputs, mask=None, is_causal=False, **options) -> Tensor:
        """Call the candidate with copies, and insist on one tensor of the right shape.

        Raises:
            CandidateError: there is none; the text says what came instead.
        """
        own = None if mask is None else mask.clone()
        out = first_tensor(self.raw(inputs.copied(), own, is_causal, **options))
        wanted = self.output_shape(inputs)
        if tuple(out.shape) != wanted:
            raise CandidateError(
                f"it returns the shape {tuple(out.shape)}, the right one is {wanted}"
            )
        return out

    def expected(self, inputs: Inputs, mask=None, is_causal=False) -> Tensor | None:
        """Return the right answer by the loops of `attention_loop`; None if it is not known."""
        raise NotImplementedError

    def torch_answer(self, inputs: Inputs) -> Tensor | None:
        """Return what torch's own function gives in the dtype of the inputs; None if unknown."""
        raise NotImplementedError

    def simulation(self, steps: tuple[type, ...], *, training: bool = False):
        """Return a subject that computes what these steps of a mutant would; None if unknown."""
        raise NotImplementedError

    def stand_in(self, steps: tuple[type, ...]):
        """Return a subject with these steps and weights like the candidate's, drawn if need be."""
        return self.simulation(steps)

    # --- variants -------------------------------------------------------------------------

    def fresh(self) -> Subject:
        """Return the candidate as it was before the first call; a function cannot be reset."""
        return self

    def opened(
        self, seed: int, summed: bool = False
    ) -> tuple[Subject, Inputs, Callable[[Tensor], Tensor]] | None:
        """Return the candidate in a state in which its output shows its weights, if there is one.

        Args:
            seed: for the inputs.
            summed: let the output projection, if any, give every feature the sum of all.

        Returns:
            The candidate, inputs for it (one sequence), and what turns its output into
            (B, H, L, 2 S): the weights, side by side twice. In the values head h speaks h + 1
            times as loud, so that rows that sum to 1 after the division show that each head
            was found.
        """
        return None

    def with_dropout(self, p: float, only: int | None = None) -> Subject | None:
        """Return the candidate with dropout, in training; None if it has none.

        Args:
            p: the probability to set.
            only: set just this one of its places for dropout; all of them if None.
        """
        return None

    def in_training(self) -> Subject | None:
        """Return the candidate in training mode, dropout off; None where there is no mode."""
        return None

    def cast(self, dtype: torch.dtype) -> Subject:
        """Return the candidate for another dtype."""
        raise NotImplementedError


def first_tensor(answer: Any) -> Tensor:
    """Return the answer if it is a tensor, else the first item of a tuple.

    Raises:
        CandidateError: it is something else.
    """
    if isinstance(answer, (tuple, list)) and answer and isinstance(answer[0], Tensor):
        answer = answer[0]
    if not isinstance(answer, Tensor):
        kind = "None" if answer is None else f"a {type(answer).__name__}"
        raise CandidateError(f"it returns {kind} instead of a tensor")
    return answer


def as_numpy(x: Tensor) -> np.ndarray:
    """Return it in float64 for the loops."""
    return x.detach().cpu().double().numpy()


def loop_mask(mask: Tensor | None, is_causal: bool, L: int, S: int) -> np.ndarray | None:
    """Return the mask that the loops take."""
    if is_causal:
        mask = causal_mask(L, S)
    return None if mask is None else mask.detach().cpu().numpy()


def loudness(H: int) -> Tensor:
    """Return 1, 2, 3, … as (H, 1, 1)."""
    return torch.arange(1.0, H + 1)[:, None, None]


def one_hot_twice(S: int) -> Tensor:
    """(S, 2 S): values that tell the keys apart, each feature twice."""
    return torch.eye(S).repeat(1, 2)
