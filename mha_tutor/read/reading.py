"""Read attentions from a tape: product, softmax, product, and what the numbers say of them.

What feeds the two products is taken as data. A factor is measured, by running what lies between
product and softmax on zeros and on ones; a mask is seen in what is then added; heads are solved
for, by following the place of every element. No name of a parameter is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mha_tutor.read.graph import (
    BARRIERS,
    CASTS,
    MOVES,
    REDUCED,
    Moved,
    Product,
    between,
    follow_back,
    follow_on,
    number_through,
    product_of,
    run,
    search,
    strip,
)
from mha_tutor.read.record import Op, Tape, Value
from mha_tutor.read.result import Attention, Dropout, Features

__all__ = ["Found", "combine", "dropouts", "find", "read"]

EMPTY_ROWS = ("zeros", "NaN", "even", "as if shown")
HIDDEN = -80.0  # a score so far below the others has a weight of 1e-35 at most


@dataclass(eq=False)
class Found:
    """Where an attention stands in a tape.

    Attributes:
        softmax: the operation that ends the softmax.
        scores: what the softmax takes.
        weights: what it gives.
        axis: over which.
        first: the product of query and key.
        second: the product of the weights and the value.
        mix: the operand of the second product that comes from the softmax, 0 or 1.
        output: what the attention gives before its heads are merged.
    """

    softmax: Op
    output: Value
    scores: Value
    weights: Value
    axis: int
    first: Product
    second: Product
    mix: int

    @property
    def ops(self) -> tuple[Op, ...]:
        """The operations that it is made of."""
        return self.first.op, self.softmax, self.second.op

    @property
    def module(self) -> str:
        """The innermost module that holds all of it."""
        names = [op.module.split(".") for op in self.ops]
        common = []
        for parts in zip(*names, strict=False):
            if len(set(parts)) > 1:
                break
            common.append(parts[0])
        return ".".join(common)


# --- Find ---------------------------------------------------------------------------------


def find(tape: Tape) -> Iterator[Found]:
    """Yield each attention of a tape, in order."""
    for op in tape.ops:
        for scores, weights, axis in _softmax(op):
            second = _next_product(weights)
            first = _product_before(scores)
            if first is not None and second is not None:
                yield Found(op, second[0].op.out, scores, weights, axis, first, *second)


def _softmax(op: Op) -> Iterator[tuple[Value, Value, int]]:
    """Yield what a softmax takes and gives, and its axis; written by hand, too."""
    if op.name in ("softmax", "_softmax", "_safe_softmax"):
        yield op.inputs[0], op.out, op.args[1]
    if op.name == "div" and len(op.inputs) == 2:
        above, below = op.inputs
        total = next((v.op for v in search([below], _one_input) if v.op and v.op.name == "sum"), 0)
        if not total or len(total.args) < 2 or not total.args[1]:
            return
        terms = strip(total.args[0])
        before = list(search([above], _one_input))
        power = next((v.op for v in before if v.op and v.op.name == "exp"), None)
        if power is not None and terms in [strip(above), *before]:
            yield power.inputs[0], op.out, total.args[1][0]


def _one_input(value: Value) -> list[Value]:
    op = value.op
    if op is None or op.name in BARRIERS | {"exp", "sum"} or product_of(op):
        return []
    return op.inputs[:1]


def _product_before(scores: Value) -> Product | None:
    """Find the product that the scores come from: of two tensors that depend on the input."""
    best, best_rank = None, 0.0
    for value in search([scores], _nearby):
        product = product_of(value.op) if value.op else None
        if product is None:
            continue
        rank = _rank(product)
        if product.op.out.tensor.numel() == scores.tensor.numel():
            rank *= 2
        if rank > best_rank:
            best, best_rank = product, rank
    return best


def _nearby(value: Value) -> list[Value]:
    op = value.op
    if op is None or op.name in BARRIERS or product_of(op):
        return []
    return op.inputs


def _rank(product: Product) -> float:
    """Say how much it looks like query times key: a projection does not."""
    if product.op.name == "linear" and strip(product.b).op is None:
        return 0.0
    kinds = [
        strip(v).kind != "parameter" or product.op.name != "linear" for v in (product.a, product.b)
    ]
    if not all(kinds):
        return 0.0
    data = [v.from_input for v in (product.a, product.b)]
    computed = [strip(v).op is not None or strip(v).kind == "input" for v in (product.a, product.b)]
    return 1.0 + 4.0 * all(data) + 1.0 * any(data) + 2.0 * all(computed)


def _next_product(weights: Value) -> tuple[Product, int] | None:
    """Find the product in which the weights are used, and which operand they are."""
    reached = {weights}
    queue = [weights]
    for value in queue:
        for op in value.users:
            if op.name in BARRIERS:
                continue
            product = product_of(op)
            if product is None and op.name == "mul" and len(op.inputs) == 2:
                product = next((p for u in op.out.users if (p := product_of(u))), None)
            if product is not None and product.op.name != "linear":
                mine = [v in reached for v in (product.a, product.b)]
                if sum(mine) == 1:
                    other = strip(product.b if mine[0] else product.a)
                    if other.kind != "parameter":
                        return product, mine.index(True)
                continue
            for out in op.outputs:
                if out not in reached and len(reached) < 200:
                    reached.add(out)
                    queue.append(out)
    return None


# --- Rows ---------------------------------------------------------------------------------


@dataclass(eq=False)
class Rows:
    """An attention as rows of weights, wherever its axes stood; R rows, C sets of keys.

    Attributes:
        query: the value that holds the queries.
        query_places: (R, D), where each row's query stands in it.
        key: the value that holds the keys.
        key_places: (C, S, D).
        value: the value that holds the values.
        value_places: (C, S, Dv).
        keys_of: (R,), which set of keys a row sees.
        output_places: (R, Dv), where a row's output stands.
        axes: (R, n), the index of each row along the axes of the weights.
        factor: (R, S), what the products are multiplied by.
        plus: (R, S), what is added.
        extra: (R, X), scores without a key.
        softmax_index: (R, S), the index along the axis of the softmax.
    """

    query: Value
    query_places: Tensor
    key: Value
    key_places: Tensor
    value: Value
    value_places: Tensor
    keys_of: Tensor
    output_places: Tensor
    axes: Tensor
    factor: Tensor
    plus: Tensor
    extra: Tensor | None
    softmax_index: Tensor


class _NotRead(Exception):
    """What stands between the products cannot be read; the message says why."""


def _where(op: Op) -> str:
    return f"line {op.line}" if op.line else "an operation without a line"


def _rows(tape: Tape, found: Found) -> Rows:
    """Read product, softmax, product as rows of weights."""
    first, second, scores = found.first, found.second, found.scores
    factor, plus, places, softmax_places = _before_softmax(tape, found)

    # The second product: rows of weights, sets of values.
    mine, other = found.mix, 1 - found.mix
    weights = (second.a, second.b)[mine]
    own, keys = second.own(mine), second.summed
    rows = [x for x in own if x not in keys]
    if not keys or any(x not in second.own(2) for x in rows):
        raise _NotRead(f"{_where(second.op)}: the weights are not summed over one of their axes")
    through = number_through(between(tape, found.weights, weights), found.weights, weights)
    if through is None:
        raise _NotRead(f"{_where(second.op)}: the weights are rearranged on their way to the mix")
    order = [*rows, *keys]
    count = math.prod(second.sizes[x] for x in rows)
    size = math.prod(second.sizes[x] for x in keys)
    at_weights = second.places(mine, order).reshape(count, size)
    at_softmax = through.reshape(-1)[at_weights]
    if bool((at_softmax < 0).any()):
        raise _NotRead(f"{_where(second.op)}: some weights of the mix do not come from the softmax")
    _check_after_softmax(tape, found, weights)
    # From the softmax back to the first product.
    at_scores = softmax_places.reshape(-1)[at_softmax]
    at_product = places.reshape(-1)[at_scores]  # in the order of the product's own result
    if bool((at_product < 0).any()):
        raise _NotRead(f"{_where(found.softmax)}: some scores do not come from the product")
    sides = []
    for which in (0, 1):
        free = [x for x in first.own(which) if x not in first.summed]
        table = first.places(which, [*free, *first.summed])
        table = table.reshape(-1, math.prod(first.sizes[x] for x in first.summed))
        row_ids = torch.arange(table.shape[0]).reshape([first.sizes[x] for x in free])
        out = first.own(2)
        row_ids = row_ids.permute([free.index(x) for x in out if x in free])
        row_ids = row_ids.reshape([first.sizes[x] if x in free else 1 for x in out])
        row_ids = row_ids.expand([first.sizes[x] for x in out]).reshape(-1)
        sides.append((table, row_ids[at_product]))
    steady = [bool((r == r[:, :1]).all()) for _, r in sides]
    if not any(steady):
        raise _NotRead(f"{_where(found.softmax)}: the scores are rearranged after the product")
    q = 0 if steady[0] else 1
    operands = first.a, first.b
    key_rows = sides[1 - q][1]

    # Sets of keys and values that rows share.
    lead = [x for x in second.own(other) if x in rows]
    inner = [x for x in second.own(other) if x not in rows and x not in keys]
    if any(x not in second.own(2) for x in inner):
        raise _NotRead(f"{_where(second.op)}: the values are summed over one of their own axes")
    value_table = second.places(other, [*lead, *keys, *inner])
    value_table = value_table.reshape(-1, size, math.prod(second.sizes[x] for x in inner))
    lead_ids = torch.arange(value_table.shape[0]).reshape([second.sizes[x] for x in lead])
    lead_ids = lead_ids.permute([lead.index(x) for x in rows if x in lead])
    lead_ids = lead_ids.reshape([second.sizes[x] if x in lead else 1 for x in rows])
    lead_ids = lead_ids.expand([second.sizes[x] for x in rows]).reshape(-1)
    pairs = torch.stack([key_rows[:, 0], key_rows[:, -1], lead_ids], -1)
    sets, keys_of = pairs.unique(dim=0, return_inverse=True)
    chosen = torch.empty(len(sets), dtype=torch.int64)
    chosen[keys_of] = torch.arange(count)
    if not bool((key_rows == key_rows[chosen][keys_of]).all()):
        raise _NotRead(f"{_where(found.softmax)}: the scores are rearranged after the product")
    extra = None
    axis_size = scores.shape[found.axis]
    if axis_size > size and places.min() < 0:
        extra = _extra(plus, places, found.axis, at_scores, axis_size)
    shape = found.weights.shape
    axis = found.axis % len(shape)
    step = math.prod(shape[axis + 1 :])
    return Rows(
        operands[q], sides[q][0][sides[q][1][:, 0]],
        operands[1 - q], sides[1 - q][0][key_rows[chosen]],
        (second.a, second.b)[other], value_table[lead_ids[chosen]],
        keys_of=keys_of,
        output_places=second.places(2, [*rows, *inner]).reshape(count, -1),
        axes=torch.stack(
            torch.meshgrid(*(torch.arange(second.sizes[x]) for x in rows), indexing="ij"), -1
        ).reshape(count, len(rows)),
        factor=factor.reshape(-1)[at_scores],
        plus=plus.reshape(-1)[at_scores],
        extra=extra,
        softmax_index=at_softmax // step % shape[axis],
    )  # fmt: skip


def _before_softmax(tape: Tape, found: Found) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Measure factor and sum on the way from the product to the softmax; follow the elements."""
    product, scores = found.first, found.scores
    ops = between(tape, product.op.out, scores)
    start = product.op.out
    plus = product.plus.numbers if product.plus is not None else torch.zeros(())
    at = [
        run(ops, start, (torch.full(start.shape, x * product.factor).double() + plus), scores)
        for x in (0.0, 1.0)
    ]
    places = number_through(ops, start, scores)
    if at[0] is None or at[1] is None or places is None:
        raise _NotRead(f"{_lines(ops)}: what is done to the scores cannot be followed")
    zero, one = (x.expand(scores.shape) for x in at)
    factor = torch.where(zero.isfinite(), one - zero, 0.0)
    # What a softmax by hand does between exp and the division.
    power = next((u for u in scores.users if u.name == "exp"), None)
    if found.softmax.name != "div" or power is None:
        ids = torch.arange(scores.tensor.numel()).reshape(scores.shape)
        return factor, zero, places, ids
    above = found.softmax.inputs[0]
    ops = between(tape, power.out, above)
    kept = run(ops, power.out, torch.ones(power.out.shape).double(), above)
    ids = number_through(ops, power.out, above)
    if kept is None or ids is None:
        raise _NotRead(f"{_lines(ops)}: what is done to the exponentials cannot be followed")
    flat = zero.reshape(-1).clone()
    flat[ids.reshape(-1)] += kept.reshape(-1).log()
    return factor, flat.reshape(zero.shape), places, ids


