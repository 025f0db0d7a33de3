"""Backends to read: the definition, the two einsums, and the softmax in one pass over the keys."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mha_tutor.attention import masked_softmax, repeat_heads, scaled_dot_product_attention
from mha_tutor.backends.call import Call, dense_mask

__all__ = ["attend_einsum", "attend_explicit", "attend_online", "refuse_nothing"]

BLOCK = 256  # keys that `online` takes at a time


def refuse_nothing(call: Call) -> str | None:
    """Run everything that is defined at all."""
    return None


def attend_explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    window: int | None,
    dropout_p: float,
    scale: float,
    enable_gqa: bool,
) -> Tensor:
    """Call `mha_tutor.scaled_dot_product_attention`, with the window as a mask."""
    if window is not None:
        L, S = query.shape[-2], key.shape[-2]
        attn_mask = dense_mask(L, S, attn_mask, is_causal, window, query.device)
        is_causal = False
    return scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def attend_einsum(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    window: int | None,
    dropout_p: float,
    scale: float,
    enable_gqa: bool,
) -> Tensor:
    """Write both products as einsum, with an axis of its own for the heads that share a key head.

    Letters: b batch, n key heads, g query heads of each, q queries, k keys, d features.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    q = query.to(dtype).unflatten(1, (key.shape[1], -1))
    scores = torch.einsum("bngqd,bnkd->bngqk", q * scale, key.to(dtype)).flatten(1, 2)
    L, S = scores.shape[-2:]
    attn_mask = dense_mask(L, S, attn_mask, is_causal, window, query.device)
    weights = F.dropout(masked_softmax(scores, attn_mask), dropout_p).unflatten(
        1, (key.shape[1], -1)
    )
    mixed = torch.einsum("bngqk,bnkd->bngqd", weights, value.to(dtype))
    return mixed.flatten(1, 2).to(query.dtype)


def attend_online(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    window: int | None,
    dropout_p: float,
    scale: float,
    enable_gqa: bool,
    block: int = BLOCK,
) -> Tensor:
    """Keep a running maximum, sum and mixture while passing over the keys once.

    A forward pass never holds more than (B, H, L, block) scores. Autograd keeps those of every
    block for the backward pass: training takes the memory of the explicit version.

    Source:
        Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), algorithm 3.
    """
    if key.shape[1] != query.shape[1]:
        key, value = (repeat_heads(x, query.shape[1]) for x in (key, value))
    dtype = torch.promote_types(query.dtype, torch.float32)
    q = query.to(dtype) * scale
    rows = torch.arange(query.shape[-2], device=query.device)[:, None]
    highest = q.new_full((*q.shape[:-1], 1), float("-inf"))  # (B, H, L, 1)
    total = torch.zeros_like(highest)
    mixed = q.new_zeros(*q.shape[:-1], value.shape[-1])  # (B, H, L, Dv)

    for start in range(0, key.shape[-2], block):
        columns = torch.arange(start, min(start + block, key.shape[-2]), device=query.device)
        scores = q @ key[..., columns[0] : columns[-1] + 1, :].to(dtype).mT  # (B, H, L, block)
        scores = _mask_block(scores, rows, columns, attn_mask, is_causal, window)
        higher = torch.maximum(highest, scores.detach().amax(dim=-1, keepdim=True))
        # A row that has seen no key yet has -inf less -inf: shift it by 0.
        shift = higher.masked_fill(higher.isneginf(), 0.0)
        exponentials = torch.exp(scores - shift)
        rescale = torch.exp(highest - shift)
        total = total * rescale + exponentials.sum(dim=-1, keepdim=True)
        dropped = F.dropout(exponentials, dropout_p)
        mixed = mixed * rescale + dropped @ value[..., columns[0] : columns[-1] + 1, :].to(dtype)
        highest = higher
    return (mixed / total.masked_fill(total == 0, 1.0)).to(query.dtype)


def _mask_block(
    scores: Tensor,
    rows: Tensor,
    columns: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    window: int | None,
) -> Tensor:
    if attn_mask is not None:
        if attn_mask.shape[-1] > 1:
            attn_mask = attn_mask[..., columns[0] : columns[-1] + 1]
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        else:
            scores = scores + attn_mask.to(scores.dtype)
    if is_causal or window is not None:
        scores = scores.masked_fill(columns > rows, float("-inf"))
    if window is not None:
        scores = scores.masked_fill(columns <= rows - window, float("-inf"))
    return scores
