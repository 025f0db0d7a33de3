"""Record one call of anything that computes with torch: every operation, its arguments, its line.

The recorder is a `TorchDispatchMode` entered below autograd. There torch has not yet taken
composite functions apart: `matmul`, `einsum`, `softmax`, `linear` and
`scaled_dot_product_attention` arrive whole, with their arguments, whoever calls them. No hook is
set and no function of torch is replaced, but FlexAttention's operator, which has no eager form.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

TORCH, HERE = (os.path.dirname(os.path.abspath(f)) for f in (torch.__file__, __file__))
# Taken apart into operations that can be read; everything else stays whole.
TAKEN_APART = {"tensordot", "inner", "chain_matmul", "linalg_multi_dot"}
# What they return depends on the shape of their argument alone.
SHAPE_ONLY = ("_like", "new_zeros", "new_ones", "new_full", "new_empty")


class CallError(ValueError):
    """The call failed by itself; the layer's own error is the cause."""


class TooLargeError(ValueError):
    """A table of scores has more entries than `limit`."""


@dataclass(eq=False)
class Value:
    """A tensor as it was at one moment."""

    tensor: Tensor  # its numbers; a copy, if an operation wrote into it later
    op: Op | None = None  # what made it; None for what was there before the call
    kind: str = ""  # of what was there before: input, parameter, buffer or constant
    name: str = ""
    from_input: bool = False  # whether its numbers depend on those of an input
    users: list[Op] = field(default_factory=list)
    moment: int = 0  # how often somebody had written into its memory

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    @property
    def numbers(self) -> Tensor:
        """The numbers on the CPU, floating-point ones in float64."""
        x = self.tensor.detach().cpu()
        return x.double() if x.is_floating_point() else x


