"""Read an einsum spec: the role of each letter, what it costs, the loop it stands for.

The door is `explain_einsum`. Below it the spec is parsed, then written as code, then shown.
"""

from __future__ import annotations

import html
import math
import operator
import re
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mha_tutor.figures.einsum import einsum_figure
from mha_tutor.figures.figure import MOST_PANELS

__all__ = ["EinsumExplanation", "Letter", "explain_einsum"]

MAX_LETTERS = 20  # Python compiles at most 20 nested loops
MAX_STEPS = 10_000_000  # several seconds of Python

Operand = torch.Tensor | np.ndarray | Sequence[int]
Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Letter:
    """One letter of a spec: its role (batch, kept or summed), its size, and who uses it."""

    name: str
    role: str
    size: int
    used_by: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class EinsumExplanation:
    """What an einsum spec means for operands of given shapes; made by `explain_einsum`.

    Attributes:
        spec: the spec as it was given.
        full_spec: the same with its output, and with letters for the axes under each `...`.
        letters: one `Letter` for each loop, from the outermost to the innermost.
        shapes: the shape of each operand.
        output_shape: the shape of the result.
        dtype: of the operands; float32 where only shapes were given.
        output_dtype: of the result: int64 where one operand of integers is summed, as in torch.
        flops: what `loop_code` computes. Two operands: 2 × the product of all sizes, a multiply
            and an add at each step. k operands: k × that product (k - 1 multiplies and an add);
            `torch.einsum` contracts them two at a time, and its count may differ. One operand:
            one add at each step, and 0 where nothing is summed.
        bytes: the operands and the result, each counted once.
        loop_code: NumPy code that computes `out` from `x0`, `x1`, …: what the spec means.
        matmul_code: torch code that computes `out` with one matrix product, or None.
        no_matmul: why `matmul_code` is None; empty where it is not.
        notes: what else there is to know: axes under `...`, stretched axes, assumptions.
    """

    spec: str
    full_spec: str
    letters: tuple[Letter, ...]
    shapes: tuple[tuple[int, ...], ...]
    output_shape: tuple[int, ...]
    dtype: torch.dtype
    output_dtype: torch.dtype
    flops: int
    bytes: int
    loop_code: str
    matmul_code: str | None
    no_matmul: str
    notes: tuple[str, ...]
    _operands: tuple[torch.Tensor, ...] = field(compare=False)

    def run_loop(self) -> np.ndarray:
        """Run `loop_code` on NumPy copies of the operands; all floats become float64.

        Raises:
            ValueError: an operand is only a shape, or the loop has over ten million steps.
        """
        self._check_numbers("run_loop")
        steps = math.prod(letter.size for letter in self.letters)
        if steps > MAX_STEPS:
            raise ValueError(f"the loop has {steps:,} steps; run_loop takes at most {MAX_STEPS:,}")
        copies = [x.cpu().to(_loop_dtype(x.dtype)) for x in self._operands]
        return _run(self.loop_code, [x.numpy(force=True) for x in copies])

    def run_matmul(self) -> torch.Tensor:
        """Run `matmul_code` on the operands.

        Raises:
            ValueError: an operand is only a shape, or there is no `matmul_code`.
        """
        self._check_numbers("run_matmul")
        if self.matmul_code is None:
            raise ValueError(f"{self.spec!r} is not one matmul: {self.no_matmul}")
        return _run(self.matmul_code, self._operands)

    def _check_numbers(self, method: str) -> None:
        for i, x in enumerate(self._operands):
            if x.is_meta:
                raise ValueError(f"{method} needs numbers, but operand {i} is only a shape")

    def __repr__(self) -> str:
        matmul = self.matmul_code or f"none: {self.no_matmul}"
        parts = [self.spec, *map(_text_table, _tables(self).values())]
        if self.notes:
            parts.append("\n".join(f"Note: {note}." for note in self.notes))
        parts.append(f"As a loop:\n{_indented(self.loop_code)}")
        parts.append(f"As a matmul:\n{_indented(matmul)}")
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        matmul = f"<pre>{self.matmul_code}</pre>" if self.matmul_code else f"none: {self.no_matmul}"
        parts = [f"<p><code>{html.escape(self.spec)}</code></p>"]
        parts += [_html_table(caption, rows) for caption, rows in _tables(self).items()]
        parts += [f"<p>Note: {note}.</p>" for note in self.notes]
        parts.append(f"<div>As a loop:<pre>{self.loop_code}</pre></div>")
        parts.append(f"<div>As a matmul: {matmul}</div>")
        if all(letter.size for letter in self.letters) and len(self.shapes) < MOST_PANELS:
            parts.append(einsum_figure(self.full_spec, self._operands).html())
        return '<div style="overflow-x: auto">\n' + "\n".join(parts) + "\n</div>"


