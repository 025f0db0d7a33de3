"""One face for everything that attends, a function or a layer of any calling convention.

A property draws inputs from its subject, calls it, and asks it for the right answer. Inside, all
is batch first and True = may attend; the subject translates.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mha_tutor.attention import scaled_dot_product_attention
from mha_tutor.contract.adapters import Adapter
from mha_tutor.contract.readings import Reading
from mha_tutor.contract.sizes import MAIN, Sizes, ladder, primes_without
from mha_tutor.contract.steps import Layer, Steps, Weights, as_function
from mha_tutor.contract.watch import CandidateError, Clock, quiet_call
from mha_tutor.heads import merge_heads, split_heads
from mha_tutor.masks import causal_mask
from mha_tutor.reference import attention_loop

__all__ = ["FunctionSubject", "Inputs", "ModuleSubject", "Subject"]

MASK_NAMES = ("attn_mask", "mask", "attention_mask", "src_mask")
CAUSAL_NAMES = ("is_causal", "causal")


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

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.device = device
        self.clock = clock
        self.conventions: dict[str, str] = {}
        self.notes: list[str] = []

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
        out = first_tensor(self.raw(inputs.copied(), mask, is_causal, **options))
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

    # --- variants -------------------------------------------------------------------------

    def fresh(self) -> Subject:
        """Return the candidate as it was before the first call; a function cannot be reset."""
        return self

    def opened(self, seed: int) -> tuple[Subject, Inputs, Callable[[Tensor], Tensor]] | None:
        """Return the candidate in a state in which its output shows its weights, if there is one.

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

    def draw(self, sizes: Sizes, seed: int, dtype: torch.dtype | None = None) -> Inputs:
        B, H, L, S, D, V = sizes.B, sizes.H, sizes.L, sizes.S, sizes.D, sizes.V
        return self._randn(seed, [(B, H, L, D), (B, H, S, D), (B, H, S, V)], dtype)

    def raw(self, inputs: Inputs, mask=None, is_causal=False, **options) -> Any:
        if mask is not None:
            flip = self.inverted and mask.dtype == torch.bool
            options[self.mask_name] = (~mask if flip else mask).clone()
        if is_causal:
            options[self.causal_name] = True
        return quiet_call(self.function, *inputs, clock=self.clock, **options)[0]

    def output_shape(self, inputs: Inputs) -> tuple[int, ...]:
        return (*inputs.query.shape[:-1], inputs.value.shape[-1])

    def expected(self, inputs: Inputs, mask=None, is_causal=False) -> Tensor:
        q, k, v = (_numpy(x) for x in inputs)
        if k.shape[1] != q.shape[1]:
            k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
        mask = _loop_mask(mask, is_causal, q.shape[-2], k.shape[-2])
        return torch.from_numpy(attention_loop(q, k, v, mask)).to(self.device)

    def torch_answer(self, inputs: Inputs) -> Tensor:
        return nn.functional.scaled_dot_product_attention(*inputs)

    def opened(self, seed: int) -> tuple[Subject, Inputs, Callable[[Tensor], Tensor]]:
        inputs = self.draw(replace(self.main, B=1, L=3, S=4), seed)
        shown = _one_hot_twice(4).to(self.device, self.dtype)
        loud = _loudness(inputs.value.shape[1]).to(shown)
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
        _silence_dropout(self.module)
        self.module.eval()
        self.pristine = copy.deepcopy(self.module)  # never called
        taken = (adapter.embed_dim, adapter.num_heads or 0)
        taken += (adapter.embed_dim // (adapter.num_heads or 1),)
        B, L, S, *_ = primes_without(*taken)
        self.main = Sizes(B=B, L=L, S=L if self.self_attention else S)
        self.notes = list(adapter.notes)

    def read_as(self, reading: Reading | None) -> ModuleSubject:
        """Return the same with its weights in another place, or judged from outside."""
        other = copy.copy(self)
        other.adapter = self.adapter.read_as(reading, self.module)
        other.notes = [n for n in self.notes if n not in self.adapter.notes]
        other.notes = [*other.adapter.notes, *other.notes]
        return other

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
        if mask is not None:
            mask = mask.clone()
            if self.inverted and mask.dtype == torch.bool:
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
        x = [_numpy(t) for t in inputs.present]
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
        mask = _loop_mask(mask, causal, q.shape[-2], k.shape[-2])
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
        if weights is None:
            return None
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

        other.adapter = a.with_call(call)
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

    def opened(self, seed: int) -> tuple[Subject, Inputs, Callable[[Tensor], Tensor]] | None:
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
        loud = _loudness(a.num_kv_heads)
        shown[:, : 2 * S, :S] = _one_hot_twice(S).T * loud
        loud = loud.repeat_interleave(a.num_heads // a.num_kv_heads, dim=0).to(self.device)

        @torch.no_grad()
        def change(module: nn.Module) -> None:
            maps = a.weights(module)
            maps.v[0].copy_(shown.flatten(0, 1))
            if maps.out is not None:
                maps.out[0].copy_(torch.eye(*maps.out[0].shape))
            for linear in (maps.v, maps.out):
                if linear is not None and linear[1] is not None:
                    linear[1].zero_()

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
            found = _set_dropout(module, p, only)
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


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def _affine(x: np.ndarray, linear: tuple[Tensor, Tensor | None]) -> np.ndarray:
    weight, bias = linear
    out = x @ _numpy(weight).T
    return out if bias is None else out + _numpy(bias)


def _loop_mask(mask: Tensor | None, is_causal: bool, L: int, S: int) -> np.ndarray | None:
    if is_causal:
        mask = causal_mask(L, S)
    return None if mask is None else mask.detach().cpu().numpy()


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


DROPOUT_NAMES = ("dropout", "dropout_p", "attn_dropout", "attention_dropout", "attn_drop", "p")


def _silence_dropout(module: nn.Module) -> None:
    _set_dropout(module, 0.0)


def _set_dropout(module: nn.Module, p: float, only: int | None = None) -> bool:
    """Set every dropout of the module, or one of them; tell whether it is there."""
    places = list(_dropouts(module))
    chosen = places if only is None else places[only : only + 1]
    for part, name in chosen:
        setattr(part, name, p)
    return bool(chosen)


def _dropouts(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """List where the module keeps a probability of dropout: the part and its attribute."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            yield part, "p"
            continue
        yield from ((part, n) for n in DROPOUT_NAMES if isinstance(vars(part).get(n), float))


def _loudness(H: int) -> Tensor:
    """Return 1, 2, 3, … as (H, 1, 1)."""
    return torch.arange(1.0, H + 1)[:, None, None]


def _one_hot_twice(S: int) -> Tensor:
    """(S, 2 S): values that tell the keys apart, each feature twice."""
    return torch.eye(S).repeat(1, 2)
