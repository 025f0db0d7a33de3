"""Follow values through a tape: where elements move, what is multiplied, what a product sums."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from mha_tutor.read.record import Op, Tape, Value, _mapped, tensors_of

__all__ = ["Moved", "Product", "between", "follow_back", "follow_on", "product_of", "run"]

# Operations that move elements, or repeat them, and change none.
_MOVES = """
alias as_strided atleast_1d atleast_2d atleast_3d broadcast_to cat chunk clone column_stack
concat concatenate constant_pad_nd contiguous copy detach diagonal expand expand_as flatten
flip gather hsplit hstack index index_select lift_fresh mT matrix_H moveaxis movedim narrow
numpy_T pad permute repeat repeat_interleave reshape reshape_as rewritten roll select slice
split split_with_sizes squeeze stack swapaxes swapdims t take_along_dim tensor_split tile
transpose unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as vsplit
vstack _reshape_alias _unsafe_view adjoint
"""
MOVES = set(_MOVES.split())
JOINS = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "column_stack"}
CASTS = {"to", "_to_copy", "type_as", "float", "double", "half", "bfloat16"}
# Where a search for the product before a softmax, or for the one after it, ends.
_BARRIERS = """
linear addmm convolution conv1d conv2d conv3d embedding layer_norm native_layer_norm group_norm
batch_norm rms_norm instance_norm softmax _softmax log_softmax scaled_dot_product_attention
lstm gru bilinear fft_fft fft_fft2 fft_rfft fft_fftn
"""
BARRIERS = set(_BARRIERS.split())
PRODUCTS = {"matmul", "mm", "bmm", "baddbmm", "einsum", "linear", "sum"}
REDUCED = {"amax", "max", "logsumexp"}


def strip(value: Value) -> Value:
    """Go back through what moves elements or changes their dtype only."""
    while value.op is not None and value.op.name in MOVES | CASTS and value.op.name not in JOINS:
        value = value.op.inputs[0]
    return value


# --- Run what was recorded on other numbers -----------------------------------------------


def run(ops: Iterable[Op], start: Value, seed: Tensor, end: Value) -> Tensor | None:
    """Run recorded operations on other numbers, in float64.

    Subtracting a row's own maximum, which no softmax notices, is left out. Returns None where an
    operation cannot be run so.
    """
    known = {start: seed}
    for op in ops:
        if _is_shift(op):
            known[op.out] = known.get(strip(op.args[0]), known.get(op.args[0]))
            continue
        try:
            outs = _rerun(op, known)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        known.update(zip(op.outputs, outs, strict=False))
    return known.get(end)


def _rerun(op: Op, known: dict[Value, Tensor]) -> list[Tensor]:
    def number(x):
        if isinstance(x, Value):
            return known.get(x, x.numbers)
        return x

    if op.name in CASTS:
        x = number(op.args[0])
        return [x.double() if op.out.tensor.is_floating_point() else x.to(op.out.tensor.dtype)]
    args = _mapped(op.args, number)
    kwargs = {k: _mapped(v, number) for k, v in op.kwargs.items()}
    if isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
        kwargs["dtype"] = torch.float64
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    if op.writes:
        args = (args[0].clone(), *args[1:])
    return tensors_of(op.func(*args, **kwargs))


def _is_shift(op: Op) -> bool:
    """Tell whether it subtracts from each row the row's own maximum."""
    if op.name != "sub" or len(op.inputs) != 2:
        return False
    largest = strip(op.args[1]).op
    return (
        largest is not None
        and largest.name in REDUCED
        and strip(largest.args[0]) is strip(op.args[0])
    )


def between(tape: Tape, start: Value, end: Value) -> list[Op]:
    """Return the operations through which `end` depends on `start`, in order."""
    if start is end or end.op is None:
        return []
    first = start.op.index + 1 if start.op else 0
    reached, ops = {start}, []
    for op in tape.ops[first : end.op.index + 1]:
        if any(v in reached for v in op.inputs):
            reached.update(op.outputs)
            ops.append(op)
    needed, kept = {end}, []
    for op in reversed(ops):
        if any(v in needed for v in op.outputs):
            needed.update(v for v in op.inputs if v in reached)
            kept.append(op)
    return kept[::-1]