def explain_einsum(spec: str, *operands: Operand) -> EinsumExplanation:
    """Tell what `torch.einsum(spec, *operands)` computes, letter by letter.

    Where a letter stands gives its role. *batch*: in every operand and in the output. *kept*:
    in the output, and in only some operands or the only one. *summed*: not in the output.

    Args:
        spec: such as `"nqhd,nkhd->nhqk"`; repeated letters, `...`, a left-out output and axes
            of size 1 that are stretched mean what they mean in torch.
        *operands: torch tensors, NumPy arrays, or shapes as tuples. A shape counts as float32,
            and what needs numbers is refused.

    Returns:
        An `EinsumExplanation`: print it, show it in a notebook, or use its attributes.

    Raises:
        TypeError: an argument is of another type, or the operands' dtypes differ.
        ValueError: the spec is malformed or does not fit the shapes.

    Example:
        >>> scores = explain_einsum("nqhd,nkhd->nhqk", (2, 5, 3, 11), (2, 7, 3, 11))
        >>> scores.output_shape, scores.flops
        ((2, 3, 5, 7), 4620)
        >>> {letter.name: letter.role for letter in scores.letters}
        {'n': 'batch', 'h': 'batch', 'q': 'kept', 'k': 'kept', 'd': 'summed'}
        >>> print(scores.matmul_code)
        left = x0.transpose(1, 2)         # n h q d
        right = x1.permute(0, 2, 3, 1)    # n h d k
        out = left @ right                # n h q k
        >>> explain_einsum("ij,ij->i", np.ones((2, 3)), np.ones((2, 3))).run_loop()
        array([3., 3.])
    """
    tensors = tuple(_tensor(i, x) for i, x in enumerate(operands))
    s = _parse(spec, [tuple(x.shape) for x in tensors])
    dtype = tensors[0].dtype
    if any(x.dtype != dtype for x in tensors):
        given = ", ".join(_name(x.dtype) for x in tensors)
        raise TypeError(f"operands must share one dtype (a shape counts as float32), got {given}")
    is_sum = len(tensors) == 1 and len(s.output) < len(s.sizes)
    is_exact = not dtype.is_floating_point and not dtype.is_complex
    output_dtype = torch.int64 if is_sum and is_exact else dtype
    flops_per_step = len(tensors) if len(tensors) > 1 else int(is_sum)
    output_shape = tuple(s.sizes[name] for name in s.output)
    matmul_code, no_matmul = _matmul_code(s)
    return EinsumExplanation(
        spec=spec,
        full_spec=",".join(s.terms) + "->" + s.output,
        letters=s.letters(),
        shapes=tuple(s.shapes),
        output_shape=output_shape,
        dtype=dtype,
        output_dtype=output_dtype,
        flops=flops_per_step * math.prod(s.sizes.values()),
        bytes=sum(x.nbytes for x in tensors) + math.prod(output_shape) * output_dtype.itemsize,
        loop_code=_loop_code(s, _loop_dtype(output_dtype)),
        matmul_code=matmul_code,
        no_matmul=no_matmul,
        notes=tuple(_notes(s, [x.is_meta for x in tensors], dtype)),
        _operands=tensors,
    )


