"""The Triton kernels as an operator of torch: launched, tuned, differentiable, compilable."""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from mha_tutor.backends import triton_kernel

__all__ = ["INTERPRETED", "flash_attention"]

# Triton reads the variable when a kernel is decorated, so that this cannot change later on.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def _configs(*choices: tuple[int, int, int, int]) -> list[triton.Config]:
    """List (BLOCK_L, BLOCK_S, num_warps, num_stages) to try; in the interpreter, small blocks."""
    if INTERPRETED:  # nothing to measure there, and short examples shall fill several blocks
        choices = ((32, 16, 4, 1),)
    return [
        triton.Config({"BLOCK_L": queries, "BLOCK_S": keys}, num_warps=warps, num_stages=stages)
        for queries, keys, warps, stages in choices
    ]


TUNED_BY = ["BLOCK_D", "CAUSAL", "WINDOWED"]  # and by the dtypes, always

_forward = triton.autotune(
    _configs(
        (32, 32, 4, 2),  # for float32, whose exact products take many registers
        (64, 32, 4, 3),
        (64, 64, 4, 3),
        (128, 32, 4, 3),
        (128, 64, 4, 3),
        (128, 64, 8, 3),
        (128, 128, 8, 2),
        (128, 128, 8, 3),
    ),
    key=TUNED_BY,
)(triton_kernel.forward_kernel)
_query_gradient = triton.autotune(
    _configs((64, 32, 4, 2), (64, 64, 4, 3), (128, 32, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3)),
    key=TUNED_BY,
)(triton_kernel.query_gradient_kernel)
_key_value_gradient = triton.autotune(
    # Two results and four tiles at once: what is larger runs out of registers.
    _configs(
        (32, 64, 4, 2),
        (32, 64, 8, 2),
        (32, 128, 8, 2),
        (64, 64, 8, 2),
        (64, 128, 8, 2),
        (64, 128, 8, 3),
    ),
    key=TUNED_BY,
)(triton_kernel.key_value_gradient_kernel)


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the kernels of `triton_kernel`; gradients flow through both results.

    Args:
        query: (B, H, L, D), D at most 128, float16, bfloat16 or float32.
        key: (B, H_kv, S, D); H_kv divides H.
        value: (B, H_kv, S, D).
        is_causal: query i sees the keys j ≤ i.
        window: query i sees the keys i - window + 1 to i; all if None.
        scale: what the scores are multiplied by; 1 / √D if None.

    Returns:
        The output, (B, H, L, D), zeros where a query sees no key, and the natural logarithm of
        the sum of the exponentials of each query's scores, (B, H, L), -inf where it sees none.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if scale <= 0:  # the kernels take the highest score before they scale it
        query, scale = query * scale, 1.0
    return _flash_forward(query, key, value, is_causal, 0 if window is None else window, scale)


@torch.library.custom_op("mha_tutor::flash_forward", mutates_args=())
def _flash_forward(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    query, key, value = (_with_adjacent_features(x) for x in (query, key, value))
    out, lse = _empty_results(query)
    B, H, L, _ = query.shape
    if out.numel():
        _forward[lambda block: (B * H * triton.cdiv(L, block["BLOCK_L"]),)](
            query, key, value, out, lse, *map(_strides, (query, key, value, out)),
            *_sizes(query, key, window, scale), **_constants(query, is_causal, window),
        )  # fmt: skip
    return out, lse


@_flash_forward.register_fake
def _(query, key, value, is_causal, window, scale):
    return _empty_results(query)


@torch.library.custom_op("mha_tutor::flash_backward", mutates_args=())
def _flash_backward(
    grad: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (_empty_like(x) for x in (query, key, value))
    grad, query, key, value = (_with_adjacent_features(x) for x in (grad, query, key, value))
    B, H, L, D = query.shape
    H_kv, S = key.shape[1:3]
    if not dq.numel() or not dk.numel():
        return dq.zero_(), dk.zero_(), dv.zero_()
    constants = _constants(query, is_causal, window)

    delta = torch.empty_like(lse)
    triton_kernel.delta_kernel[(B * H * triton.cdiv(L, 64),)](
        out, grad, delta, _strides(out), _strides(grad), H, L,
        D=D, BLOCK_D=constants["BLOCK_D"], BLOCK_L=64,
    )  # fmt: skip
    # d lse_i / d S_ij = P_ij: what asks for more of lse asks for less of delta.
    delta -= grad_lse

    inputs = (query, key, value, grad, lse, delta)
    strides = [_strides(x) for x in (query, key, value, grad)]
    sizes = _sizes(query, key, window, scale)
    _query_gradient[lambda block: (B * H * triton.cdiv(L, block["BLOCK_L"]),)](
        *inputs, dq, *strides, _strides(dq), *sizes, **constants
    )
    _key_value_gradient[lambda block: (B * H_kv * triton.cdiv(S, block["BLOCK_S"]),)](
        *inputs, dk, dv, *strides, _strides(dk), _strides(dv), *sizes, **constants
    )
    return dq, dk, dv


@_flash_backward.register_fake
def _(grad, grad_lse, query, key, value, out, lse, is_causal, window, scale):
    return tuple(_empty_like(x) for x in (query, key, value))


def _setup_context(ctx, inputs, output):
    query, key, value, ctx.is_causal, ctx.window, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output)


def _backward(ctx, grad, grad_lse):
    gradients = _flash_backward(
        grad, grad_lse, *ctx.saved_tensors, ctx.is_causal, ctx.window, ctx.scale
    )
    return (*gradients, None, None, None)


_flash_forward.register_autograd(_backward, setup_context=_setup_context)


def _empty_results(query: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)


def _empty_like(x: Tensor) -> Tensor:
    """Lay the result out as the argument is (heads beside features, say), if that is dense."""
    return torch.empty_like(x) if x.stride(-1) == 1 else x.new_empty(x.shape)


def _with_adjacent_features(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor) -> tuple[int, int, int]:
    return tuple(x.stride()[:3])


def _sizes(query: Tensor, key: Tensor, window: int, scale: float) -> tuple:
    H, L, S = query.shape[1], query.shape[2], key.shape[2]
    return scale, H, H // key.shape[1], L, S, window


def _constants(query: Tensor, is_causal: bool, window: int) -> dict:
    head_dim = query.shape[-1]
    # In the interpreter `tl.dot` takes the bits of a bfloat16 for a whole number.
    dot = tl.float32 if INTERPRETED else DTYPES[query.dtype]
    tf32 = query.is_cuda and torch.get_float32_matmul_precision() != "highest"
    return {
        "CAUSAL": is_causal or window > 0,
        "WINDOWED": window > 0,
        "PRECISION": "tf32" if tf32 else "ieee",
        "DOT": dot,
        "D": head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),  # `tl.dot` takes no fewer
    }