def number_through(ops: Iterable[Op], start: Value, end: Value) -> Tensor | None:
    """Return for each element of `end` which element of `start` stands there; -1 for none.

    What computes element by element leaves an element where it is.
    """
    size = start.tensor.numel()
    known: dict[Value, Tensor] = {start: torch.arange(1, size + 1).reshape(start.shape)}
    for op in ops:
        here = [v for v in op.inputs if v in known]
        if op.name in MOVES:
            outs = _move(op, known)
            if outs is None:
                return None
            known.update(zip(op.outputs, outs, strict=False))
            continue
        for value in here:
            try:
                shape = op.out.shape
                if torch.broadcast_shapes(known[value].shape, shape) == shape:
                    known[op.out] = known[value].expand(shape)
                    break
            except RuntimeError:
                continue
    return None if end not in known else known[end] - 1


def _move(op: Op, known: dict[Value, Tensor]) -> list[Tensor] | None:
    """Run an operation that moves elements on their numbers; 0 stands for other elements."""
    first = True

    def number(x):
        nonlocal first
        mine, first = first or op.name in JOINS | {"copy", "rewritten"}, False
        if isinstance(x, Value):
            if x in known:
                return known[x]
            return torch.zeros(x.shape, dtype=torch.int64) if mine else x.tensor.cpu()
        return x

    try:
        args = _mapped(op.args, number)
        if op.writes:
            args = (args[0].clone(), *args[1:])
        if op.name in ("pad", "constant_pad_nd"):
            args = args[:2]
            return [torch.nn.functional.pad(*args)]
        if op.name == "clone":
            return [args[0]]
        return tensors_of(op.func(*args, **{k: _mapped(v, number) for k, v in op.kwargs.items()}))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None


# --- Follow elements ----------------------------------------------------------------------


@dataclass
class Moved:
    """Where the elements of one value stand in another.

    Attributes:
        value: the other one.
        places: for each element of the first its place in the other, or, where vectors are turned
            on the way, its place in what was turned last; None if it is lost.
        factors: numbers that the elements were multiplied by on the way, with the operation.
        ops: what was passed.
        turned: whether vectors were turned on the way (rotary positions), their length kept.
    """

    value: Value
    places: Tensor | None
    factors: list[tuple[float, Op]] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    turned: list[Op] = field(default_factory=list)

    @property
    def factor(self) -> float:
        """All factors together."""
        product = 1.0
        for factor, _ in self.factors:
            product *= factor
        return product


def follow_back(tape: Tape, value: Value) -> Moved:
    """Go back from an operand to what computed it: a projection, a norm, or an input."""
    moved = Moved(value, None)
    at = last = value
    while at.op is not None:
        op = at.op
        step = _one_back(op)
        if step is None:
            turn = _turn(tape, at)
            if turn is None:
                break
            last = last if moved.turned else at
            before, factor, ops = turn
            moved.turned += [op for op in ops if op.name not in MOVES | CASTS]
            if abs(factor - 1) > 1e-6:
                moved.factors.append((factor, op))
            at = before
            continue
        at, factor = step
        moved.ops.append(op)
        if factor != 1:
            moved.factors.append((factor, op))
    moved.value = at
    last = last if moved.turned else at
    moved.places = number_through(between(tape, last, value), last, value)
    if moved.places is None:
        moved.places = torch.arange(value.tensor.numel())
    moved.places = moved.places.reshape(-1)
    return moved


def _one_back(op: Op) -> tuple[Value, float] | None:
    """Pass one operation that moves elements or multiplies all by one number."""
    if op.name in MOVES and op.name not in JOINS | {"copy", "rewritten", "pad"}:
        return op.inputs[0], 1.0
    if op.name in CASTS or (op.name == "dropout" and not (op.args[1] and op.args[2])):
        return op.inputs[0], 1.0
    if op.name in ("mul", "div") and op.kwargs.get("rounding_mode") is None:
        for i in (0, 1) if op.name == "mul" else (0,):
            mine, other = op.args[i], one_number(op.args[1 - i])
            if other and isinstance(mine, Value) and mine.shape == op.out.shape:
                return mine, other if op.name == "mul" else 1 / other
    return None


def one_number(x: object) -> float | None:
    """Return the number, if it is one or a tensor of one number throughout."""
    if isinstance(x, int | float) and not isinstance(x, bool):
        return float(x)
    if isinstance(x, Value) and x.tensor.numel() and x.tensor.is_floating_point():
        numbers = x.numbers.reshape(-1)
        if not x.from_input and bool((numbers == numbers[0]).all()):
            return float(numbers[0])
    return None


