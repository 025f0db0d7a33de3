"""Tasks with a known best: what h heads can reach at most is computed before anything is trained.

Every task draws its targets with variance 1 on average over the target's features, so that the
mean squared error *is* the share of the variance that is missed: 0 is perfect, 1 is what a model
gets that always answers with the mean. R² is 1 − error.

Shape letters: B batch, L queries, S keys, E embed_dim, K places to read from, T target features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from mha_tutor.checks import check_integer

__all__ = [
    "Batch",
    "Filter",
    "Lookup",
    "MaxMin",
    "Task",
    "equal_taps",
    "fetch",
    "orthogonal_taps",
]


@dataclass(frozen=True)
class Batch:
    """What a model is given, and what it should answer.

    Attributes:
        query: (B, L, E), what routing by content may read of a query.
        key: (B, S, E), what routing by content may read of a key.
        value: (B, S, E), what is mixed.
        target: (B, L, T) with T ≤ E; the model's first T outputs are compared with it.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    target: Tensor


class Task(Protocol):
    """What the training loop asks of a task."""

    name: str
    embed_dim: int
    routing: str
    length: int | None

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw a batch."""

    def best_error(self, num_heads: int) -> float:
        """Return the smallest error that `num_heads` heads can reach."""


@dataclass(frozen=True, eq=False)
class Filter:
    """y_t = Σ_k M_k x_{t−k}: each token is to become a sum over the K tokens before it.

    Inputs are white (independent entries of variance 1), shifts are circular, and routing reads
    positions only. The taps are rescaled so that the target has variance 1 on average.

    The best of h heads: routing by position makes the weights fixed numbers, so for one t the
    layer is Σ_h a^h ⊗ M_h, with a^h the row of weights of head h and M_h = W_{O,h} W_{V,h}. As a
    table with a row for each token s and a column for each entry of M it has rank h at most. The
    target is the table whose row t − k is M_k. The inputs are white, so the expected squared error
    is the squared distance of the two tables, and by the Eckart–Young theorem a table of rank h
    keeps at most the h largest squared singular values of the target's.

    Args:
        taps: (K, F, F) for tokens of F features; tap k − 1 acts on the token k places before.
        length: L, the number of tokens; more than K.
        name: what records call the task.
        embed_dim: E; F if None. The features beyond F are zero, so that with E = F + L a sum of
            content and position is the two side by side.

    Raises:
        ValueError: the shapes do not fit, the taps are all zero, or length is not more than K.

    Example:
        >>> task = fetch(places=3, width=4, length=8)
        >>> [round(task.best_error(h), 3) for h in (1, 2, 3, 6)]
        [0.667, 0.333, 0.0, 0.0]
    """

    taps: Tensor
    length: int
    name: str = "filter"
    embed_dim: int | None = None
    routing: ClassVar[str] = "position"

    def __post_init__(self) -> None:
        taps = self.taps
        if taps.ndim != 3 or taps.shape[1] != taps.shape[2]:
            raise ValueError(f"taps must be (K, F, F), got {tuple(taps.shape)}")
        width = taps.shape[-1]
        if self.embed_dim is None:
            object.__setattr__(self, "embed_dim", width)
        elif self.embed_dim < width:
            raise ValueError(
                f"embed_dim must be at least the width of the taps ({width}), got {self.embed_dim}"
            )
        if self.length <= len(taps):
            raise ValueError(
                f"length must be more than the number of taps ({len(taps)}), got {self.length}"
            )
        energy = taps.square().sum()
        if not energy > 0:
            raise ValueError("taps must not all be zero")
        object.__setattr__(self, "taps", taps * (width / energy).sqrt())

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw white inputs, (B, L, F) widened to E, and what the filter makes of them."""
        x = torch.randn(batch_size, self.length, self.taps.shape[-1], generator=generator)
        back = range(1, len(self.taps) + 1)
        y = sum(x.roll(k, dims=1) @ tap.T for k, tap in zip(back, self.taps, strict=True))
        x = widen(x, self.embed_dim)
        return Batch(query=x, key=x, value=x, target=y)

    def best_error(self, num_heads: int) -> float:
        """Return the share of the squared singular values beyond the `num_heads` largest."""
        check_integer("num_heads", num_heads, least=1)
        energy = torch.linalg.svdvals(self.taps.flatten(1).double()).square()
        return (energy[num_heads:].sum() / energy.sum()).item()


