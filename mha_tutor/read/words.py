"""Say what was read in the book's words: scale, mask, bias, and each step with its line."""

from __future__ import annotations

import linecache
import math

import torch
from torch import Tensor

from mha_tutor.read.find import HIDDEN, Found
from mha_tutor.read.graph import BARRIERS, KEEPS, Moved, between, nearby, product_of, search
from mha_tutor.read.record import Op, Tape, Value
from mha_tutor.read.result import Attention, Step


def describe(tape: Tape, found: Found, a: Attention, sides: list[Moved], merged: Moved) -> None:
    """Fill in the words of an attention that was read, and its steps."""
    shape = a.weights.shape
    hidden = torch.zeros(shape, dtype=torch.bool) if a.hidden is None else a.hidden
    a.scale_words = _scale(a)
    a.mask_words = _mask(hidden)
    a.bias_words = "" if a.bias is None else _bias(a.bias, hidden)
    if a.axis == "keys" and a.extra_scores is None:
        a.without_influence.append("a number added to all scores of a row (so the key's bias)")
    for op in sides[0].turned + sides[1].turned:
        a.notes += [f"{_names(op)} turns query or key and keeps its length (rotary positions)."]
    a.notes = list(dict.fromkeys(a.notes))
    if a.features.output is None and len(merged.value.shape) == 3 and a.num_heads > 1:
        a.notes.append("What follows the mix puts no head's features side by side for each token.")
    _steps(tape, found, a, sides, merged)


def _scale(a: Attention) -> str:
    """Write a factor in closed form."""
    if a.scale is None:
        return "a factor for each head" if _by_head(a.head_scale) else "a factor for each score"
    book = f"the book divides by √head_dim = {math.sqrt(a.head_dim):.4g}"
    if abs(a.scale - 1) < 1e-6:
        return f"no factor; {book}" if a.head_dim > 1 else "÷ √head_dim = 1"
    wide = a.sources["output"].shape[-1] if "output" in a.sources else a.num_heads * a.head_dim
    sizes = {"head_dim": a.head_dim, "embed_dim": wide, "keys": a.key.shape[2]}
    for name, n in sizes.items():
        for power, sign in ((0.5, "√"), (1.0, ""), (0.25, "∜")):
            if abs(a.scale * n**power - 1) < 1e-5:
                said = f"÷ {n**power:.4g} = {sign}{n} = {sign}{name}" if sign else f"÷ {n} = {name}"
                return said if (name, power) == ("head_dim", 0.5) else f"{said}; {book}"
    said = f"× {a.scale:.4g}" if a.scale > 1 or a.scale < 0 else f"÷ {1 / a.scale:.4g}"
    square = 1 / a.scale**2
    if abs(square - round(square)) < 1e-4 * square:
        said += f" = √{round(square)}"
    return f"{said}; {book}"


def _by_head(x: Tensor) -> bool:
    return all(bool((p[p != 0] == p[p != 0][:1]).all()) for p in x.unbind(1))


def _mask(hidden: Tensor) -> str:
    """Name a mask (B, H, L, S); several kinds joined by "+"."""
    length, size = hidden.shape[2:]
    if not bool(hidden.any()):
        return "nothing"
    keys = hidden.all((1, 2))[:, None, None]  # (B, 1, 1, S), hidden from every query
    far = torch.arange(size) - torch.arange(length)[:, None]
    kinds = {"": torch.zeros(length, size, dtype=torch.bool)}
    for name, offset in (("causal", size - length), ("causal from the first key", 0)):
        kinds[name] = future = far > offset
        for w in range(1, length):
            kinds[f"{name}, window of {w}"] = future | (far <= offset - w)
    kinds |= {f"window of {w} to either side": far.abs() > w for w in range(1, size)}
    for name, kind in kinds.items():
        if torch.equal(hidden, kind.expand_as(hidden) | keys):
            padded = bool((keys & ~kind).any())
            return " + ".join(filter(None, (name, "padding" * padded)))
    return "other"


def _bias(bias: Tensor, hidden: Tensor) -> str:
    """Say what a bias (B, H, L, S) depends on, as far as it is seen."""
    shown = bias.masked_fill(hidden, torch.nan)
    if not bool((shown - shown.nanmean(-1, keepdim=True)).nan_to_num().abs().max() > 1e-9):
        return "the same for all keys, so without influence"
    length, size = bias.shape[2:]
    far = (torch.arange(size) - torch.arange(length)[:, None] + length - 1).expand_as(bias)
    alike = torch.zeros(*bias.shape[:2], length + size - 1).double()
    counts = alike.clone().scatter_add(2, far.flatten(2), (~hidden).flatten(2).double())
    alike.scatter_add_(2, far.flatten(2), bias.flatten(2)).div_(counts.clamp(min=1))
    off = (alike.gather(2, far.flatten(2)) - bias.flatten(2)).masked_fill(hidden.flatten(2), 0)
    if min(length, size) > 1 and bool(off.abs().max() < 1e-6):
        return "by distance"
    rows = shown - shown[:, :, :1]
    return "by key" if not bool(rows.nan_to_num().abs().max() > 1e-9) else "by query and key"


# --- Steps --------------------------------------------------------------------------------