def _lines(ops: list[Op]) -> str:
    named = [op for op in ops if op.name not in MOVES | CASTS] or ops
    return "; ".join(dict.fromkeys(f"{_where(op)} ({op.name})" for op in named)) or "the scores"


def _check_after_softmax(tape: Tape, found: Found, weights: Value) -> None:
    """Refuse what changes the weights between the softmax and the mix."""
    ops = between(tape, found.weights, weights)
    if all(op.name in MOVES | CASTS | {"dropout", "nan_to_num"} for op in ops):
        return
    once = run(ops, found.weights, torch.ones(found.weights.shape).double(), weights)
    through = number_through(ops, found.weights, weights)
    before = found.weights.numbers.reshape(-1)[through.clamp(min=0).reshape(-1)]
    seen = before.abs() > 0
    if once is None or not bool((once.reshape(-1)[seen] == 1).all()):
        changing = [op for op in ops if op.name not in MOVES | CASTS]
        raise _NotRead(f"{_lines(changing)}: the weights are changed after the softmax")


def _extra(plus: Tensor, places: Tensor, axis: int, at_scores: Tensor, size: int) -> Tensor:
    """Return the scores that have no key, for each row."""
    step = math.prod(plus.shape[axis % plus.ndim + 1 :])
    base = at_scores[:, :1] - at_scores[:, :1] // step % size * step
    whole = base + torch.arange(size) * step  # (R, all columns)
    alone = places.reshape(-1)[whole] < 0
    return plus.reshape(-1)[whole][alone].reshape(len(whole), -1)


