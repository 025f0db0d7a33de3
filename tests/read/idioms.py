"""Attention as people write it: each idiom as a layer of given sizes, and what is true of it.

`truth` is computed by `attention_loop` from query, key and value as the layer's owner would say
them, never by the reading.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

IDIOMS = {}


@dataclass(frozen=True)
class Sizes:
    """B, H, L, S, D of a call; `kv` key heads."""

    B: int = 2
    H: int = 3
    L: int = 5
    S: int = 7
    D: int = 4
    kv: int = 3

    @property
    def E(self):
        return self.H * self.D


@dataclass
class Truth:
    """What the owner knows: heads as they enter the formula, scale, mask."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    hidden: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    axis: str = "keys"
    kv_head: tuple = ()
    dropouts: tuple = field(default=())


def idiom(function):
    IDIOMS[function.__name__] = function
    return function


def split(t, H):
    B, L, E = t.shape
    return t.view(B, L, H, E // H).transpose(1, 2)


def join(t):
    B, H, L, D = t.shape
    return t.transpose(1, 2).reshape(B, L, H * D)


class Layer(nn.Module):
    """Three projections and one after the merge, under names that say nothing."""

    def __init__(self, s, **more):
        super().__init__()
        self.s = s
        self.alpha, self.beta, self.gamma = (nn.Linear(s.E, s.E) for _ in range(3))
        self.delta = nn.Linear(s.E, s.E)

    def heads(self, x, y):
        return (
            split(self.alpha(x), self.s.H),
            split(self.beta(y), self.s.H),
            split(self.gamma(y), self.s.H),
        )

    def forward(self, x, y):
        return self.delta(join(self.attend(*self.heads(x, y))))

    def truth(self, x, y):
        q, k, v = self.heads(x, y)
        return Truth(q, k, v, 1 / math.sqrt(self.s.D))


def simple(name, attend, **changes):
    """Make an idiom that differs from three lines in `attend` alone."""

    class Simple(Layer):
        def truth(self, x, y):
            t = super().truth(x, y)
            for key, value in changes.items():
                setattr(t, key, value(self.s) if callable(value) else value)
            return t

    Simple.attend = lambda self, q, k, v: attend(q, k, v)
    Simple.__name__ = Simple.__qualname__ = name
    IDIOMS[name] = Simple


def root(q):
    return math.sqrt(q.shape[-1])


def shown(s):
    """The future hidden, seen from the last query."""
    return torch.ones(s.L, s.S, dtype=torch.bool).tril(s.S - s.L)


def causal_of(q, k):
    return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(k.shape[-2] - q.shape[-2])


def hide(fill):
    def attend(q, k, v):
        s = (q @ k.mT / root(q)).masked_fill(~causal_of(q, k), fill)
        return s.softmax(-1) @ v

    return attend


def hidden(s):
    return ~shown(s)


simple("three lines", lambda q, k, v: ((q @ k.mT) / root(q)).softmax(-1) @ v)
simple(
    "einsum, names of torch",
    lambda q, k, v: torch.einsum(
        "bhls,bhsd->bhld", (torch.einsum("bhld,bhsd->bhls", q, k) / root(q)).softmax(-1), v
    ),
)
simple(
    "einsum, key first",
    lambda q, k, v: torch.einsum(
        "b h s d, b h l s -> b h l d",
        v,
        F.softmax(torch.einsum("b h s d, b h l d -> b h l s", k, q) * root(q) ** -1, dim=-1),
    ),
)
simple(
    "einsum, ellipsis",
    lambda q, k, v: torch.einsum(
        "...ls,...sd->...ld", (torch.einsum("...ld,...sd->...ls", q, k) / root(q)).softmax(-1), v
    ),
)
simple(
    "einsum, scores transposed",
    lambda q, k, v: torch.einsum(
        "bhsl,bhsd->bhld", (torch.einsum("bhld,bhsd->bhsl", q, k) / root(q)).softmax(2), v
    ),
)


def folded(q, k, v):
    B, H, L, D = q.shape
    q, k, v = (t.reshape(B * H, -1, D) for t in (q, k, v))
    w = torch.bmm(q, k.transpose(1, 2)).div_(math.sqrt(D)).softmax(-1)
    return torch.bmm(w, v).view(B, H, L, D)


simple("bmm on folded heads", folded)
simple(
    "baddbmm",
    lambda q, k, v: (
        torch.baddbmm(
            torch.zeros(1, 1, 1), q.flatten(0, 1), k.flatten(0, 1).mT, alpha=1 / root(q)
        ).softmax(-1)
        @ v.flatten(0, 1)
    ).unflatten(0, q.shape[:2]),
)
simple("masked_fill, -inf", hide(-math.inf), hidden=hidden)
simple("masked_fill, -1e9", hide(-1e9), hidden=hidden)
simple("masked_fill, smallest number", hide(torch.finfo(torch.float32).min), hidden=hidden)
simple(
    "where",
    lambda q, k, v: (
        torch.where(causal_of(q, k), q @ k.mT / root(q), torch.tensor(-math.inf)).softmax(-1) @ v
    ),
    hidden=hidden,
)
simple(
    "additive mask",
    lambda q, k, v: (
        (
            q @ k.mT / root(q)
            + torch.zeros(causal_of(q, k).shape).masked_fill(~causal_of(q, k), -1e9)
        ).softmax(-1)
        @ v
    ),
    hidden=hidden,
)


def written(q, k, v):
    s = q @ k.mT / root(q)
    s[..., ~causal_of(q, k)] = -math.inf
    return s.softmax(-1) @ v


simple("scores written into", written, hidden=hidden)
simple(
    "torch, is_causal",
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    hidden=lambda s: ~torch.ones(s.L, s.S, dtype=torch.bool).tril(),
)
simple(
    "torch, attn_mask",
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=causal_of(q, k)),
    hidden=hidden,
)
simple("torch", F.scaled_dot_product_attention)
simple(
    "torch, scale", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3), scale=0.3
)
simple("query scaled first", lambda q, k, v: (q / root(q) @ k.mT).softmax(-1) @ v)
simple(
    "both scaled by the fourth root",
    lambda q, k, v: ((q / root(q) ** 0.5) @ (k.mT / root(q) ** 0.5)).softmax(-1) @ v,
)
simple("no scale", lambda q, k, v: (q @ k.mT).softmax(-1) @ v, scale=1.0)
simple(
    "√embed_dim",
    lambda q, k, v: (q @ k.mT / math.sqrt(q.shape[1] * q.shape[-1])).softmax(-1) @ v,
    scale=lambda s: s.E**-0.5,
)


