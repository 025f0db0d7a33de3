"""A second set of wrong attentions, each wrong in one thing, to judge `mha_tutor.check`.

Written by somebody who has read the names and the stories of the catalog and the first set, and
neither the properties nor the diagnosis. The styles are others than in the first set: batch and
heads as one axis, blocks of queries or keys, layers after ViT, BERT and Llama, a layer with torch's
packed parameters, and torch's own layer wrapped. For each style the right version stands first.
`TWINS` says which right version belongs to which bug.
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


# --- functions with batch and heads as one axis --------------------------------------------------


def flat(t):
    """Make one axis of all axes before the last two."""
    return t.reshape(-1, *t.shape[-2:])


def flat_bias(query, key, mask):
    """Make a mask, or none, a bias for all scores, (B·H, L, S)."""
    shape = (*query.shape[:-1], key.size(-2))
    if mask is None:
        return flat(query.new_zeros(shape))
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -math.inf)
    return flat(mask.broadcast_to(shape).contiguous())


def bmm_attend(query, key, value, attn_mask=None):
    """The right one."""
    q, k, v = flat(query), flat(key), flat(value)
    bias = flat_bias(query, key, attn_mask)
    scale = 1 / math.sqrt(key.size(-1))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=1.0, alpha=scale)
    out = torch.bmm(softmax_or_zeros(scores), v)
    return out.reshape(*query.shape[:-1], value.size(-1))


@bug("bmm-beta-of-0", "function", bmm_attend, {"mask-ignored"})
def beta_of_0(query, key, value, attn_mask=None):
    """The mask goes into `baddbmm` with beta = 0, and with that `baddbmm` does not read it."""
    q, k, v = flat(query), flat(key), flat(value)
    bias = flat_bias(query, key, attn_mask)
    scale = 1 / math.sqrt(key.size(-1))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=0.0, alpha=scale)
    out = torch.bmm(softmax_or_zeros(scores), v)
    return out.reshape(*query.shape[:-1], value.size(-1))


@bug("bmm-scale-from-values", "function", bmm_attend)
def scale_from_values(query, key, value, attn_mask=None):
    """The scale is taken from the width of the values: wrong where keys have another width."""
    q, k, v = flat(query), flat(key), flat(value)
    bias = flat_bias(query, key, attn_mask)
    scale = 1 / math.sqrt(value.size(-1))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=1.0, alpha=scale)
    out = torch.bmm(softmax_or_zeros(scores), v)
    return out.reshape(*query.shape[:-1], value.size(-1))


@bug("bmm-scales-a-view", "function", bmm_attend, {"inputs-modified"})
def scales_a_view(query, key, value, attn_mask=None):
    """The flattened query is scaled in place, and it is a view of the caller's."""
    q, k, v = flat(query), flat(key), flat(value)
    bias = flat_bias(query, key, attn_mask)
    q *= 1 / math.sqrt(key.size(-1))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2))
    out = torch.bmm(softmax_or_zeros(scores), v)
    return out.reshape(*query.shape[:-1], value.size(-1))


@bug("bmm-scores-into-the-mask", "function", bmm_attend, {"inputs-modified"})
def scores_into_the_mask(query, key, value, attn_mask=None):
    """`baddbmm_` writes the scores into the caller's additive mask, if that has the full shape."""
    q, k, v = flat(query), flat(key), flat(value)
    scores = flat_bias(query, key, attn_mask)
    scores.baddbmm_(q, k.transpose(1, 2), alpha=1 / math.sqrt(key.size(-1)))
    out = torch.bmm(softmax_or_zeros(scores), v)
    return out.reshape(*query.shape[:-1], value.size(-1))


@bug("bmm-alibi-left-in", "function", bmm_attend)
def alibi_left_in(query, key, value, attn_mask=None):
    """A bias for the distance, as in ALiBi, is added to the scores: near keys count for more."""
    q, k, v = flat(query), flat(key), flat(value)
    heads = query.size(-3) if query.dim() > 2 else 1
    slopes = 2.0 ** (-8 / heads * torch.arange(1, heads + 1))
    away = torch.arange(query.size(-2))[:, None] - torch.arange(key.size(-2))
    alibi = (-slopes[:, None, None] * away.abs()).to(query)
    bias = flat_bias(query, key, attn_mask) + alibi.repeat(flat(query).size(0) // heads, 1, 1)
    scale = 1 / math.sqrt(key.size(-1))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=1.0, alpha=scale)
    out = torch.bmm(softmax_or_zeros(scores), v)
    return out.reshape(*query.shape[:-1], value.size(-1))


