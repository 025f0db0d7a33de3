"""The checkers of chapter 1: right answers pass, known mistakes are told by name."""

import numpy as np
import pytest
import torch

from mha_tutor import exercises
from mha_tutor.exercises import chapter1 as split
from mha_tutor.heads import head_columns, head_rows, merge_heads, split_heads


def says(feedback, sentence):
    """The answer is refused, in these words."""
    assert not feedback
    assert sentence in repr(feedback), feedback
    return True


# --- one_head


def one_head(X, W, num_heads, h):
    D = W.shape[0] // num_heads
    return X @ W[h * D : (h + 1) * D].T


ONE_HEAD = {
    "slice": one_head,
    "package": lambda X, W, H, h: X @ head_rows(W, H)[h].T,
    "all_then_split": lambda X, W, H, h: split_heads(X @ W.T, H)[:, h],
    "linear": lambda X, W, H, h: torch.nn.functional.linear(X, W.chunk(H)[h]),
    "einsum": lambda X, W, H, h: torch.einsum("ble,de->bld", X, W.tensor_split(H)[h]),
}


@pytest.mark.parametrize("name", ONE_HEAD)
def test_one_head(name):
    assert exercises.one_head(ONE_HEAD[name])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda X, W, H, h: X @ head_columns(W, H)[h], "by its columns"),
        (lambda X, W, H, h: X @ W[:, 2 * h : 2 * h + 2], "by its columns"),
        (
            lambda X, W, H, h: split_heads(X, H)[:, h] @ head_columns(W, H)[h].T,
            "term of reading (a",
        ),
        (
            lambda X, W, H, h: (
                X[..., 2 * h : 2 * h + 2] @ W[2 * h : 2 * h + 2, 2 * h : 2 * h + 2].T
            ),
            "a slice of X only",
        ),
        (lambda X, W, H, h: X @ W[h::H].T, "every third row"),
        (lambda X, W, H, h: X @ W[h * H : (h + 1) * H].T, "blocks of H rows"),
        (lambda X, W, H, h: X @ W[h : h + 2].T, "starts at row h"),
        (lambda X, W, H, h: one_head(X, W, H, h - 1), "counted from 0"),
        (lambda X, W, H, h: split_heads(X, H)[:, h], "not yet projected"),
        (lambda X, W, H, h: X @ W.T, "all heads side by side"),
        (lambda X, W, H, h: one_head(X, W, H, h).mT, "exchanged"),
        (lambda X, W, H, h: X @ W[2 * h : 2 * h + 2].T, "for head 3 of 4, with X (2, 5, 7)"),
        (lambda X, W, H, h: one_head(X, W, H, h).long(), "torch.int64"),
        (lambda X, W, H, h: X @ W[h : h + 2], "raises RuntimeError"),
        (lambda X, W, H, h: one_head(X.mul_(1).add_(1), W, H, h), "in place"),
    ],
)
def test_one_head_wrong(wrong, sentence):
    assert says(exercises.one_head(wrong), sentence)


def test_one_head_is_not_the_number_of_the_example():
    answer = one_head(split.X, split.W, 3, 1)
    assert says(exercises.one_head(lambda *args: answer), "for head 3 of 4")


# --- head_shares


def head_shares(heads, W):
    H = heads.shape[1]
    parts = [heads[:, h] @ W.chunk(H, dim=1)[h].T for h in range(H)]
    return torch.stack(parts, dim=1)


def shares_with(block):
    """Cut W by `block(W, h, H, D)`."""

    def candidate(heads, W):
        _, H, _, D = heads.shape
        return torch.stack([heads[:, h] @ block(W, h, H, D).T for h in range(H)], dim=1)

    return candidate


SHARES = {
    "slices": head_shares,
    "package": lambda heads, W: heads @ head_columns(W, heads.shape[1]).mT,
    "einsum": lambda heads, W: torch.einsum(
        "bhld,ohd->bhlo", heads, W.unflatten(1, (heads.shape[1], -1))
    ),
}


@pytest.mark.parametrize("name", SHARES)
def test_head_shares(name):
    assert exercises.head_shares(SHARES[name])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda heads, W: head_shares(heads, W).sum(1), "already added up"),
        (lambda heads, W: merge_heads(heads) @ W.T, "already added up"),
        (lambda heads, W: heads @ head_rows(W, heads.shape[1]), "by its rows"),
        (lambda heads, W: heads @ W.reshape(3, 6, 2).mT, "order of memory"),
        (shares_with(lambda W, h, H, D: W[:, h::H]), "every third column"),
        (shares_with(lambda W, h, H, D: W[:, :D]), "the same block"),
        (shares_with(lambda W, h, H, D: W[:, h * D : (h + 1) * D] / H), "averages"),
        (lambda heads, W: head_shares(heads, W).transpose(0, 1), "comes first"),
        (lambda heads, W: head_shares(heads, W).transpose(1, 2), "after L"),
        (lambda heads, W: head_shares(heads, W).movedim(1, -1), "comes last"),
        (lambda heads, W: list(head_shares(heads, W).unbind(1)), "one by one"),
        (shares_with(lambda W, h, H, D: W[:, 2 * h : 2 * h + 2]), "(2, 5, 7, 3)"),
        (lambda heads, W: head_shares(heads, W).numpy(), "an ndarray, not a tensor"),
    ],
)
def test_head_shares_wrong(wrong, sentence):
    assert says(exercises.head_shares(wrong), sentence)


# --- one_suffices


def residual(X, Y):
    return torch.allclose(Y @ torch.linalg.pinv(X) @ X, Y)


