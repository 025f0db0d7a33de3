"""Attention written to be read: scores, mask, softmax, weighted sum."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mha_tutor.checks import check_number, check_probability
from mha_tutor.masks import causal_mask

__all__ = ["additive_attention", "attention_weights", "scaled_dot_product_attention"]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Mix the values by how well each query matches each key.

    A drop-in for `torch.nn.functional.scaled_dot_product_attention`: same arguments, same
    meaning, same output. Where that function lets a mistake pass (`is_causal` together with
    `attn_mask`, a value of another length than the key), this one raises.

    Args:
        query: (..., H, L, D) or (..., L, D).
        key: (..., H, S, D), or with `enable_gqa` (..., H_kv, S, D).
        value: (..., H, S, Dv), or with `enable_gqa` (..., H_kv, S, Dv).
        attn_mask: broadcastable to the scores, (..., H, L, S). Boolean: True = may attend.
            Floating point: added to the scores; -inf forbids.
        dropout_p: probability with which a weight is dropped, the others being scaled up by
            1 / (1 - dropout_p). It acts whenever it is not 0: pass 0 in evaluation.
        is_causal: query i sees the keys j ≤ i, also when L ≠ S (top-left alignment).
        scale: what the scores are multiplied by; 1 / √D if None.
        enable_gqa: let each of the H_kv key and value heads serve H / H_kv query heads in a row.

    Returns:
        (..., H, L, Dv), in the dtype of the query. A query that may attend to nothing gets
        zeros, and passes back zero gradients.

    Raises:
        ValueError: shapes, devices or options do not fit together.
        TypeError: an argument is not a tensor, or has a dtype that cannot be used.

    Source:
        Vaswani et al., "Attention Is All You Need" (2017), equation 1.

    Example:
        >>> query, key, value = torch.randn(3, 2, 4, 6).unbind()
        >>> scaled_dot_product_attention(query, key, value, is_causal=True).shape
        torch.Size([2, 4, 6])
    """
    check_value(key, value)
    check_probability("dropout_p", dropout_p)
    weights = _weights(query, key, attn_mask, is_causal, scale, enable_gqa)  # (..., H, L, S)
    if enable_gqa:
        value = repeat_heads(value, weights.shape[-3])
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p)
    return (weights @ value.to(weights.dtype)).to(query.dtype)  # (..., H, L, Dv)


