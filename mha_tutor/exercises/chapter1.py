"""Exercises of chapter 1, *Split y = Ax into heads*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mha_tutor.exercises._exercise import Case, Exercise, Wrong, draw, truth
from mha_tutor.heads import head_columns, head_rows, merge_heads, split_heads

__all__ = ["head_shares", "one_head", "one_suffices", "recover_tables"]

FLOAT32_TOL = 1e-3  # of tables that come from a system solved in float32

X = torch.arange(48, dtype=torch.float64, device="cpu").reshape(2, 4, 6)  # the running example
W = torch.tensor(
    [
        [1, 0, 2, 0, 0, 1],
        [0, 1, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 1, 2, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [2, 0, 1, 0, 1, 1],
    ],
    dtype=torch.float64,
    device="cpu",
)  # the matrix of the chapter


def _rank(x: Tensor) -> int:
    return int(torch.linalg.matrix_rank(x))


def _layer(tables: Tensor, embed_dim: int) -> Callable[[Tensor], Tensor]:
    """Return a function that mixes each slice of the features by its own table.

    It answers in the dtype of its input, and in float64 where that is whole numbers.
    """
    num_heads, length, _ = tables.shape

    def layer(x: Tensor) -> Tensor:
        if x.shape[-2:] != (length, embed_dim):
            shape = f"(…, {length}, {embed_dim})"
            raise ValueError(f"the layer takes a tensor of shape {shape}, got {tuple(x.shape)}")
        mixed = merge_heads(tables.to(x.device) @ split_heads(x.double(), num_heads))
        return mixed.to(x.dtype) if x.is_floating_point() else mixed

    return layer


def _slices(heads: Tensor, w: Tensor, cut: Callable[[int, int], slice]) -> Tensor:
    """Give each head a slice of the columns, one after the other."""
    num_heads, head_dim = heads.shape[1], heads.shape[-1]
    return torch.stack([heads[:, h] @ w[:, cut(h, head_dim)].T for h in range(num_heads)], dim=1)


def _own(w: Tensor, num_heads: int, h: int) -> slice:
    head_dim = w.shape[0] // num_heads
    return slice(h * head_dim, (h + 1) * head_dim)


one_head = Exercise(
    task="One head: `one_head(X, W, num_heads, h)`, (B, L, E_in), (E, E_in) → (B, L, D).",
    cases=[
        Case("for head 1 of the running example, with the chapter's W,", (X, W, 3, 1)),
        Case(
            "for head 3 of 4, with X (2, 5, 7) and W (12, 7),",
            (draw(2, 5, 7), draw(12, 7, seed=1), 4, 3),
        ),
    ],
    right=lambda x, w, H, h: x @ head_rows(w, H)[h].T,
    mistakes={
        "this cuts W by its columns. Output features are rows of W, as torch stores it: "
        "(out, in).": lambda x, w, H, h: x @ w[:, _own(w, H, h)],
        "this is a term of reading (a): columns of W, and a slice of X to match. In reading "
        "(b) a head sees all features.": lambda x, w, H, h: (
            x[..., _own(w, H, h)] @ w[:, _own(w, H, h)].T
        ),
        "this gives head 1 a slice of X only. In reading (b) a head sees all features.": (
            lambda x, w, H, h: x[..., _own(w, H, h)] @ w[_own(w, H, h), _own(w, H, h)].T
        ),
        "this takes every third row of W. A head owns D neighboring rows.": lambda x, w, H, h: (
            x @ w[h::H].T
        ),
        "this takes blocks of H rows. A head owns D = E // H rows.": lambda x, w, H, h: (
            x @ w[h * H : (h + 1) * H].T
        ),
        "this starts at row h. Head h starts at row h * D.": lambda x, w, H, h: (
            x @ w[h : h + len(w) // H].T
        ),
        "heads are counted from 0; this is head 0.": lambda x, w, H, h: x @ w[_own(w, H, h - 1)].T,
        "this is a slice of X, not yet projected.": lambda x, w, H, h: x[..., _own(w, H, h)],
        "these are all heads side by side; return head h alone.": lambda x, w, H, h: x @ w.T,
        "the axes D and L are exchanged: a row of the result is a token.": lambda x, w, H, h: (
            w[_own(w, H, h)] @ x.mT
        ),
    },
    praise="Your head is that of split_heads(X @ W.T, H).",
)


def _one_tensor(got: Any, when: str) -> Any:
    if isinstance(got, list | tuple):
        raise Wrong("the shares come one by one; torch.stack(…, dim=1) makes one tensor of them.")
    return got


def _shares(heads: Tensor, w: Tensor) -> Tensor:
    return heads @ head_columns(w, heads.shape[1]).mT


head_shares = Exercise(
    task="Tell the heads' shares: `head_shares(heads, W)`, (B, H, L, D), (O, H·D) → (B, H, L, O).",
    cases=[
        Case("for the running example in 3 heads, with the chapter's W,", (split_heads(X, 3), W)),
        Case(
            "for heads of shape (2, 5, 7, 3) and W (11, 15),",
            (draw(2, 5, 7, 3), draw(11, 15, seed=1)),
        ),
    ],
    right=_shares,
    mistakes={
        "these are already added up. Keep the axis of the heads, after B.": lambda heads, w: (
            _shares(heads, w).sum(dim=1)
        ),
        "this cuts W by its rows. A head writes through columns of W: they are the input "
        "features, as torch stores it.": lambda heads, w: heads @ head_rows(w, heads.shape[1]),
        "this cuts W in the order of memory. W.reshape(H, O, D) has the right shape, but its "
        "blocks are rows of W, re-cut; take columns.": lambda heads, w: (
            heads @ w.reshape(heads.shape[1], len(w), -1).mT
        ),
        "this gives head h every third column. Its columns are h * D to (h + 1) * D - 1.": (
            lambda heads, w: _slices(heads, w, lambda h, D: slice(h, None, heads.shape[1]))
        ),
        "the axis of the heads comes first; put it after B.": lambda heads, w: _shares(
            heads, w
        ).transpose(0, 1),
        "the axis of the heads stands after L; put it after B.": lambda heads, w: _shares(
            heads, w
        ).transpose(1, 2),
        "the axis of the heads comes last; put it after B.": lambda heads, w: _shares(
            heads, w
        ).movedim(1, -1),
        "the same block of W is used for every head.": lambda heads, w: _slices(
            heads, w, lambda h, D: slice(0, D)
        ),
        "these are averages; heads are added, with no 1 / H.": lambda heads, w: (
            _shares(heads, w) / heads.shape[1]
        ),
    },
    praise="Added up, your shares are merge_heads(heads) @ W.T.",
    read=_one_tensor,
)

SEQ = X[0]
TURNED = torch.cat([SEQ.roll(h + 1, 0)[:, 2 * h : 2 * h + 2] for h in range(3)], dim=1)
TWICE = draw(7, 2)[:, [0, 1, 1]]  # seven tokens, three features, two of them equal

one_suffices = Exercise(
    task="Decide whether A @ X = Y for some A: `one_suffices(X, Y)`, (L, E) twice → True or False.",
    cases=[
        Case(when, pair)
        for when, pair in {
            "for the X and the Y of the chapter": (SEQ, TURNED),
            "for the running example, mixed by a random A,": (SEQ, draw(4, 4) @ SEQ),
            "for the running example with two rows exchanged": (SEQ, SEQ[[1, 0, 2, 3]]),
            "for six one-hot tokens and a random Y": (torch.eye(6).to(SEQ), draw(6, 6)),
            "for seven tokens with three independent features": (draw(7, 3), draw(7, 3, seed=1)),
            "for seven tokens with two equal features of three": (TWICE, draw(7, 3, seed=1)),
            "for a Y = X @ W that has its features mixed": (draw(3, 5), draw(3, 5) @ draw(5, 5)),
            "for the running example with its features mixed by a random W,": (
                SEQ,
                SEQ @ draw(6, 6),
            ),
            "for a Y of rank 1": (SEQ, draw(4, 1) @ draw(1, 6, seed=1)),
        }.items()
    ],
    right=lambda x, y: _rank(torch.cat([x, y])) == _rank(x),
    mistakes={
        "this asks whether the tokens of X are independent, and never looks at Y. Dependent "
        "tokens reach some Y, and independent ones need not reach all.": lambda x, y: (
            _rank(x) == x.shape[0]
        ),
        "this asks for X @ W = Y, a matrix on features. A stands on the left and mixes "
        "rows.": lambda x, y: bool(_rank(torch.cat([x, y], dim=1)) == _rank(x)),
        "this asks whether all features of X are independent. Then one A reaches every Y. "
        "Here only this Y is asked for.": lambda x, y: bool(_rank(x) == x.shape[1]),
        "this counts tokens. Features can depend on each other with any number of "
        "tokens.": lambda x, y: x.shape[0] >= x.shape[1],
        "the rank of A @ X is at most that of X, but a Y of small rank can be out of reach "
        "too.": lambda x, y: bool(_rank(y) <= _rank(x)),
        "equal ranks of X and Y are neither needed nor enough.": lambda x, y: bool(
            _rank(y) == _rank(x)
        ),
        "the best A is right, the comparison too strict: floating-point numbers are rounded, "
        "so use torch.allclose.": lambda x, y: torch.equal(y @ torch.linalg.pinv(x) @ x, y),
    },
    praise="Your rule is right on nine pairs X, Y.",
    read=truth,
)


def _probed(function: Callable[..., Any], tables: Tensor, embed_dim: int) -> Any:
    """Ask for the tables of a layer; take float32 ones that are right up to rounding."""
    got = function(_layer(tables, embed_dim), tables.shape[1], embed_dim, len(tables))
    if isinstance(got, Tensor) and got.dtype == torch.float32 and got.shape == tables.shape:
        near = torch.allclose(got.detach().cpu().double(), tables, rtol=0, atol=FLOAT32_TOL)
        return tables if near else got
    return got


def _after(change: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """Read the tables rightly, then change them: a mistake as a rule on layers."""

    def rule(layer: Callable, length: int, embed_dim: int, num_heads: int) -> Tensor:
        probes = torch.eye(length, dtype=torch.float64)[:, :, None]
        out = layer(probes.expand(length, length, embed_dim))
        return change(out.permute(2, 1, 0), embed_dim // num_heads)  # (j, t, s)

    return rule


recover_tables = Exercise(
    task="Recover A: `recover_tables(layer, length, embed_dim, num_heads)` → (H, L, L).",
    cases=[
        Case("for a layer of 3 heads, 4 tokens and 6 features", (draw(3, 4, 4), 6), _probed),
        Case(
            "for a layer of 2 heads, 7 tokens and 10 features", (draw(2, 7, 7, seed=1), 10), _probed
        ),
    ],
    right=_after(lambda tables, D: tables[::D]),
    mistakes={
        "the tables are transposed: A[h, t, s] is what output token t takes of input token s.": (
            _after(lambda tables, D: tables[::D].mT)
        ),
        "this reads features 0, 1 and 2. Feature h * D is the first one of head h.": (
            _after(lambda tables, D: tables[: len(tables) // D])
        ),
        "this is the table of head 0 only.": _after(lambda tables, D: tables[:1]),
        "this is one table for all heads; each has its own.": _after(lambda tables, D: tables[0]),
        "this is head 0's table for every head; read a feature of each.": _after(
            lambda tables, D: tables[:1].expand(len(tables) // D, -1, -1)
        ),
        "this is the average of the tables.": _after(lambda tables, D: tables.mean(dim=0)),
        "this is a table for each feature. The D features of a head share theirs, so keep one of "
        "them.": _after(lambda tables, D: tables),
        "the axis of the heads comes last; put it first.": _after(
            lambda tables, D: tables[::D].movedim(0, -1)
        ),
        "the axis of the heads comes last, and the tables are transposed.": _after(
            lambda tables, D: tables[::D].permute(2, 1, 0)
        ),
        "these are the sums of the rows: all tokens were 1 at once. Probe with one token at a "
        "time.": _after(lambda tables, D: tables[::D].sum(dim=2)),
    },
    praise="You have found all tables, without seeing one.",
)
