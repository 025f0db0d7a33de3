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

__all__ = ["CallError", "Op", "Tape", "TooLargeError", "Value", "record", "tensors_of"]

HERE = os.path.dirname(os.path.abspath(__file__))
TORCH = os.path.dirname(os.path.abspath(torch.__file__))
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
    """A tensor as it was at one moment.

    Attributes:
        tensor: its numbers; a copy, if an operation wrote into it later.
        op: what made it, or None for what was there before the call.
        kind: "input", "parameter", "buffer" or "constant" if it was there before, else "".
        name: of an input, a parameter or a buffer.
        from_input: whether its numbers depend on those of an input.
        users: the operations that read it.
    """

    tensor: Tensor
    op: Op | None = None
    kind: str = ""
    name: str = ""
    from_input: bool = False
    users: list[Op] = field(default_factory=list)
    moment: int = 0

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
    outputs: list[Value]
    index: int = 0
    file: str = ""
    line: int = 0
    module: str = ""
    writes: bool = False
    kind: str = ""

    @property
    def inputs(self) -> list[Value]:
        """The tensors among the arguments."""
        return [x for x in _flat((self.args, self.kwargs)) if isinstance(x, Value)]

    @property
    def out(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the schema of the operation."""
        if name in self.kwargs:
            return self.kwargs[name]
        names = [a.name for a in self.func._schema.arguments]
        place = names.index(name) if name in names else len(self.args)
        return self.args[place] if place < len(self.args) else default


@dataclass(eq=False)
class Tape:
    """What was recorded in one call.

    Attributes:
        ops: in order.
        output: what the call returned.
        leaves: what was there before the call and was read.
        changed: tensors from outside that the call wrote into, with their old numbers.
    """

    ops: list[Op] = field(default_factory=list)
    output: Any = None
    leaves: list[Value] = field(default_factory=list)
    changed: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def record(
    call: Callable[[], Any],
    inputs: dict[str, Tensor],
    layer: nn.Module | None = None,
    limit: int = 2**24,
) -> Tape:
    """Make a call and record it, and the same call undisturbed; leave everything as it was.

    Args:
        call: makes the call; it is made once.
        inputs: the tensors whose numbers count as data, by name.
        layer: where parameters and buffers have their names from.
        limit: entries of a table of scores that may be recorded.

    Raises:
        TooLargeError: a table of scores is larger.
    """
    names = {id(t): ("input", name) for name, t in inputs.items()}
    modules = {}
    if layer is not None:
        named = {"parameter": layer.named_parameters(), "buffer": layer.named_buffers()}
        for kind, pairs in named.items():
            names |= {id(t): (kind, name) for name, t in pairs}
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
        for tensor, old in recorder.tape.changed:
            tensor.detach().copy_(old)
    return recorder.tape


def _marked(call: Callable[[], Any]) -> Any:
    """Make the call: no frame above this one belongs to what is read."""
    return call()


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
        self.kind = ""

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
        if schema.is_mutable:
            for i, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    given = args[i] if i < len(args) else kwargs.get(argument.name)
                    targets += tensors_of(given)
        name = name.rstrip("_") if targets and not name.startswith("__") else name
        read = _mapped(args, self._value), {k: _mapped(v, self._value) for k, v in kwargs.items()}
        for target in targets:
            self._keep(target)
        out = func(*args, **kwargs)
        made = tensors_of(out)
        made += [t for t in targets if not any(t is m for m in made)]
        op = self._add(name, func, *read, made)
        op.writes = bool(targets)
        for target in targets:
            place = _storage(target)
            self.writes[place].append((self.values[id(target)], _geometry(target)))
            self.values[id(target)].moment = len(self.writes[place])
        return out

    def _add(self, name: str, func: Callable, args: tuple, kwargs: dict, made: list[Tensor]) -> Op:
        op = Op(name, func, args, kwargs, [], len(self.tape.ops), *self._place(), kind=self.kind)
        self.tape.ops.append(op)
        for value in op.inputs:
            value.users.append(op)
        depends = any(v.from_input for v in op.inputs) and not name.endswith(SHAPE_ONLY)
        op.outputs = [self._hold(Value(t, op, from_input=depends)) for t in made]
        return op

    def _spelled_out(self, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        """Record the formula that the function stands for, and the output of the function itself."""
        output = func(*args, **kwargs)
        devices = [output.device] if output.is_cuda else []
        with torch.random.fork_rng(devices=devices), self:
            self.kind = "scaled_dot_product_attention"
            value = self.values[id(_formula(*args, **kwargs))]
            self.kind = ""
        value.tensor = output
        return self._hold(value).tensor

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
        place = _storage(x)
        writes = self.writes.get(place, [])
        value = self.values.get(id(x))
        if value is None:
            kind, name = self.names.get(id(x), ("constant", ""))
            for other in self.lying_in.get(place, ()):  # another face of a known tensor (`.data`)
                if _geometry(other.tensor) == _geometry(x):
                    return self._add("alias", lambda a: a, (other,), {}, [x]).out
            value = self._hold(Value(x, kind=kind, name=name, from_input=kind == "input"))
            self.tape.leaves.append(value)
        elif value.moment < len(writes):  # somebody wrote into memory that it shares
            new = writes[value.moment :]
            func = _Rewritten(_geometry(x), [where for _, where in new])
            value = self._add("rewritten", func, (value, *(v for v, _ in new)), {}, [x]).out
        return value

    def _keep(self, target: Tensor) -> None:
        """Copy what is about to be overwritten."""
        place = _storage(target)
        for value in self.lying_in.pop(place, ()):
            old = value.tensor
            value.tensor = old.detach().clone()
            if value.op is None:
                self.tape.changed.append((old, value.tensor))
        self.writes.setdefault(place, [])

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
                f"a table of scores here has {size:,} entries, more than limit={self.limit:,}; "
                "give shorter inputs, or a larger limit"
            )

    def _place(self) -> tuple[str, int, str]:
        """Find the line of the reader's own code, and the module, that the operation is in."""
        frame, first, module = sys._getframe(2), None, None
        line = None
        while frame is not None and frame.f_code is not _marked.__code__:
            code = frame.f_code
            kind = _kind_of(code.co_filename)
            if line is None and kind == "reader":
                line = code.co_filename, frame.f_lineno
            if first is None and kind == "torch" and "/nn/" in code.co_filename:
                first = code.co_filename, frame.f_lineno
            if module is None and code.co_argcount and code.co_varnames[0] in ("self", "module"):
                module = self.modules.get(id(frame.f_locals.get(code.co_varnames[0])))
            if line and module is not None:
                break
            frame = frame.f_back
        return *(line or first or ("", 0)), module or ""


_KINDS: dict[str, str] = {}


def _kind_of(filename: str) -> str:
    """Say whose a file is: "reader", "torch" (or a tool that moves axes), or "own"."""
    if filename not in _KINDS:
        path = os.path.abspath(filename).replace("\\", "/")
        inside = path.startswith((TORCH.replace("\\", "/"), HERE.replace("\\", "/")))
        helper = "/einops/" in path or "/opt_einsum/" in path or "/jaxtyping/" in path
        _KINDS[filename] = "torch" if inside or helper else "reader"
    return _KINDS[filename]


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
        size = 1 + max(
            offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
            for shape, strides, offset in (self.own, *self.others)
        )
        memory = old.new_zeros(size)
        memory.as_strided(*self.own).copy_(old)
        for numbers, where in zip(new, self.others, strict=True):
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
    """Return the tensors in nested lists, tuples and dictionaries.

    Example:
        >>> len(tensors_of([torch.ones(2), (torch.zeros(1), {"mask": None})]))
        2
    """
    return [item for item in _flat(x) if isinstance(item, Tensor)]


def _mapped(x: Any, change: Callable[[Any], Any]) -> Any:
    if type(x) in (list, tuple):
        return type(x)(_mapped(item, change) for item in x)
    return change(x)


# --- Leave everything as it was -----------------------------------------------------------


@contextlib.contextmanager
def preserved(layer: nn.Module | None, training: bool | None = None) -> Iterator[None]:
    """Put back generators, buffers, modes and attributes of the modules afterwards."""
    modules = [] if layer is None else list(layer.modules())
    before = [(m, dict(m.__dict__)) for m in modules]
    held = [x for _, d in before for x in d.values() if type(x) in (list, dict, set)]
    contents = [copy.copy(x) for x in held]
    buffers = [(b, b.detach().clone()) for m in modules for b in m._buffers.values() if _is(b)]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=cuda):
            for module in modules if training is not None else ():
                module.training = training
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        with torch.no_grad():
            for buffer, old in buffers:
                buffer.copy_(old)
        for module, attributes in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for x, content in zip(held, contents, strict=True):
            x.clear()
            x.extend(content) if isinstance(x, list) else x.update(content)


