"""Boolean masks: True = may attend, as in torch's `scaled_dot_product_attention`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mha_tutor.checks import check_integer

__all__ = ["causal_mask", "combine_masks", "padding_mask", "sliding_window_mask"]

Device = torch.device | str | None


def causal_mask(L: int, S: int | None = None, *, offset: int = 0, device: Device = None) -> Tensor:
    """Let each query see the keys up to its own position.

    Args:
        L: number of queries.
        S: number of keys; L if None.
        offset: query i sees the keys j ≤ i + offset. With 0 the two sequences start together
            (top-left alignment, torch's `is_causal`); with S - L they end together, as they must
            when the first S - L keys come from a cache.
        device: where to put the mask.

    Returns:
        (L, S), boolean.

    Raises:
        ValueError: L or S is negative.
        TypeError: L, S or offset is not an integer.

    Example:
        >>> causal_mask(2, 4, offset=2).int()
        tensor([[1, 1, 1, 0],
                [1, 1, 1, 1]], dtype=torch.int32)
    """
    S = L if S is None else S
    check_integer("L", L, least=0)
    check_integer("S", S, least=0)
    check_integer("offset", offset)
    return torch.ones(L, S, dtype=torch.bool, device=device).tril(offset)


def padding_mask(
    lengths: Tensor | Sequence[int], S: int | None = None, *, device: Device = None
) -> Tensor:
    """Hide the padding at the end of each sequence of a batch.

    Args:
        lengths: (B,), the number of real keys of each sequence, from 0 to S.
        S: number of keys, padding included; the greatest length if None.
        device: where to put the mask; where `lengths` is if None.

    Returns:
        (B, 1, 1, S), boolean: broadcasts over heads and queries.

    Raises:
        ValueError: lengths is not one-dimensional, or a length is not between 0 and S.
        TypeError: the lengths are not integers.

    Example:
        >>> padding_mask([1, 3], 4)[:, 0, 0].int()
        tensor([[1, 0, 0, 0],
                [1, 1, 1, 0]], dtype=torch.int32)
    """
    try:
        lengths = torch.as_tensor(lengths, device=device)
    except (TypeError, ValueError):
        raise TypeError(f"lengths must be integers, got {lengths!r}") from None
    if lengths.ndim != 1 or lengths.numel() == 0:
        raise ValueError(
            "lengths must hold one number for each sequence, shape (B,), "
            f"got the shape {tuple(lengths.shape)}"
        )
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    S = int(lengths.max()) if S is None else S
    check_integer("S", S, least=0)
    if lengths.min() < 0 or lengths.max() > S:
        raise ValueError(f"each length must be between 0 and S ({S}), got {lengths.tolist()}")
    positions = torch.arange(S, device=lengths.device)
    return (positions < lengths[:, None])[:, None, None, :]  # (B, 1, 1, S)


def sliding_window_mask(L: int, window: int, *, device: Device = None) -> Tensor:
    """Let each query see itself and the keys just before it, `window` keys in all.

    Args:
        L: number of queries and of keys.
        window: how many keys query i keeps: i - window + 1 to i.
        device: where to put the mask.

    Returns:
        (L, L), boolean.

    Raises:
        ValueError: L is negative or window is less than 1.
        TypeError: L or window is not an integer.

    Source:
        The causal form of the window of Beltagy et al., "Longformer" (2020).

    Example:
        >>> sliding_window_mask(4, window=2).int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [0, 1, 1, 0],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    check_integer("window", window, least=1)
    return causal_mask(L, device=device).triu(1 - window)


def combine_masks(*masks: Tensor) -> Tensor:
    """Allow what every mask allows.

    Args:
        *masks: boolean masks that broadcast together.

    Returns:
        Their logical "and", in the shape they broadcast to.

    Raises:
        ValueError: no mask was given, or the shapes do not broadcast together.
        TypeError: a mask is not boolean.

    Example:
        >>> combine_masks(causal_mask(4), padding_mask([2, 4], 4)).shape
        torch.Size([2, 1, 4, 4])
    """
    if not masks:
        raise ValueError("combine_masks needs at least one mask")
    for position, mask in enumerate(masks):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask {position} must be a boolean tensor, got {kind}")
    shapes = [tuple(mask.shape) for mask in masks]
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(f"the masks must broadcast together, got the shapes {shapes}") from None
    combined = masks[0]
    for mask in masks[1:]:
        combined = combined & mask
    return combined
