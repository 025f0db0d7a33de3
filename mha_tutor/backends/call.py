"""What a backend is, and what it must know of a call to say whether it can run it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mha_tutor.masks import causal_mask

__all__ = ["Backend", "Call", "dense_mask"]


@dataclass(frozen=True)
class Call:
    """The facts of a call to `attend` that decide which backends can run it.

    Args:
        device: where the tensors are.
        dtype: of query, key and value.
        head_dim: D, of query and key.
        value_dim: Dv.
        grouped: whether there are fewer key heads than query heads.
        square: whether L equals S.
        has_mask: whether there is an `attn_mask`.
        mask_needs_grad: whether gradients are wanted for the mask.
        is_causal: as given, or implied by a window.
        has_window: whether there is a window.
        has_dropout: whether weights are dropped.
        needs_grad: whether gradients are wanted for query, key or value.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int = 64
    value_dim: int = 64
    grouped: bool = False
    square: bool = True
    has_mask: bool = False
    mask_needs_grad: bool = False
    is_causal: bool = False
    has_window: bool = False
    has_dropout: bool = False
    needs_grad: bool = False


@dataclass(frozen=True)
class Backend:
    """One way to compute attention.

    Args:
        run: takes query (B, H, L, D), key (B, H_kv, S, D), value (B, H_kv, S, Dv), and by name
            attn_mask (None or four axes), is_causal, window, dropout_p, scale (a number) and
            enable_gqa. Everything fits together and `refuse` has agreed.
        refuse: takes a `Call` and returns None, or the reason why it cannot be run.
    """

    run: Callable[..., Tensor]
    refuse: Callable[[Call], str | None]


def dense_mask(
    L: int,
    S: int,
    attn_mask: Tensor | None,
    is_causal: bool,
    window: int | None,
    device: torch.device,
) -> Tensor | None:
    """Write out causality and window as a mask, and join it with the one that was given.

    Args:
        L: number of queries.
        S: number of keys.
        attn_mask: broadcastable to (B, H, L, S), boolean or added to the scores, or None.
        is_causal: query i sees the keys j ≤ i.
        window: query i sees the keys i - window + 1 to i; all if None.
        device: where to put the mask.

    Returns:
        (L, S) or the shape of `attn_mask` with all of L and S; None if nothing is masked.

    Example:
        >>> dense_mask(3, 3, None, False, 2, torch.device("cpu")).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [0, 1, 1]], dtype=torch.int32)
    """
    if window is None and not is_causal:
        return attn_mask
    allowed = causal_mask(L, S, device=device)
    if window is not None:
        allowed = allowed.triu(1 - window)
    if attn_mask is None:
        return allowed
    if attn_mask.dtype == torch.bool:
        return attn_mask & allowed
    return attn_mask.masked_fill(~allowed, float("-inf"))
