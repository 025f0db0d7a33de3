"""Find attentions in a tape: a product of two tensors of data, a softmax, a product with data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mha_tutor.read.graph import (
    BARRIERS,
    KEEPS,
    Product,
    between,
    nearby,
    product_of,
    search,
    strip,
)
from mha_tutor.read.record import Op, Tape, Value
from mha_tutor.read.result import Dropout

HIDDEN = -80.0  # a score so far below the others has a weight of 1e-35 at most
RANDOM = {"rand", "rand_like", "bernoulli", "uniform", "random", "randint"}


@dataclass(eq=False)
class Found:
    """Where an attention stands in a tape."""

    softmax: Op
    scores: Value  # what the softmax takes
    weights: Value  # what it gives
    axis: int
    first: Product  # of query and key
    second: Product  # of weights and value
    mix: int  # which operand of the second product comes from the softmax

    @property
    def mixed(self) -> Value:
        """The weights as they enter the second product."""
        return self.second.operands[self.mix]

    @property
    def module(self) -> str:
        """The innermost module that holds all of it."""
        ops = self.first.op, self.softmax, self.second.op
        return common([op.module for op in ops])


def common(names: list[str]) -> str:
    """Return what dotted names have in common."""
    parts = []
    for same in zip(*(name.split(".") for name in names), strict=False):
        if len(set(same)) > 1:
            break
        parts.append(same[0])
    return ".".join(parts)


def find(tape: Tape) -> Iterator[Found]:
    """Yield each attention of a tape, in order."""
    for op in tape.ops:
        read = _softmax(op)
        first = read and _product_before(read[0])
        second = first and _next_product(read[1])
        if second:
            yield Found(op, *read, first, *second)


def _softmax(op: Op) -> tuple[Value, Value, int] | None:
    """Return what a softmax takes and gives, and its axis; of one by hand, too."""
    if op.name in ("softmax", "_softmax"):
        return op.inputs[0], op.out, op.args[1]
    if op.name != "div" or len(op.inputs) != 2:
        return None
    above, below = (list(search(v, _first_input)) for v in op.inputs)
    total = next((v.op for v in below if v.op and v.op.name == "sum"), None)
    power = next((v.op for v in above if v.op and v.op.name == "exp"), None)
    if total is None or power is None or not total.args[1:2] or not total.args[1]:
        return None
    same = strip(total.inputs[0]) in {strip(v) for v in above}
    return (power.inputs[0], op.out, total.args[1][0]) if same else None


def _first_input(value: Value) -> list[Value]:
    return [] if value.op is None or value.op.name in ("exp", "sum") else nearby(value)[:1]


def _product_before(scores: Value) -> Product | None:
    """Find the product that the scores come from: of two tensors that depend on the input."""

    def back(value: Value) -> list[Value]:  # past a product with what depends on no input
        product = product_of(value.op) if value.op else None
        one = product is not None and not all(v.from_input for v in product.operands)
        return product.op.inputs if one and product.op.name != "linear" else nearby(value)

    best, best_rank = None, 0.0
    for value in search(scores, back):
        product = product_of(value.op) if value.op else None
        if product is not None:
            sides = [(strip(v), v.from_input) for v in product.operands]
            if product.op.name == "linear" and sides[1][0].op is None and not sides[1][1]:
                continue  # a projection
            made = all(v.op is not None or v.kind == "input" for v, _ in sides)
            rank = 1 + 3 * sum(data for _, data in sides) + 2 * made
            rank *= 1 + (product.op.out.tensor.numel() == scores.tensor.numel())
            if rank > best_rank:
                best, best_rank = product, rank
    return best


def _next_product(weights: Value) -> tuple[Product, int] | None:
    """Find the product in which the weights are used, and which operand they are."""
    reached = set()

    def onward(value: Value) -> list[Value]:  # past a product with what depends on no input
        users = (op for op in value.users if _passes(op))
        return [v for op in users for v in op.outputs if _other_is_fixed(op, value)]

    for value in search(weights, onward):
        reached.add(value)
        for op in value.users:
            for after in [op, *(u for u in op.out.users if op.name == "mul")]:
                product = product_of(after)
                if product is None or product.op.name == "linear" or len(reached) > 200:
                    continue
                mine = [v in reached for v in product.operands]
                other = strip(product.operands[mine.index(False) if False in mine else 0])
                if sum(mine) == 1 and other.from_input:
                    return product, mine.index(True)
    return None


def _other_is_fixed(op: Op, value: Value) -> bool:
    product = product_of(op)
    return product is None or not any(v.from_input for v in product.operands if v is not value)


def _passes(op: Op) -> bool:  # weights may be normed or mixed by a convolution before they mix
    return op.name not in BARRIERS - {"layer_norm", "batch_norm", "conv2d"}


def where(op: Op) -> str:
    """Name the line of an operation."""
    return f"line {op.line}" if op.line else "a line that is not known"


# --- Dropout ------------------------------------------------------------------------------


def dropouts(tape: Tape, mode: str) -> Iterator[tuple[int | None, Dropout]]:
    """Yield the dropouts that acted, each with the index of the attention it belongs to."""
    attentions = list(find(tape))
    for op in tape.ops:
        if op.name in RANDOM:  # by hand: random numbers that decide what is multiplied by 0
            onward = [u for v in search(op.out, _onward) for u in v.users]
            op = next((u for u in onward if u.name in ("mul", "where", "masked_fill")), op)
            mask = next((v for v in reversed(op.inputs) if not v.from_input), None)
            p = 0.0 if mask is None else float((mask.numbers == 0).double().mean())
        elif op.name in ("dropout", "native_dropout", "feature_dropout", "alpha_dropout"):
            p = float(op.args[1]) if op.args[2] else 0.0
        else:
            continue
        if p > 0:
            at = [(i, place) for i, f in enumerate(attentions) if (place := _place(tape, f, op))]
            i, place = at[0] if at else (None, "other")
            yield i, Dropout(place, p, mode, op.file, op.line)


def _onward(value: Value) -> list[Value]:
    return [v for op in value.users if op.name != "mul" and _passes(op) for v in op.outputs]


def _place(tape: Tape, found: Found, op: Op) -> str:
    """Say where in an attention an operation acts; empty if it does not."""
    first, second = found.first, found.second
    if op in between(tape, found.weights, found.mixed):
        return "weights"
    if op in between(tape, first.op.out, found.scores):
        return "scores"
    operands = (*first.operands, second.operands[1 - found.mix])
    for name, operand in zip(("query", "key", "value"), operands, strict=True):
        if any(v.op is op for v in search(operand, nearby)):
            return name
    at = op.inputs[0]
    while at.op is not None and at.op.name in KEEPS | {"linear"} and at is not second.op.out:
        at = at.op.inputs[0]
    return "output" if at is second.op.out else ""
