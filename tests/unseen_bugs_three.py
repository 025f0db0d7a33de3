"""A third set of wrong attentions, each wrong in one thing, to judge `mha_tutor.check`.

Written by somebody who has read the names and the stories of the catalog and the two sets before,
and neither the properties nor the diagnosis. Some of these bugs show in no output of a first call:
only in gradients, in half precision, in a second call, or in what the call leaves behind. For each
style the right version stands first. `TWINS` says which right version belongs to which bug.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from mha_tutor.contract.trial import Bug

BUGS: list[Bug] = []
TWINS = {}
BLOCK = 4


def bug(name, form, twin, right=(), make=None, **options):
    """Take a class or a function into the list; its docstring is the story."""

    def register(wrong):
        maker = make(wrong) if make else lambda: wrong
        BUGS.append(Bug(name, wrong.__doc__, maker, form, options, frozenset(right)))
        TWINS[name] = make(twin) if make else lambda: twin
        return wrong

    return register


def softmax_or_zeros(scores):
    """Take the softmax over the keys; a query that may attend to nothing gets zeros."""
    empty = (scores == -math.inf).all(-1, keepdim=True)
    return F.softmax(scores.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)


def masked(scores, mask):
    """Apply a boolean mask (True = may attend) or an additive one."""
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -math.inf)
    return scores + mask


# --- functions that make every mask a bias -------------------------------------------------------


def as_bias(mask, scores):
    """Make a boolean mask a bias of 0 and -inf."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf)
    return mask


def bias_attend(query, key, value, attn_mask=None):
    """The right one."""
    scores = query @ key.transpose(-2, -1) * query.size(-1) ** -0.5
    if attn_mask is not None:
        scores = scores + as_bias(attn_mask, scores)
    return softmax_or_zeros(scores) @ value


@bug("bias-nan-to-num", "function", bias_attend)
def bias_nan_to_num(query, key, value, attn_mask=None):
    """The NaN of an empty row is replaced by 0 after the softmax: the gradients are still NaN."""
    scores = query @ key.transpose(-2, -1) * query.size(-1) ** -0.5
    if attn_mask is not None:
        scores = scores + as_bias(attn_mask, scores)
    return torch.nan_to_num(scores.softmax(-1)) @ value


@bug("bias-of-head-0", "function", bias_attend)
def bias_of_head_0(query, key, value, attn_mask=None):
    """The mask is taken to be the same for all heads: that of head 0 serves them all."""
    scores = query @ key.transpose(-2, -1) * query.size(-1) ** -0.5
    if attn_mask is not None:
        if attn_mask.dim() == 4:
            attn_mask = attn_mask[:, :1]
        scores = scores + as_bias(attn_mask, scores)
    return softmax_or_zeros(scores) @ value


@bug("bias-for-keys-of-zeros", "function", bias_attend)
def bias_for_keys_of_zeros(query, key, value, attn_mask=None):
    """A key of zeros is taken for padding and masked, though no mask says so."""
    scores = query @ key.transpose(-2, -1) * query.size(-1) ** -0.5
    scores = scores.masked_fill((key == 0).all(-1)[..., None, :], -math.inf)
    if attn_mask is not None:
        scores = scores + as_bias(attn_mask, scores)
    return softmax_or_zeros(scores) @ value


# --- functions with options ----------------------------------------------------------------------


def options_attend(query, key, value, dropout_p=0.0, is_causal=False):
    """The right one."""
    scores = torch.einsum("...ld,...sd->...ls", query, key) / math.sqrt(query.size(-1))
    with torch.no_grad():
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device)
        allowed = allowed.tril() if is_causal else allowed
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    return torch.einsum("...ls,...sd->...ld", F.dropout(weights, dropout_p), value)


@bug("options-gradients-switched-on", "function", options_attend)
def gradients_switched_on(query, key, value, dropout_p=0.0, is_causal=False):
    """Gradients are switched off for the mask and on again, also if the caller had them off."""
    scores = torch.einsum("...ld,...sd->...ls", query, key) / math.sqrt(query.size(-1))
    torch.set_grad_enabled(False)
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device)
    allowed = allowed.tril() if is_causal else allowed
    torch.set_grad_enabled(True)
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    return torch.einsum("...ls,...sd->...ld", F.dropout(weights, dropout_p), value)


