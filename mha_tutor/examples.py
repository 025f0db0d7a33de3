"""The small numbers that chapters 4 to 6 compute with, chosen by hand to be legible."""

import torch
from torch import Tensor

__all__ = ["four_tokens", "projection_weights"]

TOKENS = [
    [[2, 1, 1, 0, 0, 2], [-1, 1, 1, -1, -1, 0], [0, 0, 2, 1, 1, -1], [-1, 0, 0, 0, 1, 1]],
    [[1, 0, -1, 1, 0, 1], [0, 2, 0, 1, -1, 0], [1, 1, 0, 0, 2, -1], [0, -1, 1, 0, 1, 1]],
]

# Two rows a head. All scores of the first sequence are whole numbers between -5 and 4, and
# each head sends the tokens somewhere else.
W_QUERY = [
    [-1, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, -1, 0],
    [1, 0, 0, 0, 1, 0],
    [0, 0, 0, 0, 1, 0],
    [-1, 0, 0, 0, 0, 0],
    [0, -1, 0, 0, 0, 1],
]
W_KEY = [
    [0, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 0, 1],
    [0, 0, 1, 0, 0, 0],
    [0, 0, 1, 0, 0, 1],
    [0, 1, 0, 1, 0, 0],
    [1, 1, 0, 0, 0, 0],
]
W_VALUE = [
    [1, 0, 1, 0, 0, 0],
    [0, 1, 0, 1, 0, 0],
    [0, 0, 1, 0, 1, 0],
    [0, 0, 0, 1, 0, 1],
    [1, 0, 0, 0, 1, 0],
    [0, 1, 0, 0, 0, 1],
]
W_OUT = [
    [1, 0, 0, -1, 0, 0],
    [0, 1, 0, 0, -1, 0],
    [0, 0, 1, 0, 0, -1],
    [-1, 0, 0, 1, 0, 0],
    [0, -1, 0, 0, 1, 0],
    [0, 0, 1, 0, 0, 1],
]


def four_tokens(
    *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Return the running example: two sequences of four tokens a1..a4 with six features.

    Args:
        dtype: of the result.
        device: where to put it.

    Returns:
        (B, L, E) = (2, 4, 6), small whole numbers.

    Example:
        >>> four_tokens()[0, 0]
        tensor([2., 1., 1., 0., 0., 2.])
    """
    return torch.tensor(TOKENS, dtype=dtype, device=device)


def projection_weights(
    *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W_Q, W_K, W_V and W_O for the running example with three heads of two features.

    Args:
        dtype: of the results.
        device: where to put them.

    Returns:
        Four weights (E, E) = (6, 6), stored as `torch.nn.Linear` stores them: `x @ W.T`.

    Example:
        >>> w_q, w_k, w_v, w_o = projection_weights()
        >>> x = four_tokens()[0]
        >>> queries, keys = x @ w_q.T, x @ w_k.T
        >>> (queries[:, :2] @ keys[:, :2].T).int()  # the scores of head 0
        tensor([[ 0,  2, -2,  0],
                [ 2, -1,  0,  1],
                [-2,  0,  1, -1],
                [-2, -1,  2, -1]], dtype=torch.int32)
    """
    query, key, value, out = (
        torch.tensor(weight, dtype=dtype, device=device)
        for weight in (W_QUERY, W_KEY, W_VALUE, W_OUT)
    )
    return query, key, value, out