# --- short functions -----------------------------------------------------------------------------


def attention(q, k, v, mask=None):
    """The right one."""
    scores = masked(q @ k.mT / k.size(-1) ** 0.5, mask)
    return softmax_or_zeros(scores) @ v


@bug("short-mask-equal-to-0", "function", attention, {"additive-mask-as-boolean"})
def mask_equal_to_0(q, k, v, mask=None):
    """The scores are masked where the mask equals 0, also when it is an additive mask."""
    scores = q @ k.mT / k.size(-1) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -math.inf)
    return softmax_or_zeros(scores) @ v


@bug("short-zero-times-infinity", "function", attention)
def zero_times_infinity(q, k, v, mask=None):
    """A boolean mask becomes (1 - mask) · -inf, which is NaN where the mask is True."""
    scores = q @ k.mT / k.size(-1) ** 0.5
    if mask is not None and mask.dtype == torch.bool:
        mask = (1.0 - mask.to(q.dtype)) * -math.inf
    return softmax_or_zeros(masked(scores, mask)) @ v


@bug("short-mask-as-bytes", "function", attention)
def mask_as_bytes(q, k, v, mask=None):
    """The mask is cast to bytes before `~`, so it reads 254 and 255: all keys are masked."""
    scores = q @ k.mT / k.size(-1) ** 0.5
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill((~mask.to(torch.uint8)).bool(), -math.inf)
    elif mask is not None:
        scores = scores + mask
    return softmax_or_zeros(scores) @ v


@bug("short-always-float32", "function", attention, {"dtype-lost"})
def always_float32(q, k, v, mask=None):
    """The softmax is taken in float32 and nothing casts back."""
    scores = masked(q @ k.mT / k.size(-1) ** 0.5, mask)
    return softmax_or_zeros(scores.float()) @ v.float()


@bug("short-whole-root", "function", attention)
def whole_root(q, k, v, mask=None):
    """The root is rounded down to a whole number: right for 4, 16 and 64 features, not for 8."""
    scores = masked(q @ k.mT / math.isqrt(k.size(-1)), mask)
    return softmax_or_zeros(scores) @ v


@bug("short-values-detached", "function", attention)
def values_detached(q, k, v, mask=None):
    """The values are detached: no gradient reaches them."""
    scores = masked(q @ k.mT / k.size(-1) ** 0.5, mask)
    return softmax_or_zeros(scores) @ v.detach()


def plain(Q, K, V):
    """The right one, without masks."""
    scores = torch.matmul(Q, K.transpose(-2, -1)) / math.sqrt(K.shape[-1])
    return torch.matmul(torch.softmax(scores, dim=-1), V)


@bug("plain-softmax-dim-1", "function", plain, {"softmax-over-heads"})
def softmax_dim_1(Q, K, V):
    """The softmax has dim=1, as for a table without batch and heads: here these are the heads."""
    scores = torch.matmul(Q, K.transpose(-2, -1)) / math.sqrt(K.shape[-1])
    return torch.matmul(torch.softmax(scores, dim=1), V)


@bug("plain-largest-of-all-rows", "function", plain)
def largest_of_all_rows(Q, K, V):
    """The largest score of all rows is subtracted, so rows far below it underflow to 0 / 0."""
    scores = torch.matmul(Q, K.transpose(-2, -1)) / math.sqrt(K.shape[-1])
    powers = torch.exp(scores - scores.max())
    return torch.matmul(powers / powers.sum(dim=-1, keepdim=True), V)


@bug("plain-root-of-scale-on-query", "function", plain)
def root_of_scale_on_query(Q, K, V):
    """Query and key should both be divided by the fourth root of the width; the query alone is."""
    Q = Q * K.shape[-1] ** -0.25
    scores = torch.matmul(Q, K.transpose(-2, -1))
    return torch.matmul(torch.softmax(scores, dim=-1), V)


# --- functions with is_causal, and in blocks -----------------------------------------------------