def _tensor(i: int, operand: Operand) -> torch.Tensor:
    """Return a tensor, of device "meta" (no numbers) for a shape."""
    if isinstance(operand, torch.Tensor):
        return operand
    if isinstance(operand, np.ndarray):
        try:
            return torch.from_numpy(operand.copy())
        except (TypeError, ValueError):
            raise TypeError(f"operand {i} has dtype {operand.dtype}, unknown to torch") from None
    if not isinstance(operand, tuple | list):
        raise TypeError(
            f"operand {i} must be a torch tensor, a NumPy array or a tuple or list of sizes, "
            f"got {type(operand).__name__}"
        )
    # Any integer will do, NumPy's too; True and False count nothing.
    if not all(hasattr(n, "__index__") and not isinstance(n, bool) and n >= 0 for n in operand):
        raise ValueError(f"operand {i}: a shape holds integers of 0 or more, got {operand}")
    return torch.empty([operator.index(n) for n in operand], dtype=torch.float32, device="meta")


# --- Parse --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spec:
    terms: list[str]  # the letters of each operand's axes
    output: str
    hidden: str  # the letters given to the axes under "..."
    shapes: list[tuple[int, ...]]
    sizes: dict[str, int]

    def axes(self, i: int) -> list[tuple[str, int]]:
        return list(zip(self.terms[i], self.shapes[i], strict=True))

    def letters(self) -> tuple[Letter, ...]:
        users = {f"x{i}": term for i, term in enumerate(self.terms)} | {"out": self.output}
        order = dict.fromkeys([*self.output, *self.sizes])
        used_by = {name: tuple(user for user in users if name in users[user]) for name in order}
        return tuple(Letter(n, self._role(n), self.sizes[n], used_by[n]) for n in order)

    def _role(self, name: str) -> str:
        if name not in self.output:
            return "summed"
        is_batch = len(self.terms) > 1 and all(name in term for term in self.terms)
        return "batch" if is_batch else "kept"


def _parse(spec: str, shapes: list[tuple[int, ...]]) -> _Spec:
    if not isinstance(spec, str):
        raise TypeError(f"spec must be a string such as 'ij,jk->ik', got {type(spec).__name__}")
    inputs, arrow, output = spec.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:  # torch's rule: "...", then every letter used once, capitals first
        once = [name for name in inputs if name.isalpha() and inputs.count(name) == 1]
        output = "..." * ("..." in inputs) + "".join(sorted(once))
    _check_spelling(spec, terms, output)
    if len(terms) != len(shapes):
        raise ValueError(f"spec {spec!r} has {len(terms)} operand(s), but {len(shapes)} were given")
    counts = [_hidden_axes(i, terms[i], shape) for i, shape in enumerate(shapes)]
    free = [name for name in string.ascii_uppercase if name not in spec]
    hidden = "".join(free[: max(counts)])
    if len({*filter(str.isalpha, inputs), *hidden}) > MAX_LETTERS:
        raise ValueError(
            f"spec {spec!r} has over {MAX_LETTERS} axes, and Python nests no more loops"
        )
    # axes under "..." align at the right: an operand with fewer of them lacks the first
    terms = [
        t.replace("...", hidden[len(hidden) - n :]) for t, n in zip(terms, counts, strict=True)
    ]
    return _Spec(terms, output.replace("...", hidden), hidden, shapes, _sizes(terms, shapes))


def _check_spelling(spec: str, terms: list[str], output: str) -> None:
    places = {f"operand {i}": term for i, term in enumerate(terms)} | {"the output": output}
    for place, term in places.items():
        if not re.fullmatch(r"[a-zA-Z]*(\.\.\.)?[a-zA-Z]*", term):
            raise ValueError(
                f"spec {spec!r}: {place}, {term!r}, is not letters and at most one '...'"
            )
    for name in output.replace(".", ""):
        if not any(name in term for term in terms):
            raise ValueError(f"spec {spec!r}: letter {name!r} of the output is in no operand")
        if output.count(name) > 1:
            raise ValueError(f"spec {spec!r}: letter {name!r} is in the output more than once")


def _hidden_axes(i: int, term: str, shape: tuple[int, ...]) -> int:
    """Return how many axes the "..." of operand i stands for."""
    named = len(term.replace("...", ""))
    if len(shape) < named or (len(shape) > named and "..." not in term):
        rule = f"{term!r} names {'at least ' * ('...' in term)}{named} axes"
        raise ValueError(f"operand {i}: {rule}, but shape {shape} has {len(shape)}")
    return len(shape) - named