@dataclass(eq=False)
class Op:
    """One operation: `func(*args, **kwargs)`, with a `Value` where a tensor was."""

    name: str
    func: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    index: int
    file: str = ""
    line: int = 0
    module: str = ""
    kind: str = ""  # of a fused attention that is spelled out
    outputs: list[Value] = field(default_factory=list)
    writes: bool = False  # into its first argument
    product: Any = None  # how it is read as a product

    @property
    def inputs(self) -> list[Value]:
        """The tensors among the arguments."""
        return [x for x in _flat([self.args, self.kwargs]) if isinstance(x, Value)]

    @property
    def out(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the schema of the operation."""
        names = [a.name for a in self.func._schema.arguments]
        given = dict(zip(names, self.args, strict=False)) | self.kwargs
        return given.get(name, default)


@dataclass(eq=False)
class Tape:
    """What was recorded in one call."""

    ops: list[Op] = field(default_factory=list)
    output: Any = None
    leaves: list[Value] = field(default_factory=list)  # what was there before and was read
    changed: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # with the old numbers


def record(
    call: Callable[[], Any], inputs: dict[str, Tensor], layer: nn.Module | None, limit: int
) -> Tape:
    """Make a call once and record it.

    The numbers of `inputs` count as data; parameters, buffers and modules have their names from
    the layer. A table of scores with more than `limit` entries raises a `TooLargeError`.
    """
    names = {id(t): ("input", name) for name, t in inputs.items()}
    modules = {}
    if layer is not None:
        names |= {id(t): ("parameter", name) for name, t in layer.named_parameters()}
        names |= {id(t): ("buffer", name) for name, t in layer.named_buffers()}
        modules = {id(m): name for name, m in layer.named_modules()}
    recorder = _Recorder(names, modules, limit)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one opaque operation
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(_eager_flex_attention())
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch._C._AutoDispatchBelowAutograd())
            stack.enter_context(recorder)
            recorder.tape.output = _marked(call)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        changed = list(recorder.tape.changed)
        for tensor, _ in changed:
            recorder.keep(tensor)
        recorder.tape.changed = changed
        restore(changed)
    return recorder.tape


def _marked(call: Callable[[], Any]) -> Any:
    """Make the call: no frame above this one belongs to what is read."""
    return call()


def restore(changed: list[tuple[Tensor, Tensor]]) -> None:
    """Write the old numbers back."""
    for tensor, old in changed:
        tensor.detach().copy_(old)


class _Recorder(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to be skipped by the compiler would load it, which takes seconds

    def __init__(self, names: dict[int, tuple[str, str]], modules: dict[int, str], limit: int):
        super().__init__()
        self.tape = Tape()
        self.names, self.modules, self.limit = names, modules, limit
        self.values: dict[int, Value] = {}  # what each tensor holds now, by its id
        self.alive: list[Tensor] = []  # so that no id is used twice
        self.lying_in: dict[int, list[Value]] = {}  # by storage
        self.writes: dict[int, list[tuple[Value, tuple]]] = {}  # by storage: what was written where

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        schema = func._schema
        name = schema.name.split("::")[-1]
        if name in TAKEN_APART or (name == "einsum" and len(args[1]) > 2):
            with self:
                return func.decompose(*args, **kwargs)
        self._refuse_what_is_too_large(name, args)
        if name == "scaled_dot_product_attention":
            return self._spelled_out(func, args, kwargs)
        targets = []
        for i, argument in enumerate(schema.arguments if schema.is_mutable else ()):
            if argument.alias_info is not None and argument.alias_info.is_write:
                targets += tensors_of(args[i] if i < len(args) else kwargs.get(argument.name))
        name = name.rstrip("_") if targets and not name.startswith("__") else name
        read = mapped(args, self._value), {k: mapped(v, self._value) for k, v in kwargs.items()}
        for target in targets:
            self.keep(target)
        out = func(*args, **kwargs)
        made = tensors_of(out)
        made += [t for t in targets if not any(t is m for m in made)]
        self._add(name, func, *read, made).writes = bool(targets)
        for target in targets:
            writes, value = self.writes[_storage(target)], self.values[id(target)]
            writes.append((value, _geometry(target)))
            value.moment = len(writes)
        return out

    def _add(self, name: str, func: Callable, args: tuple, kwargs: dict, made: list[Tensor]) -> Op:
        op = Op(name, func, args, kwargs, len(self.tape.ops), *self._place())
        self.tape.ops.append(op)
        for value in op.inputs:
            value.users.append(op)
        depends = any(v.from_input for v in op.inputs) and not name.endswith(SHAPE_ONLY)
        op.outputs = [self._hold(Value(t, op, from_input=depends)) for t in made]
        return op

    def _hold(self, value: Value) -> Value:
        place = _storage(value.tensor)
        value.moment = len(self.writes.get(place, ()))
        self.values[id(value.tensor)] = value
        self.alive.append(value.tensor)
        self.lying_in.setdefault(place, []).append(value)
        return value

    def _value(self, x: Any) -> Any:
        """Return what a tensor holds now; a number stays a number."""
        if not isinstance(x, Tensor):
            return x
        writes = self.writes.get(_storage(x), [])
        value = self.values.get(id(x))
        if value is None:
            for other in self.lying_in.get(_storage(x), ()):  # another face of it, as by `.data`
                if _geometry(other.tensor) == _geometry(x):
                    return self._add("alias", lambda a: a, (other,), {}, [x]).out
            kind, name = self.names.get(id(x), ("constant", ""))
            value = self._hold(Value(x, None, kind, name, kind == "input"))
            self.tape.leaves.append(value)
        elif value.moment < len(writes):  # somebody wrote into memory that it shares
            new = writes[value.moment :]
            func = _Rewritten(_geometry(x), [where for _, where in new])
            value = self._add("rewritten", func, (value, *(v for v, _ in new)), {}, [x]).out
        return value

    def keep(self, target: Tensor) -> None:
        """Copy what a tensor and others in its memory hold: it is about to be overwritten."""
        for value in self.lying_in.pop(_storage(target), ()):
            old, value.tensor = value.tensor, value.tensor.detach().clone()
            if value.op is None:
                self.tape.changed.append((old, value.tensor))
        self.writes.setdefault(_storage(target), [])

    def _spelled_out(self, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        """Record the formula that the function means, and the output of the function itself."""
        output = func(*args, **kwargs)
        with torch.random.fork_rng([output.device] if output.is_cuda else []), self:
            value = self.values[id(_formula(*args, **kwargs))]
        value.tensor = output
        return self._hold(value).tensor

    def _refuse_what_is_too_large(self, name: str, args: tuple) -> None:
        size = 0
        if name == "scaled_dot_product_attention":
            size = args[0].shape[:-1].numel() * args[1].shape[-2]
        elif name in ("matmul", "bmm") and min(args[0].ndim, args[1].ndim) > 2:
            size = args[0].shape[:-1].numel() * args[1].shape[-1]
        elif name == "softmax":
            size = args[0].numel()
        if size > self.limit:
            raise TooLargeError(
                f"a table of scores has {size:,} entries here, more than limit={self.limit:,}; "
                "give shorter inputs, or a larger limit"
            )

    def _place(self) -> tuple[str, int, str, str]:
        """Find the line of the reader's own code, the module, and what is spelled out."""
        frame, line, inside, module, kind = sys._getframe(2), None, None, None, ""
        while frame is not None and frame.f_code is not _marked.__code__:
            code = frame.f_code
            kind = SPELLED_OUT.get(code, kind)
            if _is_own(code.co_filename):
                line = line or (code.co_filename, frame.f_lineno)
            elif "nn" in code.co_filename:
                inside = inside or (code.co_filename, frame.f_lineno)
            if module is None and code.co_argcount and code.co_varnames[0] in ("self", "module"):
                module = self.modules.get(id(frame.f_locals.get(code.co_varnames[0])))
            if line and module is not None:
                break
            frame = frame.f_back
        return *(line or inside or ("", 0)), module or "", kind


_OWN: dict[str, bool] = {}


def _is_own(filename: str) -> bool:
    """Tell whether a file is neither torch's nor that of a tool that moves axes."""
    if filename not in _OWN:
        parts = os.path.abspath(filename).split(os.sep)
        tool = bool({"einops", "opt_einsum", "jaxtyping", "beartype"} & set(parts))
        _OWN[filename] = not tool and not os.path.abspath(filename).startswith((TORCH, HERE))
    return _OWN[filename]


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none
        return id(tensor)


def _geometry(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    try:
        return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    except (NotImplementedError, RuntimeError):
        return tuple(tensor.shape), (), id(tensor)


@dataclass(frozen=True)
class _Rewritten:
    """A tensor after others that share its memory were written."""

    own: tuple
    others: list[tuple]

    def __call__(self, old: Tensor, *new: Tensor) -> Tensor:
        ends = (
            offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
            for shape, strides, offset in (self.own, *self.others)
        )
        memory = old.new_zeros(1 + max(ends))
        for numbers, where in zip((old, *new), (self.own, *self.others), strict=True):
            memory.as_strided(*where).copy_(numbers)
        return memory.as_strided(*self.own).clone()


def _flat(x: Any) -> Iterator[Any]:
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, (list, tuple)):
        for item in x:
            yield from _flat(item)
    else:
        yield x


def tensors_of(x: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples and dictionaries."""
    return [item for item in _flat(x) if isinstance(item, Tensor)]


def mapped(x: Any, change: Callable[[Any], Any]) -> Any:
    """Change what stands in nested lists and tuples."""
    return type(x)(mapped(i, change) for i in x) if type(x) in (list, tuple) else change(x)


# --- Leave everything as it was -----------------------------------------------------------


@contextlib.contextmanager
def preserved(layer: nn.Module | None, training: bool | None) -> Iterator[None]:
    """Choose a mode; put back generators, buffers, modes and attributes afterwards."""
    modules = [] if layer is None else list(layer.modules())
    before = [(m, dict(m.__dict__)) for m in modules]
    held = [x for _, d in before for x in d.values() if type(x) in (list, dict, set)]
    contents = [copy.copy(x) for x in held]
    buffers = [b for m in modules for b in m._buffers.values() if b is not None and not b.is_meta]
    old = [(b, b.detach().clone()) for b in buffers]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(cuda):
            for module in modules:
                module.training = bool(training)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        restore(old)
        for module, attributes in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for x, content in zip(held, contents, strict=True):
            x.clear()
            x.extend(content) if isinstance(x, list) else x.update(content)


def fresh(x: Any, known: dict[int, Any] | None = None) -> Any:
    """Copy what a call may change, a cache of keys say; tensors and functions stay the same."""
    known = {} if known is None else known
    if id(x) in known:
        return known[id(x)]
    if type(x) in (list, tuple):
        return type(x)(fresh(item, known) for item in x)
    if type(x) is dict:
        return {key: fresh(value, known) for key, value in x.items()}
    if isinstance(x, Tensor) or callable(x) or not hasattr(x, "__dict__"):
        return x
    with contextlib.suppress(Exception):
        known[id(x)] = new = copy.copy(x)
        vars(new).update({name: fresh(value, known) for name, value in vars(x).items()})
        return new
    return x


# --- Fused attentions, spelled out --------------------------------------------------------


def _formula(q, k, v, mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    """Compute what `scaled_dot_product_attention` means, by operations that can be read."""
    if enable_gqa and k.shape[-3] != q.shape[-3]:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    if mask is not None:
        boolean = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if boolean else scores + mask
    return torch.dropout(scores.softmax(-1), dropout_p, train=True) @ v


@contextlib.contextmanager
def _eager_flex_attention() -> Iterator[None]:
    """Let FlexAttention compute by products and a softmax, which can be read."""
    flex = sys.modules.get("torch.nn.attention.flex_attention")
    if flex is None:
        yield
        return
    plain = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"  # an older torch compiles always
    hop, debug = flex.flex_attention_hop, getattr(flex, plain, None)
    stance = torch.compiler.set_stance("force_eager") if debug is None else contextlib.nullcontext()
    try:
        flex.flex_attention_hop = _flex_attention
        setattr(flex, plain, True)
        with stance:
            yield
    finally:
        flex.flex_attention_hop = hop
        setattr(flex, plain, bool(debug))


def _flex_attention(q, k, v, score_mod, block_mask, scale, *more, **options):
    """Compute what FlexAttention means, in its own words: modify each score, mask, softmax."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * scale
    index = torch.meshgrid(*(torch.arange(n, device=q.device) for n in scores.shape), indexing="ij")
    shown = block_mask[-1](*index)
    weights = score_mod(scores, *index).masked_fill(~shown, -torch.inf).softmax(-1).nan_to_num()
    nothing = scores.new_zeros(scores.shape[:-1])
    newer = hasattr(sys.modules["torch.nn.attention.flex_attention"], "AuxRequest")
    return (weights @ v, nothing, nothing) if newer else (weights @ v, nothing)


SPELLED_OUT = {
    _formula.__code__: "scaled_dot_product_attention",
    _flex_attention.__code__: "flex_attention",
}
