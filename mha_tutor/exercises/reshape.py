"""Exercises of chapter 2, *Reshape into heads*."""

from __future__ import annotations

from typing import Any

import torch

from mha_tutor.exercises._exercise import answer, exercise, expect
from mha_tutor.heads import merge_heads, split_heads

__all__ = ["merge"]

X = torch.arange(48).reshape(2, 4, 6)


@exercise
def merge(candidate: Any) -> str:
    """Put heads back side by side: `merge(x)`, (B, H, L, D) → (B, L, E)."""
    x = split_heads(X, 3)
    expect(
        answer(candidate, x),
        merge_heads(x),
        "for the running example, cut into 3 heads,",
        {
            "the heads are put one below the other: transpose back to (B, L, H, D) before you "
            "reshape.": x.reshape(2, 4, 6),
            "nothing has been done to the axes yet.": x,
        },
    )
    other = torch.randn(1, 5, 7, 2, generator=torch.Generator().manual_seed(0)).double()
    expect(answer(candidate, other), merge_heads(other), "for other sizes, (1, 5, 7, 2),")
    return "Your merge agrees with merge_heads on (2, 3, 4, 2) and (1, 5, 7, 2)."
