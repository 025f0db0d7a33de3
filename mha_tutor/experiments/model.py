"""One attention layer, and the choice of what its routing may read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mha_tutor.experiments.tasks import Batch
from mha_tutor.multihead import MultiHeadAttention

__all__ = ["ROUTINGS", "RoutedAttention"]

ROUTINGS = ("position", "content", "both")


class RoutedAttention(nn.Module):
    """Multi-head attention whose queries and keys read positions, content, or both.

    The values always carry the content. There is no bias, no residual and no second layer, so
    what the model can do is what its heads can do; it has 4 E² parameters for every H.

    Args:
        embed_dim: E.
        num_heads: H; must divide E.
        routing: "position": queries and keys see only where they stand; "content": only the
            batch's query and key; "both": the sum of the two.
        length: L = S, the number of positions, at most E; needed if routing reads positions. A
            position's code is √E times a one-hot vector in the last L features, as long as a
            white token of E features is on average.

    Raises:
        ValueError: an unknown routing, or a length that is missing or does not fit.

    Example:
        >>> model = RoutedAttention(12, 3, routing="position", length=8)
        >>> sum(parameter.numel() for parameter in model.parameters()) == 4 * 12**2
        True
    """

    def __init__(
        self, embed_dim: int, num_heads: int, routing: str = "content", length: int | None = None
    ) -> None:
        super().__init__()
        if routing not in ROUTINGS:
            raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}, got {routing!r}")
        self.routing = routing
        self.attention = MultiHeadAttention(embed_dim, num_heads, bias=False)
        if routing != "content":
            if length is None or not 1 <= length <= embed_dim:
                raise ValueError(
                    f"routing by {routing} needs a length from 1 to embed_dim ({embed_dim}), "
                    f"got {length}"
                )
            code = torch.eye(length, embed_dim).roll(embed_dim - length, dims=1)
            self.register_buffer("positions", code * embed_dim**0.5)

    def forward(self, batch: Batch, need_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Answer a batch.

        Args:
            batch: of a task.
            need_weights: whether to return the weights too.

        Returns:
            (B, L, E), or the pair of that and the weights (B, H, L, S).

        Raises:
            ValueError: routing reads positions, and the batch has another length.
        """
        query, key = batch.query, batch.key
        if self.routing != "content":
            for name, x in (("query", query), ("key", key)):
                if x.shape[-2] != len(self.positions):
                    raise ValueError(
                        f"the model has {len(self.positions)} positions, "
                        f"but the {name} has length {x.shape[-2]}"
                    )
            positions = self.positions.expand_as(query)
            query = positions if self.routing == "position" else query + positions
            key = positions if self.routing == "position" else key + positions
        return self.attention(query, key, batch.value, need_weights=need_weights)