@bug("options-dropout-keeps-p", "function", options_attend, {"dropout-keeps-p"})
def dropout_keeps_p(query, key, value, dropout_p=0.0, is_causal=False):
    """`dropout_p` is taken as the probability to keep a weight, not to drop it."""
    scores = torch.einsum("...ld,...sd->...ls", query, key) / math.sqrt(query.size(-1))
    with torch.no_grad():
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device)
        allowed = allowed.tril() if is_causal else allowed
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    if dropout_p > 0:
        weights = F.dropout(weights, 1 - dropout_p)
    return torch.einsum("...ls,...sd->...ld", weights, value)


# --- a function with its own backward pass -------------------------------------------------------


class Attend(torch.autograd.Function):
    """The right one."""

    @staticmethod
    def forward(ctx, q, k, v):
        weights = torch.softmax(q @ k.mT / math.sqrt(q.size(-1)), dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def of_scores(weights, of_weights):
        """Take the gradient through the softmax."""
        return weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True))

    @classmethod
    def backward(cls, ctx, of_out):
        q, k, v, weights = ctx.saved_tensors
        of_scores = cls.of_scores(weights, of_out @ v.mT) / math.sqrt(q.size(-1))
        return of_scores @ k, of_scores.mT @ q, weights.mT @ of_out


def own_backward(query, key, value):
    """The right one."""
    return Attend.apply(query, key, value)


class AttendWithoutRowSum(Attend):
    """The wrong one."""

    @staticmethod
    def of_scores(weights, of_weights):
        return weights * of_weights


@bug("backward-without-row-sum", "function", own_backward)
def backward_without_row_sum(query, key, value):
    """The backward pass, by hand, lacks the sum over the row: query and key learn wrongly."""
    return AttendWithoutRowSum.apply(query, key, value)


# --- a function with all blocks of keys at once --------------------------------------------------


def attend_blocks(query, key, value):
    """The right one: each block of four keys attends by itself, then the blocks are weighed."""
    S = key.size(-2)
    pad = (0, 0, 0, -S % BLOCK)
    k, v = (F.pad(t, pad).unflatten(-2, (-1, BLOCK)) for t in (key, value))
    scores = query.unsqueeze(-3) @ k.mT / math.sqrt(key.size(-1))
    real = torch.arange(k.size(-3) * BLOCK, device=key.device) < S
    scores = scores.masked_fill(~real.view(-1, 1, BLOCK), -math.inf)
    share = scores.logsumexp(-1, keepdim=True).softmax(-3)
    return (share * (scores.softmax(-1) @ v)).sum(-3)


@bug("blocks-padding-counted", "function", attend_blocks, {"softmax-denominator-plus-one"})
def blocks_padding_counted(query, key, value):
    """The last block of keys is filled up with zeros, and these are not masked: they take part."""
    pad = (0, 0, 0, -key.size(-2) % BLOCK)
    k, v = (F.pad(t, pad).unflatten(-2, (-1, BLOCK)) for t in (key, value))
    scores = query.unsqueeze(-3) @ k.mT / math.sqrt(key.size(-1))
    share = scores.logsumexp(-1, keepdim=True).softmax(-3)
    return (share * (scores.softmax(-1) @ v)).sum(-3)


# --- a layer with torch's packed parameters ------------------------------------------------------


def packed(layer):
    return lambda: layer(15, 3)