def _sizes(terms: list[str], shapes: list[tuple[int, ...]]) -> dict[str, int]:
    """Return every letter's size; a 1 gives way to the size another operand has."""
    sizes: dict[str, int] = {}
    source: dict[str, int] = {}
    where = [f"in operand {i} ({terms[i]!r}, shape {shape})" for i, shape in enumerate(shapes)]
    for i, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        own: dict[str, int] = {}
        for name, size in zip(term, shape, strict=True):
            if own.setdefault(name, size) != size:
                raise ValueError(
                    f"letter {name!r} is both {own[name]} and {size} {where[i]}: a repeated letter "
                    "walks a diagonal, so its axes must be of one size"
                )
            known = sizes.get(name, 1)
            if known == 1:
                sizes[name], source[name] = size, i
            elif size not in (1, known):
                before = f"{known} {where[source[name]]}"
                raise ValueError(f"letter {name!r} is {before} but {size} {where[i]}")
    return sizes


# --- Write --------------------------------------------------------------------------------


def _loop_code(s: _Spec, dtype: torch.dtype) -> str:
    shape = tuple(s.sizes[name] for name in s.output)
    of_type = "" if dtype == torch.float64 else f', dtype="{_name(dtype)}"'
    lines = ["import numpy as np", "", f"out = np.zeros({shape}{of_type})"]
    for depth, letter in enumerate(s.letters()):
        loop = f"for {letter.name} in range({letter.size}):  # {letter.role}"
        lines.append("    " * depth + loop)
    factors = []
    for i in range(len(s.terms)):
        # a stretched axis has one entry, read again at every step
        index = [name if size == s.sizes[name] else "0" for name, size in s.axes(i)]
        factors.append(f"x{i}[{', '.join(index) or '()'}]")
    step = f"out[{', '.join(s.output) or '()'}] += {' * '.join(factors)}"
    return "\n".join([*lines, "    " * len(s.sizes) + step])


def _loop_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


def _matmul_code(s: _Spec) -> tuple[str | None, str]:
    """Return the code and an empty reason, or None and the reason."""
    if reason := _why_no_matmul(s):
        return None, reason
    first, second = s.terms
    batch = [name for name in s.output if name in first and name in second]
    rows = [name for name in s.output if name not in second]
    columns = [name for name in s.output if name not in first]
    inner = [name for name in first if name not in s.output]
    lines = [
        ("left = " + _arranged(s, 0, batch, rows, inner), _label(batch, rows, inner)),
        ("right = " + _arranged(s, 1, batch, inner, columns), _label(batch, inner, columns)),
        ("out = left @ right", _label(batch, rows, columns)),
    ]
    result = [*batch, *rows, *columns]
    if len(rows) != 1 or len(columns) != 1:
        split = _call("reshape", [s.sizes[name] for name in result])
        lines.append((f"out = out{split}", " ".join(result)))
    if move := _moved(result, s.output):
        lines.append((f"out = out{move}", " ".join(s.output)))
    width = max(len(code) for code, _ in lines)
    return "\n".join(f"{code:<{width}}    # {label or 'a number'}" for code, label in lines), ""


def _why_no_matmul(s: _Spec) -> str:
    if len(s.terms) != 2:
        return f"a matmul takes two operands, and here is {len(s.terms)}"
    for i, term in enumerate(s.terms):
        for name, size in s.axes(i):
            if term.count(name) > 1:
                return f"x{i} repeats {name}, and a matmul does not walk a diagonal"
            if name not in s.output and name not in s.terms[1 - i]:
                return f"{name} is summed but only in x{i}, so it is summed there before"
            if name not in s.output and size != s.sizes[name]:
                return f"{name} is summed and stretched, and a matmul stretches only batch axes"
    is_sum = len(s.output) < len(s.sizes)
    return "" if is_sum else "no letter is summed, so there are products but no sums of products"


def _arranged(s: _Spec, i: int, batch: list[str], rows: list[str], columns: list[str]) -> str:
    """Return code that brings operand i to the axes (*batch, rows, columns)."""
    code = f"x{i}" + _moved(s.terms[i], [*batch, *rows, *columns])
    if len(rows) == len(columns) == 1:
        return code
    size = dict(s.axes(i))
    merged = [math.prod(size[name] for name in group) for group in (rows, columns)]
    return code + _call("reshape", [*(size[name] for name in batch), *merged])


