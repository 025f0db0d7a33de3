"""A first set of wrong attentions, each wrong in one thing, to judge `mha_tutor.check`.

Written by somebody who has read the names of the catalog, and neither the properties nor the
diagnosis. Each is code as people write it: nanoGPT's layer, the Annotated Transformer's, layers
with named projections, functions, pairs for the heads, functions for masks. For each style the
right version stands first. `TWINS` says which right version belongs to which bug.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from mha_tutor.contract.trial import Bug

BUGS: list[Bug] = []
TWINS = {}


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


# --- nanoGPT's layer -----------------------------------------------------------------------------


def gpt(layer):
    return lambda: layer(n_embd=12, n_head=3, dropout=0.2)


class CausalSelfAttention(nn.Module):
    """The right one."""

    def __init__(self, n_embd, n_head, dropout):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.attn_dropout = nn.Dropout(dropout)
        self.n_head = n_head
        self.n_embd = n_embd

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        bias = torch.tril(torch.ones(T, T, dtype=torch.bool, device=x.device))
        att = att.masked_fill(~bias, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = self.attn_dropout(att)
        y = att @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)


@bug("gpt-mask-of-first-call", "module", CausalSelfAttention, {"state-kept"}, gpt, causal=True)
class MaskOfFirstCall(CausalSelfAttention):
    """The causal mask is built for the length of the first call and kept."""

    bias = None

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        if self.bias is None:
            self.bias = torch.tril(torch.ones(T, T, dtype=torch.bool, device=x.device))
        att = att.masked_fill(~self.bias[:T, :T], float("-inf"))
        att = F.softmax(att, dim=-1)
        att = self.attn_dropout(att)
        y = att @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)


@bug("gpt-values-of-previous-sequence", "module", CausalSelfAttention, (), gpt, causal=True)
class ValuesOfPreviousSequence(CausalSelfAttention):
    """The weights mix the values of the sequence before in the batch."""

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        bias = torch.tril(torch.ones(T, T, dtype=torch.bool, device=x.device))
        att = att.masked_fill(~bias, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = self.attn_dropout(att)
        y = torch.stack([att[b] @ v[b - 1] for b in range(B)])
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)


@bug(
    "gpt-dropout-shared-by-heads",
    "module",
    CausalSelfAttention,
    {"dropout-shared-by-heads"},
    gpt,
    causal=True,
)
class DropoutSharedByHeads(CausalSelfAttention):
    """One dropout mask serves all heads."""

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        bias = torch.tril(torch.ones(T, T, dtype=torch.bool, device=x.device))
        att = att.masked_fill(~bias, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = att * self.attn_dropout(torch.ones_like(att[:, :1]))
        y = att @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)


@bug("gpt-normalized-in-eval", "module", CausalSelfAttention, (), gpt, causal=True)
class NormalizedInEval(CausalSelfAttention):
    """In evaluation the query is normalized to length 1, in training it is not."""

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        if not self.training:
            q = F.normalize(q, dim=-1)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        bias = torch.tril(torch.ones(T, T, dtype=torch.bool, device=x.device))
        att = att.masked_fill(~bias, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = self.attn_dropout(att)
        y = att @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)


# --- the Annotated Transformer's layer -----------------------------------------------------------


def annotated(layer):
    return lambda: layer(h=3, d_model=12, dropout=0.2)


class MultiHeadedAttention(nn.Module):
    """The right one; the mask is (B, L or 1, S)."""

    def __init__(self, h, d_model, dropout=0.1):
        super().__init__()
        assert d_model % h == 0
        self.d_k = d_model // h
        self.h = h
        self.linears = nn.ModuleList([nn.Linear(d_model, d_model) for _ in range(4)])
        self.dropout = nn.Dropout(p=dropout)

    def attention(self, query, key, value, mask=None):
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(self.d_k)
        p_attn = softmax_or_zeros(masked(scores, mask))
        return torch.matmul(self.dropout(p_attn), value)

    def forward(self, query, key, value, mask=None):
        if mask is not None:
            mask = mask.unsqueeze(1)
        nbatches = query.size(0)
        query, key, value = [
            lin(x).view(nbatches, -1, self.h, self.d_k).transpose(1, 2)
            for lin, x in zip(self.linears, (query, key, value), strict=False)
        ]
        x = self.attention(query, key, value, mask)
        x = x.transpose(1, 2).contiguous().view(nbatches, -1, self.h * self.d_k)
        return self.linears[-1](x)


@bug("annotated-mask-plus-1e4", "module", MultiHeadedAttention, {"mask-inverted"}, annotated)
class MaskPlus1e4(MultiHeadedAttention):
    """A masked key has 1e4 added to its score: the sign is wrong."""

    def attention(self, query, key, value, mask=None):
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(self.d_k)
        if mask is not None and mask.dtype == torch.bool:
            scores = scores + (~mask).to(scores.dtype) * 1e4
        elif mask is not None:
            scores = scores + mask
        p_attn = softmax_or_zeros(scores)
        return torch.matmul(self.dropout(p_attn), value)


@bug("annotated-mask-of-batch-reversed", "module", MultiHeadedAttention, (), annotated)
class MaskOfBatchReversed(MultiHeadedAttention):
    """The masks of the batch are applied in the opposite order."""

    def forward(self, query, key, value, mask=None):
        if mask is not None:
            mask = mask.flip(0).unsqueeze(1)
        nbatches = query.size(0)
        query, key, value = [
            lin(x).view(nbatches, -1, self.h, self.d_k).transpose(1, 2)
            for lin, x in zip(self.linears, (query, key, value), strict=False)
        ]
        x = self.attention(query, key, value, mask)
        x = x.transpose(1, 2).contiguous().view(nbatches, -1, self.h * self.d_k)
        return self.linears[-1](x)


@bug("annotated-last-key-dropped", "module", MultiHeadedAttention, (), annotated)
class LastKeyDropped(MultiHeadedAttention):
    """The last key is never attended to, where there is more than one."""

    def attention(self, query, key, value, mask=None):
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(self.d_k)
        p_attn = masked(scores, mask)
        if key.size(-2) > 1:
            p_attn, value = p_attn[..., :-1], value[..., :-1, :]
        p_attn = softmax_or_zeros(p_attn)
        return torch.matmul(self.dropout(p_attn), value)


@bug("annotated-dropout-normalized-again", "module", MultiHeadedAttention, (), annotated)
class DropoutNormalizedAgain(MultiHeadedAttention):
    """After dropout the weights are divided by their sum, so each row sums to 1 in training."""

    def attention(self, query, key, value, mask=None):
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(self.d_k)
        p_attn = self.dropout(softmax_or_zeros(masked(scores, mask)))
        p_attn = p_attn / p_attn.sum(-1, keepdim=True).clamp(min=1e-9)
        return torch.matmul(p_attn, value)


@bug("annotated-keys-backwards", "module", MultiHeadedAttention, (), annotated)
class KeysBackwards(MultiHeadedAttention):
    """The scores are laid out from the last key to the first, the values from first to last."""

    def attention(self, query, key, value, mask=None):
        scores = torch.matmul(query, key.flip(-2).transpose(-2, -1)) / math.sqrt(self.d_k)
        p_attn = softmax_or_zeros(masked(scores, mask))
        return torch.matmul(self.dropout(p_attn), value)


# --- layers with named projections ---------------------------------------------------------------


def named(layer):
    return lambda: layer(12, 2)


class Attention(nn.Module):
    """The right one."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def split(self, x):
        return x.unflatten(-1, (self.num_heads, self.head_dim))

    def forward(self, query, key, value, attn_mask=None):
        q = self.split(self.q_proj(query))
        k = self.split(self.k_proj(key))
        v = self.split(self.v_proj(value))
        scores = torch.einsum("blhd,bshd->bhls", q, k) / self.head_dim**0.5
        weights = softmax_or_zeros(masked(scores, attn_mask))
        out = torch.einsum("bhls,bshd->blhd", weights, v)
        return self.out_proj(out.flatten(-2))