def by_hand(q, k, v):
    e = (q @ k.mT / root(q)).exp()
    return e / e.sum(-1, keepdim=True) @ v


def by_hand_stable(q, k, v):
    s = q @ k.mT / root(q)
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e / e.sum(dim=-1, keepdim=True)) @ v


def by_hand_masked(q, k, v):
    e = (q @ k.mT / root(q)).exp() * causal_of(q, k)
    return e / e.sum(-1, keepdim=True) @ v


simple("exp and sum by hand", by_hand)
simple("exp and sum by hand, shifted", by_hand_stable)
simple("exp times a mask of 0 and 1", by_hand_masked, hidden=hidden)
simple(
    "softmax in float32",
    lambda q, k, v: F.softmax(q @ k.mT / root(q), -1, dtype=torch.float32).to(q.dtype) @ v,
)
simple(
    "products and sums written out",
    lambda q, k, v: (
        ((q.unsqueeze(3) * k.unsqueeze(2)).sum(-1) / root(q)).softmax(-1).unsqueeze(-1)
        * v.unsqueeze(2)
    ).sum(3),
)
simple(
    "over the queries",
    lambda q, k, v: (q @ k.mT / root(q)).softmax(-2) @ v,
    axis=lambda s: "queries" if s.L > 1 or s.S > 1 else "keys",
)
simple(
    "over the heads",
    lambda q, k, v: (q @ k.mT / root(q)).softmax(1) @ v,
    axis=lambda s: "heads",
)


def distance(s):
    d = torch.arange(s.L)[:, None] - torch.arange(s.S)
    return -d.abs() * torch.arange(1, s.H + 1)[:, None, None] * 0.25


