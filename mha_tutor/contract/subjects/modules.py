"""A layer, called through its adapter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mha_tutor.attention import scaled_dot_product_attention
from mha_tutor.contract.adapters import Adapter, said_of_unused, sorted_out
from mha_tutor.contract.readings import Reading, linear
from mha_tutor.contract.sizes import Sizes, primes_without
from mha_tutor.contract.steps import Layer, Weights
from mha_tutor.contract.subjects.base import (
    Inputs,
    Subject,
    as_numpy,
    loop_mask,
    loudness,
    one_hot_twice,
)
from mha_tutor.contract.subjects.dropouts import set_dropout
from mha_tutor.contract.watch import CandidateError, Clock, quiet_call
from mha_tutor.heads import merge_heads, split_heads
from mha_tutor.masks import causal_mask
from mha_tutor.reference import attention_loop


class ModuleSubject(Subject):
    """A layer, called through its adapter."""

    form = "module"
    trainable = True
    letters = "BLS"

    def __init__(
        self,
        module: nn.Module,
        adapter: Adapter,
        title: str,
        device: torch.device,
        clock: Clock,
        inverted: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(device, clock)
        self.adapter, self.title, self.inverted = adapter, title, inverted
        self.self_attention = adapter.self_attention
        self.takes_mask = adapter.takes_mask
        self.takes_causal = adapter.takes_causal
        self.takes_scale = self.takes_gqa = False
        self.causal, self.positions = adapter.causal, adapter.positions
        self.conventions = dict(adapter.conventions)
        self.mask_ndim = adapter.mask_ndim
        self.letters = "BL" if self.self_attention else "BLS"
        self.module = _working_copy(module, device)
        self.dtype = _dtype(self.module)
        self.tol = 2e-6 if self.dtype == torch.float64 else 2e-4
        _redraw(self.module, seed)
        set_dropout(self.module, 0.0)
        self.module.eval()
        self.pristine = copy.deepcopy(self.module)  # never called
        self._choose_sizes()
        self.notes = list(adapter.notes)
        self.puzzling, others = sorted_out(adapter.unused)
        said, more = said_of_unused("forward", self.puzzling, others)
        self.notes += more
        self.missing = [*self._said_of_weights(), *said]

    def read_as(self, reading: Reading | None) -> ModuleSubject:
        """Return the same with its weights in another place, or judged from outside."""
        other = copy.copy(self)
        other.adapter = self.adapter.read_as(reading, self.module)
        other.notes = [n for n in self.notes if n not in self.adapter.notes]
        other.notes = [*other.adapter.notes, *other.notes]
        said = self._said_of_weights()
        other.missing = [*other._said_of_weights(), *(x for x in self.missing if x not in said)]
        other._choose_sizes()
        return other

    @property
    def unknown(self) -> str:
        """Why its weights are not known."""
        return self.adapter.unknown

    def _said_of_weights(self) -> list[str]:
        if self.adapter.weights is not None:
            return []
        known = self.adapter.num_heads is not None
        first = self.unknown[0].upper() + self.unknown[1:]
        heads = "" if known else "num_heads=…, "
        if self.adapter.readings:
            first += ", for the formula gave other numbers: it is wrong, or they lie elsewhere"
        return [
            f"{first}. It is judged from outside, where a wrong scale, say, cannot be seen. To be "
            f"compared with the formula it needs {heads}usual names for its parameters "
            "(the documentation of `check` lists them), or an `Adapter`."
        ]

    def _choose_sizes(self) -> None:
        """Take primes, and none that is a size of the layer."""
        E, H = self.adapter.embed_dim, self.adapter.num_heads
        B, L, S, *_ = primes_without(E, H or 0, E // (H or 1))
        self.main = Sizes(B=B, L=L, S=L if self.self_attention else S)

    def weights(self) -> Weights | None:
        """Return the four maps of the working copy, where they are known."""
        return self.adapter.weights(self.module) if self.adapter.weights else None

    def draw(self, sizes: Sizes, seed: int, dtype: torch.dtype | None = None) -> Inputs:
        a = self.adapter
        shapes = [(sizes.B, sizes.L, a.embed_dim)]
        if not self.self_attention:
            shapes += [(sizes.B, sizes.S, a.kdim), (sizes.B, sizes.S, a.vdim)]
        return self._randn(seed, shapes, dtype)

    def raw(self, inputs: Inputs, mask=None, is_causal=False, **options) -> Any:
        if mask is not None and self.inverted and mask.dtype == torch.bool:
            mask = ~mask
        q = inputs.query
        k = q if inputs.key is None else inputs.key
        v = k if inputs.value is None else inputs.value
        call = self.adapter.call
        return quiet_call(call, self.module, q, k, v, mask, is_causal, clock=self.clock)[0]

    def output_shape(self, inputs: Inputs) -> tuple[int, ...]:
        return (*inputs.query.shape[:-1], self.adapter.out_dim)

    def expected(self, inputs: Inputs, mask=None, is_causal=False) -> Tensor | None:
        weights = self.weights()
        if weights is None:
            return None
        a = self.adapter
        x = [as_numpy(t) for t in inputs.present]
        query, key, value = x if len(x) == 3 else (x[0], x[0], x[0])
        q = split_heads(_affine(query, weights.q), a.num_heads)
        k = split_heads(_affine(key, weights.k), a.num_kv_heads)
        v = split_heads(_affine(value, weights.v), a.num_kv_heads)
        if a.num_kv_heads != a.num_heads:
            k, v = (np.repeat(t, a.num_heads // a.num_kv_heads, axis=1) for t in (k, v))
        causal = is_causal or self.causal
        if causal and mask is not None:
            mask = combined(mask, causal_mask(q.shape[-2], k.shape[-2], device=mask.device))
            causal = False
        mask = loop_mask(mask, causal, q.shape[-2], k.shape[-2])
        merged = merge_heads(attention_loop(q, k, v, mask))
        out = merged if weights.out is None else _affine(merged, weights.out)
        return torch.from_numpy(out).to(self.device)

    def torch_answer(self, inputs: Inputs) -> Tensor | None:
        weights = self.weights()
        if weights is None:
            return None
        a = self.adapter
        query = inputs.query
        key, value = (query, query) if inputs.key is None else (inputs.key, inputs.value)
        maps = (weights.q, weights.k, weights.v)
        q, k, v = (
            nn.functional.linear(x, *w) for x, w in zip((query, key, value), maps, strict=True)
        )
        q, k, v = (
            split_heads(x, heads)
            for x, heads in zip(
                (q, k, v), (a.num_heads, a.num_kv_heads, a.num_kv_heads), strict=True
            )
        )
        heads = scaled_dot_product_attention(
            q, k, v, is_causal=self.causal, enable_gqa=a.num_heads != a.num_kv_heads
        )
        merged = merge_heads(heads)
        return merged if weights.out is None else nn.functional.linear(merged, *weights.out)

    def simulation(self, steps: tuple[type, ...], *, training: bool = False):
        weights = self.weights()
        return None if weights is None else self._with_steps(steps, weights, training)

    def stand_in(self, steps: tuple[type, ...]):
        weights, a = self.weights(), self.adapter
        if weights is not None:
            return self._with_steps(steps, weights)
        heads = [a.num_heads or 0, 3, 2, 1]
        a = replace(a, num_heads=next(h for h in heads if h and a.embed_dim % h == 0))
        other = copy.copy(self)
        other.adapter = replace(a, num_kv_heads=a.num_heads)
        generator = torch.Generator().manual_seed(0)

        def drawn(rows: int, columns: int) -> tuple[Tensor, Tensor]:
            noise = torch.randn(rows, columns + 1, generator=generator, dtype=torch.float64)
            noise = noise.to(self.device, self.dtype) * columns**-0.5
            return noise[:, 1:].contiguous(), noise[:, 0].contiguous()

        E = a.embed_dim
        maps = (drawn(E, E), drawn(E, a.kdim), drawn(E, a.vdim), drawn(a.out_dim, E))
        simulated = other._with_steps(steps, Weights(*maps))
        simulated.adapter = replace(simulated.adapter, weights=None)  # judged from outside too
        return simulated

    def _with_steps(self, steps: tuple[type, ...], weights: Weights, training: bool = False):
        a = self.adapter
        layer = type("Simulated", (*steps, Layer), {}).from_weights(
            weights, a.num_heads, a.num_kv_heads
        )
        if training:
            layer.train()
        other = copy.copy(self)
        other.module, other.pristine, other.inverted = layer, layer, False
        always = self.causal

        def call(module, query, key, value, mask, is_causal):
            if always and mask is not None:
                L, S = query.shape[1], key.shape[1]
                mask = combined(mask, module.causal(L, S).to(query.device))
                return module(query, key, value, mask)
            return module(query, key, value, mask, is_causal or always)

        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        maps = names if weights.out is not None else names[:3]

        def found(module):
            return Weights(
                *[linear(getattr(module, name)) for name in maps], *[None] * (4 - len(maps))
            )

        other.adapter = replace(a, call=call, weights=found)
        return other

    def fresh(self) -> ModuleSubject:
        other = copy.copy(self)
        other.module = copy.deepcopy(self.pristine)
        return other

    def _changed(self, change: Callable[[nn.Module], Any]) -> ModuleSubject:
        other = self.fresh()
        change(other.module)
        other.pristine = other.module  # as long as it is not called but through `fresh`
        return other

    def opened(
        self, seed: int, summed: bool = False
    ) -> tuple[Subject, Inputs, Callable[[Tensor], Tensor]] | None:
        weights, a = self.weights(), self.adapter
        if weights is None:
            return None
        width = weights.v[0].shape[0] // a.num_kv_heads
        room = weights.out is None or weights.out[0].shape[0] >= weights.out[0].shape[1]
        S = min(width // 2, a.vdim, 4)
        if S < 2 or not room:
            return None
        sizes = replace(self.main, B=1, L=S if self.self_attention else 3, S=S)
        inputs = self.draw(sizes, seed)
        value = inputs.query if self.self_attention else inputs.value
        value[..., :S] = torch.eye(S)
        inputs = Inputs(value) if self.self_attention else inputs._replace(value=value)
        shown = torch.zeros(a.num_kv_heads, width, a.vdim)
        loud = loudness(a.num_kv_heads)
        shown[:, : 2 * S, :S] = one_hot_twice(S).T * loud
        loud = loud.repeat_interleave(a.num_heads // a.num_kv_heads, dim=0).to(self.device)

        @torch.no_grad()
        def change(module: nn.Module) -> None:
            maps = a.weights(module)
            maps.v[0].copy_(shown.flatten(0, 1))
            if maps.out is not None:
                shape = maps.out[0].shape
                maps.out[0].copy_(torch.ones(shape) if summed else torch.eye(*shape))
            for each in (maps.v, maps.out):
                if each is not None and each[1] is not None:
                    each[1].zero_()

        def read(out: Tensor) -> Tensor:
            heads = out[..., : a.num_heads * width].unflatten(-1, (a.num_heads, width))
            return heads.transpose(1, 2)[..., : 2 * S] / loud

        return self._changed(change), inputs, read

    def with_dropout(
        self, p: float, only: int | None = None, training: bool = True
    ) -> Subject | None:
        found = False

        def change(module: nn.Module) -> None:
            nonlocal found
            found = set_dropout(module, p, only)
            module.train(training)

        other = self._changed(change)
        return other if found else None

    def in_training(self) -> Subject:
        return self._changed(nn.Module.train)

    def cast(self, dtype: torch.dtype) -> Subject:
        other = self._changed(lambda module: module.to(dtype))
        other.dtype = dtype
        return other


def combined(mask: Tensor, allowed: Tensor) -> Tensor:
    """Restrict a boolean or additive mask by a boolean one."""
    if mask.dtype == torch.bool:
        return mask & allowed
    return mask.masked_fill(~allowed, float("-inf"))


def _affine(x: np.ndarray, linear: tuple[Tensor, Tensor | None]) -> np.ndarray:
    weight, bias = linear
    out = x @ as_numpy(weight).T
    return out if bias is None else out + as_numpy(bias)


def _working_copy(module: nn.Module, device: torch.device) -> nn.Module:
    """Copy the module, in float64 where it allows that."""
    try:
        module = copy.deepcopy(module)
    except Exception as error:
        raise CandidateError(f"it cannot be copied: {error}", error) from None
    return module.to(device=device, dtype=torch.float64)


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.float64)


@torch.no_grad()
def _redraw(module: nn.Module, seed: int) -> None:
    """Draw the parameters anew: a bias that starts at zero would hide its own loss."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if not parameter.is_floating_point():
            continue
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 4
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(noise * fan_in**-0.5)
