"""One function, many ways to compute it: `attend`, and `available_backends` to choose from.

In brackets: what a sliding window costs.

- `explicit`: `mha_tutor.scaled_dot_product_attention`, the definition (a dense mask)
- `einsum`: the same as two einsums (a dense mask)
- `online`: one pass over the keys with a running softmax, in plain torch (a mask for each block)
- `sdpa`: torch's function, which chooses a kernel itself (a dense mask)
- `flash`, `math`, `efficient`, `cudnn`: that function held to one kernel (a dense mask)
- `banded`: a window as a band of small calls of torch's function (L · 2 · window)
- `flex`: torch's FlexAttention, compiled (L · window)
- `triton`: this package's kernel, in `triton_kernel` (L · window)
"""

import torch
from torch import Tensor

from mha_tutor.attention import check_query, check_value
from mha_tutor.backends.banded import attend_banded, refuse_banded
from mha_tutor.backends.call import Backend, Call
from mha_tutor.backends.flex import attend_flex, refuse_flex
from mha_tutor.backends.fused import attend_triton, refuse_triton
from mha_tutor.backends.readable import (
    attend_einsum,
    attend_explicit,
    attend_online,
    refuse_nothing,
)
from mha_tutor.backends.sdpa import KINDS, attend_sdpa, attend_with_kind, refuse_kind
from mha_tutor.checks import check_integer, check_probability

__all__ = [
    "BACKENDS",
    "attend",
    "available_backends",
    "check_backend",
    "check_call",
    "check_window",
    "run_backend",
]

BACKENDS: dict[str, Backend] = {
    "explicit": Backend(attend_explicit, refuse_nothing),
    "einsum": Backend(attend_einsum, refuse_nothing),
    "online": Backend(attend_online, refuse_nothing),
    "sdpa": Backend(attend_sdpa, refuse_nothing),
    **{kind: Backend(attend_with_kind(kind), refuse_kind(kind)) for kind in KINDS},
    "banded": Backend(attend_banded, refuse_banded),
    "flex": Backend(attend_flex, refuse_flex),
    "triton": Backend(attend_triton, refuse_triton),
}


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    window: int | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: str = "sdpa",
) -> Tensor:
    """Compute scaled dot-product attention by the backend of that name.

    All backends compute the same; they differ in time, in memory and in what they refuse.

    Args:
        query: (..., H, L, D) or (..., L, D).
        key: (..., H, S, D), or with `enable_gqa` (..., H_kv, S, D).
        value: (..., H, S, Dv), or with `enable_gqa` (..., H_kv, S, Dv).
        attn_mask: broadcastable to the scores, (..., H, L, S). Boolean: True = may attend.
            Floating point: added to the scores; -inf forbids.
        is_causal: query i sees the keys j ≤ i (top-left alignment); not with `attn_mask`.
        window: query i sees the keys i - window + 1 to i, as in `sliding_window_mask`; all if
            None. It joins `attn_mask`, if there is one.
        dropout_p: probability with which a weight is dropped. It acts whenever it is not 0.
        scale: what the scores are multiplied by; 1 / √D if None.
        enable_gqa: let each of the H_kv key and value heads serve H / H_kv query heads in a row.
        backend: a name of `BACKENDS`.

    Returns:
        (..., H, L, Dv), in the dtype of the query. A query that may attend to nothing gets zeros,
        and passes back zero gradients.

    Raises:
        ValueError: there is no such backend, the backend cannot run this call (the message says
            why, and which can), or shapes, devices or options do not fit together.
        TypeError: an argument is not a tensor, or has a dtype that cannot be used.

    Example:
        >>> query, key, value = torch.randn(3, 2, 5, 16).unbind()
        >>> exact = attend(query, key, value, window=2, backend="explicit")
        >>> torch.allclose(attend(query, key, value, window=2, backend="online"), exact, atol=1e-6)
        True
    """
    check_backend(backend)
    check_value(key, value)
    check_probability("dropout_p", dropout_p)
    scores_shape = check_query(query, key, attn_mask, is_causal, scale, enable_gqa)
    check_window(window)
    leading, L = list(scores_shape[:-2]), scores_shape[-2]

    heads = leading[-1] if leading else 1
    kv_heads = key.shape[-3] if enable_gqa else heads
    query = _with_four_axes(query, leading[:-1], heads)
    key = _with_four_axes(key, leading[:-1], kv_heads)
    value = _with_four_axes(value, leading[:-1], kv_heads)
    if attn_mask is not None and attn_mask.ndim > 2:
        attn_mask = _mask_with_four_axes(attn_mask, leading)
    out = run_backend(
        backend, query, key, value, attn_mask, is_causal, window, dropout_p, scale, enable_gqa
    )
    return out.reshape(*leading, L, value.shape[-1])


