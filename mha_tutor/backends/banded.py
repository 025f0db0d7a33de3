"""A sliding window as a band of blocks, each a small call of torch's fused attention."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mha_tutor.backends.call import Call
from mha_tutor.masks import causal_mask

__all__ = ["attend_banded", "refuse_banded"]

LEAST_BLOCK = 64


def refuse_banded(call: Call) -> str | None:
    """Run a window over a sequence of its own, without any other mask."""
    if not call.has_window:
        return "banded needs a window"
    if call.has_mask:
        return "banded takes no attn_mask"
    if not call.square:
        return "banded needs as many queries as keys"
    return None


def attend_banded(
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
    """Cut the sequence into blocks no shorter than the window; each sees itself and the one before.

    The work is that of L · 2 · block scores in place of L · L, and gradients flow as through any
    call of torch's function.
    """
    L = query.shape[-2]
    block = max(window, LEAST_BLOCK)
    options = {"dropout_p": dropout_p, "scale": scale, "enable_gqa": enable_gqa}
    # (block, 2 · block): the columns are the previous block and the own one.
    band = causal_mask(block, 2 * block, offset=block, device=query.device).triu(block + 1 - window)

    first = min(block, L)  # the first block has none before it
    head = F.scaled_dot_product_attention(
        *(x[..., :first, :] for x in (query, key, value)),
        band[:first, block : block + first],
        **options,
    )
    if first == L:
        return head
    padding = (0, 0, 0, -L % block)  # keys that only padded queries see
    query, key, value = (F.pad(x, padding) for x in (query, key, value))
    own = query[..., block:, :].unflatten(-2, (-1, block))  # (B, H, blocks, block, D)
    keys, values = (x.unfold(-2, 2 * block, block).mT for x in (key, value))  # no copy
    blocks = own.shape[-3]
    # Blocks move into the batch: (B · blocks, H, block, D).
    own, keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (own, keys, values))
    tail = F.scaled_dot_product_attention(own, keys, values, band, **options)
    tail = tail.unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3)
    return torch.cat([head, tail[..., : L - block, :]], dim=-2)