def rank(x):
    return torch.linalg.matrix_rank(x)


def least_squares(X, Y):
    A = torch.linalg.lstsq(X.T, Y.T, driver="gelsd").solution.T
    return np.allclose((A @ X).numpy(), Y.numpy())


SUFFICES = {
    "rank": lambda X, Y: rank(torch.cat([X, Y])) == rank(X),
    "residual": residual,
    "least_squares": least_squares,
    "numpy": lambda X, Y: np.bool_(residual(X, Y)),
}


@pytest.mark.parametrize("name", SUFFICES)
def test_one_suffices(name):
    assert exercises.one_suffices(SUFFICES[name])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda X, Y: rank(torch.cat([X, Y], dim=1)) == rank(X), "X @ W = Y"),
        (lambda X, Y: torch.allclose(X @ torch.linalg.pinv(X) @ Y, Y), "X @ W = Y"),
        (lambda X, Y: rank(X) == len(X), "whether the tokens of X are independent"),
        (lambda X, Y: rank(X) == X.shape[1], "all features of X"),
        (lambda X, Y: len(X) >= X.shape[1], "counts tokens"),
        (lambda X, Y: rank(Y) <= rank(X), "at most that of X"),
        (lambda X, Y: rank(Y) == rank(X), "equal ranks"),
        (lambda X, Y: torch.equal(Y @ torch.linalg.pinv(X) @ X, Y), "too strict"),
        (lambda X, Y: True, "it returns True, whatever the input"),
        (lambda X, Y: not residual(X, Y), "for the X and the Y of the chapter it returns True"),
        (lambda X, Y: Y @ torch.linalg.pinv(X), "a Tensor; True or False"),
        (lambda X, Y: Y @ torch.linalg.inv(X), "raises"),
    ],
)
def test_one_suffices_wrong(wrong, sentence):
    assert says(exercises.one_suffices(wrong), sentence)


# --- recover_tables


def recover_tables(layer, length, embed_dim, num_heads):
    probes = torch.eye(length)[:, :, None].expand(length, length, embed_dim)
    out = layer(probes)  # (S, L, E)
    return out[..., :: embed_dim // num_heads].permute(2, 1, 0)


def by_loops(layer, length, embed_dim, num_heads):
    tables = torch.zeros(num_heads, length, length)  # float32: within the bounds
    for h in range(num_heads):
        for s in range(length):
            x = torch.zeros(length, embed_dim, dtype=torch.int64)
            x[s, h * embed_dim // num_heads] = 1
            tables[h, :, s] = layer(x)[:, h * embed_dim // num_heads]
    return tables


def by_least_squares(layer, length, embed_dim, num_heads):
    x = torch.randn(length, length, embed_dim, dtype=torch.float64)
    x, y = split_heads(x, num_heads), split_heads(layer(x), num_heads)
    x, y = (t.permute(1, 2, 0, 3).flatten(2) for t in (x, y))  # (H, L, examples)
    return y @ torch.linalg.pinv(x)


def by_lstsq(layer, length, embed_dim, num_heads, dtype=torch.float32):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(length, length, embed_dim, generator=gen, dtype=dtype)
    x, y = split_heads(x, num_heads), split_heads(layer(x), num_heads)
    x, y = (t.permute(1, 0, 3, 2).flatten(1, 2) for t in (x, y))  # (H, examples, L)
    return torch.linalg.lstsq(x, y).solution.mT


def by_lstsq_in_double(*args):
    return by_lstsq(*args, dtype=torch.float64)


@pytest.mark.parametrize(
    "right", [recover_tables, by_loops, by_least_squares, by_lstsq, by_lstsq_in_double]
)
def test_recover_tables(right):
    assert exercises.recover_tables(right)


def reads(features):
    """Read those features in place of the first one of each head."""

    def candidate(layer, length, embed_dim, num_heads):
        probes = torch.eye(length)[:, :, None].expand(length, length, embed_dim)
        return layer(probes)[..., features].permute(2, 1, 0)

    return candidate


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda *args: recover_tables(*args).mT, "are transposed"),
        (reads([0, 1, 2]), "features 0, 1 and 2"),
        (reads([0]), "head 0 only"),
        (lambda *args: recover_tables(*args)[0], "one table for all heads"),
        (reads([0, 0, 0]), "for every head"),
        (reads([0, 1, 2, 3, 4, 5]), "for each feature"),
        (lambda *args: recover_tables(*args).mean(0), "the average"),
        (lambda *args: recover_tables(*args).permute(1, 2, 0), "comes last; put it first"),
        (lambda *args: recover_tables(*args).permute(2, 1, 0), "comes last, and"),
        (lambda layer, L, E, H: layer(torch.ones(L, E))[:, :: E // H].T, "sums of the rows"),
        (lambda *args: by_lstsq(*args) + 0.01, "the numbers are not"),
        (reads([0, 2, 4]), "for a layer of 2 heads, 7 tokens"),
        (lambda layer, L, E, H: layer(torch.eye(L)), "the layer takes a tensor of shape (…, 4, 6)"),
        (lambda layer, L, E, H: layer(torch.zeros(L, E)), "the shape is (4, 6)"),
    ],
)
def test_recover_tables_wrong(wrong, sentence):
    assert says(exercises.recover_tables(wrong), sentence)


def test_nothing_changes_random_numbers_or_settings():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        assert exercises.recover_tables(by_least_squares)
        assert exercises.one_suffices(residual)
        assert exercises.one_head(one_head)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(3), expected)