def available_backends(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    head_dim: int = 64,
    attn_mask: bool = False,
    is_causal: bool = False,
    window: bool = False,
    dropout: bool = False,
    training: bool = False,
) -> dict[str, str | None]:
    """Say of every backend whether it can run here, and if not, why not.

    Args:
        device: where the tensors would be.
        dtype: of query, key and value.
        head_dim: D, of queries, keys and values.
        attn_mask: whether a mask would be given.
        is_causal: whether attention would be causal.
        window: whether there would be a window. `banded` is for windows only, so it can run here
            if it could with one.
        dropout: whether weights would be dropped.
        training: whether gradients would be wanted.

    Returns:
        For each name of `BACKENDS` None, or the reason.

    Example:
        >>> available_backends("cpu")["explicit"] is None
        True
        >>> available_backends("cpu", dropout=True)["flex"]
        'FlexAttention has no dropout'
    """
    facts = {
        "device": torch.device(device),
        "dtype": dtype,
        "head_dim": head_dim,
        "value_dim": head_dim,
        "has_mask": attn_mask,
        "is_causal": is_causal or window,
        "has_dropout": dropout,
        "needs_grad": training,
    }
    return {
        name: backend.refuse(Call(**facts, has_window=window or name == "banded"))
        for name, backend in BACKENDS.items()
    }


def check_backend(backend: str) -> None:
    """Refuse a name that is none.

    Raises:
        ValueError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def run_backend(
    backend: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    window: int | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Do what `attend` does with arguments of four axes each that are known to fit together.

    Raises:
        ValueError: the backend cannot run this call.
    """
    check_call(backend, query, key, value, attn_mask, is_causal, window, dropout_p)
    if query.numel() == 0 or key.numel() == 0:  # no kernel needs to know of nothing
        backend = "explicit"
    return BACKENDS[backend].run(
        query,
        key,
        value,
        attn_mask=attn_mask,
        is_causal=is_causal,
        window=window,
        dropout_p=dropout_p,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        enable_gqa=enable_gqa,
    )


def check_call(
    backend: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    window: int | None = None,
    dropout_p: float = 0.0,
) -> None:
    """Refuse what the backend cannot run; takes what `run_backend` takes.

    Raises:
        ValueError: the backend cannot run this call.
    """
    if backend == "sdpa":  # which refuses nothing, and is the one that small calls go through
        return
    call = _call(query, key, value, attn_mask, is_causal, window, dropout_p)
    reason = BACKENDS[backend].refuse(call)
    if reason is not None:
        others = [name for name, other in BACKENDS.items() if other.refuse(call) is None]
        raise ValueError(
            f"backend {backend!r} cannot run this: {reason}. These can: {', '.join(others)}"
        )


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    window: int | None,
    dropout_p: float,
) -> Call:
    grad = torch.is_grad_enabled()
    return Call(
        device=query.device,
        dtype=query.dtype,
        head_dim=query.shape[-1],
        value_dim=value.shape[-1],
        grouped=key.shape[1] != query.shape[1],
        square=query.shape[-2] == key.shape[-2],
        has_mask=attn_mask is not None,
        mask_needs_grad=grad and attn_mask is not None and attn_mask.requires_grad,
        is_causal=is_causal or window is not None,
        has_window=window is not None,
        has_dropout=dropout_p > 0,
        needs_grad=grad and any(x.requires_grad for x in (query, key, value)),
    )


def check_window(window: int | None) -> None:
    """Refuse a window that is no positive integer.

    Raises:
        ValueError: the window is less than 1.
        TypeError: it is not an integer.
    """
    if window is not None:
        check_integer("window", window, least=1)


def _with_four_axes(x: Tensor, batch: list[int], heads: int) -> Tensor:
    """Reshape (..., H, L, D), (L, D) too, to (B, H, L, D)."""
    if x.ndim == 4 and list(x.shape[:2]) == [*batch, heads]:
        return x
    return x.expand(*batch, heads, *x.shape[-2:]).reshape(-1, heads, *x.shape[-2:])


def _mask_with_four_axes(mask: Tensor, leading: list[int]) -> Tensor:
    if len(leading) == 2:
        return mask[None] if mask.ndim == 3 else mask
    return mask.expand(*leading, *mask.shape[-2:]).reshape(-1, leading[-1], *mask.shape[-2:])
