"""Follow values through a tape: where elements move, what is multiplied, what a product sums."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mha_tutor.read.record import Op, Tape, Value, mapped, tensors_of

# Operations that move or repeat elements and change none; of these, what joins several tensors.
_MOVES = """
_reshape_alias _unsafe_view adjoint alias as_strided atleast_1d atleast_2d atleast_3d
broadcast_to chunk clone constant_pad_nd contiguous detach diagonal expand expand_as flatten flip
gather index index_select lift_fresh mT matrix_H moveaxis movedim narrow numpy_T pad permute repeat
repeat_interleave reshape reshape_as roll select slice split split_with_sizes squeeze swapaxes
swapdims t take_along_dim tensor_split tile transpose unbind unflatten unfold unsafe_chunk
unsafe_split unsqueeze view view_as
"""
_JOINS = "cat concat concatenate stack hstack vstack column_stack copy rewritten"
# Where the search for the product before a softmax, or for the one after it, ends.
_BARRIERS = """
_softmax addmm batch_norm bilinear conv1d conv2d conv3d convolution embedding fft_fft fft_fft2
fft_fftn fft_rfft group_norm gru instance_norm layer_norm linear log_softmax lstm
native_layer_norm rms_norm softmax
"""
CASTS = {"to", "_to_copy", "type_as", "float", "double", "half", "bfloat16"}
JOINS = set(_JOINS.split())
MOVES = set(_MOVES.split()) | JOINS
KEEPS = MOVES | CASTS
BARRIERS = set(_BARRIERS.split())


def search(start: Value, step: Callable[[Value], Iterable[Value]]) -> Iterator[Value]:
    """Yield values breadth first, each once."""
    queue = [start]
    seen = {start}
    for value in queue:
        yield value
        for other in step(value):
            if other not in seen:
                seen.add(other)
                queue.append(other)


def nearby(value: Value) -> list[Value]:
    """Return what a value was computed from, unless by a product or another layer."""
    op = value.op
    return [] if op is None or op.name in BARRIERS or product_of(op) else op.inputs


def strip(value: Value) -> Value:
    """Go back through what moves elements or changes their dtype only."""
    while value.op is not None and value.op.name in KEEPS - JOINS:
        value = value.op.inputs[0]
    return value


def between(tape: Tape, start: Value, end: Value) -> list[Op]:
    """Return the operations through which `end` depends on `start`, in order."""
    if start is end or end.op is None:
        return []
    reached, ops = {start}, []
    for op in tape.ops[start.op.index + 1 if start.op else 0 : end.op.index + 1]:
        if any(v in reached for v in op.inputs):
            reached.update(op.outputs)
            ops.append(op)
    needed, kept = {end}, []
    for op in reversed(ops):
        if any(v in needed for v in op.outputs):
            needed.update(v for v in op.inputs if v in reached)
            kept.append(op)
    return kept[::-1]


# --- Run what was recorded on other numbers -----------------------------------------------


def run(tape: Tape, start: Value, seed: Tensor, end: Value) -> Tensor | None:
    """Run what leads from one value to another on other numbers, in float64.

    Subtracting a row's own maximum, which no softmax notices, is left out. Returns None where an
    operation cannot be run so.
    """
    known = {start: seed}
    for op in between(tape, start, end):
        try:
            if _is_shift(op):
                outs = [known.get(op.inputs[0], known.get(strip(op.inputs[0])))]
            elif op.name in CASTS:
                x, dtype = known[op.inputs[0]], op.out.tensor.dtype
                outs = [x.double() if dtype.is_floating_point else x.to(dtype)]
            else:
                outs = _call(op, lambda x: known.get(x, x.numbers))
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError):
            return None
        known.update(zip(op.outputs, outs, strict=False))
    return known.get(end)


def _call(op: Op, number: Callable[[Value], Tensor]) -> list[Tensor]:
    def replace(x: object) -> object:
        return number(x) if isinstance(x, Value) else x

    args = mapped(op.args, replace)
    kwargs = {name: mapped(x, replace) for name, x in op.kwargs.items()}
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
    largest, own = strip(op.inputs[1]).op, strip(op.inputs[0])
    reduced = largest is not None and largest.name in ("amax", "max", "logsumexp")
    return reduced and strip(largest.inputs[0]) is own


def number_through(tape: Tape, start: Value, end: Value) -> Tensor | None:
    """Return for each element of `end` which element of `start` stands there; -1 for none.

    What computes element by element leaves an element where it is. Returns None where that cannot
    be told.
    """
    known = {start: torch.arange(1, start.tensor.numel() + 1).reshape(start.shape)}
    for op in between(tape, start, end):
        if op.name in MOVES:
            try:
                outs = _move(op, known)
            except (RuntimeError, TypeError, ValueError, IndexError):
                return None
        else:
            here = [known[v] for v in op.inputs if v in known]
            outs = [x.expand(op.out.shape) for x in here if _fits(x, op.out)][:1]
        known.update(zip(op.outputs, outs, strict=False))
    return None if end not in known else known[end] - 1


def _fits(x: Tensor, out: Value) -> bool:
    sizes = zip(x.shape[::-1], out.shape[::-1], strict=False)
    return x.ndim <= len(out.shape) and all(m in (1, n) for m, n in sizes)


def _move(op: Op, known: dict[Value, Tensor]) -> list[Tensor]:
    """Move the numbers of elements; 0 stands for an element of another tensor."""
    own = op.inputs if op.name in JOINS else op.inputs[:1]

    def number(value: Value) -> Tensor:
        if value in known:
            return known[value]
        nothing = torch.zeros(value.shape, dtype=torch.int64)
        return nothing if value in own else value.tensor.cpu()

    if op.name in ("pad", "constant_pad_nd"):
        return [torch.nn.functional.pad(number(op.inputs[0]), op.args[1])]
    return _call(op, number)


# --- Follow elements ----------------------------------------------------------------------


@dataclass
class Moved:
    """Where elements stand in another value."""

    value: Value
    places: Tensor  # of each element; where vectors are turned, its place in what is turned last
    factors: list[tuple[float, Op]] = field(default_factory=list)  # that all were multiplied by
    turned: list[Op] = field(default_factory=list)  # what turned vectors: rotary positions

    @property
    def factor(self) -> float:
        """All factors together."""
        return math.prod(factor for factor, _ in self.factors)


def follow_back(tape: Tape, value: Value) -> Moved:
    """Go back from an operand to what computed it: a projection, a norm, or an input."""
    moved = Moved(value, torch.arange(value.tensor.numel()))
    at = last = value
    while at.op is not None:
        step = _one_back(at.op) or _turn(tape, at)
        if step is None:
            break
        before, factor, turned = step
        last = at if turned and not moved.turned else last
        moved.turned += turned
        if abs(factor - 1) > (1e-6 if turned else 0):
            moved.factors.append((factor, at.op))
        at = before
    moved.value, last = at, last if moved.turned else at
    places = number_through(tape, last, value)
    if places is not None:
        moved.places = places.reshape(-1)
    return moved


def _one_back(op: Op) -> tuple[Value, float, list[Op]] | None:
    """Pass one operation that moves elements or multiplies all by one number."""
    if op.name in JOINS:
        roots = {strip(v) for v in op.inputs}
        return (roots.pop(), 1.0, []) if len(roots) == 1 else None
    if op.name in KEEPS - {"pad", "constant_pad_nd"} or (op.name == "dropout" and not op.args[2]):
        return op.inputs[0], 1.0, []
    if op.name in ("mul", "div") and op.kwargs.get("rounding_mode") is None:
        for mine, other in ((op.args[:2]), op.args[1::-1])[: 2 if op.name == "mul" else 1]:
            number = _one_number(other)
            if number and isinstance(mine, Value) and mine.shape == op.out.shape:
                return mine, number if op.name == "mul" else 1 / number, []
    return None


def _one_number(x: object) -> float | None:
    """Return the number, if it is one, or a tensor of one number throughout."""
    if isinstance(x, Value) and x.tensor.numel() and not x.from_input:
        numbers = x.numbers.reshape(-1)
        return float(numbers[0]) if bool((numbers == numbers[0]).all()) else None
    return float(x) if isinstance(x, int | float) else None


def _turn(tape: Tape, value: Value) -> tuple[Value, float, list[Op]] | None:
    """Find a value nearby whose vectors have the same lengths, up to one factor."""

    def lengths(v: Value) -> Tensor:
        return v.numbers.norm(dim=-1).reshape(-1).sort().values

    if value.tensor.ndim < 2 or not value.tensor.is_floating_point():
        return None
    mine, eps = lengths(value), torch.finfo(value.tensor.dtype).eps
    if mine.numel() < 2 or not float(mine[0]) > 0:
        return None
    for i, other in enumerate(search(value, nearby)):
        fits = other.shape[-1:] == value.shape[-1:] and other.tensor.numel() == value.tensor.numel()
        if i and fits and other.from_input and other.tensor.is_floating_point():
            ratios = mine / lengths(other)
            if bool((ratios - ratios[0]).abs().max() <= 8 * eps * ratios[0]):
                ops = [op for op in between(tape, other, value) if op.name not in KEEPS]
                return other, float(ratios.median()), ops
        if i > 60:
            break
    return None


def follow_on(tape: Tape, value: Value) -> Moved:
    """Go on from the output of an attention to where its heads are merged, or put together."""

    def moved(v: Value) -> list[Value]:
        users = [op for op in v.users if op.name in KEEPS]
        return [out for op in users if op.name != "copy" or op.args[1] is v for out in op.outputs]

    size = value.tensor.numel()
    for at in sorted(search(value, moved), key=lambda v: -v.op.index):
        places = number_through(tape, value, at)
        if places is None:
            continue
        places = places.reshape(-1)
        there = torch.full((size,), -1)
        there[places[places >= 0]] = torch.arange(len(places))[places >= 0]
        if bool((there >= 0).all()):
            return Moved(at, there)
    return Moved(value, torch.arange(size))


# --- Products -----------------------------------------------------------------------------

Letters = list[str | None]


@dataclass(eq=False)
class Product:
    """A product of two tensors, summed over some axes: a letter for each axis."""

    op: Op
    operands: tuple[Value, Value]
    letters: tuple[Letters, Letters, Letters]  # of both and of the result; None: of size 1
    factor: float = 1.0  # what the product is multiplied by in the same operation
    plus: Value | None = None  # what is added to it in the same operation

    def __post_init__(self) -> None:
        self.sizes: dict[str, int] = {}
        for own, value in zip(self.letters, (*self.operands, self.op.out), strict=True):
            self.sizes |= {x: n for x, n in zip(own, value.shape, strict=True) if x}
        a, b, out = self.letters
        self.summed = [x for x in a if x and x in b and x not in out]

    def own(self, which: int) -> list[str]:
        """Return the letters of an operand (0 or 1) or of the result (2)."""
        return [x for x in self.letters[which] if x]

    def size(self, letters: Iterable[str]) -> int:
        """Return the number of elements along some axes."""
        return math.prod(self.sizes[x] for x in letters)

    def spread(self, mine: list[str], order: list[str]) -> Tensor:
        """Return the places of the elements along some axes, in the order of others, flat."""
        ids = torch.arange(self.size(mine)).reshape([self.sizes[x] for x in mine])
        ids = ids.permute([mine.index(x) for x in order if x in mine])
        ids = ids.reshape([self.sizes[x] if x in mine else 1 for x in order])
        return ids.expand([self.sizes[x] for x in order]).reshape(-1)


def product_of(op: Op) -> Product | None:
    """Read an operation as a product, or return None."""
    if op.name not in READERS:
        return None
    if op.product is None:
        op.product = READERS[op.name](op) or False
    return op.product or None


def _matmul(op: Op) -> Product | None:
    factor, plus, operands = 1.0, None, op.args[:2]
    if op.name == "baddbmm":
        plus, operands, factor = op.args[0], op.args[1:3], float(op.kwargs.get("alpha", 1))
        beta = op.kwargs.get("beta", 1)
        plus = plus if beta else None
        if beta not in (0, 1):
            return None
    if op.name == "linear" and len(op.args) > 2:
        plus = op.args[2]
    ranks = [len(x.shape) for x in operands]
    lead = string.ascii_uppercase[: max(0, *(rank - 2 for rank in ranks))]
    leads = [list(lead[len(lead) - max(rank - 2, 0) :]) for rank in ranks]
    rows, columns = ["m"][: ranks[0] - 1], ["n"][: ranks[1] - 1]
    second = ["n", "k"] if op.name == "linear" else ["k", *columns]
    letters = [*leads[0], *rows, "k"], [*leads[1], *second], [*lead, *rows, *columns]
    return _product(op, operands, letters, factor, plus)


def _einsum(op: Op) -> Product | None:
    left, arrow, right = op.args[0].replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2:
        return None
    free = [x for x in string.ascii_letters if x not in op.args[0]]
    ranks = [
        len(v.shape) - len(t.replace("...", "")) for t, v in zip(terms, op.args[1], strict=True)
    ]
    dots = free[: max(ranks)]
    terms = [
        [*t.replace("...", "".join(dots[len(dots) - rank :]))]
        for t, rank in zip(terms, ranks, strict=True)
    ]
    if not arrow:
        both = terms[0] + terms[1]
        right = "..." + "".join(sorted(x for x in {*both} - {*dots} if both.count(x) == 1))
    return _product(op, op.args[1], (*terms, [*right.replace("...", "".join(dots))]))


def _sum(op: Op) -> Product | None:
    """Read (a * b).sum(axes)."""
    times = op.inputs[0].op
    if times is None or times.name != "mul" or len(times.inputs) != 2 or not op.args[1:2]:
        return None
    rank = len(times.out.shape)
    axes = {i % rank for i in op.args[1] or range(rank)}
    keep = bool(op.argument("keepdim", False))
    every = string.ascii_letters[:rank]
    own = [[*every[rank - len(v.shape) :]] for v in times.inputs]
    out = [None if i in axes else x for i, x in enumerate(every) if keep or i not in axes]
    return _product(op, times.inputs, (*own, out))


def _product(op, operands, letters, factor=1.0, plus=None) -> Product | None:
    """Drop the letters of axes of size 1 that are repeated; refuse what is no plain product."""
    if not all(isinstance(x, Value) for x in operands):
        return None
    a, b, out = (list(x) for x in letters)
    ranks = [len(x.shape) for x in (*operands, op.out)]
    sizes: dict[str, int] = {}
    if ranks != [len(a), len(b), len(out)]:
        return None
    for own, value in ((a, operands[0]), (b, operands[1])):
        if len(set(own)) != len(own):
            return None  # a diagonal
        sizes |= {x: max(n, sizes.get(x, 0)) for x, n in zip(own, value.shape, strict=True)}
    for own, other, value in ((a, b, operands[0]), (b, a, operands[1])):
        for i, (x, n) in enumerate(zip(own, value.shape, strict=True)):
            if x not in out and (x not in other or n != sizes[x]):
                if sizes[x] > 1:
                    return None  # summed in one operand alone
                own[i] = None
            elif n < sizes[x]:
                own[i] = None
    return Product(op, tuple(operands), (a, b, out), factor, plus)


READERS = dict.fromkeys(("matmul", "mm", "bmm", "baddbmm", "linear"), _matmul)
READERS |= {"einsum": _einsum, "sum": _sum}