def attend_causal(query, key, value, is_causal=False):
    """The right one."""
    L, S = query.size(-2), key.size(-2)
    scores = torch.einsum("...ld,...sd->...ls", query, key) * query.size(-1) ** -0.5
    if is_causal:
        future = torch.ones(L, S, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return torch.einsum("...ls,...sd->...ld", scores.softmax(-1), value)


@bug("causal-not-for-one-query", "function", attend_causal)
def causal_not_for_one_query(query, key, value, is_causal=False):
    """With one query, as in decoding, `is_causal` is not applied: the query sees all keys."""
    L, S = query.size(-2), key.size(-2)
    scores = torch.einsum("...ld,...sd->...ls", query, key) * query.size(-1) ** -0.5
    if is_causal and L > 1:
        future = torch.ones(L, S, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return torch.einsum("...ls,...sd->...ld", scores.softmax(-1), value)


def attend_in_chunks(query, key, value, is_causal=False):
    """The right one, four queries at a time."""
    done, start, columns = [], 0, torch.arange(key.size(-2), device=query.device)
    for chunk in query.split(BLOCK, dim=-2):
        scores = chunk @ key.mT / math.sqrt(key.size(-1))
        if is_causal:
            rows = start + torch.arange(chunk.size(-2), device=query.device)
            scores = scores.masked_fill(columns > rows[:, None], -math.inf)
        done.append(scores.softmax(-1) @ value)
        start += chunk.size(-2)
    return torch.cat(done, dim=-2)


@bug("chunks-forget-their-start", "function", attend_in_chunks)
def chunks_forget_their_start(query, key, value, is_causal=False):
    """Each chunk of queries gets the causal mask of the first: its start is not added."""
    done, columns = [], torch.arange(key.size(-2), device=query.device)
    for chunk in query.split(BLOCK, dim=-2):
        scores = chunk @ key.mT / math.sqrt(key.size(-1))
        if is_causal:
            rows = torch.arange(chunk.size(-2), device=query.device)
            scores = scores.masked_fill(columns > rows[:, None], -math.inf)
        done.append(scores.softmax(-1) @ value)
    return torch.cat(done, dim=-2)


def attend_online(query, key, value):
    """The right one, four keys at a time, with the online softmax."""
    top = query.new_full((*query.shape[:-1], 1), -math.inf)
    total = torch.zeros_like(top)
    out = query.new_zeros(*query.shape[:-1], value.size(-1))
    for k, v in zip(key.split(BLOCK, dim=-2), value.split(BLOCK, dim=-2), strict=True):
        scores = query @ k.mT / math.sqrt(k.size(-1))
        new = torch.maximum(top, scores.amax(-1, keepdim=True))
        shrink, powers = torch.exp(top - new), torch.exp(scores - new)
        total = total * shrink + powers.sum(-1, keepdim=True)
        out = out * shrink + powers @ v
        top = new
    return out / total


@bug("online-sum-not-shrunk", "function", attend_online)
def online_sum_not_shrunk(query, key, value):
    """In the online softmax the mixed values are not rescaled when a larger score comes."""
    top = query.new_full((*query.shape[:-1], 1), -math.inf)
    total = torch.zeros_like(top)
    out = query.new_zeros(*query.shape[:-1], value.size(-1))
    for k, v in zip(key.split(BLOCK, dim=-2), value.split(BLOCK, dim=-2), strict=True):
        scores = query @ k.mT / math.sqrt(k.size(-1))
        new = torch.maximum(top, scores.amax(-1, keepdim=True))
        shrink, powers = torch.exp(top - new), torch.exp(scores - new)
        total = total * shrink + powers.sum(-1, keepdim=True)
        out = out + powers @ v
        top = new
    return out / total


# --- the layer of a ViT --------------------------------------------------------------------------


def vit(layer):
    return lambda: layer(dim=12, num_heads=2, attn_drop=0.25)


class ViTAttention(nn.Module):
    """The right one."""

    def __init__(self, dim, num_heads=8, attn_drop=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = self.attn_drop(attn.softmax(dim=-1))
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


@bug("vit-heads-before-three", "module", ViTAttention, {"packed-projection-misread"}, vit)
class HeadsBeforeThree(ViTAttention):
    """The packed projection is read as (heads, 3, D) where it is (3, heads, D)."""

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, self.num_heads, 3, C // self.num_heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = self.attn_drop(attn.softmax(dim=-1))
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


@bug("vit-scaled-twice", "module", ViTAttention, {"scale-head-dim"}, vit)
class ScaledTwice(ViTAttention):
    """The query is scaled, and then the scores once more."""

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q = q * self.scale
        attn = q @ k.transpose(-2, -1) * self.scale
        attn = self.attn_drop(attn.softmax(dim=-1))
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


@bug("vit-dropout-on-mixed-values", "module", ViTAttention, (), vit)
class DropoutOnMixedValues(ViTAttention):
    """Dropout for the weights acts on the mixed values instead."""

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        x = self.attn_drop(attn.softmax(dim=-1) @ v)
        x = x.transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


# --- torch's layer, wrapped ----------------------------------------------------------------------


class SelfAttention(nn.Module):
    """The right one, self-attention."""

    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]


@bug("wrapped-batch-second", "module", SelfAttention, (), lambda c: lambda: c(12, 3))
class BatchSecond(SelfAttention):
    """`batch_first` is left at False: a token attends to its like in the other sequences."""

    def __init__(self, width, heads):
        super().__init__(width, heads)
        self.attn = nn.MultiheadAttention(width, heads)


class CrossAttention(nn.Module):
    """The right one; the mask is True where a query may attend."""

    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def torch_mask(self, mask, B, L, S):
        """Make of a mask what torch's layer wants, (B·H, L, S), True = may not attend."""
        mask = mask.broadcast_to(B, self.attn.num_heads, L, S).flatten(0, 1)
        return ~mask if mask.dtype == torch.bool else mask

    def forward(self, query, key, value, attn_mask=None):
        if attn_mask is not None:
            attn_mask = self.torch_mask(attn_mask, *query.shape[:2], key.shape[1])
        return self.attn(query, key, value, attn_mask=attn_mask, need_weights=False)[0]


@bug("wrapped-mask-repeated", "module", CrossAttention, (), lambda c: lambda: c(12, 3))
class MaskRepeated(CrossAttention):
    """The masks are repeated sequence after sequence for each head, not head after head."""

    def torch_mask(self, mask, B, L, S):
        mask = torch.cat(mask.broadcast_to(B, self.attn.num_heads, L, S).unbind(1))
        return ~mask if mask.dtype == torch.bool else mask


# --- the layer of a BERT -------------------------------------------------------------------------


def bert(layer):
    return lambda: layer(16, 2)


class BertAttention(nn.Module):
    """The right one."""

    def __init__(self, hidden_size, num_attention_heads):
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.attention_head_size = hidden_size // num_attention_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)

    def transpose_for_scores(self, x):
        shape = (*x.size()[:-1], self.num_attention_heads, self.attention_head_size)
        return x.view(shape).permute(0, 2, 1, 3)

    def add_mask(self, scores, attention_mask):
        return masked(scores, attention_mask)

    def output(self, context):
        return self.dense(context)

    def forward(self, hidden_states, attention_mask=None):
        query_layer = self.transpose_for_scores(self.query(hidden_states))
        key_layer = self.transpose_for_scores(self.key(hidden_states))
        value_layer = self.transpose_for_scores(self.value(hidden_states))
        scores = torch.matmul(query_layer, key_layer.transpose(-1, -2))
        scores = scores / math.sqrt(self.attention_head_size)
        probs = softmax_or_zeros(self.add_mask(scores, attention_mask))
        context = torch.matmul(probs, value_layer).permute(0, 2, 1, 3).contiguous()
        return self.output(context.view(hidden_states.size()))


@bug("bert-minus-10000", "module", BertAttention, {"fill-finite"}, bert)
class Minus10000(BertAttention):
    """The extended mask: masked scores are lowered by 10000, so an empty row is not empty."""

    def add_mask(self, scores, attention_mask):
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            attention_mask = (1.0 - attention_mask.to(scores.dtype)) * -10000.0
        return masked(scores, attention_mask)


@bug("bert-mask-not-extended", "module", BertAttention, {"mask-added-as-numbers"}, bert)
class MaskNotExtended(BertAttention):
    """The mask is cast to the type of the scores and added as it is, without making it -inf."""

    def add_mask(self, scores, attention_mask):
        return scores if attention_mask is None else scores + attention_mask.to(scores.dtype)


@bug("bert-norm-inside", "module", BertAttention, (), bert)
class NormInside(BertAttention):
    """The LayerNorm of the block is kept in the layer, after the output projection."""

    def __init__(self, hidden_size, num_attention_heads):
        super().__init__(hidden_size, num_attention_heads)
        self.LayerNorm = nn.LayerNorm(hidden_size)

    def output(self, context):
        return self.LayerNorm(self.dense(context))


@bug("bert-output-bias-twice", "module", BertAttention, (), bert)
class OutputBiasTwice(BertAttention):
    """The bias of the output projection is added twice."""

    def output(self, context):
        return self.dense(context) + self.dense.bias


# --- the layer of a Llama ------------------------------------------------------------------------


def llama(layer):
    return lambda: layer(dim=16, n_heads=4, n_kv_heads=2, dropout=0.2)


class LlamaAttention(nn.Module):
    """The right one, always causal, without rotary positions."""

    def __init__(self, dim, n_heads, n_kv_heads, dropout=0.0):
        super().__init__()
        self.n_rep = n_heads // n_kv_heads
        self.head_dim = dim // n_heads
        self.dropout = dropout
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False)

    def heads(self, x):
        q, k, v = (
            w(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for w in (self.wq, self.wk, self.wv)
        )
        return q, k.repeat_interleave(self.n_rep, 1), v.repeat_interleave(self.n_rep, 1)

    def softmax(self, scores):
        return F.softmax(scores, dim=-1)

    def mix(self, q, k, v):
        L, S = q.size(-2), k.size(-2)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.head_dim)
        future = torch.ones(L, S, dtype=torch.bool, device=q.device).triu(1 + S - L)
        weights = self.softmax(scores.masked_fill(future, -math.inf))
        return F.dropout(weights, self.dropout, self.training) @ v

    def forward(self, x):
        out = self.mix(*self.heads(x))
        return self.wo(out.transpose(1, 2).flatten(2))


@bug("llama-cache-kept", "module", LlamaAttention, {"state-kept"}, llama, causal=True)
class CacheKept(LlamaAttention):
    """In evaluation the keys and values of earlier calls stay in the cache and are attended to."""

    cache = None

    def heads(self, x):
        q, k, v = super().heads(x)
        if self.training:
            return q, k, v
        if self.cache is not None and self.cache[0].size(0) == x.size(0):
            k = torch.cat([self.cache[0].to(k.dtype), k], dim=2)
            v = torch.cat([self.cache[1].to(v.dtype), v], dim=2)
        self.cache = k.detach(), v.detach()
        return q, k, v


@bug("llama-sink", "module", LlamaAttention, {"softmax-denominator-plus-one"}, llama, causal=True)
class Sink(LlamaAttention):
    """A sink with score 0 takes part in the softmax and is cut off: rows sum to less than 1."""

    def softmax(self, scores):
        return F.softmax(F.pad(scores, (1, 0)), dim=-1)[..., 1:]


@bug("llama-values-rotated", "module", LlamaAttention, (), llama, causal=True)
class ValuesRotated(LlamaAttention):
    """The values are rotated by their positions, as rotary positions do with query and key."""

    def heads(self, x):
        q, k, v = super().heads(x)
        half = self.head_dim // 2
        angles = torch.arange(x.size(1))[:, None] * 10000.0 ** (-torch.arange(half) / half)
        cos, sin = angles.cos().to(v), angles.sin().to(v)
        a, b = v.chunk(2, dim=-1)
        return q, k, torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


@bug("llama-fused-dropout", "module", LlamaAttention, {"dropout-in-eval"}, llama, causal=True)
class FusedDropout(LlamaAttention):
    """torch's function gets the rate of the dropout in evaluation too; it knows no `training`."""

    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout, is_causal=True)