def _is(buffer: Tensor | None) -> bool:
    return buffer is not None and buffer.device.type != "meta"


def fresh(x: Any) -> Any:
    """Copy what a call may change, a cache of keys say; tensors and modules stay the same ones."""
    if isinstance(x, Tensor | nn.Module) or callable(x):
        return x
    if type(x) in (list, tuple):
        return type(x)(map(fresh, x))
    if type(x) is dict:
        return {key: fresh(value) for key, value in x.items()}
    with contextlib.suppress(Exception):
        return copy.deepcopy(x)
    return x


# --- Fused attentions, spelled out --------------------------------------------------------


def _formula(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    *,
    scale=None,
    enable_gqa=False,
):
    """Compute what `scaled_dot_product_attention` means, by operations that can be read."""
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        shown = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~shown, -torch.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.dropout(scores.softmax(-1), dropout_p, train=True) @ value


@contextlib.contextmanager
def _eager_flex_attention() -> Iterator[None]:
    """Let FlexAttention compute by products and a softmax, which can be read."""
    flex = sys.modules.get("torch.nn.attention.flex_attention")
    if flex is None:
        yield
        return
    plain = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    old = flex.flex_attention_hop, getattr(flex, plain, None)
    flex.flex_attention_hop = _flex_attention
    setattr(flex, plain, True)
    stance = contextlib.nullcontext()
    if old[1] is None:  # an older torch compiles always
        stance = torch.compiler.set_stance("force_eager")
    try:
        with stance:
            yield
    finally:
        flex.flex_attention_hop = old[0]
        setattr(flex, plain, bool(old[1]))


def _flex_attention(query, key, value, score_mod, block_mask, scale, *more, **options):
    """Compute what FlexAttention means, in its own words: modify each score, mask, softmax."""
    flex = sys.modules["torch.nn.attention.flex_attention"]
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    scores = query @ key.mT * scale
    b, h, i, j = (torch.arange(n, device=query.device) for n in scores.shape)
    index = b[:, None, None, None], h[:, None, None], i[:, None], j
    scores = score_mod(scores, *index)
    shown = block_mask[-1](*index)
    weights = torch.softmax(scores.masked_fill(~shown, -torch.inf), -1).nan_to_num()
    nothing = scores.new_zeros(scores.shape[:-1])
    rest = (nothing, nothing) if hasattr(flex, "AuxRequest") else (nothing,)
    return (weights @ value, *rest)
