"""Multi-head attention in small, readable, verified pieces.

Shapes are written with one letter an axis: B batch, H heads, L query length, S key length,
E embed_dim, D head_dim. In a boolean mask, True = may attend.
"""

import importlib
from typing import TYPE_CHECKING

from mha_tutor.attention import (
    additive_attention,
    attention_weights,
    scaled_dot_product_attention,
)
from mha_tutor.backends import attend
from mha_tutor.devices import available_devices, default_device, draw, set_printing
from mha_tutor.einsum import explain_einsum
from mha_tutor.follow import compare, follow, follow_mask
from mha_tutor.heads import head_columns, head_rows, merge_heads, split_heads
from mha_tutor.masks import causal_mask, combine_masks, padding_mask, sliding_window_mask
from mha_tutor.multihead import MultiHeadAttention
from mha_tutor.reference import attention_loop

if TYPE_CHECKING:
    from mha_tutor.contract import check
    from mha_tutor.read import explain_layer, heads_of

__version__ = "0.1.0"

__all__ = [
    "MultiHeadAttention",
    "__version__",
    "additive_attention",
    "attend",
    "attention_loop",
    "attention_weights",
    "available_devices",
    "causal_mask",
    "check",
    "combine_masks",
    "compare",
    "default_device",
    "draw",
    "explain_einsum",
    "explain_layer",
    "follow",
    "follow_mask",
    "head_columns",
    "head_rows",
    "heads_of",
    "merge_heads",
    "padding_mask",
    "scaled_dot_product_attention",
    "set_printing",
    "sliding_window_mask",
    "split_heads",
]


# Loaded when first asked for: who only computes need not wait for them.
_LATE = {
    "check": "mha_tutor.contract",
    "explain_layer": "mha_tutor.read",
    "heads_of": "mha_tutor.read",
}


def __getattr__(name: str) -> object:
    """Load what is loaded late."""
    if name in _LATE:
        globals()[name] = value = getattr(importlib.import_module(_LATE[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