def attention_weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the weights that `scaled_dot_product_attention` mixes the values by.

    Args:
        query: (..., H, L, D) or (..., L, D).
        key: (..., H, S, D), or with `enable_gqa` (..., H_kv, S, D).
        attn_mask: as for `scaled_dot_product_attention`.
        is_causal: as for `scaled_dot_product_attention`.
        scale: as for `scaled_dot_product_attention`.
        enable_gqa: as for `scaled_dot_product_attention`.

    Returns:
        (..., H, L, S), before any dropout, in the dtype of the query. Every row sums to 1, or
        to 0 where the query may attend to nothing.

    Raises:
        ValueError: shapes, devices or options do not fit together.
        TypeError: an argument is not a tensor, or has a dtype that cannot be used.

    Example:
        >>> attention_weights(torch.ones(3, 2), torch.ones(3, 2), is_causal=True)
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.3333, 0.3333, 0.3333]])
    """
    return _weights(query, key, attn_mask, is_causal, scale, enable_gqa).to(query.dtype)


def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    w_query: Tensor,
    w_key: Tensor,
    w_score: Tensor,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """Mix the values by scores that a small network computes for each query and key.

    The score of a query q and a key k is w_score · tanh(w_query q + w_key k). Query and key may
    differ in width; the price is an intermediate of (..., L, S, U) numbers, U being
    the width of the network's hidden layer.

    Args:
        query: (..., L, Dq).
        key: (..., S, Dk).
        value: (..., S, Dv).
        w_query: (U, Dq).
        w_key: (U, Dk).
        w_score: (U,).
        attn_mask: broadcastable to (..., L, S), as for `scaled_dot_product_attention`.

    Returns:
        (..., L, Dv).

    Raises:
        ValueError: shapes or devices do not fit together.
        TypeError: an argument is not a tensor, or has a dtype that cannot be used.

    Source:
        Bahdanau, Cho and Bengio, "Neural Machine Translation by Jointly Learning to Align and
        Translate" (2015), appendix A.1.2.

    Example:
        >>> query, key, value = torch.randn(4, 3), torch.randn(5, 2), torch.randn(5, 7)
        >>> w_query, w_key, w_score = torch.randn(8, 3), torch.randn(8, 2), torch.randn(8)
        >>> additive_attention(query, key, value, w_query, w_key, w_score).shape
        torch.Size([4, 7])
    """
    _check_tensors(query=query, w_query=w_query, w_key=w_key, w_score=w_score)
    _check_matrices(query=query, key=key)
    check_value(key, value)
    _leading_shape(query, key)
    hidden_dim = w_score.shape[0] if w_score.ndim == 1 else None
    for name, weight, x in (("w_query", w_query, query), ("w_key", w_key, key)):
        if tuple(weight.shape) != (hidden_dim, x.shape[-1]):
            raise ValueError(
                f"{name} must be (U, {x.shape[-1]}) and w_score (U,), "
                f"got {tuple(weight.shape)} and {tuple(w_score.shape)}"
            )
    hidden = (query @ w_query.T).unsqueeze(-2) + (key @ w_key.T).unsqueeze(-3)  # (..., L, S, U)
    scores = torch.tanh(hidden) @ w_score  # (..., L, S)
    check_mask(attn_mask, scores.shape)
    weights = masked_softmax(scores, attn_mask)
    return (weights @ value.to(weights.dtype)).to(query.dtype)


def check_mask(attn_mask: Tensor | None, scores_shape: torch.Size, is_causal: bool = False) -> None:
    """Refuse a mask that does not fit the scores.

    Args:
        attn_mask: the mask, or None.
        scores_shape: what it must be broadcastable to, (..., L, S).
        is_causal: whether a causal mask is asked for as well.

    Raises:
        ValueError: the shape does not broadcast, or there is a mask together with `is_causal`.
        TypeError: the mask is not a tensor of booleans or floating-point numbers.
    """
    if attn_mask is None:
        return
    if is_causal:
        raise ValueError(
            "attn_mask and is_causal=True cannot be used together; "
            "combine the mask with mha_tutor.causal_mask(L, S) instead"
        )
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask must be a torch tensor, got {type(attn_mask).__name__}")
    if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise TypeError(
            "attn_mask must be boolean (True = may attend) or floating point (added to the "
            f"scores), got {attn_mask.dtype}"
        )
    if not _broadcasts_to(attn_mask.shape, scores_shape):
        raise ValueError(
            f"attn_mask must be broadcastable to the scores {tuple(scores_shape)}, "
            f"got {tuple(attn_mask.shape)}"
        )


def check_query(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Size:
    """Refuse a query and a key that do not fit together, or a mask that does not fit them.

    Takes the arguments of `scaled_dot_product_attention`.

    Returns:
        The shape of the scores, (..., H, L, S).

    Raises:
        ValueError: shapes, devices or options do not fit together.
        TypeError: an argument is not a tensor, or has a dtype that cannot be used.
    """
    _check_matrices(query=query, key=key)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query and key must have the same head_dim, got {query.shape[-1]} and {key.shape[-1]}"
        )
    if query.shape[-1] == 0 and scale is None:
        raise ValueError("head_dim must be at least 1 when scale is None, got 0")
    if scale is not None:
        check_number("scale", scale)
    if enable_gqa:
        _check_groups(query, key)
        leading = _leading_shape(query, key[..., :1, :, :])
    else:
        leading = _leading_shape(query, key)
    scores_shape = torch.Size([*leading, query.shape[-2], key.shape[-2]])
    check_mask(attn_mask, scores_shape, is_causal)
    return scores_shape


def check_value(key: Tensor, value: Tensor) -> None:
    """Refuse a value that does not fit the key.

    Raises:
        ValueError: shapes or devices do not fit together.
        TypeError: an argument is not a tensor, or has a dtype that cannot be used.
    """
    _check_matrices(key=key, value=value)
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"key and value must have the same length S, got {key.shape[-2]} and {value.shape[-2]}"
        )
    if key.shape[:-2] != value.shape[:-2]:
        raise ValueError(
            "key and value must have the same leading dimensions, "
            f"got {tuple(key.shape)} and {tuple(value.shape)}"
        )


def _weights(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Return the weights in float32 at least; the callers round them to the query's dtype."""
    check_query(query, key, attn_mask, is_causal, scale, enable_gqa)
    if enable_gqa:
        key = repeat_heads(key, query.shape[-3])
    L, S = query.shape[-2], key.shape[-2]

    scale = query.shape[-1] ** -0.5 if scale is None else scale
    # Half precision has too few digits for large scores: compute as torch does, in float32.
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(dtype) * scale) @ key.to(dtype).mT  # (..., H, L, S)
    if is_causal:
        attn_mask = causal_mask(L, S, device=query.device)
    return masked_softmax(scores, attn_mask)