@bug("named-value-through-key-projection", "module", Attention, (), named)
class ValueThroughKeyProjection(Attention):
    """The value goes through the key's projection: a line copied and not finished."""

    def forward(self, query, key, value, attn_mask=None):
        q = self.split(self.q_proj(query))
        k = self.split(self.k_proj(key))
        v = self.split(self.k_proj(value))
        scores = torch.einsum("blhd,bshd->bhls", q, k) / self.head_dim**0.5
        weights = softmax_or_zeros(masked(scores, attn_mask))
        out = torch.einsum("bhls,bshd->blhd", weights, v)
        return self.out_proj(out.flatten(-2))


@bug("named-query-bias-twice", "module", Attention, (), named)
class QueryBiasTwice(Attention):
    """The bias of the query is added twice."""

    def forward(self, query, key, value, attn_mask=None):
        q = self.split(self.q_proj(query) + self.q_proj.bias)
        k = self.split(self.k_proj(key))
        v = self.split(self.v_proj(value))
        scores = torch.einsum("blhd,bshd->bhls", q, k) / self.head_dim**0.5
        weights = softmax_or_zeros(masked(scores, attn_mask))
        out = torch.einsum("bhls,bshd->blhd", weights, v)
        return self.out_proj(out.flatten(-2))


@bug("named-temperature-of-2", "module", Attention, (), named)
class TemperatureOf2(Attention):
    """The scores are divided by a learned temperature that starts at 2."""

    def __init__(self, embed_dim, num_heads):
        super().__init__(embed_dim, num_heads)
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, query, key, value, attn_mask=None):
        q = self.split(self.q_proj(query))
        k = self.split(self.k_proj(key))
        v = self.split(self.v_proj(value))
        scores = torch.einsum("blhd,bshd->bhls", q, k) / self.head_dim**0.5 / self.temperature
        weights = softmax_or_zeros(masked(scores, attn_mask))
        out = torch.einsum("bhls,bshd->blhd", weights, v)
        return self.out_proj(out.flatten(-2))