def _turn(tape: Tape, value: Value) -> tuple[Value, float, list[Op]] | None:
    """Find a value nearby whose vectors have the same lengths, up to one factor."""
    if value.tensor.ndim < 2 or not value.tensor.is_floating_point():
        return None
    lengths = value.numbers.norm(dim=-1).reshape(-1).sort().values
    if lengths.numel() < 2 or not bool(lengths[0] > 0):
        return None
    eps = torch.finfo(value.tensor.dtype).eps
    queue, seen = [value], {value}
    for at in queue:
        if at.op is None or at.op.name in BARRIERS or product_of(at.op) or len(queue) > 60:
            continue
        for before in at.op.inputs:
            if before in seen:
                continue
            seen.add(before)
            queue.append(before)
            if before.shape[-1:] != value.shape[-1:] or not before.tensor.is_floating_point():
                continue
            if before.tensor.numel() != value.tensor.numel() or not before.from_input:
                continue
            others = before.numbers.norm(dim=-1).reshape(-1).sort().values
            ratios = lengths / others
            if bool((ratios - ratios[0]).abs().max() <= 8 * eps * ratios[0]):
                return before, float(ratios.median()), between(tape, before, value)
    return None


def follow_on(tape: Tape, value: Value) -> Moved:
    """Go on from the output of an attention to where its heads are merged."""
    at, ops = value, []
    while True:
        users = [op for op in at.users if op.name in MOVES | CASTS]
        users = [op for op in users if op.name != "copy" or op.args[1] is at]
        users = [op for op in users if op.index > (ops[-1].index if ops else -1)]
        if not users or any(op.name == "linear" for op in at.users):
            break
        op = users[0]
        following = op.out
        if len(op.outputs) > 1 or (op.name == "select" and len(users) > 1):
            break
        ops.append(op)
        at = following
    places = number_through(between(tape, value, at), value, at)
    return Moved(at, places, ops=ops)


# --- Products -----------------------------------------------------------------------------


