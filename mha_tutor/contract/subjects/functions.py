"""A function of query, key and value with a head axis."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mha_tutor.contract.adapters import CAUSAL_NAMES, MASK_NAMES, said_of_unused, sorted_out
from mha_tutor.contract.sizes import Sizes
from mha_tutor.contract.steps import Steps, as_function
from mha_tutor.contract.subjects.base import (
    Inputs,
    Subject,
    as_numpy,
    loop_mask,
    loudness,
    one_hot_twice,
)
from mha_tutor.contract.watch import Clock, quiet_call
from mha_tutor.reference import attention_loop


class FunctionSubject(Subject):
    """A function of query, key and value with a head axis, like torch's."""

    form = "function"
    letters = "BHLSDV"

    def __init__(
        self,
        function: Callable[..., Any],
        title: str,
        device: torch.device,
        clock: Clock,
        inverted: bool = False,
    ) -> None:
        super().__init__(device, clock)
        self.function, self.title, self.inverted = function, title, inverted
        names = _parameter_names(function)
        everything = names is None
        names = names or []
        self.mask_name = _first(names, MASK_NAMES) or ("attn_mask" if everything else None)
        self.causal_name = _first(names, CAUSAL_NAMES) or ("is_causal" if everything else None)
        self.takes_mask = self.mask_name is not None
        self.takes_causal = self.causal_name is not None
        self.takes_dropout = everything or "dropout_p" in names
        self.takes_scale = everything or "scale" in names
        self.takes_gqa = everything or "enable_gqa" in names
        used = {self.mask_name, self.causal_name, "dropout_p", "scale", "enable_gqa"}
        self.puzzling, others = sorted_out([name for name in names[3:] if name not in used])
        self.missing, more = said_of_unused("the function", self.puzzling, others)
        self.notes += more

    def draw(self, sizes: Sizes, seed: int, dtype: torch.dtype | None = None) -> Inputs:
        B, H, L, S, D, V = sizes.B, sizes.H, sizes.L, sizes.S, sizes.D, sizes.V
        return self._randn(seed, [(B, H, L, D), (B, H, S, D), (B, H, S, V)], dtype)

    def raw(self, inputs: Inputs, mask=None, is_causal=False, **options) -> Any:
        if mask is not None:
            flip = self.inverted and mask.dtype == torch.bool
            options[self.mask_name] = ~mask if flip else mask
        if is_causal:
            options[self.causal_name] = True
        return quiet_call(self.function, *inputs, clock=self.clock, **options)[0]

    def output_shape(self, inputs: Inputs) -> tuple[int, ...]:
        return (*inputs.query.shape[:-1], inputs.value.shape[-1])

    def expected(self, inputs: Inputs, mask=None, is_causal=False) -> Tensor:
        q, k, v = (as_numpy(x) for x in inputs)
        if k.shape[1] != q.shape[1]:
            k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
        mask = loop_mask(mask, is_causal, q.shape[-2], k.shape[-2])
        return torch.from_numpy(attention_loop(q, k, v, mask)).to(self.device)

    def torch_answer(self, inputs: Inputs) -> Tensor:
        return nn.functional.scaled_dot_product_attention(*inputs)

    def opened(
        self, seed: int, summed: bool = False
    ) -> tuple[Subject, Inputs, Callable[[Tensor], Tensor]]:
        inputs = self.draw(replace(self.main, B=1, L=3, S=4), seed)
        shown = one_hot_twice(4).to(self.device, self.dtype)
        loud = loudness(inputs.value.shape[1]).to(shown)
        return self, inputs._replace(value=(shown * loud)[None]), lambda out: out / loud

    def simulation(self, steps: tuple[type, ...], *, training: bool = False) -> FunctionSubject:
        function = as_function(type("Simulated", (*steps, Steps), {}))
        return FunctionSubject(function, "simulation", self.device, self.clock)

    def with_dropout(self, p: float, only: int | None = None) -> Subject | None:
        if not self.takes_dropout or only:
            return None
        function = self.function

        def dropping(*args, **kwargs):
            return function(*args, dropout_p=p, **kwargs)

        other = copy.copy(self)
        other.function = dropping
        return other

    def cast(self, dtype: torch.dtype) -> Subject:
        other = copy.copy(self)
        other.dtype = dtype
        return other


def _parameter_names(function: Callable[..., Any]) -> list[str] | None:
    """Return the names of the parameters; None where anything may be passed or none is known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]


def _first(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)