@bug("named-values-of-next-head", "module", Attention, (), lambda c: lambda: c(12, 3))
class ValuesOfNextHead(Attention):
    """The weights of a head mix the values of the next one."""

    def forward(self, query, key, value, attn_mask=None):
        q = self.split(self.q_proj(query))
        k = self.split(self.k_proj(key))
        v = self.split(self.v_proj(value)).roll(-1, dims=2)
        scores = torch.einsum("blhd,bshd->bhls", q, k) / self.head_dim**0.5
        weights = softmax_or_zeros(masked(scores, attn_mask))
        out = torch.einsum("bhls,bshd->blhd", weights, v)
        return self.out_proj(out.flatten(-2))


@bug("named-key-normalized", "module", Attention, (), named)
class KeyNormalized(Attention):
    """The keys, and only the keys, are normalized to length 1."""

    def forward(self, query, key, value, attn_mask=None):
        q = self.split(self.q_proj(query))
        k = F.normalize(self.split(self.k_proj(key)), dim=-1)
        v = self.split(self.v_proj(value))
        scores = torch.einsum("blhd,bshd->bhls", q, k) / self.head_dim**0.5
        weights = softmax_or_zeros(masked(scores, attn_mask))
        out = torch.einsum("bhls,bshd->blhd", weights, v)
        return self.out_proj(out.flatten(-2))


def grouped(layer):
    return lambda: layer(16, 4, 2)


class GroupedQueryAttention(nn.Module):
    """The right one: self-attention, two query heads to one of key and value."""

    def __init__(self, hidden_size, num_heads, num_kv_heads):
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.num_kv_heads, self.head_dim = num_kv_heads, hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x, attention_mask=None):
        B, L, _ = x.shape
        q = self.q_proj(x).view(B, L, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, L, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, L, self.num_kv_heads, self.head_dim).transpose(1, 2)
        groups = self.num_heads // self.num_kv_heads
        k = k.repeat_interleave(groups, dim=1)
        v = v.repeat_interleave(groups, dim=1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        weights = softmax_or_zeros(masked(scores, attention_mask))
        return self.o_proj((weights @ v).transpose(1, 2).reshape(B, L, -1))


@bug("grouped-value-order", "module", GroupedQueryAttention, {"gqa-order"}, grouped)
class GroupedValueOrder(GroupedQueryAttention):
    """The keys are repeated 0 0 1 1 and the values 0 1 0 1."""

    def forward(self, x, attention_mask=None):
        B, L, _ = x.shape
        q = self.q_proj(x).view(B, L, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, L, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, L, self.num_kv_heads, self.head_dim).transpose(1, 2)
        groups = self.num_heads // self.num_kv_heads
        k = k.repeat_interleave(groups, dim=1)
        v = v.repeat(1, groups, 1, 1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        weights = softmax_or_zeros(masked(scores, attention_mask))
        return self.o_proj((weights @ v).transpose(1, 2).reshape(B, L, -1))


# --- functions -----------------------------------------------------------------------------------


def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
    """The right one."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask and is_causal exclude each other")
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    weights = softmax_or_zeros(masked(scores, attn_mask))
    return F.dropout(weights, dropout_p) @ value


@bug("function-root-of-scores", "function", attend)
def root_of_scores(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
    """The root is taken of the scores: a parenthesis in the wrong place."""
    scores = torch.sqrt(query @ key.transpose(-2, -1) / query.size(-1))
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask and is_causal exclude each other")
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    weights = softmax_or_zeros(masked(scores, attn_mask))
    return F.dropout(weights, dropout_p) @ value


@bug("function-scores-clamped", "function", attend)
def scores_clamped(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
    """The scores are clamped to ±5, for stability."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    scores = scores.clamp(-5.0, 5.0)
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask and is_causal exclude each other")
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    weights = softmax_or_zeros(masked(scores, attn_mask))
    return F.dropout(weights, dropout_p) @ value


@bug("function-mixes-in-bfloat16", "function", attend)
def mixes_in_bfloat16(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
    """The weights mix the values in bfloat16, whatever the inputs are."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask and is_causal exclude each other")
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    weights = softmax_or_zeros(masked(scores, attn_mask))
    weights = F.dropout(weights, dropout_p)
    return (weights.bfloat16() @ value.bfloat16()).to(query.dtype)


@bug("function-fill-tiny", "function", attend, {"fill-too-small", "mask-multiplies-scores"})
def fill_tiny(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
    """Masked scores are filled with `finfo.tiny`, the smallest positive number, not the lowest."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask and is_causal exclude each other")
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).tiny)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = softmax_or_zeros(scores)
    return F.dropout(weights, dropout_p) @ value