@bug("llama-fused-in-eval", "module", LlamaAttention, {"mask-ignored-in-eval"}, llama, causal=True)
class FusedInEval(LlamaAttention):
    """Evaluation takes torch's fast function, and that call lacks `is_causal`."""

    def mix(self, q, k, v):
        if self.training:
            return super().mix(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)


# --- a layer with torch's packed parameters ------------------------------------------------------


def packed(layer):
    return lambda: layer(18, 3)


class PackedAttention(nn.Module):
    """The right one."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.uniform_(self.in_proj_bias, -0.5, 0.5)

    def project(self, query, key, value):
        ws, bs = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), ws, bs, strict=True)]

    def output(self, heads):
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def forward(self, query, key, value, attn_mask=None):
        q, k, v = (
            x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x in self.project(query, key, value)
        )
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.size(-1))
        weights = softmax_or_zeros(masked(scores, attn_mask))
        return self.output(torch.einsum("bhqk,bhkd->bhqd", weights, v))


@bug("packed-value-with-bias-of-key", "module", PackedAttention, (), packed)
class ValueWithBiasOfKey(PackedAttention):
    """The value is projected with its own weight and the bias of the key."""

    def project(self, query, key, value):
        w_q, w_k, w_v = self.in_proj_weight.chunk(3)
        b_q, b_k, _b_v = self.in_proj_bias.chunk(3)
        return F.linear(query, w_q, b_q), F.linear(key, w_k, b_k), F.linear(value, w_v, b_k)


@bug("packed-output-read-by-feature", "module", PackedAttention, {"merge-strided"}, packed)
class OutputReadByFeature(PackedAttention):
    """The output weight is read as (E, D, H) where it is (E, H, D)."""

    def output(self, heads):
        weight = self.out_proj.weight.unflatten(1, (-1, self.num_heads))
        return torch.einsum("bhqd,edh->bqe", heads, weight) + self.out_proj.bias


@bug("packed-queries-among-keys", "module", PackedAttention, (), packed)
class QueriesAmongKeys(PackedAttention):
    """The query's tokens join the keys and values: seen only where these are other tokens."""

    def forward(self, query, key, value, attn_mask=None):
        if attn_mask is not None:
            allowed = True if attn_mask.dtype == torch.bool else 0.0
            attn_mask = F.pad(attn_mask, (query.size(1), 0), value=allowed)
        key, value = torch.cat([query, key], dim=1), torch.cat([query, value], dim=1)
        return super().forward(query, key, value, attn_mask)


