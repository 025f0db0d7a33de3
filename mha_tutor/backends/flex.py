"""FlexAttention: a mask given as a function, compiled into a kernel that skips what it hides."""

import functools
import os
import shutil
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from mha_tutor.backends.call import Call

__all__ = ["attend_flex", "refuse_flex"]

MOST_COMPILED = 64


def refuse_flex(call: Call) -> str | None:
    """Run forward where torch can compile it, backward on CUDA only."""
    if call.has_dropout:
        return "FlexAttention has no dropout"
    if call.mask_needs_grad:
        return "flex passes no gradient back to the mask"
    if call.device.type == "cpu":
        if call.needs_grad:
            return "FlexAttention has no backward pass on the CPU"
        if call.dtype == torch.float64:
            return "FlexAttention is compiled for float32, bfloat16 and float16 on the CPU"
        return _cpu_is_too_old() or _compiler_is_missing()
    if call.device.type != "cuda":
        return f"FlexAttention is not compiled for {call.device.type}"
    if call.dtype == torch.float64:
        return "FlexAttention takes no float64 on CUDA"
    if call.head_dim < 16 or call.value_dim < 16:
        return f"FlexAttention needs a head_dim of at least 16 on CUDA, got {call.head_dim}"
    return None


def attend_flex(
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
    """Compile once for each kind of mask, dtype and head_dim, then run.

    The blocks that a causal or sliding mask leaves are found once for each (L, S) and kept. An
    `attn_mask` is read where it lies and saves nothing; each new shape is compiled anew, because
    torch 2.13 writes C++ that does not compile for a mask of any size.
    """
    L, S = query.shape[-2], key.shape[-2]
    blocks, change = _blocks(L, S, is_causal, window, query.device), None
    if attn_mask is not None:
        full = attn_mask.expand(*query.shape[:-1], S)
        if attn_mask.dtype == torch.bool:

            def change(score, b, h, i, j):
                return torch.where(full[b, h, i, j], score, float("-inf"))

        else:

            def change(score, b, h, i, j):
                return score + full[b, h, i, j]

    options = {"score_mod": change, "block_mask": blocks, "scale": scale, "enable_gqa": enable_gqa}
    # Every kind of mask, dtype and head_dim is compiled anew; torch's own limit is eight.
    with torch._dynamo.config.patch(recompile_limit=MOST_COMPILED):
        return _compiled(dynamic=attn_mask is None)(query, key, value, **options)


@functools.cache
def _compiled(dynamic: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # With `fullgraph`, what cannot be compiled is an error; without, it would run slowly.
    return torch.compile(flex_attention, dynamic=dynamic, fullgraph=True)


@functools.lru_cache(maxsize=32)
def _blocks(L: int, S: int, is_causal: bool, window: int | None, device: torch.device):
    from torch.nn.attention.flex_attention import create_block_mask

    # A tensor, not a number: another window is then no reason to compile again.
    reach = torch.tensor(max(L, S) if window is None else window, device=device)

    def near(b, h, i, j):
        return (j <= i) & (j > i - reach)

    def everywhere(b, h, i, j):
        # On the CPU, no block mask at all means one block of (L, S), held in memory.
        return j >= 0

    masked = is_causal or window is not None
    return create_block_mask(near if masked else everywhere, None, None, L, S, device=str(device))


def _cpu_is_too_old() -> str | None:
    """Ask what torch asks before it compiles FlexAttention for a CPU: x86 with AVX2."""
    found = torch.backends.cpu.get_cpu_capability()
    if found.startswith("AVX") and sys.platform != "darwin":
        return None
    return f"torch compiles FlexAttention only for CPUs with AVX2, and this one runs as {found}"


@functools.cache
def _compiler_is_missing() -> str | None:
    """Ask for the C++ compiler that torch.compile calls on the CPU."""
    names = [os.environ.get("CXX", "g++"), "clang++", "c++", "cl"]
    if any(shutil.which(name) for name in names):
        return None
    return "torch.compile needs a C++ compiler on the CPU, and there is none"
