"""Read attentions from a tape: product, softmax, product, and what the numbers say of them.

What feeds the two products is taken as data. A factor is measured, by running what lies between
product and softmax on zeros and on ones; a mask is seen in what is then added; heads are solved
for, by following the place of every element. No name of a parameter is looked at.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mha_tutor.read.find import HIDDEN, Found, common, where
from mha_tutor.read.graph import (
    BARRIERS,
    KEEPS,
    Moved,
    between,
    follow_back,
    follow_on,
    number_through,
    product_of,
    run,
)
from mha_tutor.read.record import Op, Tape, Value
from mha_tutor.read.result import Attention, Features
from mha_tutor.read.words import describe

NONLINEAR = {"tanh", "sigmoid", "relu", "exp", "log", "pow", "softplus", "gelu", "silu", "topk"}


class NotReadError(Exception):
    """What stands between the products cannot be read; the message says why."""


# --- Rows of weights ----------------------------------------------------------------------


@dataclass(eq=False)
class Rows:
    """An attention as R rows of weights over S keys, wherever its axes stood; C sets of keys."""

    query: Tensor  # (R, D), the places of each row's query in the operand
    key: Tensor  # (C, S, D)
    value: Tensor  # (C, S, Dv)
    output: Tensor  # (R, Dv)
    keys_of: Tensor  # (R,), which set of keys and values a row sees
    axes: Tensor  # (R, n), the index of each row along the axes of the weights
    factor: Tensor  # (R, S), what the products are multiplied by
    plus: Tensor  # (R, S), what is added
    extra: Tensor | None  # (R, X), scores without a key
    along: Tensor  # (R, S), the index along the axis of the softmax
    operands: tuple[Value, Value, Value]  # that hold the queries, the keys, the values


def _rows(tape: Tape, found: Found) -> Rows:
    first, second, shape = found.first, found.second, found.weights.shape
    axis = found.axis % len(shape)
    step = math.prod(shape[axis + 1 :])
    factor, plus, to_product = _before_softmax(tape, found)

    # The second product: rows of weights, sets of values.
    own, keys = second.own(found.mix), second.summed
    other = second.own(1 - found.mix)
    rows = [x for x in own if x not in keys]
    lead = [x for x in other if x in rows]
    inner = [x for x in other if x not in own]
    count, size = second.size(rows), second.size(keys)
    if not keys or {*rows, *inner} - {*second.own(2)}:
        raise NotReadError(f"{where(second.op)}: this is no sum over an axis of the weights")
    to_softmax = number_through(tape, found.weights, found.mixed)
    if to_softmax is None:
        raise NotReadError(f"{where(second.op)}: the weights are rearranged before the mix")
    at_softmax = to_softmax.reshape(-1)[second.spread(own, [*rows, *keys])].reshape(count, size)
    at_product = to_product.reshape(-1)[at_softmax]
    if bool((at_softmax < 0).any() or (at_product < 0).any()):
        raise NotReadError(f"{where(second.op)}: some of its weights do not come from the product")

    # The first product: for each weight the row of either operand.
    sides = []
    for which in (0, 1):
        free = [x for x in first.own(which) if x not in first.summed]
        table = first.spread(first.own(which), [*free, *first.summed])
        row = first.spread(free, first.own(2))[at_product]
        sides.append((table.reshape(-1, first.size(first.summed)), row))
    steady = [bool((row == row[:, :1]).all()) for _, row in sides]
    q = 0 if steady[0] else 1
    (query, of_query), (key, of_key) = sides[q], sides[1 - q]

    # Sets of keys and values that rows share.
    value = second.spread(other, [*lead, *keys, *inner]).reshape(-1, size, second.size(inner))
    of_value = second.spread(lead, rows)
    sets = torch.stack([of_key[:, 0], of_key[:, -1], of_value], -1)
    sets, keys_of = sets.unique(dim=0, return_inverse=True)
    chosen = torch.empty(len(sets), dtype=torch.int64)
    chosen[keys_of] = torch.arange(count)
    if not any(steady) or not bool((of_key == of_key[chosen][keys_of]).all()):
        raise NotReadError(f"{where(found.softmax)}: the scores are rearranged after the product")
    extra = None
    if shape[axis] > size and bool((to_product < 0).any()):
        start = at_softmax[:, :1] - at_softmax[:, :1] // step % shape[axis] * step
        line = start + torch.arange(shape[axis]) * step
        alone = to_product.reshape(-1)[line] < 0
        extra = plus.reshape(-1)[line][alone].reshape(count, -1)
    grid = torch.cartesian_prod(*(torch.arange(second.sizes[x]) for x in rows))
    return Rows(
        query[of_query[:, 0]], key[of_key[chosen]], value[of_value[chosen]],
        second.spread(second.own(2), [*rows, *inner]).reshape(count, -1),
        keys_of, grid.reshape(count, len(rows)),
        factor.reshape(-1)[at_softmax], plus.reshape(-1)[at_softmax], extra,
        at_softmax // step % shape[axis],
        (first.operands[q], first.operands[1 - q], second.operands[1 - found.mix]),
    )  # fmt: skip


def _before_softmax(tape: Tape, found: Found) -> tuple[Tensor, Tensor, Tensor]:
    """Measure factor and sum between product and softmax; say where each element comes from."""
    product, scores = found.first, found.scores
    start = product.op.out
    plus = torch.zeros(()) if product.plus is None else product.plus.numbers
    zero, small, one = (
        run(tape, start, torch.full(start.shape, x * product.factor).double() + plus, scores)
        for x in (0.0, 2.0**-10, 1.0)
    )
    places = number_through(tape, start, scores)
    if zero is None or one is None or places is None:
        raise NotReadError(f"{_lines(between(tape, start, scores))} cannot be followed")
    zero, small, one = (x.expand(scores.shape) for x in (zero, small, one))
    factor, slope = one - zero, (small - zero) * 2**10  # at large scores, and at small ones
    straight = (factor - slope).abs() <= 1e-6 * factor.abs() + 1e-9
    factor = torch.where(straight, factor, slope)
    factor = torch.where(zero.isfinite(), factor, 0.0)
    if found.softmax.name == "div":  # what a softmax by hand does between exp and the division
        power = next(op for op in scores.users if op.name == "exp").out
        above = found.softmax.inputs[0]
        kept, to_power = run(tape, power, torch.ones(power.shape).double(), above), None
        if kept is not None:
            to_power = number_through(tape, power, above)
        if to_power is None:
            raise NotReadError(f"{_lines(between(tape, power, above))} cannot be followed")
        to_power = to_power.reshape(-1)
        shape = found.weights.shape
        factor, places = (x.reshape(-1)[to_power].reshape(shape) for x in (factor, places))
        zero = (zero.reshape(-1)[to_power] + kept.reshape(-1).log()).reshape(shape)
    return factor, zero.nan_to_num(nan=-torch.inf, neginf=-torch.inf), places


def _lines(ops: list[Op]) -> str:
    named = [op for op in ops if op.name not in KEEPS] or ops
    return "; ".join(dict.fromkeys(f"{where(op)} ({op.name})" for op in named))


# --- Batch, heads, queries ----------------------------------------------------------------


def _kinds(columns: Tensor) -> Tensor:
    """Give each row the number of its kind; (R, n) to (R,)."""
    if not columns.shape[1]:
        return torch.zeros(len(columns), dtype=torch.int64)
    return columns.unique(dim=0, return_inverse=True)[1]


def _same_in(groups: Tensor, numbers: Tensor) -> bool:
    """Tell whether `numbers` is the same throughout each group."""
    low = torch.full((int(groups.max()) + 1,), int(numbers.max()))
    low = low.scatter_reduce(0, groups, numbers, "amin")
    return bool((low[groups] == numbers).all())


def _index(places: Tensor, moved: Moved) -> tuple[int, Tensor, Tensor] | None:
    """Return where vectors stand in another value: the feature axis, the index along it, the rest.

    `places` is (..., D). The result is None if a vector lies along several axes, or is not there.
    """
    there = moved.places[places]
    if moved.turned or len(moved.value.shape) < 2 or bool((there < 0).any()):
        return None
    index = torch.stack(torch.unravel_index(there, moved.value.shape), -1)  # (..., D, n)
    lies = [i for i, x in enumerate(index.unbind(-1)) if bool((x != x[..., :1]).any())]
    axis = lies[0] if lies else index.shape[-1] - 1
    others = [i for i in range(index.shape[-1]) if i != axis]
    return None if len(lies) > 1 else (axis, index[..., axis], index[..., others])


def _arranged(rows: Rows, others: Tensor, feature: Tensor | None = None) -> Tensor | None:
    """Return the rows as a table (B, H, L) if this evidence fits, else None.

    Args:
        rows: what is to be arranged.
        others: (R, n), the index of each row along some axes.
        feature: (R,), the feature at which a row's head begins, where heads are put side by side.
    """
    columns = [x for x in others.unbind(1) if int(x.max()) > int(x.min())]
    head = _kinds(others[:, :0] if feature is None else feature[:, None])
    queries, batches = [], []
    for i, column in enumerate(columns):  # along an axis that only queries have, keys stay
        rest = torch.stack([*columns[:i], *columns[i + 1 :], head], 1)
        (queries if _same_in(_kinds(rest), rows.keys_of) else batches).append(column)
    if int(head.max()) == 0:  # not put side by side: the first axis is the batch, the last queries
        if feature is None:
            one = others.shape[1] > 2 and not bool(others[:, -1].any())  # one query
            kept = len(queries) - (not one)
            batches, queries = batches + queries[:kept], queries[kept:]
        alone = others.shape[1] > 2 and not bool(others[:, 0].any())  # a batch of one
        head = _kinds(torch.stack([head, *batches[not alone :]], 1))
        batches = [] if alone else batches[:1]
    none = torch.zeros(len(others), dtype=torch.int64)
    batch, query = (_kinds(torch.stack([none, *x], 1)) for x in (batches, queries))
    sizes = [int(x.max()) + 1 for x in (batch, head, query)]
    code = (batch * sizes[1] + head) * sizes[2] + query
    if math.prod(sizes) != len(code) or len(code.unique()) != len(code):
        return None
    if int(rows.keys_of.max()) and not _same_in(rows.keys_of, batch):
        return None  # rows of one set of keys belong to one element of the batch
    return code.argsort().reshape(sizes)


def _table(rows: Rows, query: Moved, merged: Moved) -> Tensor:
    """Arrange the rows as (B, H, L), by the first evidence that fits."""
    for places, moved in ((rows.output, merged), (rows.query, query)):
        seen = _index(places, moved)
        if seen is not None:
            table = _arranged(rows, seen[2][:, 0], seen[1].amin(1))
            if table is not None and (table.shape[1] > 1 or seen[2].shape[-1] < 3):
                return table
    table = _arranged(rows, rows.axes)
    if table is None:
        raise NotReadError("batch, heads and queries cannot be told apart")
    return table


def _columns(places: Tensor, moved: Moved) -> tuple[Tensor, Tensor] | None:
    """Return which columns make each head, (H, D), and what they stand in, (B, T, columns).

    `places` is (B, H, T, D).
    """
    seen = _index(places, moved)
    if seen is None:
        return None
    axis, feature, others = seen
    column = feature[:1, :, :1]
    if bool((feature != column).any() or (others != others[:, :1, :, :1]).any()):
        return None
    numbers = moved.value.numbers.movedim(axis, -1)
    table = numbers[tuple(others[:, 0, :, 0].unbind(-1))]
    return column[0, :, 0], table


# --- What is read -------------------------------------------------------------------------


def read(tape: Tape, found: Found) -> Attention:
    """Read one attention, and compute it again."""
    a = Attention(found.module, found.softmax.kind or "by hand")
    a.dtype, a.softmax_dtype = (
        str(v.tensor.dtype).removeprefix("torch.") for v in (found.second.op.out, found.weights)
    )
    try:
        rows = _rows(tape, found)
        sides = [follow_back(tape, v) for v in rows.operands]
        merged = follow_on(tape, found.second.op.out)
        table = _table(rows, sides[0], merged)
        _fill(a, found, rows, table, sides, merged)
        a.prove()
        describe(tape, found, a, sides, merged)
    except NotReadError as reason:
        a.reason = str(reason)
        return a
    except (IndexError, RuntimeError, TypeError, ValueError) as error:  # the others may be read
        a.explained, a.reason = False, f"reading it raised {type(error).__name__}: {error}"
        return a
    odd = _odd(tape, found)
    if not a.explained:
        a.reason = _why(tape, found, a)
    elif odd:
        a.notes.append(f"{_lines(odd)} changes no score of this call, but could change others.")
    return a


def _fill(
    a: Attention, found: Found, rows: Rows, table: Tensor, sides: list[Moved], merged: Moved
) -> None:
    sets = rows.keys_of[table[:, :, 0]]  # (B, H)
    places = {"query": rows.query[table], "key": rows.key[sets], "value": rows.value[sets]}
    a.kv_head = _shared(places["key"], places["value"], sides[1], sides[2])
    first = [a.kv_head.index(g) for g in range(max(a.kv_head) + 1)]
    cut = {}
    for (name, at), moved, operand in zip(places.items(), sides, rows.operands, strict=True):
        at = at if name == "query" else at[:, first]
        factor = 1.0 if name == "value" else moved.factor
        setattr(a, name, operand.numbers.reshape(-1)[at] / factor)
        cut[name] = _columns(at, moved) if name != "value" or moved.factor == 1 else None
        if name != "value":
            a.scale_parts += [(f, name, op.line) for f, op in reversed(moved.factors)]
    output = found.second.op.out
    a.output = output.numbers.reshape(-1)[rows.output[table]]
    cut["output"] = _columns(rows.output[table], merged) if merged.value is not output else None
    if cut["output"] and cut["output"][0].unique().numel() < cut["output"][0].numel():
        cut["output"] = None
    a.features = Features(**{name: c[0] for name, c in cut.items() if c})
    a.sources = {name: c[1] for name, c in cut.items() if c}
    a.merged_in = merged.value
    for name in ("query", "key", "value"):
        if name in a.sources:
            setattr(a, name, a.cut(name))

    factor, plus = rows.factor[table], rows.plus[table]
    hidden = plus - plus.amax(-1, keepdim=True).clamp(min=0) <= HIDDEN
    a.hidden = hidden if bool(hidden.any()) else None
    a.fill = float(plus[hidden].median()) if bool(hidden.any()) else None
    bias = plus.masked_fill(hidden, 0.0)
    a.bias = bias if bool(bias.abs().max() > 1e-12) else None
    a.extra_scores = None if rows.extra is None else rows.extra[table]
    a.axis = _axis(rows.along[table])
    before = sides[0].factor * sides[1].factor
    seen = factor[~hidden & (factor != 0)]
    middle = float(seen.median()) if seen.numel() else 1.0
    if bool(((seen - middle).abs() > 1e-9 * abs(middle) + 1e-12).any()):
        a.head_scale = factor * before
    else:
        a.scale = middle * before
        if abs(middle - 1) > 1e-9:
            a.scale_parts.append((middle, "scores", found.first.op.line))
    if bool(hidden.all(-1).any()):
        a.empty_rows = min(a.EMPTY_ROWS, key=lambda rule: a.replay(empty_rows=rule))


def _shared(k: Tensor, v: Tensor, key: Moved, value: Moved) -> tuple[int, ...]:
    """Return for each head which key and value head it reads, by where they come from."""
    both = torch.cat([key.places[k].flatten(2), value.places[v].flatten(2)], -1)  # (B, H, …)
    heads: list[int] = []
    firsts: list[Tensor] = []
    for own in both.unbind(1):
        same = [i for i, other in enumerate(firsts) if torch.equal(own, other)]
        heads.append(same[0] if same else len(firsts))
        firsts += [] if same else [own]
    return tuple(heads)


def _axis(index: Tensor) -> str:
    """Say along which of (B, H, L, S) the axis of the softmax runs."""
    names = {"keys": 3, "queries": 2, "heads": 1, "batch": 0}
    for name, axis in names.items():
        if bool((index != index.select(axis, 0).unsqueeze(axis)).any()):
            return name
    return next(name for name, axis in names.items() if index.shape[axis] == 1)


def _odd(tape: Tape, found: Found) -> list[Op]:
    ops = between(tape, found.first.op.out, found.scores)
    return [op for op in ops if op.name in BARRIERS | NONLINEAR or product_of(op)]


def _why(tape: Tape, found: Found, a: Attention) -> str:
    """Say what stands in the way of computing it again."""
    odd = _odd(tape, found)
    if odd:
        return f"{_lines(odd)}, between product and softmax, is no factor, bias or mask"
    after = between(tape, found.weights, found.mixed)
    odd = [op for op in after if op.name not in KEEPS | {"dropout", "nan_to_num"}]
    if odd:
        return f"{_lines(odd)} changes the weights after the softmax"
    return f"computed again, the output differs by {a.error:.1e} of its largest entry"


# --- Heads that are computed one by one ---------------------------------------------------


def combine(attentions: list[Attention]) -> list[Attention]:
    """Join the heads that are computed one by one and put side by side."""
    groups: dict[object, list[Attention]] = {}
    for a in attentions:
        alone = a.features.output is None
        key = a if alone else (a.merged_in, a.query.shape[2:], a.value.shape[2:], a.axis)
        groups.setdefault(key, []).append(a)
    joined = []
    for group in groups.values():
        columns = [c for a in group if a.features.output is not None for c in a.features.output]
        apart = len(group) > 1 and len(torch.cat(columns).unique()) == sum(map(len, columns))
        joined += [_joined(group)] if apart else group
    return joined


def _joined(group: list[Attention]) -> Attention:
    group = sorted(group, key=lambda a: int(a.features.output.min()))
    one = copy.copy(group[0])
    one.module = common([a.module for a in group])
    for name in ("query", "key", "value", "output"):
        setattr(one, name, torch.cat([getattr(a, name) for a in group], 1))
    shapes = [(*a.output.shape[:3], a.key.shape[2]) for a in group]
    for name in ("hidden", "bias", "head_scale"):
        parts = [getattr(a, name) for a in group]
        if name == "head_scale" and len({a.scale for a in group}) > 1:
            factors = [torch.tensor(a.scale or 0.0).double() for a in group]
            parts = [f if p is None else p for f, p in zip(factors, parts, strict=True)]
            one.scale = None
        if any(p is not None for p in parts):
            dtype = next(p.dtype for p in parts if p is not None)
            parts = [torch.zeros((), dtype=dtype) if p is None else p for p in parts]
            parts = [p.expand(n) for p, n in zip(parts, shapes, strict=True)]
            setattr(one, name, torch.cat(parts, 1))
    if one.extra_scores is not None:
        one.extra_scores = torch.cat([a.extra_scores for a in group], 1)
    heads = [0]
    one.kv_head = ()
    for a in group:
        one.kv_head += tuple(heads[-1] + g for g in a.kv_head)
        heads.append(heads[-1] + a.key.shape[1])
    one.features = Features(output=torch.cat([a.features.output for a in group]))
    one.sources = {"output": one.sources["output"]}
    one.notes = [f"Its heads are computed one by one, in {len(group)} modules or turns of a loop."]
    one.prove()
    return one