@dataclass(frozen=True)
class Lookup:
    """Each query names K items by their keys and wants their K values.

    An item is a random key of length 1 and a white value, both `width` wide. A query is the K
    keys side by side, of K different items, and the target is the K values side by side. Routing
    reads keys only.

    The best of h heads: given all keys, the weights are fixed numbers, and what the layer makes of
    feature f of the values is Σ_s c_s v_sf with c in the span of the h rows of weights. The values
    are white, so the squared error for the value of item s is at least 1 − |P e_s|², P being
    the projection on that span and e_s the row that looks at item s alone. Over the K items
    Σ |P e_s|² ≤ trace P ≤ h: an error of 1 − h/K at least on average, whatever the keys. K heads
    can reach 0 only in the limit of sharp weights, and if D is wide enough to tell keys apart.

    Args:
        places: K, how many items each query asks for.
        items: S, how many there are.
        width: of a key and of a value.
        embed_dim: E; at least K × width.
        queries: L, queries for each set of items.

    Raises:
        ValueError: a size is less than 1, K is more than S, or E is too small.

    Example:
        >>> Lookup(places=2, items=4, width=8, embed_dim=16).best_error(1)
        0.5
    """

    places: int
    items: int
    width: int
    embed_dim: int
    queries: int = 8
    routing: ClassVar[str] = "content"
    length: ClassVar[None] = None

    def __post_init__(self) -> None:
        for name in ("places", "items", "width", "embed_dim", "queries"):
            check_integer(name, getattr(self, name), least=1)
        if self.places > self.items:
            raise ValueError(f"places ({self.places}) must not exceed items ({self.items})")
        if self.places * self.width > self.embed_dim:
            raise ValueError(
                f"embed_dim ({self.embed_dim}) must be at least places × width "
                f"({self.places} × {self.width})"
            )

    @property
    def name(self) -> str:
        """What records call the task."""
        return f"lookup of {self.places}"

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw items and queries: query (B, L, E), key and value (B, S, E), target (B, L, K·w)."""
        shape = (batch_size, self.items, self.width)
        keys = torch.randn(shape, generator=generator)
        keys = keys / keys.norm(dim=-1, keepdim=True)
        values = torch.randn(shape, generator=generator)
        draws = torch.rand(batch_size, self.queries, self.items, generator=generator)
        asked = draws.argsort(dim=-1)[..., : self.places]  # (B, L, K), all different
        rows = torch.arange(batch_size)[:, None, None]
        return Batch(
            query=widen(keys[rows, asked].flatten(2), self.embed_dim),
            key=widen(keys, self.embed_dim),
            value=widen(values, self.embed_dim),
            target=values[rows, asked].flatten(2),
        )

    def best_error(self, num_heads: int) -> float:
        """Return 1 − h/K, or 0."""
        check_integer("num_heads", num_heads, least=1)
        return max(0.0, 1 - num_heads / self.places)


@dataclass(frozen=True)
class MaxMin:
    """Report the largest and the smallest of n numbers drawn uniformly from 0 to 1.

    A token is (u, 1, 0, 0), the query is (0, 1, 0, 0) throughout, and the target is (max, min),
    each brought to mean 0 and variance 1. There are no positions.

    The best of one head: its output is a linear map of (Σ w_s u_s, 1), so both answers are affine
    in one scalar m = Σ w_s u_s, whatever the weights. The R² of the best affine fit is the squared
    correlation, so the mean R² is (corr(m, max)² + corr(m, min)²) / 2. That is at most half the
    largest eigenvalue of the correlation matrix of (max, min), which is 1 + 1/n, for their
    correlation is 1/n. Two heads reach 0 in the limit of sharp weights.

    Args:
        items: n, at least 2.

    Raises:
        ValueError: items is less than 2.

    Example:
        >>> 1 - MaxMin(items=8).best_error(1)
        0.5625
    """

    items: int = 8
    name: ClassVar[str] = "max and min"
    embed_dim: ClassVar[int] = 4
    routing: ClassVar[str] = "content"
    length: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_integer("items", self.items, least=2)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw numbers: query (B, 1, 4), key and value (B, n, 4), target (B, 1, 2)."""
        n = self.items
        u = torch.rand(batch_size, n, generator=generator)
        tokens = torch.zeros(batch_size, n, 4)
        tokens[..., 0], tokens[..., 1] = u, 1
        query = torch.tensor([0.0, 1.0, 0.0, 0.0]).expand(batch_size, 1, 4)
        mean, deviation = n / (n + 1), (n / (n + 2)) ** 0.5 / (n + 1)  # of the maximum
        extremes = torch.stack([u.amax(dim=1) - mean, u.amin(dim=1) - (1 - mean)], dim=-1)
        return Batch(query, tokens, tokens, target=(extremes / deviation)[:, None])

    def best_error(self, num_heads: int) -> float:
        """Return (1 − 1/n) / 2 for one head, else 0."""
        check_integer("num_heads", num_heads, least=1)
        return (1 - 1 / self.items) / 2 if num_heads == 1 else 0.0


