"""Chapter 1: what it says of all sizes."""

import torch
from hypothesis import strategies as st
from torch.testing import assert_close

from mha_tutor import (
    draw,
    head_columns,
    head_rows,
    merge_heads,
    scaled_dot_product_attention,
    split_heads,
)

from .ledger import claim

F64 = torch.float64
SEED = {"seed": st.integers(0, 999)}
CUT = {"H": st.integers(1, 5), "D": st.integers(1, 4), **SEED}
ROWS = {"L": st.integers(1, 6), "B": st.integers(1, 3)}


def random(*shape, seed):
    return draw(*shape, seed=seed, dtype=F64)


def sum_of_columns(W, x, H):
    return sum(part @ x_h for part, x_h in zip(head_columns(W, H), x.chunk(H), strict=True))


@claim(
    "01",
    "multiply the pairs and add",
    right=sum_of_columns,
    broken=lambda W, x, H: sum_of_columns(W.roll(1, 1), x, H),
    O=st.integers(1, 7),
    **CUT,
)
def test_columns_add_up(subject, O, H, D, seed):  # noqa: E741
    W, x = random(O, H * D, seed=seed), random(H * D, seed=seed + 1)
    assert_close(subject(W, x, H), W @ x)


@claim(
    "01",
    "so y is a stack of three pieces",
    right=lambda W, x, H: (head_rows(W, H) @ x).flatten(),
    broken=lambda W, x, H: (head_rows(W, H) @ x).T.flatten(),
    E=st.integers(1, 7),
    **CUT,
)
def test_rows_are_stacked(subject, E, H, D, seed):
    W, x = random(H * D, E, seed=seed), random(E, seed=seed + 1)
    assert_close(subject(W, x, H), W @ x)


@claim(
    "01",
    "so each slice of x writes to all of y",
    right=head_columns,
    broken=head_rows,
    H=st.integers(2, 5),
    D=st.integers(1, 4),
    **SEED,
)
def test_a_slice_writes_everywhere(subject, H, D, seed):
    blocks = subject(random(H * D, H * D, seed=seed), H)  # (H, E, D) for columns
    changes = blocks @ torch.ones(blocks.shape[-1], dtype=F64)
    assert changes.shape == (H, H * D)
    assert (changes != 0).all()


@claim(
    "01",
    "So their order does not matter: (A X) Wᵀ = A (X Wᵀ).",
    right=lambda A, X, W: ((A @ X) @ W.T, A @ (X @ W.T)),
    broken=lambda A, X, W: ((A @ X) @ W.T, A @ ((X @ W.T).relu())),
    **ROWS,
    **SEED,
    E=st.integers(2, 6),
)
def test_features_and_tokens_commute(subject, L, B, E, seed):
    A, X = random(L, L, seed=seed), random(B, L, E, seed=seed + 1)
    assert_close(*subject(A, X, random(E, E, seed=seed + 2)))


@claim(
    "01",
    "or with the big one and splitting afterward, gives the same numbers up to rounding",
    right=split_heads,
    broken=lambda y, H: y.reshape(y.shape[0], H, y.shape[1], -1),
    **ROWS,
    **CUT,
)
def test_project_then_split(subject, L, B, H, D, seed):
    X, W = random(B, L, 5, seed=seed), random(H * D, 5, seed=seed + 1)
    small = torch.stack([X @ rows.T for rows in head_rows(W, H)], dim=1)
    assert_close(subject(X @ W.T, H), small)


@claim(
    "01",
    "The parts together *are* W, with the same number of parameters",
    right=lambda W, H: (head_rows(W, H), head_columns(W, H)),
    broken=lambda W, H: (head_rows(W, H)[:1], head_columns(W, H)),
    H=st.integers(2, 5),
    D=st.integers(1, 4),
)
def test_parameters_stay(subject, H, D):
    W = torch.zeros(H * D, H * D)
    assert [part.numel() for part in subject(W, H)] == [W.numel()] * 2