class Bias(Layer):
    """ALiBi."""

    def attend(self, q, k, v):
        return (q @ k.mT / root(q) + distance(self.s).to(q)).softmax(-1) @ v

    def truth(self, x, y):
        t = super().truth(x, y)
        t.bias = distance(self.s)
        return t


IDIOMS["bias by distance"] = Bias


def rotate(t, factor=1.0):
    n = t.shape[-1] // 2
    angle = torch.arange(t.shape[-2])[:, None] / 10 ** (torch.arange(n) / n)
    cos, sin = factor * angle.cos(), factor * angle.sin()
    a, b = t.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Rotary(Layer):
    def heads(self, x, y):
        q, k, v = super().heads(x, y)
        return rotate(q), rotate(k), v

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class RotaryScaledFirst(Rotary):
    def attend(self, q, k, v):
        return (q @ k.mT).softmax(-1) @ v

    def forward(self, x, y):
        q, k, v = Layer.heads(self, x, y)
        return self.delta(join((rotate(q / root(q)) @ rotate(k).mT).softmax(-1) @ v))


class RotaryAndLonger(Rotary):
    """YaRN: the turned vectors are longer by one factor."""

    def forward(self, x, y):
        q, k, v = Layer.heads(self, x, y)
        return self.delta(join(self.attend(1.2 * rotate(q), rotate(k) * 1.2, v)))

    def truth(self, x, y):
        t = super().truth(x, y)
        t.scale *= 1.44
        return t


class Yarn(RotaryAndLonger):
    """The factor stands in cosine and sine."""

    def forward(self, x, y):
        q, k, v = Layer.heads(self, x, y)
        return self.delta(join(self.attend(rotate(q, 1.2), rotate(k, 1.2), v)))


IDIOMS["rotary, longer"] = RotaryAndLonger
IDIOMS["rotary, longer by its cosine"] = Yarn
IDIOMS["rotary"] = Rotary
IDIOMS["rotary, scaled before"] = RotaryScaledFirst


class ListOfHeads(nn.Module):
    class Head(nn.Module):
        def __init__(self, s):
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(s.E, s.D, bias=False) for _ in range(3))

        def forward(self, x, y):
            q, k, v = self.one(x), self.two(y), self.three(y)
            return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v

    def __init__(self, s):
        super().__init__()
        self.s = s
        self.parts = nn.ModuleList(self.Head(s) for _ in range(s.H))
        self.delta = nn.Linear(s.E, s.E)

    def forward(self, x, y):
        return self.delta(torch.cat([part(x, y) for part in self.parts], -1))

    def truth(self, x, y):
        each = [[p.one(x), p.two(y), p.three(y)] for p in self.parts]
        return Truth(*(torch.stack(t, 1) for t in zip(*each, strict=True)), self.s.D**-0.5)


IDIOMS["a list of heads"] = ListOfHeads


class LoopOverHeads(Layer):
    def forward(self, x, y):
        q, k, v = self.heads(x, y)
        outs = []
        for h in range(self.s.H):
            outs.append((q[:, h] @ k[:, h].mT / root(q)).softmax(-1) @ v[:, h])
        return self.delta(torch.cat(outs, dim=-1))


IDIOMS["a loop over heads"] = LoopOverHeads