class PackedAttention(nn.Module):
    """The right one; self-attention needs one product for query, key and value."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.uniform_(self.in_proj_bias, -0.5, 0.5)

    def same(self, query, key, value):
        return query is key and key is value

    def project_each(self, *inputs):
        ws, bs = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip(inputs, ws, bs, strict=True)]

    def forward(self, query, key, value, attn_mask=None):
        if self.same(query, key, value):
            projected = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            projected = self.project_each(query, key, value)
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        out = softmax_or_zeros(masked(scores, attn_mask)) @ v
        return self.out_proj(out.transpose(1, 2).flatten(2))


@bug("in-proj-same-by-shape", "module", PackedAttention, {"key-from-query"}, packed)
class SameByShape(PackedAttention):
    """Inputs of one shape are taken for one tensor: key and value are then ignored."""

    def same(self, query, key, value):
        return query.shape == key.shape == value.shape


@bug("in-proj-cross-without-bias", "module", PackedAttention, {"bias-missing"}, packed)
class CrossWithoutBias(PackedAttention):
    """The branch for cross-attention forgets the biases; that for self-attention has them."""

    def project_each(self, *inputs):
        ws = self.in_proj_weight.chunk(3)
        return [F.linear(x, w) for x, w in zip(inputs, ws, strict=True)]


# --- layers with to_q, with query, with wq -------------------------------------------------------


class EinsumAttention(nn.Module):
    """The right one."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def mix(self, weights, v):
        return torch.einsum("bhls,bshd->blhd", weights, v)

    def forward(self, x, mask=None):
        q, k, v = (
            to(x).unflatten(-1, (self.heads, -1)) for to in (self.to_q, self.to_k, self.to_v)
        )
        scores = torch.einsum("blhd,bshd->bhls", q, k) * q.size(-1) ** -0.5
        return self.to_out(self.mix(softmax_or_zeros(masked(scores, mask)), v).flatten(-2))


@bug("to-q-values-summed", "module", EinsumAttention, (), lambda c: lambda: c(12, 3))
class ValuesSummed(EinsumAttention):
    """A wrong letter in the einsum: each head mixes the sum of all heads' values."""

    def mix(self, weights, v):
        return torch.einsum("bhls,bsgd->blhd", weights, v)


class NamedAttention(nn.Module):
    """The right one."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def project(self, linear, x):
        return linear(x)

    def forward(self, x, mask=None):
        B, L, E = x.shape
        q, k, v = (
            self.project(linear, x).view(B, L, self.num_heads, self.head_dim).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        out = softmax_or_zeros(masked(scores, mask)) @ v
        return self.out(out.transpose(1, 2).reshape(B, L, E))


@bug("query-key-value-relu", "module", NamedAttention, (), lambda c: lambda: c(14, 2))
class ProjectionsWithRelu(NamedAttention):
    """Query, key and value go through a ReLU after their projections, like a dense layer's."""

    def project(self, linear, x):
        return F.relu(linear(x))


def short(layer):
    return lambda: layer(8, 2)