@dataclass(eq=False)
class Product:
    """A product of two tensors, summed over some axes: a letter for each axis.

    Attributes:
        op: the operation.
        a: the first operand.
        b: the second operand.
        letters: of a, b and the result; None for an axis of size 1 that is repeated.
        factor: what the product is multiplied by in the same operation.
        plus: what is added to it in the same operation.
    """

    op: Op
    a: Value
    b: Value
    letters: tuple[list[str | None], list[str | None], list[str | None]]
    factor: float = 1.0
    plus: Value | None = None

    @property
    def summed(self) -> str:
        """The letters that are summed."""
        a, b, out = self.letters
        return "".join(x for x in a if x and x in b and x not in out)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The size of each axis."""
        pairs = [*zip(self.letters[0], self.a.shape, strict=True)]
        pairs += zip(self.letters[1], self.b.shape, strict=True)
        return {letter: size for letter, size in pairs if letter}

    def own(self, which: int) -> str:
        """Return the letters of an operand (0 or 1) or of the result (2)."""
        return "".join(x for x in self.letters[which] if x)

    def places(self, which: int, order: Sequence[str]) -> Tensor:
        """Return the places of an operand's or the result's elements, its axes in this order.

        Letters that it has not are repeated.
        """
        value = (self.a, self.b, self.op.out)[which]
        mine = self.own(which)
        keep = [n for n, x in zip(value.shape, self.letters[which], strict=True) if x]
        ids = torch.arange(value.tensor.numel()).reshape(keep)
        common = [x for x in order if x in mine]
        ids = ids.permute([mine.index(x) for x in common])
        shape = [self.sizes[x] if x in mine else 1 for x in order]
        return ids.reshape(shape).expand([self.sizes[x] for x in order])

    def compute(self) -> Tensor:
        """Compute the product in float64, without what the operation adds to it."""
        a, b = (
            x.numbers.reshape([n for n, letter in zip(x.shape, own, strict=True) if letter])
            for x, own in ((self.a, self.letters[0]), (self.b, self.letters[1]))
        )
        rule = f"{self.own(0)},{self.own(1)}->{self.own(2)}"
        return torch.einsum(rule, a, b).reshape(self.op.out.shape)


_PRODUCTS: dict[int, tuple[Op, Product | None]] = {}


def product_of(op: Op) -> Product | None:
    """Read an operation as a product, or return None."""
    if op.name not in PRODUCTS:
        return None
    found = getattr(op, "_product", False)
    if found is False:
        found = op._product = _read_product(op)  # type: ignore[attr-defined]
    return found


def _read_product(op: Op) -> Product | None:
    factor, plus, out = 1.0, None, op.out.shape
    if op.name == "einsum":
        return _read_einsum(op)
    if op.name == "sum":
        return _read_sum(op)
    if op.name == "baddbmm":
        plus, a, b = op.args[:3]
        factor = float(op.kwargs.get("alpha", 1))
        plus = plus if op.kwargs.get("beta", 1) else None
        if op.kwargs.get("beta", 1) not in (0, 1):
            return None
    elif op.name == "linear":
        a, b = op.args[:2]
        plus = op.args[2] if len(op.args) > 2 else None
    else:
        a, b = op.args[:2]
    if not isinstance(a, Value) or not isinstance(b, Value):
        return None
    lead = string.ascii_uppercase[: max(len(a.shape), len(b.shape)) - 2]
    rows, columns = (["m"] if len(a.shape) > 1 else []), (["n"] if len(b.shape) > 1 else [])
    la = [*lead[len(lead) - max(len(a.shape) - 2, 0) :], *rows, "k"]
    if op.name == "linear":
        lb = ["n", "k"]
    else:
        lb = [*lead[len(lead) - max(len(b.shape) - 2, 0) :], "k", *columns]
    lo = [*lead, *rows, *columns]
    return _product(op, a, b, (la, lb, lo), out, factor, plus)


def _product(op, a, b, letters, out, factor=1.0, plus=None) -> Product | None:
    """Drop the letters of axes of size 1 that are repeated."""
    la, lb, lo = (list(x) for x in letters)
    if (len(la), len(lb), len(lo)) != (len(a.shape), len(b.shape), len(out)):
        return None
    sizes: dict[str, int] = {}
    for own, shape in ((la, a.shape), (lb, b.shape)):
        if len({x for x in own if x}) != len([x for x in own if x]):
            return None  # a diagonal
        for letter, n in zip(own, shape, strict=True):
            if letter:
                sizes[letter] = max(n, sizes.get(letter, 0))
    for own, shape in ((la, a.shape), (lb, b.shape)):
        for i, n in enumerate(shape):
            if own[i] and n == 1 and sizes[own[i]] > 1:
                own[i] = None
    alone = [x for x in (*la, *lb) if x and x not in lo and not (x in la and x in lb)]
    if alone and any(sizes[x] > 1 for x in alone):
        return None  # summed in one operand alone
    for own in (la, lb):
        own[:] = [None if x in alone else x for x in own]
    return Product(op, a, b, (la, lb, lo), factor, plus)


def _read_einsum(op: Op) -> Product | None:
    equation, operands = op.args[0].replace(" ", ""), op.args[1]
    if len(operands) != 2:
        return None
    left, _, right = equation.partition("->")
    parts = left.split(",")
    free = [x for x in string.ascii_letters if x not in equation]
    ranks = [len(v.shape) - len(p.replace("...", "")) for p, v in zip(parts, operands, strict=True)]
    dots = "".join(free[: max([r for r, p in zip(ranks, parts, strict=True) if "..." in p] or [0])])
    terms = [
        p.replace("...", dots[len(dots) - r :] if "..." in p else "")
        for p, r in zip(parts, ranks, strict=True)
    ]
    if "->" not in equation:
        both = terms[0] + terms[1]
        right = "..." + "".join(
            sorted(x for x in set(both) if both.count(x) == 1 and x not in dots)
        )
    out = right.replace("...", dots)
    return _product(op, *operands, (terms[0], terms[1], out), op.out.shape)


def _read_sum(op: Op) -> Product | None:
    """Read (a * b).sum(axes)."""
    times = op.inputs[0].op
    if times is None or times.name != "mul" or len(times.inputs) != 2 or len(op.args) < 2:
        return None
    a, b = times.inputs
    rank = len(times.out.shape)
    axes = op.args[1]
    if not axes or min(len(a.shape), len(b.shape)) == 0:
        return None
    axes = {i % rank for i in axes}
    letters = string.ascii_letters[:rank]
    keep = bool(op.argument("keepdim", False))
    out = [None if i in axes else x for i, x in enumerate(letters) if keep or i not in axes]
    la, lb = list(letters[rank - len(a.shape) :]), list(letters[rank - len(b.shape) :])
    return _product(op, a, b, (la, lb, out), op.out.shape)


def search(start: Iterable[Value], step: Callable[[Value], Iterable[Value]]) -> Iterable[Value]:
    """Yield values breadth first, each once."""
    queue = list(start)
    seen = set(queue)
    for value in queue:
        yield value
        for other in step(value):
            if other not in seen:
                seen.add(other)
                queue.append(other)
