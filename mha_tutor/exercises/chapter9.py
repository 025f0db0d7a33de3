"""Exercises of chapter 9, *Run fast on CPU and GPU*."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mha_tutor.exercises._exercise import Case, Exercise, Wrong, draw, whole

__all__ = ["blocks_to_compute", "online_attention", "table_bytes"]

# --- how large the table is -----------------------------------------------------------------------

table_bytes = Exercise(
    task="""Count the bytes of the scores: `table_bytes(batch, heads, queries, keys, dtype)`.""",
    cases=[
        Case(f"for B, H, L, S = {sizes} in {dtype}", (*sizes, dtype))
        for sizes, dtype in (
            ((1, 8, 4096, 4096), torch.float32),
            ((2, 3, 5, 7), torch.bfloat16),
            ((1, 1, 1, 100), torch.float64),
        )
    ],
    right=lambda B, H, L, S, dtype: B * H * L * S * dtype.itemsize,
    mistakes={
        "these are numbers, not bytes: multiply by dtype.itemsize.": lambda B, H, L, S, dtype: (
            B * H * L * S
        ),
        "this takes 4 bytes a number, whatever the dtype.": lambda B, H, L, S, dtype: (
            4 * B * H * L * S
        ),
        "this takes 2 bytes a number, whatever the dtype.": lambda B, H, L, S, dtype: (
            2 * B * H * L * S
        ),
        "this is one head's table; each head has its own.": lambda B, H, L, S, dtype: (
            B * L * S * dtype.itemsize
        ),
        "this is one sequence's table; each sequence of the batch has its own.": (
            lambda B, H, L, S, dtype: H * L * S * dtype.itemsize
        ),
        "this squares the number of queries; a table has L rows and S columns.": (
            lambda B, H, L, S, dtype: B * H * L * L * dtype.itemsize
        ),
        "these are bits; a byte has eight.": lambda B, H, L, S, dtype: (
            8 * B * H * L * S * dtype.itemsize
        ),
    },
    praise="8 heads of 4096 tokens in float32 make 512 MiB, for one sequence.",
    read=whole,
)

# --- which blocks a kernel may skip ---------------------------------------------------------------


def _blocks(length: int, block: int) -> int:
    n = math.ceil(length / block)
    return n * (n + 1) // 2


blocks_to_compute = Exercise(
    task="""Count the blocks that a causal kernel computes: `blocks_to_compute(length, block)`.

    Queries and keys are cut into blocks of `block`; the last may be shorter. A block of the table
    that is hidden whole is skipped.
    """,
    cases=[
        Case(f"for length {length} and block {block}", (length, block))
        for length, block in ((8, 2), (4096, 64), (10, 4), (3, 16))
    ],
    right=_blocks,
    mistakes={
        "these are all blocks; those above the diagonal are hidden whole.": lambda length, block: (
            math.ceil(length / block) ** 2
        ),
        "this leaves out the blocks on the diagonal. They are hidden in part, so they must be "
        "computed.": lambda length, block: (
            math.ceil(length / block) * (math.ceil(length / block) - 1) // 2
        ),
        "this drops the last, shorter block: round up.": lambda length, block: (
            (length // block) * (length // block + 1) // 2
        ),
        "these are pairs of a query and a key; asked for are blocks of them.": (
            lambda length, block: length * (length + 1) // 2
        ),
        "this is half of all blocks. The diagonal belongs to the computed half.": (
            lambda length, block: math.ceil(length / block) ** 2 // 2
        ),
        "this is the number of blocks in a row of the table.": lambda length, block: math.ceil(
            length / block
        ),
    },
    praise="(n + 1) / 2n of all blocks: half, if there are many.",
    read=whole,
)

# --- a softmax that sees each key once ------------------------------------------------------------


def _online(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block: int,
    *,
    total_in: torch.dtype | None = torch.float32,
    mixed_in: torch.dtype | None = torch.float32,
    rescale: tuple[bool, bool] = (True, True),
    divide: bool = True,
    scale: bool = True,
    cut: bool = False,
    first_max: bool = False,
) -> Tensor:
    """Attend block by block; the options break it."""
    wide = torch.promote_types(query.dtype, torch.float32)
    total_in = query.dtype if total_in is None else wide
    mixed_in = query.dtype if mixed_in is None else wide
    q = query.to(wide) / (math.sqrt(query.shape[-1]) if scale else 1)
    top = torch.full((*query.shape[:-1], 1), -math.inf, dtype=wide)
    total = torch.zeros_like(top).to(total_in)
    mixed = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=mixed_in)
    stop = key.shape[-2] // block * block if cut else key.shape[-2]
    for start in range(0, stop, block):
        k, v = (x[..., start : min(start + block, stop), :].to(wide) for x in (key, value))
        scores = q @ k.mT
        new = top if first_max and start else torch.maximum(top, scores.amax(-1, keepdim=True))
        shrink = (top - new).exp()
        e = (scores - new).exp()
        total = (total * (shrink if rescale[0] else 1) + e.sum(-1, keepdim=True)).to(total_in)
        mixed = (mixed * (shrink if rescale[1] else 1) + e @ v).to(mixed_in)
        top = new
    return (mixed / total if divide else mixed).to(query.dtype)


def _many_equal(length: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """Return keys that are all alike: the total of their exps is their number."""
    value = (torch.arange(length) >= length // 3).to(dtype)[:, None]
    return torch.zeros(1, 2, dtype=dtype), torch.zeros(length, 2, dtype=dtype), value, 1


def _to_two_digits(function: Any, *inputs: Any) -> Any:
    """Compare an answer in half precision to two digits; its type is asked for, too."""
    got = function(*inputs)
    if not isinstance(got, Tensor):
        return got
    if got.dtype != inputs[0].dtype:
        raise Wrong(f"for inputs in {inputs[0].dtype} it returns {got.dtype}; keep the type.")
    return (got.double() * 100).round() / 100


_QKV = draw(2, 5, 4), draw(2, 7, 4, seed=1) * 3, draw(2, 7, 3, seed=2)

online_attention = Exercise(
    task="""Attend block by block: `attention(query, key, value, block)`, seeing each key once.

    (…, L, D), (…, S, D), (…, S, V), keys to a block → (…, L, V), in the dtype of the query.
    """,
    cases=[
        Case("for 7 keys, 7 a block,", (*_QKV, 7)),
        Case("for 7 keys, one a block,", (*_QKV, 1)),
        Case("for 7 keys, 3 a block,", (*_QKV, 3)),
        Case("for scores that differ by thousands", (_QKV[0] * 1e3, *_QKV[1:], 2)),
        Case("for 768 equal keys in bfloat16", _many_equal(768, torch.bfloat16), _to_two_digits),
    ],
    right=_online,
    mistakes={
        "the scores are not divided by √D.": lambda *a: _online(*a, scale=False),
        "the mixture is not divided by the total.": lambda *a: _online(*a, divide=False),
        "when a higher score comes, the mixture must shrink, too: multiply it by "
        "exp(old highest − new highest).": lambda *a: _online(*a, rescale=(True, False)),
        "when a higher score comes, the total must shrink, too: multiply it by "
        "exp(old highest − new highest).": lambda *a: _online(*a, rescale=(False, True)),
        "when a higher score comes, total and mixture must both shrink, by "
        "exp(old highest − new highest).": lambda *a: _online(*a, rescale=(False, False)),
        "the last, shorter block is dropped.": lambda *a: _online(*a, cut=True),
        "the highest score of the first block is kept to the end. Later scores overflow; keep the "
        "highest so far.": lambda *a: _online(*a, first_max=True),
        "in bfloat16 the running total stands still at 256: 256 + 1 = 256 there. Keep it in "
        "float32.": lambda *a: _online(*a, total_in=None),
        "in bfloat16 the running mixture stands still at 256: 256 + 1 = 256 there. Keep it in "
        "float32, like the total.": lambda *a: _online(*a, mixed_in=None),
        "in bfloat16 total and mixture stand still at 256: 256 + 1 = 256 there. Keep both in "
        "float32.": lambda *a: _online(*a, total_in=None, mixed_in=None),
    },
    praise="Every key is seen once, and 768 ones add up to 768.",
)