class ShortAttention(nn.Module):
    """The right one."""

    def __init__(self, dim, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, dim, bias=False)
        self.wv = nn.Linear(dim, dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def heads(self, x):
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.heads(self.wq(x)), self.heads(self.wk(x)), self.heads(self.wv(x))
        weights = F.softmax(q @ k.mT / math.sqrt(q.size(-1)), dim=-1)
        return self.wo((weights @ v).transpose(1, 2).flatten(2))


@bug(
    "wq-scale-folded-each-time", "module", ShortAttention, {"state-kept"}, lambda c: lambda: c(8, 2)
)
class ScaleFoldedEachTime(ShortAttention):
    """The scale is folded into the query's parameters, and again at each call."""

    def forward(self, x):
        with torch.no_grad():
            self.wq.weight.mul_(1 / math.sqrt(x.size(-1) // self.n_heads))
        q, k, v = self.heads(self.wq(x)), self.heads(self.wk(x)), self.heads(self.wv(x))
        weights = F.softmax(q @ k.mT, dim=-1)
        return self.wo((weights @ v).transpose(1, 2).flatten(2))


# --- layers that are always causal ---------------------------------------------------------------


class CausalAttention(nn.Module):
    """The right one."""

    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.c_attn = nn.Linear(hidden_size, 3 * hidden_size)
        self.c_proj = nn.Linear(hidden_size, hidden_size)

    def future(self, L, scores):
        return torch.full((L, L), -math.inf, dtype=scores.dtype, device=scores.device).triu(1)

    def forward(self, x):
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in self.c_attn(x).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(v.size(-1))
        weights = F.softmax(scores + self.future(x.size(1), scores), dim=-1)
        return self.c_proj((weights @ v).transpose(1, 2).flatten(2))


def causal_layer(layer):
    return lambda: layer(16, 4)


@bug("c-attn-refuses-half", "module", CausalAttention, (), causal_layer, causal=True)
class RefusesHalf(CausalAttention):
    """The causal bias is always float32, so weights and values do not fit in half precision."""

    def future(self, L, scores):
        return torch.full((L, L), -math.inf, device=scores.device).triu(1)


class MaskedCausalAttention(nn.Module):
    """The right one; a mask comes on top of the causal one."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def add_masks(self, scores, attn_mask):
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return masked(masked(scores, attn_mask), past)

    def forward(self, x, attn_mask=None):
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = self.add_masks(q @ k.mT / math.sqrt(k.size(-1)), attn_mask)
        return self.out_proj((softmax_or_zeros(scores) @ v).transpose(1, 2).flatten(2))


@bug("q-proj-mask-for-causal", "module", MaskedCausalAttention, (), causal_layer, causal=True)
class MaskForCausal(MaskedCausalAttention):
    """A mask takes the place of the causal one: with a padding mask queries see the future."""

    def add_masks(self, scores, attn_mask):
        if attn_mask is None:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return masked(scores, attn_mask)


# --- a layer with qkv and proj -------------------------------------------------------------------


class FusedAttention(nn.Module):
    """The right one."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def output(self, x):
        return self.proj(x)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = F.softmax(q @ k.transpose(-2, -1) * q.size(-1) ** -0.5, dim=-1)
        return self.output((weights @ v).transpose(1, 2).flatten(2))


@bug("qkv-output-reused", "module", FusedAttention, {"state-kept"}, lambda c: lambda: c(10, 2))
class OutputReused(FusedAttention):
    """In evaluation the output lies in memory kept for it: the next call writes over the last."""

    kept = None

    def output(self, x):
        if self.training:
            return self.proj(x)
        if self.kept is None or (self.kept.shape, self.kept.dtype) != (x.shape, x.dtype):
            self.kept = torch.empty_like(x, requires_grad=False)
        return self.kept.detach().copy_(self.proj(x))


# --- heads and masks -----------------------------------------------------------------------------


def split(x, num_heads):
    """The right one, (B, L, E) to (B, H, L, D)."""
    D = x.shape[-1] // num_heads
    return torch.stack([x[..., h * D : (h + 1) * D] for h in range(num_heads)], dim=-3)


@bug("split-slices-overlap", "split", split)
def split_slices_overlap(x, num_heads):
    """The slice of head h starts at feature h, not at h · D: the heads overlap."""
    D = x.shape[-1] // num_heads
    return torch.stack([x[..., h : h + D] for h in range(num_heads)], dim=-3)


def padding(lengths, S=None):
    """The right one, (B, 1, 1, S)."""
    lengths = torch.as_tensor(lengths)
    S = int(lengths.max()) if S is None else S
    return (torch.arange(S).repeat(len(lengths), 1) < lengths[:, None])[:, None, None]


@bug("padding-of-the-longest", "padding", padding)
def padding_of_the_longest(lengths, S=None):
    """All sequences get the length of the longest: only what is padding for all is hidden."""
    lengths = torch.as_tensor(lengths)
    S = int(lengths.max()) if S is None else S
    return (torch.arange(S).repeat(len(lengths), 1) < lengths.max())[:, None, None]


def window(L, window):
    """The right one."""
    last, keys = torch.arange(L)[:, None], torch.arange(L)
    return (keys > last - window) & (keys <= last)


@bug("window-full-from-the-start", "window", window, {"window-not-causal"})
def window_full_from_the_start(L, window):
    """The first queries get a full window too, moved to the start: they see the future."""
    last, keys = torch.arange(L)[:, None].clamp(min=window - 1), torch.arange(L)
    return (keys > last - window) & (keys <= last)