def masked_softmax(scores: Tensor, attn_mask: Tensor | None) -> Tensor:
    """Softmax over the keys that the mask allows; zeros where it allows none."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if attn_mask is None:
        return torch.softmax(scores, dim=-1)
    if attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    else:
        scores = scores + attn_mask.to(scores.dtype)
    # A row of -inf alone has a softmax of NaN, and NaN gradients even where a later `where`
    # hides them. So such a row is replaced before the softmax and emptied after it.
    empty = scores.isneginf().all(dim=-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), dim=-1)
    return weights.masked_fill(empty, 0.0)


def repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    """Repeat each of H_kv heads in place, so that head h of H reads the head h // (H / H_kv)."""
    return x.repeat_interleave(num_heads // x.shape[-3], dim=-3)


def _check_tensors(**tensors: Tensor) -> None:
    """Require floating-point tensors of one dtype on one device."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {x.dtype}")
    first_name, first = next(iter(tensors.items()))
    for name, x in tensors.items():
        if x.dtype != first.dtype:
            raise TypeError(
                f"{first_name} and {name} must have the same dtype, got {first.dtype} and {x.dtype}"
            )
        if x.device != first.device:
            raise ValueError(
                f"{first_name} and {name} must be on the same device, "
                f"got {first.device} and {x.device}"
            )


def _check_matrices(**tensors: Tensor) -> None:
    """Require what `_check_tensors` does, and a length and a width in each tensor."""
    _check_tensors(**tensors)
    for name, x in tensors.items():
        if x.ndim < 2:
            raise ValueError(f"{name} must have at least two dimensions, got {tuple(x.shape)}")


def _check_groups(query: Tensor, key: Tensor) -> None:
    if query.ndim < 3 or key.ndim < 3:
        raise ValueError(
            "enable_gqa needs a head axis, (..., H, L, D), "
            f"got query {tuple(query.shape)} and key {tuple(key.shape)}"
        )
    num_heads, num_kv_heads = query.shape[-3], key.shape[-3]
    if num_kv_heads == 0 or num_heads % num_kv_heads:
        raise ValueError(
            "with enable_gqa the number of query heads must be a multiple of the number of key "
            f"and value heads, got {num_heads} and {num_kv_heads}"
        )


def _leading_shape(query: Tensor, key: Tensor) -> torch.Size:
    try:
        return torch.Size(torch.broadcast_shapes(query.shape[:-2], key.shape[:-2]))
    except RuntimeError:
        raise ValueError(
            "the leading dimensions of query and key must broadcast together (fewer key heads "
            f"need enable_gqa=True), got {tuple(query.shape)} and {tuple(key.shape)}"
        ) from None


def _broadcasts_to(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(
        size in (1, wanted) for size, wanted in zip(shape[::-1], target[::-1], strict=False)
    )