@bug("packed-head-lost-its-mask", "module", PackedAttention, (), packed)
class HeadLostItsMask(PackedAttention):
    """The mask reaches all heads but the last."""

    def forward(self, query, key, value, attn_mask=None):
        if attn_mask is not None:
            allowed = True if attn_mask.dtype == torch.bool else 0.0
            shape = (query.size(0), self.num_heads, query.size(1), key.size(1))
            attn_mask = attn_mask.broadcast_to(shape).clone()
            attn_mask[:, -1] = allowed
        return super().forward(query, key, value, attn_mask)


# --- heads ---------------------------------------------------------------------------------------


def split(x, num_heads):
    """The right one, (B, L, E) to (B, H, L, D)."""
    return x.unflatten(-1, (num_heads, -1)).movedim(-2, 1)


@bug("split-unflattened-backwards", "split", split, {"split-strided"})
def split_unflattened_backwards(x, num_heads):
    """The features are unflattened to (D, H) instead of (H, D)."""
    return x.unflatten(-1, (-1, num_heads)).movedim(-1, 1)


def merge(x):
    """The right one, (B, H, L, D) to (B, L, E)."""
    return x.movedim(1, 2).flatten(2)


@bug("merge-length-first", "merge", merge)
def merge_length_first(x):
    """The heads are merged with the length before the batch, and read with the batch before it."""
    B, H, L, D = x.shape
    return x.permute(2, 0, 1, 3).reshape(B, L, H * D)


