"""The attention layer: four projections around the pieces of the other modules."""

from typing import Literal, Self, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mha_tutor.attention import attention_weights, check_mask
from mha_tutor.backends import check_backend, check_call, check_window, run_backend
from mha_tutor.backends.call import dense_mask
from mha_tutor.checks import check_integer, check_probability
from mha_tutor.heads import head_dim_of, merge_heads, split_heads

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(nn.Module):
    """Multi-head attention, batch first.

    The usual call runs the backend, torch's fused attention unless told otherwise; a call with
    `need_weights=True` runs the readable one of this package, and refuses what the backend does.
    All give the same output.

    Args:
        embed_dim: E, the width of the query and of the output.
        num_heads: H; must divide E. Each head is D = E // H wide.
        kdim: width of the key; E if None.
        vdim: width of the value; E if None.
        bias: whether the four projections add a bias.
        dropout: probability with which a weight is dropped in training.
        window: query i sees the keys i - window + 1 to i; all if None.
        backend: a name of `mha_tutor.backends.BACKENDS`.

    Raises:
        ValueError: H does not divide E, a width or the window is less than 1, dropout is not a
            probability, or there is no such backend.
        TypeError: a size or the window is not an integer, or dropout not a number.

    Source:
        Vaswani et al., "Attention Is All You Need" (2017), section 3.2.2.

    Example:
        >>> layer = MultiHeadAttention(embed_dim=512, num_heads=8)
        >>> layer(torch.randn(1, 60, 512)).shape
        torch.Size([1, 60, 512])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        window: int | None = None,
        backend: str = "sdpa",
    ) -> None:
        super().__init__()
        kdim = embed_dim if kdim is None else kdim
        vdim = embed_dim if vdim is None else vdim
        for name, width in (("embed_dim", embed_dim), ("kdim", kdim), ("vdim", vdim)):
            check_integer(name, width, least=1)
        check_probability("dropout", dropout)
        check_window(window)
        check_backend(backend)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = head_dim_of(embed_dim, num_heads)
        self.dropout = dropout
        self.window = window
        self.backend = backend
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias)
        self.k_proj = nn.Linear(kdim, embed_dim, bias)
        self.v_proj = nn.Linear(vdim, embed_dim, bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew (Glorot's uniform distribution) and set the biases to zero."""
        # By name: a subclass may have children that are no projections.
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    @overload
    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        need_weights: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]: ...

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
        *,
        key_padding_mask: None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from the query to the key and mix the value.

        Args:
            query: (B, L, E).
            key: (B, S, kdim); the query if None (self-attention).
            value: (B, S, vdim); the key if None.
            attn_mask: (L, S), or four axes that broadcast to (B, H, L, S). Boolean: True = may
                attend. Floating point: added to the scores.
            is_causal: query i sees the keys j ≤ i; not together with `attn_mask`.
            need_weights: whether to return the weights too.
            key_padding_mask: refused; `attn_mask=padding_mask(lengths, S)` hides padding.

        Returns:
            (B, L, E), or with `need_weights` the pair of that and the weights of each head,
            (B, H, L, S), before dropout.

        Raises:
            ValueError: shapes, devices or options do not fit together, or the backend cannot run
                this call (the message says why, and which can).
            TypeError: an argument is not a tensor, or has a dtype that cannot be used.
        """
        if key_padding_mask is not None:
            raise TypeError(
                "key_padding_mask is not taken; pass attn_mask=mha_tutor.padding_mask(lengths, S), "
                "or attn_mask=~key_padding_mask[:, None, None, :] (True = may attend)"
            )
        if value is not None and key is None:
            raise ValueError("value was given without a key; pass both, or the key alone")
        key = query if key is None else key
        value = key if value is None else value
        self._check_inputs(query, key, value)

        q = split_heads(self.q_proj(query), self.num_heads)  # (B, H, L, D)
        k = split_heads(self.k_proj(key), self.num_heads)  # (B, H, S, D)
        v = split_heads(self.v_proj(value), self.num_heads)  # (B, H, S, D)
        self._check_mask(attn_mask, q, k, is_causal)
        dropout_p = self.dropout if self.training else 0.0
        if need_weights:
            check_call(self.backend, q, k, v, attn_mask, is_causal, self.window, dropout_p)
            if self.window is not None:
                L, S = q.shape[-2], k.shape[-2]
                attn_mask = dense_mask(L, S, attn_mask, is_causal, self.window, q.device)
                is_causal = False
            weights = attention_weights(q, k, attn_mask, is_causal)  # (B, H, L, S)
            heads = F.dropout(weights, dropout_p) @ v  # (B, H, L, D)
            return self.out_proj(merge_heads(heads)), weights
        heads = run_backend(self.backend, q, k, v, attn_mask, is_causal, self.window, dropout_p)
        out: Tensor = self.out_proj(merge_heads(heads))
        return out

    def extra_repr(self) -> str:
        """Show what the shapes of the projections do not tell."""
        window = "" if self.window is None else f", window={self.window}"
        backend = "" if self.backend == "sdpa" else f", backend={self.backend!r}"
        return f"num_heads={self.num_heads}, dropout={self.dropout}{window}{backend}"

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention, *, backend: str = "sdpa") -> Self:
        """Copy the weights of torch's module into one of this class.

        The copy computes the same numbers, with this package's conventions: batch first, and
        True = may attend in a boolean mask, where torch's module means the opposite.

        Args:
            module: with packed or separate projections, with or without bias, batch first or not.
            backend: a name of `mha_tutor.backends.BACKENDS`; torch's module cannot carry one.

        Raises:
            ValueError: the module uses `add_bias_kv` or `add_zero_attn`, which have no place here.
            TypeError: it is not a `torch.nn.MultiheadAttention`.

        Example:
            >>> theirs = nn.MultiheadAttention(6, 3, batch_first=True)
            >>> ours = MultiHeadAttention.from_torch(theirs)
            >>> x = torch.randn(2, 4, 6)
            >>> torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)
            True
        """
        if not isinstance(module, nn.MultiheadAttention):
            raise TypeError(
                f"module must be a torch.nn.MultiheadAttention, got {type(module).__name__}"
            )
        if module.bias_k is not None:
            raise ValueError("a module with add_bias_kv=True cannot be carried over")
        if module.add_zero_attn:
            raise ValueError("a module with add_zero_attn=True cannot be carried over")
        layer = cls(
            module.embed_dim,
            module.num_heads,
            kdim=module.kdim,
            vdim=module.vdim,
            bias=module.in_proj_bias is not None,
            dropout=module.dropout,
            backend=backend,
        ).to(module.out_proj.weight)  # its dtype and device
        _copy_parameters(_torch_parameters(module), layer._own_parameters())
        return layer.train(module.training)

    def to_torch(self) -> nn.MultiheadAttention:
        """Copy the weights into a `torch.nn.MultiheadAttention` with `batch_first=True`.

        In that module a boolean mask means the opposite: True = may *not* attend. It has no
        place for the backend: give that to `from_torch` on the way back.

        Raises:
            ValueError: the layer has a window, which has no place in torch's module.

        Example:
            >>> MultiHeadAttention(6, 3).to_torch().in_proj_weight.shape
            torch.Size([18, 6])
        """
        if self.window is not None:
            raise ValueError(f"a layer with window={self.window} cannot be carried over")
        module = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            kdim=self.k_proj.in_features,
            vdim=self.v_proj.in_features,
            bias=self.q_proj.bias is not None,
            dropout=self.dropout,
            batch_first=True,
        ).to(self.q_proj.weight)
        _copy_parameters(self._own_parameters(), _torch_parameters(module))
        return module.train(self.training)

    def _own_parameters(self) -> list[Tensor]:
        projections = (self.q_proj, self.k_proj, self.v_proj, self.out_proj)
        weights = [projection.weight for projection in projections]
        biases = [projection.bias for projection in projections if projection.bias is not None]
        return weights + biases

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        arguments = (
            ("query", query, self.q_proj),
            ("key", key, self.k_proj),
            ("value", value, self.v_proj),
        )
        for name, x, projection in arguments:
            if not isinstance(x, Tensor):
                raise TypeError(f"{name} must be a torch tensor, got {type(x).__name__}")
            if x.ndim != 3 or x.shape[-1] != projection.in_features:
                raise ValueError(
                    f"{name} must be (batch, length, {projection.in_features}), "
                    f"got {tuple(x.shape)}"
                )
            weight = projection.weight
            if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
                raise TypeError(
                    f"{name} must have the dtype of the layer, {weight.dtype}, got {x.dtype}"
                )
            if x.device != weight.device:
                raise ValueError(
                    f"{name} must be on the device of the layer, {weight.device}, got {x.device}"
                )
        if key.shape[:2] != value.shape[:2]:
            raise ValueError(
                "key and value must have the same batch and length, "
                f"got {tuple(key.shape)} and {tuple(value.shape)}"
            )
        if query.shape[0] != key.shape[0]:
            raise ValueError(
                f"query and key must have the same batch, got {query.shape[0]} and {key.shape[0]}"
            )

    def _check_mask(self, attn_mask: Tensor | None, q: Tensor, k: Tensor, is_causal: bool) -> None:
        check_mask(attn_mask, torch.Size([*q.shape[:-1], k.shape[-2]]), is_causal)
        if attn_mask is not None and attn_mask.ndim not in (2, 4):
            # (B, L, S) would broadcast as (H, L, S) without a word whenever B equals H or 1.
            raise ValueError(
                "attn_mask must have 2 or 4 dimensions, (L, S) or (B, H, L, S); for one mask a "
                f"sequence use mask[:, None], got {tuple(attn_mask.shape)}"
            )


def _torch_parameters(module: nn.MultiheadAttention) -> list[Tensor]:
    """List the parameters of torch's module in the order of `_own_parameters`.

    Torch stacks query, key and value into `in_proj_weight` (3E, E) when all have the width E,
    and always stacks their biases into `in_proj_bias` (3E,).
    """
    if module.in_proj_weight is None:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    else:
        weights = list(module.in_proj_weight.chunk(3))
    weights.append(module.out_proj.weight)
    if module.in_proj_bias is None:
        return weights
    return [*weights, *module.in_proj_bias.chunk(3), module.out_proj.bias]


@torch.no_grad()
def _copy_parameters(sources: list[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
