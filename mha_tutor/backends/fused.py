"""The Triton kernel as a backend: when it can run, and the call."""

import functools
import importlib.metadata
import importlib.util
import os
import sys

import torch
from torch import Tensor

from mha_tutor.backends.call import Call

__all__ = ["attend_triton", "refuse_triton"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 128


def refuse_triton(call: Call) -> str | None:
    """Run causal, sliding and full attention on CUDA, and in Triton's interpreter if asked to."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'mha-tutor[triton]'"
    if call.device.type not in ("cuda", "cpu"):
        return f"Triton has no {call.device.type}"
    if call.device.type == "cpu" and not _interpreted():
        return (
            "Triton compiles for a GPU; to run it in its interpreter, which is slow, set the "
            "variable TRITON_INTERPRET=1 before Python starts"
        )
    if call.device.type == "cpu" and _interpreter_is_too_old():
        return "the interpreter of Triton before 3.7 does not run with NumPy 2.4 or newer"
    if call.dtype not in DTYPES:
        return f"the kernel is for float16, bfloat16 and float32, got {call.dtype}"
    if call.head_dim > MAX_HEAD_DIM:
        return f"the kernel takes a head_dim of at most {MAX_HEAD_DIM}, got {call.head_dim}"
    if call.value_dim != call.head_dim:
        return (
            f"the kernel takes values as wide as the keys, got {call.value_dim} and {call.head_dim}"
        )
    if call.has_mask:
        return "the kernel takes no attn_mask; it knows is_causal and window"
    if call.has_dropout:
        return "the kernel has no dropout"
    return None


def attend_triton(
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
    """Run the kernel; see `triton_kernel` for how it works."""
    from mha_tutor.backends.triton_op import flash_attention  # imports Triton

    return flash_attention(query, key, value, is_causal, window, scale)[0]


def _interpreted() -> bool:
    """Say whether the kernels are, or would be, decorated for the interpreter."""
    loaded = sys.modules.get("mha_tutor.backends.triton_op")
    if loaded is not None:
        return loaded.INTERPRETED
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _interpreter_is_too_old() -> bool:
    """Say whether Triton takes arrays of one element for numbers where NumPy no longer does."""
    versions = {}
    for name in ("triton", "numpy"):
        major, minor = importlib.metadata.version(name).split(".")[:2]
        versions[name] = int(major), int(minor)
    return versions["triton"] < (3, 7) and versions["numpy"] >= (2, 4)
