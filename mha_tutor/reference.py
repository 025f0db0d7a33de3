"""Attention as loops over single numbers: slow, and plain enough to be believed.

Everything else in the package is compared with this. It uses NumPy in float64, no matrix
product, no broadcasting over masks and nothing from the rest of the package.
"""

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["attention_loop"]


def attention_loop(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    attn_mask: npt.ArrayLike | None = None,
    scale: float | None = None,
) -> np.ndarray:
    """Compute scaled dot-product attention one query and one key at a time.

    Args:
        query: (..., L, D); the leading axes are batch and head.
        key: (..., S, D), the same leading axes.
        value: (..., S, Dv), the same leading axes.
        attn_mask: broadcastable to (..., L, S). Boolean: True = may attend. Otherwise: a number
            to add to the score, where -inf forbids.
        scale: what the scores are multiplied by; 1 / √D if None.

    Returns:
        (..., L, Dv) in float64. A query with no key to attend to gets zeros.

    Raises:
        ValueError: the shapes do not fit together.
        TypeError: an argument cannot become a NumPy array (a tensor that tracks gradients, say).

    Source:
        Vaswani et al., "Attention Is All You Need" (2017), equation 1.

    Example:
        >>> one_key = attention_loop([[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0, 7.0]])
        >>> one_key.tolist()
        [[5.0, 6.0, 7.0]]
    """
    query, key, value = (
        _as_array(name, x, np.float64)
        for name, x in (("query", query), ("key", key), ("value", value))
    )
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise ValueError(
            "query, key and value must each have at least two axes, "
            f"got the shapes {query.shape}, {key.shape} and {value.shape}"
        )
    *leading, num_queries, head_dim = query.shape
    *_, num_keys, value_dim = value.shape
    if key.shape != (*leading, num_keys, head_dim) or value.shape[:-2] != tuple(leading):
        raise ValueError(
            "query (..., L, D), key (..., S, D) and value (..., S, Dv) must agree in '...', S and "
            f"D, got {query.shape}, {key.shape} and {value.shape}"
        )
    scale = 1 / math.sqrt(head_dim) if scale is None else float(scale)
    bias = _as_bias(attn_mask, (*leading, num_queries, num_keys))

    output = np.zeros((*leading, num_queries, value_dim))
    for batch_and_head in np.ndindex(*leading):
        for i in range(num_queries):
            scores = []
            for j in range(num_keys):
                score = 0.0
                for d in range(head_dim):
                    score += query[(*batch_and_head, i, d)] * key[(*batch_and_head, j, d)]
                scores.append(score * scale + bias[(*batch_and_head, i, j)])
            for j, weight in enumerate(_softmax(scores)):
                for d in range(value_dim):
                    output[(*batch_and_head, i, d)] += weight * value[(*batch_and_head, j, d)]
    return output


def _as_array(name: str, x: npt.ArrayLike, dtype: type[np.float64] | None = None) -> np.ndarray:
    try:
        return np.asarray(x, dtype=dtype)
    except (RuntimeError, TypeError, ValueError) as error:  # torch raises the first two
        raise TypeError(f"{name} must be an array of numbers: {error}") from None


def _softmax(scores: list[float]) -> list[float]:
    highest = max(scores, default=-math.inf)
    if highest == -math.inf:  # nothing to attend to
        return [0.0] * len(scores)
    # Shifting all scores by one number changes no weight, and keeps exp from overflowing.
    exponentials = [math.exp(score - highest) for score in scores]
    return [e / sum(exponentials) for e in exponentials]


def _as_bias(attn_mask: npt.ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
    """Turn any mask into numbers to add to the scores, one for each query and key."""
    bias = np.zeros(shape)
    if attn_mask is None:
        return bias
    attn_mask = _as_array("attn_mask", attn_mask)
    for index in itertools.product(*map(range, shape)):
        entry = _broadcast_entry(attn_mask, index, shape)
        if attn_mask.dtype == bool:
            bias[index] = 0.0 if entry else -math.inf
        else:
            bias[index] = entry
    return bias


def _broadcast_entry(mask: np.ndarray, index: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Look up one entry: missing axes on the left and axes of size 1 stand for any index."""
    own_index = index[len(index) - mask.ndim :]
    fits = mask.ndim <= len(shape) and all(
        m in (1, s) for m, s in zip(mask.shape, shape[len(shape) - mask.ndim :], strict=True)
    )
    if not fits:
        raise ValueError(f"attn_mask must be broadcastable to {shape}, got {mask.shape}")
    return mask[tuple(0 if size == 1 else i for i, size in zip(own_index, mask.shape, strict=True))]