# --- Batch, heads, queries ----------------------------------------------------------------


def _index(places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the index of each place along each axis, as one more axis."""
    return torch.stack(torch.unravel_index(places, shape), -1)


def _rank_rows(columns: Tensor) -> Tensor:
    """Give each row the number of its kind; (R, n) to (R,)."""
    if columns.shape[1] == 0:
        return torch.zeros(len(columns), dtype=torch.int64)
    return columns.unique(dim=0, return_inverse=True)[1]


def _steady(groups: Tensor, numbers: Tensor) -> bool:
    """Tell whether `numbers` is the same throughout each group."""
    n = int(groups.max()) + 1
    low = torch.full((n,), numbers.max() + 1).scatter_reduce(0, groups, numbers, "amin")
    return bool((low[groups] == numbers).all())


def _arranged(feature: Tensor | None, others: Tensor, rows: Rows, last_is_query: bool = False):
    """Return the rows as a table (B, H, L), if this evidence fits; else None.

    Args:
        feature: (R,), the column at which a row's head begins; None if it is not known.
        others: (R, n), the index of each row along the other axes.
        rows: what is to be arranged.
        last_is_query: of several axes that only the query has, take the last for the queries.
    """
    count = len(others)
    head = _rank_rows(feature[:, None]) if feature is not None else torch.zeros(count).long()
    columns = [
        i for i in range(others.shape[1]) if int(others[:, i].max()) > int(others[:, i].min())
    ]
    queries, batches = [], []
    for i in columns:
        rest = others[:, [j for j in columns if j != i]]
        group = _rank_rows(torch.cat([rest, head[:, None]], 1))
        (queries if _steady(group, rows.keys_of) else batches).append(i)
    if int(head.max()) == 0:
        moved: list[int] = []
        if last_is_query and len(queries) > 1:
            queries, moved = queries[-1:], queries[:-1]
        if len(batches) > 1 or moved:
            first = batches[:1]
            if not first and moved and len(columns) > 2:
                first, moved = moved[:1], moved[1:]
            head = _rank_rows(others[:, [*batches[1:], *moved]])
            batches = first
    batch, query = _rank_rows(others[:, batches]), _rank_rows(others[:, queries])
    sizes = [int(x.max()) + 1 for x in (batch, head, query)]
    code = (batch * sizes[1] + head) * sizes[2] + query
    if math.prod(sizes) != count or len(code.unique()) != count:
        return None
    if int(rows.keys_of.max()) > 0 and not _steady(rows.keys_of, batch):
        return None
    table = torch.empty(count, dtype=torch.int64)
    table[code] = torch.arange(count)
    return table.reshape(sizes)


def _evidence(places: Tensor, moved: Moved, back: bool) -> tuple[Tensor, Tensor] | None:
    """Return where a row's head begins, and its index along the other axes, in another value."""
    if moved.places is None or (back and moved.turned):
        return None
    if back:
        there = moved.places[places]
    else:
        flat = moved.places.reshape(-1)
        there = torch.full((int(places.max()) + 1,), -1)
        known = (flat >= 0) & (flat < len(there))
        there[flat[known]] = torch.arange(len(flat))[known]
        there = there[places]
    if bool((there < 0).any()):
        return None
    index = _index(there, moved.value.shape)  # (R, D, n)
    varying = [i for i in range(index.shape[-1]) if bool((index[..., i] != index[:, :1, i]).any())]
    if len(varying) > 1:
        return None
    axis = varying[0] if varying else index.shape[-1] - 1
    others = [i for i in range(index.shape[-1]) if i != axis]
    return index[..., axis].min(1).values, index[:, 0, others]


def _table(rows: Rows, query: Moved, merged: Moved) -> Tensor:
    """Arrange the rows as (B, H, L), by the first evidence that fits."""
    for places, moved, back in (
        (rows.output_places, merged, False),
        (rows.query_places, query, True),
    ):
        seen = _evidence(places, moved, back)
        if seen is not None:
            table = _arranged(*seen, rows)
            if table is not None and (table.shape[1] > 1 or rows.axes.shape[1] < 3):
                return table
    table = _arranged(None, rows.axes, rows, last_is_query=True)
    if table is None:
        raise _NotRead("batch, heads and queries cannot be told apart")
    return table


def _columns(places: Tensor, moved: Moved) -> tuple[Tensor, Tensor] | None:
    """Return which columns make each head, (H, D), and the tensor that was cut, (B, T, columns)."""
    if moved.places is None or moved.turned:
        return None
    there = moved.places[places]  # (B, H, T, D)
    shape = moved.value.shape
    index = _index(there, shape)
    for along in (-1, 1):  # the feature axis is the one along which a head's vector lies
        start = index.select(along - 1 if along < 0 else along, 0).unsqueeze(
            along - 1 if along < 0 else along
        )
        varying = [i for i in range(len(shape)) if bool((index[..., i] != start[..., i]).any())]
        if varying:
            break
    axis = varying[0] if len(varying) == 1 else len(shape) - 1
    if len(varying) > 1:
        return None
    column = index[..., axis]
    others = [i for i in range(len(shape)) if i != axis]
    base = torch.zeros(there.shape, dtype=torch.int64)
    for i in others:
        base = base * shape[i] + index[..., i]
    if not bool((column == column[:1, :, :1]).all() and (base == base[:, :1, :, :1]).all()):
        return None
    numbers = moved.value.numbers.movedim(axis, -1).reshape(-1, shape[axis])
    return column[0, :, 0], numbers[base[:, 0, :, 0]]


# --- What is read -------------------------------------------------------------------------


def read(tape: Tape, found: Found) -> tuple[Attention, Rows | None]:
    """Read one attention, and compute it again."""
    attention = Attention(found.module, found.softmax.kind or "by hand")
    attention.dtype = str(found.output.tensor.dtype).removeprefix("torch.")
    attention.softmax_dtype = str(found.weights.tensor.dtype).removeprefix("torch.")
    try:
        rows = _rows(tape, found)
        sides = [follow_back(tape, v) for v in (rows.query, rows.key, rows.value)]
        merged = follow_on(tape, found.output)
        table = _table(rows, sides[0], merged)
    except _NotRead as reason:
        attention.reason = str(reason)
        return attention, None
    _fill(attention, found, rows, table, sides, merged)
    attention.prove()
    if not attention.explained and not attention.reason:
        attention.reason = _why(tape, found, rows, attention)
    return attention, rows


def _fill(a: Attention, found: Found, rows: Rows, table: Tensor, sides: list[Moved], merged: Moved):
    query, key, value = sides
    sets = rows.keys_of[table[:, :, 0]]  # (B, H)
    q = rows.query_places[table]  # (B, H, L, D)
    k, v = rows.key_places[sets], rows.value_places[sets]  # (B, H, S, D)
    a.kv_head = _shared(k, v, key, value)
    kept = sorted({a.kv_head.index(h) for h in a.kv_head})
    k, v = k[:, kept], v[:, kept]
    a.output = found.output.numbers.reshape(-1)[rows.output_places[table]]
    factors = {"query": query.factor, "key": key.factor}
    cut = {"query": _columns(q, query), "key": _columns(k, key), "value": _columns(v, value)}
    if value.factor != 1:
        cut["value"] = None
    merged_places = Moved(merged.value, _inverse(merged, found.output.tensor.numel()))
    joined = None
    if merged_places.places is not None and merged.ops:
        places = rows.output_places[table]
        if bool((merged_places.places[places] >= 0).all()):
            joined = _columns(places, merged_places)
    if joined is not None and joined[0].unique().numel() != joined[0].numel():
        joined = None
    a.features = Features(*(c and c[0] for c in cut.values()), joined and joined[0])
    a.sources = {name: c[1] for name, c in cut.items() if c}
    a.merged_in = merged.value
    if joined:
        a.sources["output"] = joined[1]
    for name, places, moved, own in (
        ("query", q, query, rows.query),
        ("key", k, key, rows.key),
        ("value", v, value, rows.value),
    ):
        numbers = own.numbers.reshape(-1)[places] / factors.get(name, 1.0)
        if cut[name]:
            numbers = a.cut(name)
        setattr(a, name, numbers)
        if name != "value":
            a.scale_parts += [(f, name, op.line) for f, op in reversed(moved.factors)]
    factor, plus = rows.factor[table], rows.plus[table]
    plus = plus.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    a.hidden = plus - plus.amax().clamp(min=0) <= HIDDEN
    if rows.extra is not None:
        a.extra_scores = rows.extra[table]
        a.extra = a.extra_scores.shape[-1]
    _scale(a, found, factor, query.factor * key.factor)
    _mask(a, plus)
    a.axis = _axis(rows.softmax_index[table])
    if a.hidden is not None and bool(a.hidden.all(-1).any()):
        a.empty_rows = min(EMPTY_ROWS, key=lambda rule: a.replay(empty_rows=rule))


def _inverse(moved: Moved, size: int) -> Tensor | None:
    if moved.places is None:
        return None
    flat = moved.places.reshape(-1)
    there = torch.full((size,), -1)
    there[flat[flat >= 0]] = torch.arange(len(flat))[flat >= 0]
    return there


def _shared(k: Tensor, v: Tensor, key: Moved, value: Moved) -> tuple[int, ...]:
    """Return for each head which key and value head it reads, by where they come from."""
    k, v = key.places[k], value.places[v]
    seen: list[tuple[Tensor, Tensor]] = []
    heads = []
    for h in range(k.shape[1]):
        own = k[:, h], v[:, h]
        for i, other in enumerate(seen):
            if torch.equal(own[0], other[0]) and torch.equal(own[1], other[1]):
                heads.append(i)
                break
        else:
            heads.append(len(seen))
            seen.append(own)
    return tuple(heads)


def _scale(a: Attention, found: Found, factor: Tensor, before: float) -> None:
    seen = factor[~a.hidden & (factor != 0)]
    if not seen.numel():
        a.scale = before
        return
    middle = float(seen.median())
    if bool((seen - middle).abs().max() <= 1e-9 * abs(middle) + 1e-12):
        a.scale = middle * before
        if abs(middle - 1) > 1e-9:
            a.scale_parts.append((middle, "scores", found.first.op.line))
    else:
        a.head_scale = factor * before


def _mask(a: Attention, plus: Tensor) -> None:
    if bool(a.hidden.any()):
        a.fill = float(plus[a.hidden].median())
    else:
        a.hidden = None
    bias = plus if a.hidden is None else plus.masked_fill(a.hidden, 0.0)
    a.bias = bias if bool(bias.abs().max() > 1e-12) else None


def _axis(index: Tensor) -> str:
    """Say along which of (B, H, L, S) the axis of the softmax runs."""
    for name, axis in (("keys", 3), ("queries", 2), ("heads", 1), ("batch", 0)):
        if bool((index != index.select(axis, 0).unsqueeze(axis)).any()):
            return name
    return "keys"


def _why(tape: Tape, found: Found, rows: Rows, a: Attention) -> str:
    """Say what stands in the way of computing it again."""
    if True:
        ops = between(tape, found.first.op.out, found.scores)
        ops = [op for op in ops if op.name not in MOVES | CASTS | REDUCED]
        odd = [op for op in ops if op.name in BARRIERS or product_of(op) or op.name in NONLINEAR]
        if odd:
            return f"{_lines(odd)}, between the product and the softmax, is no factor, bias or mask"
    return f"computed again, the output differs by {a.error:.1e} of its largest entry"


NONLINEAR = {"tanh", "sigmoid", "relu", "exp", "log", "pow", "softplus", "gelu", "silu", "clamp"}


# --- Heads that are computed one by one ---------------------------------------------------


def combine(attentions: list[Attention]) -> list[Attention]:
    """Join the heads that are computed one by one and put side by side."""
    groups: dict[object, list[Attention]] = {}
    for a in attentions:
        alone = a.features.output is None
        key = a if alone else (a.merged_in, tuple(a.query.shape[2:]), a.value.shape[-2:], a.axis)
        groups.setdefault(key, []).append(a)
    return [_joined(group) if len(group) > 1 else group[0] for group in groups.values()]


def _joined(group: list[Attention]) -> Attention:
    group = sorted(group, key=lambda a: int(a.features.output.min()))
    a = group[0]
    names = [x.module.split(".") for x in group]
    same = [parts[0] for parts in zip(*names, strict=False) if len(set(parts)) == 1]
    one = Attention(".".join(same), a.kind, axis=a.axis, fill=a.fill, empty_rows=a.empty_rows)
    one.scale, one.scale_parts = a.scale, a.scale_parts
    one.dtype, one.softmax_dtype, one.steps, one.dropouts = (
        a.dtype,
        a.softmax_dtype,
        a.steps,
        a.dropouts,
    )
    for name in ("query", "key", "value", "output"):
        setattr(one, name, torch.cat([getattr(x, name) for x in group], 1))
    shape = [x.output.shape[:3] + x.key.shape[2:3] for x in group]
    for name, nothing in (("hidden", False), ("bias", 0.0), ("head_scale", None)):
        parts = [getattr(x, name) for x in group]
        if name == "head_scale":
            if len({x.scale for x in group}) == 1:
                continue
            parts = [
                torch.full(n, x.scale) if p is None else p for x, p, n in zip(group, parts, shape)
            ]
            one.scale = None
        if any(p is not None for p in parts):
            parts = [torch.full(n, nothing) if p is None else p for p, n in zip(parts, shape)]
            setattr(one, name, torch.cat(parts, 1).to(next(p.dtype for p in parts)))
    heads = 0
    for x in group:
        one.kv_head += tuple(heads + g for g in x.kv_head)
        heads += x.key.shape[1]
    one.features = Features(output=torch.cat([x.features.output for x in group]))
    one.sources = {"output": a.sources["output"]}
    one.notes = [f"{len(group)} modules or turns of a loop, each with its own heads."]
    one.prove()
    return one


# --- Dropout ------------------------------------------------------------------------------

RANDOM = {"rand", "rand_like", "bernoulli", "uniform", "random", "randint"}


def dropouts(tape: Tape, mode: str) -> Iterator[tuple[int | None, Dropout]]:
    """Yield the dropouts that acted, each with the index of the attention it belongs to."""
    attentions = list(find(tape))
    for op in tape.ops:
        if op.name in RANDOM:  # by hand: random numbers that decide what is multiplied by 0
            users = [u for v in search([op.out], _users) for u in v.users]
            op = next((u for u in users if u.name in ("mul", "where", "masked_fill")), op)
            mask = next((v for v in reversed(op.inputs) if not v.from_input), None)
            p = 0.0 if mask is None else float((mask.numbers == 0).double().mean())
        elif op.name in ("dropout", "native_dropout", "feature_dropout", "alpha_dropout"):
            p = float(op.args[1]) if op.args[2] else 0.0
        else:
            continue
        if p > 0:
            places = ((i, _place(tape, f, op)) for i, f in enumerate(attentions))
            i, where = next(((i, w) for i, w in places if w), (None, "other"))
            yield i, Dropout(where, p, mode, op.file, op.line)


def _users(value: Value) -> list[Value]:
    return [v for op in value.users if op.name not in BARRIERS | {"mul"} for v in op.outputs]


def _place(tape: Tape, found: Found, op: Op) -> str:
    """Say where in an attention an operation acts; empty if it does not."""
    first, second = found.first, found.second
    operands = second.a, second.b
    if op in between(tape, found.weights, operands[found.mix]):
        return "weights"
    if op in between(tape, first.op.out, found.scores):
        return "scores"
    for name, value in (("query", first.a), ("key", first.b), ("value", operands[1 - found.mix])):
        if any(v.op is op for v in search([value], _nearby)):
            return name
    at = op.inputs[0]
    while at.op is not None and at.op.name in MOVES | CASTS | {"linear"} and at is not found.output:
        at = at.op.inputs[0]
    return "output" if at is found.output else ""