def _moved(before: Sequence[str], after: Sequence[str]) -> str:
    order = [before.index(name) for name in after]
    changed = [axis for axis, source in enumerate(order) if axis != source]
    if len(changed) == 2:
        return _call("transpose", changed)
    return _call("permute", order) if changed else ""


def _call(method: str, numbers: Iterable[int]) -> str:
    return f".{method}({', '.join(map(str, numbers)) or '()'})"


def _label(batch: list[str], rows: list[str], columns: list[str]) -> str:
    merged = [g[0] if len(g) == 1 else f"({' '.join(g)})" if g else "1" for g in (rows, columns)]
    return " ".join([*batch, *merged])


def _run(code: str, operands: Sequence[np.ndarray] | Sequence[torch.Tensor]):
    names = {f"x{i}": x for i, x in enumerate(operands)}
    exec(code, names)
    return names["out"]


# --- Show ---------------------------------------------------------------------------------


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _notes(s: _Spec, shape_only: list[bool], dtype: torch.dtype) -> Iterator[str]:
    if s.hidden:
        yield f"the axes under ... are named {', '.join(s.hidden)}"
    for i in range(len(s.terms)):
        for name, size in dict(s.axes(i)).items():
            if size != s.sizes[name]:
                yield f"{name} is 1 in x{i} and is stretched to {s.sizes[name]}, as in torch"
    if any(shape_only):
        which = ", ".join(f"x{i}" for i, only in enumerate(shape_only) if only)
        yield f"of {which} only the shape is known: bytes assume {_name(dtype)}, nothing can be run"
    if len(s.terms) > 2:
        yield "FLOPs are the loop's; torch contracts two operands at a time, its count may differ"


def _tables(e: EinsumExplanation) -> dict[str, Rows]:
    """Return each table's rows under its caption; the first row is the header."""
    users = [*(f"x{i}" for i in range(len(e.shapes))), "out"]
    terms = map(" ".join, e.full_spec.replace("->", ",").split(","))
    shapes = [*e.shapes, e.output_shape]
    dtypes = [*(e.dtype for _ in e.shapes), e.output_dtype]
    traffic = [math.prod(n) * t.itemsize for n, t in zip(shapes, dtypes, strict=True)]
    columns = (users, terms, map(str, shapes), map(_name, dtypes))
    return {
        "Shapes": [("operand", "axes", "shape", "dtype"), *zip(*columns, strict=True)],
        "Letters": [
            ("letter", "role", "size", "used by"),
            *((x.name, x.role, str(x.size), _used_by(x, users)) for x in e.letters),
        ],
        "Cost": [
            ("cost", "number", "made of"),
            ("FLOPs", f"{e.flops:,}", _work(e)),
            ("bytes", f"{e.bytes:,}", " + ".join(f"{n:,}" for n in traffic)),
        ],
    }


def _used_by(letter: Letter, users: list[str]) -> str:
    return " ".join(user if user in letter.used_by else " " * len(user) for user in users)


def _work(e: EinsumExplanation) -> str:
    product = "·".join(str(letter.size) for letter in e.letters) or "1"
    k = len(e.shapes)
    if k > 1:
        multiplies = "a multiply" if k == 2 else f"{k - 1} multiplies"
        return f"{k} × {product}: {multiplies} and an add at each step of the loop"
    is_sum = any(letter.role == "summed" for letter in e.letters)
    return f"{product}: an add at each step" if is_sum else "numbers are moved, not computed"


def _text_table(rows: Rows) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _indented(code: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in code.split("\n"))


def _html_table(caption: str, rows: Rows) -> str:
    head, *body = rows
    lines = ["".join(f'<th scope="col">{cell}</th>' for cell in head)]
    for first, *rest in body:
        lines.append(f'<th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest))
    trs = "\n".join(f"<tr>{line}</tr>" for line in lines)
    style = 'style="text-align: left; margin-bottom: 1em"'
    return f"<table {style}>\n<caption {style}>{caption}</caption>\n{trs}\n</table>"