def _steps(tape: Tape, found: Found, a: Attention, sides: list[Moved], merged: Moved) -> None:
    batch, heads, length, size = a.weights.shape
    long = {"query": length, "key": size, "value": size}

    def step(role: str, op: Op | None, words: str, letters: str, *shape: int, own=True) -> None:
        file, line = (op.file, op.line) if op else ("", 0)
        code = linecache.getline(file, line).strip() if line else ""
        a.steps.append(Step(role, words, shape, letters, file, line, code, own))

    for role, side in zip(("query", "key", "value"), sides, strict=True):
        heads_of = heads if role == "query" else a.key.shape[1]
        for op in _origins(side.value):
            norm = "norm" in op.name
            said = _names(op) or op.name
            step("norm" if norm else role, op, f"{role}: {said}", "", *op.out.shape, own=False)
        for op in side.turned[:1]:
            step("position", op, f"{role} turned by position", "", *op.out.shape, own=False)
        which = {"query": "L", "key": "S", "value": "S"}[role]
        columns = getattr(a.features, role)
        words = f"{role}: {heads_of} head{'s' * (heads_of > 1)}"
        words += "" if columns is None else f", {_columns(columns)}"
        wide = getattr(a, role).shape[-1]
        step(role, None, words, f"B H {which} D", batch, heads_of, long[role], wide)
    for factor, on, _ in a.scale_parts[:-1] if len(a.scale_parts) > 1 else ():
        step("scale", None, f"{on} × {factor:.4g}", "")
    shape = "B H L S", batch, heads, length, size
    step("scores", found.first.op, "scores: query times key", *shape)
    step("scale", _last_scale(tape, found, a), f"scores {a.scale_words}", *shape)
    for op, role, words in _added(tape, found, a):
        step(role, op, words, *shape)
    words = f"softmax over the {a.axis}, in {a.softmax_dtype}"
    words += f", with {a.extra} more score(s) that no key has" if a.extra else ""
    step("softmax", found.softmax, words, *shape)
    step("mix", found.second.op, "weights times value", "B H L D", *a.output.shape)
    if merged.value.op is not found.second.op:
        columns = a.features.output
        words = "heads merged" + ("" if columns is None else f": {_columns(columns)}")
        step("merge", merged.value.op, words, "", *merged.value.shape)
    for op in merged.value.users:
        if op.name == "linear" or product_of(op):
            step("output", op, f"output: {_names(op)}", "", *op.out.shape, own=False)
            for add in (u for u in op.out.users if u.name == "add" and len(u.inputs) == 2):
                step("residual", add, "the input is added", "", *add.out.shape, own=False)


def _origins(value: Value) -> list[Op]:
    """Return what computed an operand: a projection, and a norm after it."""
    ops: list[Op] = []
    while len(ops) < 2:
        made = (v.op for v in search(value, nearby) if v.op)
        op = next((op for op in made if op.name in BARRIERS or product_of(op)), None)
        ops = [op, *ops] if op else ops
        if op is None or "norm" not in op.name:
            break
        value = op.inputs[0]
    return ops


def _names(op: Op) -> str:
    """Name the parameters that an operation takes."""
    near = (v for i in op.inputs if not i.from_input for v in search(i, nearby))
    return " and ".join(dict.fromkeys(v.name for v in near if v.name))


def _last_scale(tape: Tape, found: Found, a: Attention) -> Op | None:
    ops = between(tape, found.first.op.out, found.scores)
    return next((op for op in ops if op.name in ("mul", "div")), None)


def _added(tape: Tape, found: Found, a: Attention) -> list[tuple[Op, str, str]]:
    """Return what is done to the scores besides the factor: what hides, and what is added."""
    steps = []
    path = between(tape, found.first.op.out, found.scores)
    reached = {found.first.op.out, *(v for op in path for v in op.outputs)}
    for op in path:
        if op.name in KEEPS | {"mul", "div", "sub", "amax", "max"}:
            continue
        others = [v for v in op.inputs if v not in reached]
        names = [v.name for other in others for v in search(other, nearby) if v.op is None]
        source = " and ".join(dict.fromkeys(filter(None, names)))
        low = any(o.tensor.numel() and float(o.numbers.double().min()) <= HIDDEN for o in others)
        hides = a.hidden is not None and (op.name != "add" or low)
        words = f"added: {a.bias_words or 'nothing'}"
        words = f"hidden: {a.mask_words}, by {a.fill:g}" if hides else words
        words += f" (from {source})" if source else ""
        steps.append((op, "mask" if hides else "bias", words))
    return steps


def _columns(columns: Tensor) -> str:
    """Say which columns make each head.

    Example:
        >>> _columns(torch.arange(6).reshape(3, 2))
        'head h has columns 2h to 2h + 1'
    """
    n, wide = columns.shape
    start, step = int(columns[0, 0]), int(columns[1, 0] - columns[0, 0]) if n > 1 else 0
    along = int(columns[0, 1] - columns[0, 0]) if wide > 1 else 1
    plain = start + step * torch.arange(n)[:, None] + along * torch.arange(wide)
    if not torch.equal(columns, plain):
        return "columns in another order"
    first = " + ".join(filter(None, (f"{step}h" if n > 1 else "", str(start) if start else "")))
    last = " + ".join(filter(None, (f"{step}h" if n > 1 else "", str(start + along * (wide - 1)))))
    by = f", every {along}th" if along != 1 else ""
    return f"head h has columns {first or '0'} to {last}{by}"
