"""Exercises of chapter 1, *Split y = Ax into heads*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mha_tutor.exercises._exercise import Wrong, agree, answer, draw, exercise, expect, truth
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


@exercise
def one_head(candidate: Any) -> str:
    """Project for one head: `one_head(X, W, num_heads, h)`, (B, L, E_in), (E, E_in) → (B, L, D)."""
    own = slice(2, 4)  # the two features of head 1
    expect(
        answer(candidate, X, W, 3, 1),
        X @ W[own].T,
        "for head 1 of the running example, with the chapter's W,",
        {
            "this cuts W by its columns. Output features are rows of W, as torch stores it: "
            "(out, in).": X @ W[:, own],
            "this is a term of reading (a): columns of W, and a slice of X to match. In reading "
            "(b) a head sees all features.": X[..., own] @ W[:, own].T,
            "this gives head 1 a slice of X only. In reading (b) a head sees all features.": X[
                ..., own
            ]
            @ W[own, own].T,
            "this takes every third row of W. A head owns D neighboring rows.": X @ W[1::3].T,
            "this takes blocks of H rows. A head owns D = E // H rows.": X @ W[3:6].T,
            "this starts at row h. Head h starts at row h * D.": X @ W[1:3].T,
            "heads are counted from 0; this is head 0.": X @ W[0:2].T,
            "this is a slice of X, not yet projected.": X[..., own],
            "these are all heads side by side; return head h alone.": X @ W.T,
            "the axes D and L are exchanged: a row of the result is a token.": W[own] @ X.mT,
        },
    )
    x, w = draw(2, 5, 7), draw(12, 7, seed=1)
    expect(
        answer(candidate, x, w, 4, 3),
        x @ w[9:].T,
        "for head 3 of 4, with X (2, 5, 7) and W (12, 7),",
    )
    return "Your head is that of split_heads(X @ W.T, H)."


@exercise
def head_shares(candidate: Any) -> str:
    """Tell the heads' shares: `head_shares(heads, W)`, (B, H, L, D), (O, H·D) → (B, H, L, O)."""
    heads = split_heads(X, 3)
    want = heads @ head_columns(W, 3).mT
    interleaved = torch.stack([heads[:, h] @ W[:, h::3].T for h in range(3)], dim=1)
    got = answer(candidate, heads, W)
    if isinstance(got, list | tuple):
        raise Wrong("the shares come one by one; torch.stack(…, dim=1) makes one tensor of them.")
    expect(
        got,
        want,
        "for the running example in 3 heads, with the chapter's W,",
        {
            "these are already added up. Keep the axis of the heads, after B.": want.sum(dim=1),
            "this cuts W by its rows. A head writes through columns of W: they are the input "
            "features, as torch stores it.": heads @ head_rows(W, 3),
            "this cuts W in the order of memory. W.reshape(H, O, D) has the right shape, but its "
            "blocks are rows of W, re-cut; take columns.": heads @ W.reshape(3, 6, 2).mT,
            "this gives head h every third column. Its columns are h * D to (h + 1) * D - "
            "1.": interleaved,
            "the axis of the heads comes first; put it after B.": want.transpose(0, 1),
            "the axis of the heads stands after L; put it after B.": want.transpose(1, 2),
            "the axis of the heads comes last; put it after B.": want.movedim(1, -1),
            "the same block of W is used for every head.": heads @ W[:, :2].T,
            "these are averages; heads are added, with no 1 / H.": want / 3,
        },
    )
    heads, w = draw(2, 5, 7, 3), draw(11, 15, seed=1)
    expect(
        answer(candidate, heads, w),
        heads @ head_columns(w, 5).mT,
        "for heads of shape (2, 5, 7, 3) and W (11, 15),",
    )
    return "Added up, your shares are merge_heads(heads) @ W.T."


@exercise
def one_suffices(candidate: Any) -> str:
    """Decide whether A @ X = Y for some A: `one_suffices(X, Y)`, (L, E) twice → True or False."""
    seq = X[0]
    turned = torch.cat([seq.roll(h + 1, 0)[:, 2 * h : 2 * h + 2] for h in range(3)], dim=1)
    twice = draw(7, 2)[:, [0, 1, 1]]  # seven tokens, three features, two of them equal
    agree(
        candidate,
        {
            "for the X and the Y of the chapter": (seq, turned),
            "for the running example, mixed by a random A,": (seq, draw(4, 4) @ seq),
            "for the running example with two rows exchanged": (seq, seq[[1, 0, 2, 3]]),
            "for six one-hot tokens and a random Y": (torch.eye(6).to(seq), draw(6, 6)),
            "for seven tokens with three independent features": (draw(7, 3), draw(7, 3, seed=1)),
            "for seven tokens with two equal features of three": (twice, draw(7, 3, seed=1)),
            "for a Y = X @ W that has its features mixed": (draw(3, 5), draw(3, 5) @ draw(5, 5)),
            "for the running example with its features mixed by a random W,": (
                seq,
                seq @ draw(6, 6),
            ),
            "for a Y of rank 1": (seq, draw(4, 1) @ draw(1, 6, seed=1)),
        },
        _one_suffices,
        truth,
        {
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
    )
    return "Your rule is right on nine pairs X, Y."


@exercise
def recover_tables(candidate: Any) -> str:
    """Recover A from outside: `recover_tables(layer, length, embed_dim, num_heads)` → (H, L, L)."""
    tables = draw(3, 4, 4)
    expect(
        _recovered(answer(candidate, _layer(tables, 6), 4, 6, 3), tables),
        tables,
        "for a layer of 3 heads, 4 tokens and 6 features",
        {
            "the tables are transposed: A[h, t, s] is what output token t takes of input token "
            "s.": tables.mT,
            "this reads features 0, 1 and 2. Feature h * D is the first one of head h.": tables[
                [0, 0, 1]
            ],
            "this is the table of head 0 only.": tables[:1],
            "this is one table for all heads; each has its own.": tables[0],
            "this is head 0's table for every head; read a feature of each.": tables[[0, 0, 0]],
            "this is the average of the tables.": tables.mean(dim=0),
            "this is a table for each feature. The D features of a head share theirs, so keep "
            "one of them.": tables.repeat_interleave(2, dim=0),
            "the axis of the heads comes last; put it first.": tables.movedim(0, -1),
            "the axis of the heads comes last, and the tables are transposed.": tables.permute(
                2, 1, 0
            ),
            "these are the sums of the rows: all tokens were 1 at once. Probe with one token at a "
            "time.": tables.sum(dim=2),
        },
    )
    other = draw(2, 7, 7, seed=1)
    expect(
        _recovered(answer(candidate, _layer(other, 10), 7, 10, 2), other),
        other,
        "for a layer of 2 heads, 7 tokens and 10 features",
    )
    return "You have found all tables, without seeing one."


def _recovered(got: Any, tables: Tensor) -> Any:
    """Take float32 tables for the right ones if they are, up to the rounding of a solver."""
    if isinstance(got, Tensor) and got.dtype == torch.float32 and got.shape == tables.shape:
        near = torch.allclose(got.detach().cpu().double(), tables, rtol=0, atol=FLOAT32_TOL)
        return tables if near else got
    return got


def _rank(x: Tensor) -> int:
    return int(torch.linalg.matrix_rank(x))


def _one_suffices(x: Tensor, y: Tensor) -> bool:
    return _rank(torch.cat([x, y])) == _rank(x)


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
