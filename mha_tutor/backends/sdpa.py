"""Torch's own function: by its own choice of kernel, or with one kernel asked for by name."""

import functools
import re
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mha_tutor.backends.call import Call, dense_mask

__all__ = ["KINDS", "attend_sdpa", "attend_with_kind", "refuse_kind"]

KINDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def attend_sdpa(
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
    """Call torch's function; a window becomes a dense mask of (L, S)."""
    if window is not None:
        L, S = query.shape[-2], key.shape[-2]
        attn_mask = dense_mask(L, S, attn_mask, is_causal, window, query.device)
        is_causal = False
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(query.dtype)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def attend_with_kind(kind: str) -> Callable[..., Tensor]:
    """Return `attend_sdpa` with one of `KINDS` alone allowed."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
        with sdpa_kernel(KINDS[kind]):
            return attend_sdpa(query, key, value, **options)

    return attend


def refuse_kind(kind: str) -> Callable[[Call], str | None]:
    """Return the function that says which calls this kind refuses, found out by trying."""
    return functools.partial(_try, kind)


@functools.lru_cache(maxsize=1024)
def _try(kind: str, call: Call) -> str | None:
    """Run a tiny call with the same facts: the installed version of torch is the one to ask."""
    L, S = (8, 8) if call.square else (8, 16)
    options = {"device": call.device, "dtype": call.dtype, "requires_grad": call.needs_grad}
    query = torch.zeros(1, 2, L, call.head_dim, **options)
    key = torch.zeros(1, 1 if call.grouped else 2, S, call.head_dim, **options)
    value = torch.zeros(1, 1 if call.grouped else 2, S, call.value_dim, **options)
    mask = None
    if call.has_mask or call.has_window:
        mask = torch.zeros(
            L, S, device=call.device, dtype=call.dtype, requires_grad=call.mask_needs_grad
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with sdpa_kernel(KINDS[kind]):
                F.scaled_dot_product_attention(
                    query,
                    key,
                    value,
                    mask,
                    dropout_p=0.5 if call.has_dropout else 0.0,
                    is_causal=call.is_causal and mask is None,
                    enable_gqa=call.grouped,
                )
        except RuntimeError as error:
            return _reason(kind, call, [str(w.message) for w in caught], str(error))
    return None


def _reason(kind: str, call: Call, told: list[str], error: str) -> str:
    """Pick the reason from torch's warnings: the last sentence is the requirement that failed."""
    told = [re.sub(r"\s*\(Triggered internally.*", "", text, flags=re.DOTALL) for text in told]
    told = [text for text in told if not text.endswith("because:")]
    own = [text for text in told if kind in text.lower()] or told
    if own:
        return f"torch says: {own[0].strip()}"
    if call.mask_needs_grad:
        return f"torch's {kind} kernel takes no mask that needs gradients"
    return f"torch has no {kind} kernel for this on {call.device.type}"