@bug("function-additive-mask-scaled", "function", attend)
def additive_mask_scaled(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
    """The mask is added before the division by √head_dim, so an additive mask shrinks with it."""
    scores = query @ key.transpose(-2, -1)
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attn_mask and is_causal exclude each other")
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    weights = softmax_or_zeros(masked(scores, attn_mask) / math.sqrt(query.size(-1)))
    return F.dropout(weights, dropout_p) @ value


def einsum_attend(query, key, value):
    """The right one, without masks."""
    scores = torch.einsum("...ld,...sd->...ls", query, key) / query.size(-1) ** 0.5
    return torch.einsum("...ls,...sd->...ld", scores.softmax(-1), value)


@bug("einsum-value-of-own-position", "function", einsum_attend)
def value_of_own_position(query, key, value):
    """The second einsum repeats l where s belongs: a token keeps its own value, unmixed."""
    scores = torch.einsum("...ld,...sd->...ls", query, key) / query.size(-1) ** 0.5
    return torch.einsum("...ls,...ld->...ld", scores.softmax(-1), value)


@bug("einsum-softmax-over-table", "function", einsum_attend)
def softmax_over_table(query, key, value):
    """The softmax runs over queries and keys together: the whole table sums to 1."""
    scores = torch.einsum("...ld,...sd->...ls", query, key) / query.size(-1) ** 0.5
    weights = scores.flatten(-2).softmax(-1).view_as(scores)
    return torch.einsum("...ls,...sd->...ld", weights, value)


# --- heads ---------------------------------------------------------------------------------------


def split(x, num_heads):
    """The right one, (B, L, E) to (B, H, L, D)."""
    return torch.stack(x.chunk(num_heads, dim=-1), dim=-3)


@bug("split-heads-in-batch", "split", split, {"batch-and-heads-confused"})
def split_heads_in_batch(x, num_heads):
    """The heads are concatenated along the batch, and unfolded as if the batch came first."""
    B, L, E = x.shape
    x = torch.cat(x.chunk(num_heads, dim=-1), dim=0)
    return x.reshape(B, num_heads, L, E // num_heads)


def merge(x):
    """The right one, (B, H, L, D) to (B, L, E)."""
    return torch.cat(x.unbind(-3), dim=-1)


@bug("merge-heads-rolled", "merge", merge)
def merge_heads_rolled(x):
    """The last head comes first, then the others in order."""
    heads = x.unbind(-3)
    return torch.cat([heads[h - 1] for h in range(len(heads))], dim=-1)


# --- masks ---------------------------------------------------------------------------------------


def causal(L, S=None):
    """The right one."""
    S = L if S is None else S
    return torch.arange(S)[None, :] <= torch.arange(L)[:, None]


@bug("causal-from-the-right", "causal", causal)
def causal_from_the_right(L, S=None):
    """The keys are counted from the right: the triangle is mirrored."""
    S = L if S is None else S
    return (torch.arange(S)[None, :] <= torch.arange(L)[:, None]).flip(-1)


def padding(lengths, S=None):
    """The right one, (B, 1, 1, S)."""
    lengths = torch.as_tensor(lengths)
    S = int(lengths.max()) if S is None else S
    return (torch.arange(S) < lengths[:, None])[:, None, None, :]


@bug("padding-of-sorted-batch", "padding", padding)
def padding_of_sorted_batch(lengths, S=None):
    """The lengths are sorted, as packed sequences want them, and the batch is not."""
    lengths = torch.as_tensor(lengths).sort(descending=True).values
    S = int(lengths.max()) if S is None else S
    return (torch.arange(S) < lengths[:, None])[:, None, None, :]


def window(L, window):
    """The right one."""
    back = torch.arange(L)[:, None] - torch.arange(L)[None, :]
    return (back >= 0) & (back < window)


@bug("window-in-blocks", "window", window)
def window_in_blocks(L, window):
    """The sequence is cut into blocks: a query sees its own block, not the keys just before it."""
    i, j = torch.arange(L)[:, None], torch.arange(L)[None, :]
    return (j <= i) & (i // window == j // window)