@claim(
    "01",
    "counted as multiplications and additions, the same arithmetic",
    right=lambda L, H, D, k: (H * L * k * (2 * D - 1) + (H - 1) * L * k, H * L * D * (2 * k - 1)),
    broken=lambda L, H, D, k: (H * L * k * (2 * D - 1), H * L * D * (2 * k - 1)),
    L=st.integers(1, 5),
    H=st.integers(2, 5),
    D=st.integers(1, 5),
)
def test_arithmetic_stays(subject, L, H, D):
    E = H * D
    assert subject(L, H, D, E) == (L * E * (2 * E - 1),) * 2


@claim(
    "01",
    "one A has to mix all features alike, three need not",
    right=lambda A, X, H: merge_heads(A.mean(0) @ split_heads(X, H)),
    broken=lambda A, X, H: merge_heads(A @ split_heads(X, H)),
    L=st.integers(2, 6),
    H=st.integers(2, 4),
    **SEED,
)
def test_one_matrix_treats_features_alike(subject, L, H, seed):
    """Exchange the slabs of X: one A's output has its slabs exchanged, nothing else."""
    A, X = random(H, L, L, seed=seed), random(1, L, 2 * H, seed=seed + 1)
    turned = X.roll(2, dims=-1)
    assert_close(subject(A, turned, H), subject(A, X, H).roll(2, dims=-1))


@claim(
    "01",
    "A dot product is a sum over features, and a sum can be cut",
    right=lambda q, k, H: (split_heads(q, H) @ split_heads(k, H).mT).sum(0),
    broken=lambda q, k, H: (split_heads(q, H) @ split_heads(k, H).mT).mean(0),
    L=st.integers(1, 5),
    S=st.integers(1, 5),
    H=st.integers(2, 5),
    D=st.integers(1, 4),
    **SEED,
)
def test_scores_add_up(subject, L, S, H, D, seed):
    q, k = random(L, H * D, seed=seed), random(S, H * D, seed=seed + 1)
    assert_close(subject(q, k, H), q @ k.T)


def product_of_rows(scores):
    product = scores.softmax(-1).prod(0)
    return product / product.sum(-1, keepdim=True)


@claim(
    "01",
    "it is the *product* of the three rows, made to sum to 1 again",
    right=product_of_rows,
    broken=[lambda s: s.softmax(-1).mean(0), lambda s: s.softmax(-1).prod(0)],
    H=st.integers(2, 5),
    L=st.integers(1, 4),
    S=st.integers(2, 6),
    **SEED,
)
def test_big_head_is_a_product(subject, H, L, S, seed):
    scores = random(H, L, S, seed=seed)
    assert_close(subject(scores), scores.sum(0).softmax(-1))


@claim(
    "01",
    "Given the same four projections and the same scale, that is the whole difference between one "
    "head and many.",
    right=lambda scores: scores.sum(0).softmax(-1),
    broken=lambda scores: scores.softmax(-1).mean(0),
    H=st.integers(2, 4),
    D=st.integers(1, 3),
    L=st.integers(1, 5),
    S=st.integers(2, 5),
    **SEED,
)
def test_only_the_sum_differs(subject, H, D, L, S, seed):
    """With the heads' scores added before the softmax, many heads give what one gives."""
    q = random(L, H * D, seed=seed)
    k, v = random(2, S, H * D, seed=seed + 1)
    weights = subject(split_heads(q, H) @ split_heads(k, H).mT)
    shared = merge_heads(weights @ split_heads(v, H))
    assert_close(shared, scaled_dot_product_attention(q, k, v, scale=1.0))


def best_by_mean(A):
    return (A - A.mean(0)).square().sum()


@claim(
    "01",
    "least for the average of the three",
    right=lambda A: A.mean(0),
    broken=[lambda A: A[0], lambda A: A.median(0).values],
    H=st.integers(3, 5),
    L=st.integers(2, 5),
    **SEED,
)
def test_average_is_the_best_single_matrix(subject, H, L, seed):
    A = random(H, L, L, seed=seed)
    best = (A - subject(A)).square().sum()
    for direction in random(8, L, L, seed=seed + 1):
        assert (A - subject(A) - 1e-3 * direction).square().sum() > best