# --- masks ---------------------------------------------------------------------------------------


def causal(L, S=None):
    """The right one."""
    return torch.ones(L, L if S is None else S, dtype=torch.bool).tril()


@bug("causal-of-floats", "causal", causal)
def causal_of_floats(L, S=None):
    """The mask is ones and zeros in float32: attention takes it for an additive mask."""
    return torch.ones(L, L if S is None else S).tril()


@bug("causal-only-in-the-square", "causal", causal)
def causal_only_in_the_square(L, S=None):
    """Keys after the last query are not hidden: seen only with more keys than queries."""
    mask = torch.ones(L, L if S is None else S, dtype=torch.bool)
    mask[:, :L] = mask[:, :L].tril()
    return mask


def padding(lengths, S=None):
    """The right one, (B, 1, 1, S)."""
    lengths = torch.as_tensor(lengths)
    S = int(lengths.max()) if S is None else S
    return torch.arange(S).expand(len(lengths), 1, 1, S) < lengths.view(-1, 1, 1, 1)


@bug("padding-on-the-left", "padding", padding)
def padding_on_the_left(lengths, S=None):
    """The padding is taken to stand before the tokens, as for generation, and not after them."""
    lengths = torch.as_tensor(lengths)
    S = int(lengths.max()) if S is None else S
    return torch.arange(S).expand(len(lengths), 1, 1, S) >= S - lengths.view(-1, 1, 1, 1)


def window(L, window):
    """The right one."""
    near = torch.ones(L, L, dtype=torch.bool)
    return near.tril() & near.triu(1 - window)


@bug("window-of-the-last-query", "window", window)
def window_of_the_last_query(L, window):
    """All queries get the window of the last one, cut at their own position."""
    near = torch.ones(L, L, dtype=torch.bool)
    return near.tril() & (torch.arange(L) >= L - window)
