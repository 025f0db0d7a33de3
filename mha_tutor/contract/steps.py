"""Attention with every step a method of its own, so that a mutant replaces one of them.

`Steps` is the right attention on heads, `Layer` the right layer around it. The mutants in
`mutants.py` are subclasses, and two bugs at once are a class with two parents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Layer", "Steps", "Weights", "as_function"]


class Steps:
    """Scaled dot-product attention, step by step; every method may be replaced."""

    training = True

    def split(self, x: Tensor, num_heads: int) -> Tensor:
        """(B, L, E) → (B, H, L, D)."""
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """(B, H, L, D) → (B, L, E)."""
        return x.transpose(1, 2).flatten(-2)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        """(B, H, L, D), (B, H_kv, S, D), (B, H_kv, S, Dv) → (B, H, L, Dv)."""
        self.check(q, k, v, attn_mask, is_causal)
        k, v = self.share(k, q.shape[1]), self.share_values(v, q.shape[1])  # (B, H, S, D)
        factor = self.scale(q, k) if scale is None else scale
        scores = self.score(q, k, factor)  # (B, H, L, S)
        bias = self.bias(scores, attn_mask, is_causal, dropout_p)
        weights = self.weigh(scores, bias)
        return self.mix(self.drop(weights, dropout_p), v)

    def check(self, q, k, v, attn_mask, is_causal) -> None:
        """Refuse what has no meaning."""
        if k.shape[-2] != v.shape[-2]:
            raise ValueError("key and value differ in length")
        if attn_mask is not None and is_causal:
            raise ValueError("attn_mask and is_causal exclude each other")

    def share(self, x: Tensor, num_heads: int) -> Tensor:
        """Let each key and value head serve a run of query heads."""
        return x.repeat_interleave(num_heads // x.shape[1], dim=1)

    def share_values(self, x: Tensor, num_heads: int) -> Tensor:
        """Let each value head serve the same queries as the key head."""
        return self.share(x, num_heads)

    def scale(self, q: Tensor, k: Tensor) -> float:
        """Return what the scores are multiplied by."""
        return q.shape[-1] ** -0.5

    def score(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """(B, H, L, D), (B, H, S, D) → (B, H, L, S)."""
        return (q @ k.mT) * scale

    def bias(self, scores, attn_mask, is_causal, dropout_p) -> Tensor | None:
        """Return what is added to the scores: 0 where it may attend, -inf where not."""
        if is_causal:
            attn_mask = self.causal(*scores.shape[-2:]).to(scores.device)
        if attn_mask is None or attn_mask.dtype != torch.bool:
            return attn_mask
        zeros = torch.zeros(attn_mask.shape, dtype=scores.dtype, device=scores.device)
        return zeros.masked_fill(~self.allowed(attn_mask), self.fill)

    fill = float("-inf")

    def allowed(self, mask: Tensor) -> Tensor:
        """Return the mask with True = may attend."""
        return mask

    def weigh(self, scores: Tensor, bias: Tensor | None) -> Tensor:
        """(B, H, L, S), rows sum to 1, or to 0 where there is nothing to attend to."""
        if bias is not None:
            scores = scores + bias
        empty = scores.isneginf().all(-1, keepdim=True)
        return self.softmax(scores.masked_fill(empty, 0.0)).masked_fill(empty, 0.0)

    def softmax(self, scores: Tensor) -> Tensor:
        """Softmax over the keys, in float32 at least."""
        dtype = torch.promote_types(scores.dtype, torch.float32)
        return torch.softmax(scores, dim=-1, dtype=dtype).to(scores.dtype)

    def drop(self, weights: Tensor, p: float) -> Tensor:
        """Drop weights, scale the others up."""
        return F.dropout(weights, p) if p else weights

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        """(B, H, L, S), (B, H, S, Dv) → (B, H, L, Dv)."""
        return weights @ v

    def causal(self, L: int, S: int | None = None) -> Tensor:
        """(L, S): query i sees the keys j ≤ i."""
        return torch.ones(L, L if S is None else S, dtype=torch.bool).tril()

    def padding(self, lengths, S: int) -> Tensor:
        """(B, 1, 1, S): the first keys of each sequence."""
        return (torch.arange(S) < torch.as_tensor(lengths)[:, None])[:, None, None]

    def window(self, L: int, window: int) -> Tensor:
        """(L, L): query i sees itself and the window - 1 keys before it."""
        return torch.ones(L, L, dtype=torch.bool).tril().triu(1 - window)


def as_function(steps: type[Steps]) -> Callable[..., Tensor]:
    """Give the steps the face of `torch.nn.functional.scaled_dot_product_attention`."""
    instance = steps()

    def attention(
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        *,
        scale=None,
        enable_gqa=False,
    ):
        if not enable_gqa and query.shape[1] != key.shape[1]:
            raise ValueError("fewer key heads than query heads need enable_gqa=True")
        return instance.attend(query, key, value, attn_mask, dropout_p, is_causal, scale)

    return attention


@dataclass(frozen=True)
class Weights:
    """The four linear maps of a layer, as `torch.nn.Linear` stores them; a bias may be None."""

    q: tuple[Tensor, Tensor | None]  # (H D, E), (H D,)
    k: tuple[Tensor, Tensor | None]  # (H_kv D, E_k)
    v: tuple[Tensor, Tensor | None]  # (H_kv D, E_v)
    out: tuple[Tensor, Tensor | None] | None  # (E_out, H D); None for a layer without one


class Layer(Steps, nn.Module):
    """The right layer: four projections around `Steps`. Batch first, True = may attend."""

    def __init__(self, embed_dim, num_heads, num_kv_heads=None, bias=True, dropout=0.0):
        nn.Module.__init__(self)
        self.num_heads, self.dropout = num_heads, dropout
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        kv_dim = embed_dim // num_heads * self.num_kv_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias)
        self.k_proj = nn.Linear(embed_dim, kv_dim, bias)
        self.v_proj = nn.Linear(embed_dim, kv_dim, bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias)

    def forward(self, query, key=None, value=None, attn_mask=None, is_causal=False):
        """(B, L, E), (B, S, E), (B, S, E) → (B, L, E)."""
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = self.project(query, key, value)
        q = self.split(q, self.num_heads)  # (B, H, L, D)
        k, v = self.split(k, self.num_kv_heads), self.split(v, self.num_kv_heads)
        heads = self.attend(q, k, v, attn_mask, self.dropout_p(), is_causal)
        return self.output(self.merge(heads), query)

    def dropout_p(self) -> float:
        """Drop in training only."""
        return self.dropout if self.training else 0.0

    def project(self, query, key, value):
        """Apply the three input projections."""
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)

    def output(self, x, query):
        """Apply the output projection; the query is there for mutants."""
        return self.out_proj(x)

    @classmethod
    def from_weights(cls, weights: Weights, num_heads: int, num_kv_heads: int) -> Layer:
        """Build a layer around given weights, of any widths."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.num_heads, layer.num_kv_heads, layer.dropout = num_heads, num_kv_heads, 0.0
        maps = {"q_proj": weights.q, "k_proj": weights.k, "v_proj": weights.v}
        layer.out_proj = nn.Identity()
        if weights.out is not None:
            maps["out_proj"] = weights.out
        for name, linear in maps.items():
            setattr(layer, name, _linear(*linear))
        return layer.eval()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Build `nn.Linear` around given tensors; its constructor would draw new ones first."""
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.detach())
    linear.bias = None if bias is None else nn.Parameter(bias.detach())
    return linear