@claim(
    "01",
    "the number is 1 − 1/H; where heads share a table it is less",
    right=lambda H: [torch.eye(H + 1).roll(n, 0) for n in range(H)],
    broken=lambda H: [torch.eye(H + 1).roll(n // 2, 0) for n in range(H)],
    H=st.integers(2, 6),
)
def test_missed_share(subject, H):
    A = torch.stack(subject(H)).double()
    missed = best_by_mean(A) / A.square().sum()
    assert_close(missed, torch.tensor(1 - 1 / H, dtype=F64))
    shared = A.clone()
    shared[1] = shared[0]
    assert best_by_mean(shared) / shared.square().sum() < missed - 1e-6


def layer(A, X, w_v, w_o, H):
    return merge_heads(A @ split_heads(X @ w_v.T, H)) @ w_o.T


def as_one_line(A, X, w_v, w_o, H):
    M = head_columns(w_o, H) @ head_rows(w_v, H)
    return sum(A[h] @ X @ M[h].T for h in range(H))


@claim(
    "01",
    "Multiply the two, and the layer is one line",
    right=as_one_line,
    broken=lambda A, X, w_v, w_o, H: as_one_line(A, X, w_v.T, w_o, H),
    **ROWS,
    H=st.integers(2, 4),
    D=st.integers(1, 4),
    **SEED,
)
def test_layer_in_one_line(subject, L, B, H, D, seed):
    A, X = random(H, L, L, seed=seed), random(B, L, H * D, seed=seed + 1)
    w_v, w_o = random(2, H * D, H * D, seed=seed + 2)
    assert_close(subject(A, X, w_v, w_o, H), layer(A, X, w_v, w_o, H))


@claim(
    "01",
    "Take a head out of the layer, and you drop one term of the sum.",
    right=lambda heads, h: heads.index_fill(1, torch.tensor([h]), 0),
    broken=lambda heads, h: heads.index_fill(-1, torch.tensor([0]), 0),
    H=st.integers(2, 4),
    D=st.integers(1, 3),
    L=st.integers(1, 4),
    **SEED,
)
def test_head_is_a_term(subject, H, D, L, seed):
    heads, w_o = random(2, H, L, D, seed=seed), random(H * D, H * D, seed=seed + 1)
    term = heads[:, 0] @ head_columns(w_o, H)[0].T
    assert_close(merge_heads(subject(heads, 0)) @ w_o.T, merge_heads(heads) @ w_o.T - term)


@claim(
    "01",
    "its M_h has rank D at most",
    right=lambda w_o, w_v, H: head_columns(w_o, H) @ head_rows(w_v, H),
    broken=lambda w_o, w_v, H: (w_o @ w_v)[None],
    H=st.integers(2, 4),
    D=st.integers(1, 4),
    **SEED,
)
def test_rank(subject, H, D, seed):
    w_o, w_v = random(2, H * D, H * D, seed=seed)
    assert torch.linalg.matrix_rank(subject(w_o, w_v, H)).max() <= D


@claim(
    "01",
    "if keys and values have E features too, it stacks the three projections, E rows for each",
    right={},
    broken={"kdim": 5},
    H=st.integers(1, 4),
    D=st.integers(1, 3),
)
def test_torch_stacks(subject, H, D):
    torch_layer = torch.nn.MultiheadAttention(H * D, H, **subject)
    assert torch_layer.in_proj_weight is not None
    assert torch_layer.in_proj_weight.shape == (3 * H * D, H * D)


@claim(
    "01",
    "From one X with independent features, one free A reaches all Y.",
    right=lambda L, E: max(L, E),
    broken=lambda L, E: E - 1,  # fewer tokens than features
    L=st.integers(1, 6),
    E=st.integers(2, 6),
    **SEED,
)
def test_free_matrix_reaches_everything(subject, L, E, seed):
    rows = subject(L, E)
    X, Y = random(2, rows, E, seed=seed)
    assert_close(Y @ torch.linalg.pinv(X) @ X, Y, atol=1e-6, rtol=1e-6)


@claim(
    "deeper_one_matrix",
    "a sum of H outer products: rank H at most",
    right=lambda A, M: torch.einsum("hts,hij->tsij", A, M),
    broken=lambda A, M: torch.einsum("hts,hij->tsij", A, M) ** 2,
    H=st.integers(1, 3),
    **SEED,
)
def test_rank_of_the_table(subject, H, seed):
    table = subject(random(H, 4, 4, seed=seed), random(H, 5, 5, seed=seed + 1))
    assert torch.linalg.matrix_rank(table.reshape(16, 25)) <= H