class Grouped(Layer):
    """Each key head serves `G` query heads."""

    def __init__(self, s):
        super().__init__(s)
        self.beta, self.gamma = (nn.Linear(s.E, s.kv * s.D) for _ in range(2))

    def heads(self, x, y):
        s = self.s
        return split(self.alpha(x), s.H), split(self.beta(y), s.kv), split(self.gamma(y), s.kv)

    def truth(self, x, y):
        t = super().truth(x, y)
        t.kv_head = tuple(h * self.s.kv // self.s.H for h in range(self.s.H))
        return t


class Interleaved(Grouped):
    def attend(self, q, k, v):
        k, v = (t.repeat_interleave(self.s.H // self.s.kv, 1) for t in (k, v))
        return (q @ k.mT / root(q)).softmax(-1) @ v


class Expanded(Grouped):
    def attend(self, q, k, v):
        B, n, S, D = k.shape
        k, v = (
            t[:, :, None].expand(B, n, self.s.H // n, S, D).reshape(B, self.s.H, S, D)
            for t in (k, v)
        )
        return (q @ k.mT / root(q)).softmax(-1) @ v


class ByGroup(Grouped):
    def attend(self, q, k, v):
        q = q.unflatten(1, (self.s.kv, -1))
        w = torch.einsum("bngld,bnsd->bngls", q, k).div(root(q)).softmax(-1)
        return torch.einsum("bngls,bnsd->bngld", w, v).flatten(1, 2)


class EnableGqa(Grouped):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class ExpandedRotary(Expanded):
    def heads(self, x, y):
        q, k, v = super().heads(x, y)
        return rotate(q), rotate(k), v


for kind in (Interleaved, Expanded, ByGroup, EnableGqa, ExpandedRotary):
    IDIOMS[f"shared key heads, {kind.__name__}"] = kind


class OneKeyHead(Layer):
    """Multi-query attention: rows of all heads in one product, as in GPT-BigCode."""

    def __init__(self, s):
        super().__init__(s)
        self.beta, self.gamma = (nn.Linear(s.E, s.D) for _ in range(2))

    def forward(self, x, y):
        B, L, _ = x.shape
        q = self.alpha(x).view(B, L * self.s.H, self.s.D)
        w = (q @ self.beta(y).mT / root(q)).softmax(-1)
        return self.delta((w @ self.gamma(y)).view(B, L, self.s.E))

    def truth(self, x, y):
        q = split(self.alpha(x), self.s.H)
        t = Truth(q, self.beta(y)[:, None], self.gamma(y)[:, None], self.s.D**-0.5)
        t.kv_head = (0,) * self.s.H
        return t


IDIOMS["one key head, rows folded"] = OneKeyHead


def packed(name, cut):
    class Packed(nn.Module):
        def __init__(self, s):
            super().__init__()
            self.s = s
            self.zeta, self.delta = nn.Linear(s.E, 3 * s.E), nn.Linear(s.E, s.E)

        def forward(self, x, y):
            q, k, v = cut(self.zeta(x), self.s)
            return self.delta(join(F.scaled_dot_product_attention(q, k, v)))

        def truth(self, x, y):
            return Truth(*cut(self.zeta(x), self.s), self.s.D**-0.5)

    IDIOMS[f"packed, {name}"] = Packed


packed("q k v", lambda t, s: [split(p, s.H) for p in t.chunk(3, -1)])
packed("v q k", lambda t, s: (lambda v, q, k: [q, k, v])(*(split(p, s.H) for p in t.chunk(3, -1))))
packed("head by head", lambda t, s: split(t, s.H).chunk(3, -1))
packed("three first", lambda t, s: t.unflatten(-1, (3, s.H, s.D)).permute(2, 0, 3, 1, 4).unbind(0))
packed(
    "features first", lambda t, s: t.unflatten(-1, (s.D, 3, s.H)).permute(3, 0, 4, 1, 2).unbind(0)
)


class LengthThenHead(Layer):
    """Everything in the layout (B, L, H, D)."""

    def forward(self, x, y):
        s = self.s
        q, k, v = (
            m(t).unflatten(-1, (s.H, s.D))
            for m, t in ((self.alpha, x), (self.beta, y), (self.gamma, y))
        )
        w = torch.einsum("blhd,bshd->bhls", q, k) / root(q)
        return self.delta(torch.einsum("bhls,bshd->blhd", w.softmax(-1), v).flatten(2))


class LengthFirst(Layer):
    """Tensors (L, B, E) inside, scores (L, S, B, H), as in labml."""

    def forward(self, x, y):
        s = self.s
        q, k, v = (
            m(t.transpose(0, 1)).unflatten(-1, (s.H, s.D))
            for m, t in ((self.alpha, x), (self.beta, y), (self.gamma, y))
        )
        w = (torch.einsum("ibhd,jbhd->ijbh", q, k) * s.D**-0.5).softmax(1)
        out = torch.einsum("ijbh,jbhd->ibhd", w, v).reshape(x.shape[1], x.shape[0], s.E)
        return self.delta(out).transpose(0, 1)


class HeadsOutermost(Layer):
    """Heads folded before the batch, as in d2l's older editions and Fairseq's ancestors."""

    def forward(self, x, y):
        s = self.s
        q, k, v = (
            torch.cat(m(t).split(s.D, -1), 0)
            for m, t in ((self.alpha, x), (self.beta, y), (self.gamma, y))
        )
        out = (q @ k.mT / root(q)).softmax(-1) @ v
        return self.delta(torch.cat(out.chunk(s.H, 0), -1))


IDIOMS["layout B L H D"] = LengthThenHead
IDIOMS["layout L B H D"] = LengthFirst
IDIOMS["heads folded outermost"] = HeadsOutermost


class Torch(nn.Module):
    def __init__(self, s, **options):
        super().__init__()
        self.s = s
        self.inner = nn.MultiheadAttention(s.E, s.H, batch_first=True)

    def truth(self, x, y):
        w, b = self.inner.in_proj_weight.chunk(3), self.inner.in_proj_bias.chunk(3)
        q, k, v = (
            split(F.linear(t, w, b), self.s.H) for t, w, b in zip((x, y, y), w, b, strict=True)
        )
        return Truth(q, k, v, self.s.D**-0.5)


class TorchWeights(Torch):
    def forward(self, x, y):
        return self.inner(x, y, y)


class TorchFused(Torch):
    def forward(self, x, y):
        return self.inner(x, y, y, need_weights=False)[0]


IDIOMS["nn.MultiheadAttention"] = TorchWeights
IDIOMS["nn.MultiheadAttention, no weights"] = TorchFused


class Norms(Layer):
    """Norms before the projections and on query and key, a residual around all."""

    def __init__(self, s):
        super().__init__(s)
        self.n, self.nq, self.nk = nn.LayerNorm(s.E), nn.LayerNorm(s.D), nn.RMSNorm(s.D)

    def heads(self, x, y):
        q, k, v = super().heads(self.n(x), y)
        return self.nq(q), self.nk(k), v

    def attend(self, q, k, v):
        return (q @ k.mT / root(q)).softmax(-1) @ v

    def forward(self, x, y):
        return x + super().forward(x, y)


IDIOMS["norms and a residual"] = Norms


class Cached(Layer):
    """Keys and values of earlier tokens stand in a cache."""

    def __init__(self, s):
        super().__init__(s)
        past = max(s.S - s.L, 0)
        self.register_buffer("old_k", torch.randn(s.B, s.H, past, s.D))
        self.register_buffer("old_v", torch.randn(s.B, s.H, past, s.D))

    def heads(self, x, y):
        q, k, v = super().heads(x, x)
        return q, torch.cat([self.old_k, k], 2), torch.cat([self.old_v, v], 2)

    def attend(self, q, k, v):
        return (q @ k.mT / root(q)).masked_fill(~causal_of(q, k), -math.inf).softmax(-1) @ v

    def truth(self, x, y):
        t = super().truth(x, y)
        t.hidden = ~causal_of(t.query, t.key)
        return t


IDIOMS["a decoder with a cache"] = Cached


class Preallocated(Layer):
    """Writes each head into a tensor that is there."""

    def attend(self, q, k, v):
        out = torch.empty_like(q)
        for h in range(self.s.H):
            out[:, h] = (q[:, h] @ k[:, h].mT / root(q)).softmax(-1) @ v[:, h]
        return out


IDIOMS["written into a tensor"] = Preallocated


class Sink(Layer):
    """A learned score without a key, as in GPT-OSS."""

    def __init__(self, s):
        super().__init__(s)
        self.sink = nn.Parameter(torch.randn(s.H))

    def attend(self, q, k, v):
        s = q @ k.mT / root(q)
        extra = self.sink.view(1, -1, 1, 1).expand(s.shape[0], -1, s.shape[2], 1)
        return torch.cat([s, extra], -1).softmax(-1)[..., :-1] @ v


IDIOMS["a sink"] = Sink