def fetch(
    places: int = 3, width: int = 4, length: int = 8, *, embed_dim: int | None = None
) -> Filter:
    """Make the task "fetch from K places": slice k of y_t is slice k of the token k before.

    The taps are the projections on the K slices, equal in norm and orthogonal, so h heads reach
    an error of 1 − h/K and no less.

    Args:
        places: K.
        width: of a slice; a token has K × width features.
        length: L, more than K.
        embed_dim: E, at least K × width, which it is if None.

    Raises:
        ValueError: a size is less than 1, or L or E is too small.

    Example:
        >>> fetch().taps.shape
        torch.Size([3, 12, 12])
    """
    for name, size in (("places", places), ("width", width)):
        check_integer(name, size, least=1)
    slices = torch.eye(places * width).unflatten(0, (places, width))  # (K, width, K × width)
    return Filter(slices.mT @ slices, length, f"fetch from {places}", embed_dim)


def orthogonal_taps(places: int, embed_dim: int, generator: torch.Generator) -> Tensor:
    """Draw K taps of rank E/K, orthogonal to each other and of equal norm.

    Each reads one slice in one random basis and writes one slice in another, U_k V_kᵀ.

    Args:
        places: K; must divide E.
        embed_dim: E.
        generator: on the CPU.

    Returns:
        (K, E, E).

    Raises:
        ValueError: K does not divide E, or is less than 1.

    Example:
        >>> taps = orthogonal_taps(4, 8, torch.Generator().manual_seed(0)).flatten(1)
        >>> torch.allclose(taps @ taps.T, 2 * torch.eye(4), atol=1e-5)
        True
    """
    if places < 1 or embed_dim % places:
        raise ValueError(f"places ({places}) must be at least 1 and divide embed_dim ({embed_dim})")
    bases = torch.linalg.qr(torch.randn(2, embed_dim, embed_dim, generator=generator))[0]
    write, read = bases.unflatten(-1, (places, -1)).movedim(-2, 1)  # each (K, E, E/K)
    return write @ read.mT


def equal_taps(places: int, embed_dim: int, generator: torch.Generator) -> Tensor:
    """Draw one orthogonal matrix and use it as all K taps, (K, E, E): one head is enough.

    Example:
        >>> equal_taps(4, 8, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 8, 8])
    """
    basis = torch.linalg.qr(torch.randn(embed_dim, embed_dim, generator=generator))[0]
    return basis.expand(places, -1, -1)


def widen(x: Tensor, width: int) -> Tensor:
    """Append zeros to the last axis."""
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))
