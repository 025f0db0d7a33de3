"""Take heads out of trained layers, and see what is missed; tell how far a head looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mha_tutor.multihead import MultiHeadAttention

__all__ = ["Removal", "ablate_each", "attention_distance", "heads_removed", "prune_greedily"]


@dataclass(frozen=True)
class Removal:
    """A head that was taken out, and the score of what was left.

    Attributes:
        layer: index of its layer.
        head: index in the layer.
        score: what the caller's function then said.
    """

    layer: int
    head: int
    score: float


@contextmanager
def heads_removed(layer: MultiHeadAttention, heads: Iterable[int]) -> Iterator[None]:
    """Take heads out of a layer for as long as the context lasts.

    The layer's output is a sum over heads, so a head is out when its columns of `out_proj` are
    zero. The others are left as they are: nothing is trained again and nothing is rescaled.

    Args:
        layer: whose weights are changed and afterward restored.
        heads: which; none is fine.

    Raises:
        ValueError: there is no such head.

    Example:
        >>> layer = MultiHeadAttention(6, 3, bias=False)
        >>> x = torch.randn(2, 4, 6)
        >>> with heads_removed(layer, [0, 1, 2]):
        ...     layer(x).abs().max().item()
        0.0
    """
    heads = list(heads)
    for head in heads:
        if not 0 <= head < layer.num_heads:
            raise ValueError(f"head must be 0 to {layer.num_heads - 1}, got {head}")
    weight = layer.out_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        for head in heads:
            weight[:, head * layer.head_dim : (head + 1) * layer.head_dim] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def ablate_each(layers: Sequence[MultiHeadAttention], score: Callable[[], float]) -> list[Removal]:
    """Take out each head alone.

    Args:
        layers: of one model.
        score: measures that model as it is when called.

    Returns:
        One removal for each head of each layer; the model is as it was.

    Example:
        >>> layer = MultiHeadAttention(6, 3)
        >>> ablate_each([layer], lambda: 1.0)[-1]
        Removal(layer=0, head=2, score=1.0)
    """
    found = []
    for i, layer in enumerate(layers):
        for head in range(layer.num_heads):
            with heads_removed(layer, [head]):
                found.append(Removal(i, head, score()))
    return found


def prune_greedily(
    layers: Sequence[MultiHeadAttention],
    choose: Callable[[], float],
    report: Callable[[], float] | None = None,
) -> list[Removal]:
    """Take out head after head, each time the one that is missed least, until none is left.

    Args:
        layers: of one model.
        choose: measures the model; the head whose removal leaves the highest value goes next,
            among equals the first.
        report: what to store as the score; `choose` if None. To choose and to report on the same
            data flatters the result.

    Returns:
        The removals in order, as many as there are heads; the model is as it was.

    Example:
        >>> layer = MultiHeadAttention(6, 3)
        >>> [removal.head for removal in prune_greedily([layer], lambda: 1.0)]
        [0, 1, 2]
    """
    report = choose if report is None else report
    weights = [layer.out_proj.weight for layer in layers]
    before = [weight.detach().clone() for weight in weights]
    left = [(i, head) for i, layer in enumerate(layers) for head in range(layer.num_heads)]
    found = []
    try:
        while left:
            scores = []
            for i, head in left:
                with heads_removed(layers[i], [head]):
                    scores.append(choose())
            i, head = left.pop(scores.index(max(scores)))
            width = layers[i].head_dim
            with torch.no_grad():
                weights[i][:, head * width : (head + 1) * width] = 0
            found.append(Removal(i, head, report()))
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
    return found


def attention_distance(weights: Tensor, places: Tensor) -> Tensor:
    """Return how far each head looks on average, in the units of `places`.

    Args:
        weights: (..., H, L, L), rows sum to 1.
        places: (L, n), where each token stands.

    Returns:
        (H,), the distance from query to key averaged by weight, over queries and leading axes.

    Raises:
        ValueError: the number of places is not L.

    Example:
        >>> attention_distance(torch.eye(4).expand(2, 4, 4), torch.arange(4.0)[:, None])
        tensor([0., 0.])
    """
    if weights.ndim < 3 or weights.shape[-2:] != (len(places), len(places)):
        raise ValueError(
            f"weights must be (..., H, {len(places)}, {len(places)}) for {len(places)} places, "
            f"got {tuple(weights.shape)}"
        )
    far = torch.cdist(places, places)  # (L, L)
    by_head = (weights * far).sum(dim=-1).mean(dim=-1)  # (..., H)
    return by_head.reshape(-1, by_head.shape[-1]).mean(dim=0)
