"""A catalog of attentions with one bug each, for the contract to catch.

A mutant replaces one or two of the `Steps`. It can be had as a function, a layer, a pair of
split and merge, or a mask function, and two mutants combine into one with both bugs. `forms`
says where the bug can be seen at all: a layer that swaps key and value, its projections included,
is a layer with other names, so nothing outside shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mha_tutor.contract.steps import Layer, Steps, as_function

__all__ = ["FORMS", "MUTANTS", "Mutant", "combine", "find_mutant"]

FUNCTION, MODULE, BLACK_BOX = "function", "module", "black box"
SPLIT, MERGE, MASK = "split", "merge", "mask"
FORMS = (FUNCTION, MODULE, BLACK_BOX, SPLIT, MERGE, MASK)


@dataclass(frozen=True)
class Mutant:
    """An attention with one bug.

    Attributes:
        name: short, with hyphens.
        story: what is wrong, in a sentence.
        chapter: of the book, that explains it.
        forms: in which it can be seen; see `FORMS`.
        steps: what it does differently, to be put in front of `Steps` or `Layer`.
        seen: where it is found in public, an address; empty if not known.
    """

    name: str
    story: str
    chapter: int
    forms: frozenset[str]
    steps: type
    seen: str = ""

    def function(self) -> Callable[..., Tensor]:
        """Return it with the face of `torch.nn.functional.scaled_dot_product_attention`."""
        return as_function(self._with(Steps))

    def layer(self, embed_dim: int, num_heads: int, **options) -> Layer:
        """Return it as a layer with the usual four projections."""
        return self._with(Layer)(embed_dim, num_heads, **options)

    def split(self, x: Tensor, num_heads: int) -> Tensor:
        """(B, L, E) → (B, H, L, D), with the bug."""
        return self._with(Steps)().split(x, num_heads)

    def merge(self, x: Tensor) -> Tensor:
        """(B, H, L, D) → (B, L, E), with the bug."""
        return self._with(Steps)().merge(x)

    def causal(self, L: int, S: int | None = None) -> Tensor:
        """Return a causal mask, with the bug."""
        return self._with(Steps)().causal(L, S)

    def padding(self, lengths, S: int) -> Tensor:
        """Return a padding mask, with the bug."""
        return self._with(Steps)().padding(lengths, S)

    def window(self, L: int, window: int) -> Tensor:
        """Return a sliding-window mask, with the bug."""
        return self._with(Steps)().window(L, window)

    def _with(self, base: type) -> type:
        return type(self.name, (self.steps, base), {})

    @property
    def sites(self) -> frozenset[str]:
        """Which steps it replaces."""
        return frozenset(name for name in vars(self.steps) if not name.startswith("__"))


def combine(first: Mutant, second: Mutant) -> Mutant:
    """Return a mutant with the bugs of both.

    Raises:
        ValueError: both replace the same step, so one would hide the other.
    """
    common = first.sites & second.sites
    if common:
        raise ValueError(f"{first.name} and {second.name} both replace {', '.join(sorted(common))}")
    return Mutant(
        f"{first.name} + {second.name}",
        f"{first.story} {second.story}",
        first.chapter,
        first.forms & second.forms,
        type("Both", (first.steps, second.steps), {}),
    )


def find_mutant(name: str) -> Mutant:
    """Return the mutant of that name.

    Raises:
        ValueError: there is none.
    """
    for mutant in MUTANTS:
        if mutant.name == name:
            return mutant
    raise ValueError(f"no mutant is called {name!r}; see mha_tutor.contract.MUTANTS")


MUTANTS: list[Mutant] = []


def _mutant(name: str, story: str, chapter: int, *forms: str, seen: str = ""):
    def register(steps: type) -> type:
        MUTANTS.append(Mutant(name, story, chapter, frozenset(forms), steps, seen))
        return steps

    return register


# --- Split and merge -----------------------------------------------------------------------------


@_mutant(
    "split-without-transpose",
    "The features are reshaped straight to (B, H, L, D) without a transpose: a head gets other "
    "tokens, not a slice of each.",
    2, MODULE, BLACK_BOX, SPLIT,
    seen="https://github.com/harvardnlp/annotated-transformer/issues/118",
)  # fmt: skip
class _:
    def split(self, x, num_heads):
        return x.reshape(x.shape[0], num_heads, x.shape[1], -1)


@_mutant(
    "merge-without-transpose",
    "The heads are merged without transposing back: a token gets features of other tokens.",
    2, MODULE, BLACK_BOX, MERGE,
    seen="https://github.com/hyunwoongko/transformer/issues/15",
)  # fmt: skip
class _:
    def merge(self, x):
        return x.reshape(x.shape[0], x.shape[2], -1)


@_mutant(
    "split-and-merge-without-transpose",
    "Both split and merge reshape without a transpose: each head attends within its own stretch "
    "of the sequence.",
    2, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def split(self, x, num_heads):
        return x.reshape(x.shape[0], num_heads, x.shape[1], -1)

    def merge(self, x):
        return x.reshape(x.shape[0], x.shape[2], -1)


@_mutant(
    "split-strided",
    "A head takes every H-th feature instead of D neighboring ones.",
    1, MODULE, SPLIT,
)  # fmt: skip
class _:
    def split(self, x, num_heads):
        return x.unflatten(-1, (-1, num_heads)).movedim(-1, 1)


@_mutant(
    "merge-strided",
    "The heads are merged feature by feature (0 of every head, 1 of every head, …) instead of "
    "head by head.",
    1, MODULE, MERGE,
)  # fmt: skip
class _:
    def merge(self, x):
        return x.permute(0, 2, 3, 1).flatten(-2)


@_mutant(
    "merge-reversed",
    "The heads are merged in the opposite order.",
    1, MODULE, MERGE,
)  # fmt: skip
class _:
    def merge(self, x):
        return super().merge(x.flip(1))


@_mutant(
    "batch-and-heads-confused",
    "Batch and heads are folded together in one order and unfolded in the other, so that "
    "sequences of the batch mix.",
    2, MODULE, BLACK_BOX, MERGE,
)  # fmt: skip
class _:
    def merge(self, x):
        B, H = x.shape[:2]
        return super().merge(x.flatten(0, 1).unflatten(0, (H, B)).transpose(0, 1))


# --- Scale ---------------------------------------------------------------------------------------


@_mutant("scale-none", "The scores are not divided by √head_dim.", 4, FUNCTION, MODULE)
class _:
    def scale(self, q, k):
        return 1.0


@_mutant(
    "scale-sqrt-embed-dim",
    "The scores are divided by √embed_dim instead of √head_dim.",
    4, FUNCTION, MODULE,
    seen="https://github.com/aladdinpersson/Machine-Learning-Collection/issues/30",
)  # fmt: skip
class _:
    def scale(self, q, k):
        return (q.shape[1] * q.shape[-1]) ** -0.5


@_mutant(
    "scale-head-dim",
    "The scores are divided by head_dim instead of √head_dim.",
    4, FUNCTION, MODULE,
    seen="https://github.com/duoan/TorchCode/issues/17",
)  # fmt: skip
class _:
    def scale(self, q, k):
        return 1 / q.shape[-1]


@_mutant(
    "scale-sqrt-length",
    "The scores are divided by the root of the query length instead of √head_dim.",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def scale(self, q, k):
        return q.shape[-2] ** -0.5


@_mutant(
    "scale-sqrt-num-heads",
    "The scores are divided by √num_heads instead of √head_dim.",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def scale(self, q, k):
        return q.shape[1] ** -0.5


@_mutant(
    "scale-multiplied",
    "The scores are multiplied by √head_dim instead of divided by it.",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def scale(self, q, k):
        return q.shape[-1] ** 0.5


@_mutant(
    "scale-after-softmax",
    "The weights are divided by √head_dim after the softmax, not the scores before it.",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def scale(self, q, k):
        return 1.0

    def mix(self, weights, v):
        return super().mix(weights / v.shape[-1] ** 0.5, v)


# --- Softmax -------------------------------------------------------------------------------------


@_mutant(
    "softmax-over-queries",
    "The softmax runs over the queries instead of the keys.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return torch.softmax(scores, dim=-2).nan_to_num(0.0)


@_mutant(
    "softmax-over-heads",
    "The softmax runs over the heads instead of the keys.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return torch.softmax(scores, dim=1).nan_to_num(0.0)


@_mutant(
    "softmax-over-batch",
    "The softmax runs over the batch instead of the keys.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return torch.softmax(scores, dim=0).nan_to_num(0.0)


@_mutant(
    "softmax-missing",
    "There is no softmax: the scores themselves mix the values.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return scores.masked_fill(scores.isneginf(), 0.0)


@_mutant(
    "softmax-twice",
    "The softmax is applied twice: the weights are far too flat.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return torch.softmax(super().softmax(scores), dim=-1)


@_mutant(
    "softmax-overflows",
    "The softmax takes exponentials without subtracting the largest score: great scores overflow.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        weights = scores.exp()
        return weights / weights.sum(-1, keepdim=True)


@_mutant(
    "softmax-in-half-precision",
    "The scores are cast to half precision before the softmax.",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return super().softmax(scores.half()).to(scores.dtype)


@_mutant(
    "softmax-denominator-plus-one",
    "The softmax has one exponential too many in its denominator: rows sum to less than 1.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return super().softmax(F.pad(scores, (0, 1)))[..., :-1]


# --- Masks ---------------------------------------------------------------------------------------


@_mutant(
    "mask-inverted",
    "The mask is upside down: True is taken as “may not attend”.",
    5, FUNCTION, MODULE, BLACK_BOX,
    seen="https://github.com/rasbt/LLMs-from-scratch/issues/1061",
)  # fmt: skip
class _:
    def allowed(self, mask):
        return ~mask


@_mutant(
    "mask-ignored",
    "The mask is taken as an argument and never used.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        return super().bias(scores, None, is_causal, dropout_p)


@_mutant(
    "causal-ignored",
    "`is_causal` is taken as an argument and never used.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        return super().bias(scores, attn_mask, False, dropout_p)


@_mutant(
    "causal-sees-one-ahead",
    "The causal mask is off by one: each query sees one token of the future.",
    5, FUNCTION, MODULE, BLACK_BOX, MASK,
)  # fmt: skip
class _:
    def causal(self, L, S=None):
        return torch.ones(L, L if S is None else S, dtype=torch.bool).tril(1)


@_mutant(
    "causal-hides-itself",
    "The causal mask is off by one: a query does not see its own position.",
    5, FUNCTION, MODULE, BLACK_BOX, MASK,
)  # fmt: skip
class _:
    def causal(self, L, S=None):
        return torch.ones(L, L if S is None else S, dtype=torch.bool).tril(-1)


@_mutant(
    "causal-bottom-right",
    "For L ≠ S the causal mask is aligned at the bottom right, not at the top left as in torch.",
    5, FUNCTION, MODULE, BLACK_BOX, MASK,
)  # fmt: skip
class _:
    def causal(self, L, S=None):
        S = L if S is None else S
        return torch.ones(L, S, dtype=torch.bool).tril(S - L)


@_mutant(
    "causal-transposed",
    "The causal mask is transposed: a query sees the future and not the past.",
    5, FUNCTION, MODULE, BLACK_BOX, MASK,
)  # fmt: skip
class _:
    def causal(self, L, S=None):
        return torch.ones(L, L if S is None else S, dtype=torch.bool).triu()


@_mutant(
    "causal-strictly-future",
    "The causal mask is the complement of the right one: True marks what must not be seen.",
    5, FUNCTION, MODULE, BLACK_BOX, MASK,
    seen="https://github.com/rasbt/LLMs-from-scratch/issues/1061",
)  # fmt: skip
class _:
    def causal(self, L, S=None):
        return torch.ones(L, L if S is None else S, dtype=torch.bool).triu(1)


@_mutant(
    "padding-on-queries",
    "The padding mask lies along the queries instead of the keys.",
    5, MASK,
)  # fmt: skip
class _:
    def padding(self, lengths, S):
        return super().padding(lengths, S).mT


@_mutant(
    "padding-off-by-one",
    "The padding mask is off by one: it lets the first padded key through.",
    5, MASK,
)  # fmt: skip
class _:
    def padding(self, lengths, S):
        return super().padding(torch.as_tensor(lengths) + 1, S)


@_mutant(
    "padding-inverted",
    "The padding mask is upside down: True marks the padding.",
    5, MASK,
)  # fmt: skip
class _:
    def padding(self, lengths, S):
        return ~super().padding(lengths, S)


@_mutant(
    "window-off-by-one",
    "The window is one key too wide.",
    5, MASK,
)  # fmt: skip
class _:
    def window(self, L, window):
        return super().window(L, window + 1)


@_mutant(
    "window-not-causal",
    "The window reaches into the future as well.",
    5, MASK,
)  # fmt: skip
class _:
    def window(self, L, window):
        return super().window(L, window) | super().window(L, window).mT


@_mutant(
    "window-far-side",
    "The window keeps what lies farther back and hides the near keys.",
    5, MASK,
)  # fmt: skip
class _:
    def window(self, L, window):
        return torch.ones(L, L, dtype=torch.bool).tril(-window)


@_mutant(
    "mask-transposed",
    "The mask is applied with queries and keys exchanged.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def allowed(self, mask):
        return mask.mT if mask.shape[-1] == mask.shape[-2] else mask


@_mutant(
    "mask-after-softmax",
    "The mask acts after the softmax: rows no longer sum to 1.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        weights = super().weigh(scores, None)
        return weights if bias is None else weights * bias.exp()


@_mutant(
    "mask-multiplies-scores",
    "Masked scores are set to 0 instead of -inf: a masked key keeps a weight.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        if bias is not None:
            scores, bias = scores * bias.exp(), None
        return super().weigh(scores, bias)


@_mutant(
    "mask-added-as-numbers",
    "A boolean mask is added to the scores as 0 and 1.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = attn_mask.to(scores.dtype)
        return super().bias(scores, attn_mask, is_causal, dropout_p)


@_mutant(
    "additive-mask-as-boolean",
    "A floating-point mask is taken as a boolean one, so its numbers are lost.",
    5, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            attn_mask = attn_mask == 0
        return super().bias(scores, attn_mask, is_causal, dropout_p)


@_mutant(
    "mask-on-first-head",
    "The mask reaches the first head only.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        if bias is not None:
            bias = bias.broadcast_to(scores.shape).clone()
            bias[:, 1:] = 0
        return super().weigh(scores, bias)


@_mutant(
    "mask-of-first-sequence",
    "The mask of the first sequence is used for the whole batch.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def allowed(self, mask):
        return mask[:1] if mask.ndim == 4 else mask


@_mutant(
    "mask-on-first-sequence",
    "The mask reaches the first sequence of the batch only.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        if bias is not None:
            bias = bias.broadcast_to(scores.shape).clone()
            bias[1:] = 0
        return super().weigh(scores, bias)


@_mutant(
    "mask-ignored-in-eval",
    "The mask is used in training and ignored in evaluation.",
    5, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        return super().weigh(scores, bias if self.training else None)


@_mutant(
    "mask-ignored-in-training",
    "The mask is used in evaluation and ignored in training.",
    5, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        return super().weigh(scores, None if self.training else bias)


@_mutant(
    "mask-ignored-with-dropout",
    "The mask is ignored whenever there is dropout.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        if dropout_p:
            return None
        return super().bias(scores, attn_mask, is_causal, dropout_p)


@_mutant(
    "fill-finite",
    "Masked scores are filled with a large negative number instead of -inf: it does not fit half "
    "precision, and a row with nothing left yields the mean of what was masked.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    fill = -1e9


@_mutant(
    "fill-too-small",
    "Masked scores are filled with a number that is not far enough below the others, such as -10: "
    "a masked key keeps a weight.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    fill = -10.0


@_mutant(
    "empty-row-is-nan",
    "A row with nothing to attend to yields NaN: the textbook's formula, -inf and then softmax.",
    5, FUNCTION, MODULE, BLACK_BOX,
    seen="https://github.com/pytorch/pytorch/issues/41508",
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        return self.softmax(scores if bias is None else scores + bias)


@_mutant(
    "causal-replaces-mask",
    "With `is_causal` the mask is dropped without a word.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def check(self, q, k, v, attn_mask, is_causal):
        super().check(q, k, v, None if is_causal else attn_mask, is_causal)


# --- Heads, keys and values ----------------------------------------------------------------------


@_mutant(
    "heads-shared",
    "All heads use the weights of head 0: many heads, one pattern.",
    1, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        return super().mix(weights[:, :1], v)


@_mutant(
    "keys-of-head-0",
    "All heads use the keys of head 0.",
    1, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def score(self, q, k, scale):
        return super().score(q, k[:, :1], scale)


@_mutant(
    "values-of-head-0",
    "All heads use the values of head 0.",
    1, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        return super().mix(weights, v[:, :1].expand_as(v))


@_mutant(
    "weights-averaged",
    "The weights are averaged over the heads before they are used.",
    6, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        return super().mix(weights.mean(1, keepdim=True).expand_as(weights), v)


@_mutant(
    "scores-added-over-heads",
    "The heads' scores are added before the softmax: one big head.",
    1, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def score(self, q, k, scale):
        scores = super().score(q, k, scale)
        return scores.sum(1, keepdim=True).expand_as(scores)


@_mutant(
    "last-head-lost",
    "The last head is left at zero.",
    1, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        heads = super().mix(weights, v)
        return torch.cat([heads[:, :-1], torch.zeros_like(heads[:, -1:])], dim=1)


@_mutant(
    "key-and-value-swapped",
    "Key and value are swapped.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def attend(self, q, k, v, *args, **kwargs):
        return super().attend(q, v, k, *args, **kwargs)


@_mutant(
    "scores-transposed",
    "The scores are those of the keys for the queries, K Qᵀ instead of Q Kᵀ (seen where L = S).",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def score(self, q, k, scale):
        same = q.shape[-2] == k.shape[-2]
        return super().score(k, q, scale) if same else super().score(q, k, scale)


@_mutant(
    "weights-transposed",
    "The weights are transposed before they mix the values (seen where L = S).",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        square = weights.shape[-1] == weights.shape[-2]
        return super().mix(weights.mT if square else weights, v)


@_mutant(
    "gqa-order",
    "Grouped key and value heads are repeated in the wrong order: 0 1 0 1 instead of 0 0 1 1.",
    6, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def share(self, x, num_heads):
        return x.repeat(1, num_heads // x.shape[1], 1, 1)


@_mutant(
    "value-from-key",
    "The value argument is ignored; the key is taken for it.",
    6, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def project(self, query, key, value):
        return super().project(query, key, key)


@_mutant(
    "key-from-query",
    "The key argument is ignored: cross-attention attends to the query's own sequence.",
    6, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def project(self, query, key, value):
        if key.shape == query.shape:
            key = query
        return super().project(query, key, value)


# --- Projections ---------------------------------------------------------------------------------


@_mutant(
    "packed-projection-misread",
    "The packed projection is cut in the wrong order: query and key of a head lie side by side "
    "where all queries should come first.",
    6, MODULE,
)  # fmt: skip
class _:
    def project(self, query, key, value):
        q, k, v = super().project(query, key, value)
        if q.shape != k.shape:
            return q, k, v
        packed = torch.cat([q, k], dim=-1).unflatten(-1, (self.num_heads, 2, -1))
        return packed[..., 0, :].flatten(-2), packed[..., 1, :].flatten(-2), v


@_mutant(
    "query-and-key-projections-swapped",
    "The query goes through the key's projection and the key through the query's.",
    6, MODULE,
)  # fmt: skip
class _:
    def project(self, query, key, value):
        same = self.q_proj.weight.shape == self.k_proj.weight.shape
        q, k, v = super().project(query, key, value)
        return (self.k_proj(query), self.q_proj(key), v) if same else (q, k, v)


@_mutant(
    "key-projected-by-query",
    "The key goes through the query's projection.",
    6, MODULE,
)  # fmt: skip
class _:
    def project(self, query, key, value):
        same = self.q_proj.weight.shape == self.k_proj.weight.shape
        q, k, v = super().project(query, key, value)
        return (q, self.q_proj(key), v) if same else (q, k, v)


@_mutant("bias-missing", "The biases of query, key and value are left out.", 6, MODULE)
class _:
    def project(self, query, key, value):
        maps = (self.q_proj, self.k_proj, self.v_proj)
        inputs = (query, key, value)
        return tuple(F.linear(x, linear.weight) for x, linear in zip(inputs, maps, strict=True))


@_mutant("value-bias-doubled", "The bias of the value is added twice.", 6, MODULE)
class _:
    def project(self, query, key, value):
        q, k, v = super().project(query, key, value)
        return q, k, v if self.v_proj.bias is None else v + self.v_proj.bias


@_mutant("output-projection-missing", "There is no output projection.", 6, MODULE)
class _:
    def output(self, x, query):
        return x


@_mutant("output-projection-doubled", "The output projection is applied twice.", 6, MODULE)
class _:
    def output(self, x, query):
        return super().output(super().output(x, query), query)


@_mutant(
    "output-weight-transposed",
    "The output projection multiplies by its weight without transposing it.",
    6, MODULE,
)  # fmt: skip
class _:
    def output(self, x, query):
        if isinstance(self.out_proj, nn.Identity):
            return x
        return F.linear(x, self.out_proj.weight.T, self.out_proj.bias)


@_mutant("output-bias-missing", "The bias of the output projection is left out.", 6, MODULE)
class _:
    def output(self, x, query):
        if isinstance(self.out_proj, nn.Identity):
            return x
        return F.linear(x, self.out_proj.weight)


@_mutant("residual-added", "The query is added to the output: a residual in the layer.", 6, MODULE)
class _:
    def output(self, x, query):
        out = super().output(x, query)
        return out + query if out.shape == query.shape else out


# --- Dropout -------------------------------------------------------------------------------------


@_mutant(
    "dropout-before-softmax",
    "Dropout acts before the softmax, on the scores, instead of on the weights.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        bias = super().bias(scores, attn_mask, is_causal, dropout_p)
        self.p = dropout_p
        return bias

    def softmax(self, scores):
        return super().softmax(F.dropout(scores, self.p) if self.p else scores)

    def drop(self, weights, p):
        return weights


@_mutant(
    "dropout-in-eval",
    "Dropout goes on in evaluation.",
    6, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def dropout_p(self):
        return self.dropout


@_mutant(
    "dropout-unscaled",
    "Dropout does not scale up the weights that it keeps.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def drop(self, weights, p):
        return super().drop(weights, p) * (1 - p)


@_mutant(
    "dropout-ignored",
    "There is an option for dropout and it does nothing.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def drop(self, weights, p):
        return weights


# --- Manners -------------------------------------------------------------------------------------


@_mutant(
    "inputs-modified",
    "The caller's tensors are changed in place.",
    4, FUNCTION,
)  # fmt: skip
class _:
    def score(self, q, k, scale):
        with torch.no_grad():
            scaled = q.mul_(scale)
        return super().score(scaled, k, 1.0)


@_mutant(
    "query-modified",
    "The layer adds to the caller's query in place.",
    6, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def output(self, x, query):
        out = super().output(x, query)
        with torch.no_grad():
            query.add_(1.0)
        return out


@_mutant(
    "state-kept",
    "Something is kept from one call to the next: the same input gives another output.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    calls = 0

    def mix(self, weights, v):
        self.calls += 1
        return super().mix(weights, v) + 0.01 * self.calls


@_mutant("dtype-lost", "The output is always float32.", 6, FUNCTION, MODULE, BLACK_BOX)
class _:
    def mix(self, weights, v):
        return super().mix(weights, v).float()

    def output(self, x, query):
        return super().output(x.to(query.dtype), query).float()


@_mutant(
    "gradient-cut",
    "The weights are detached: no gradient reaches query and key.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        return super().mix(weights.detach(), v)


@_mutant(
    "seed-changed",
    "It sets the global random seed.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def check(self, *args):
        torch.manual_seed(0)
        super().check(*args)


@_mutant(
    "contiguous-only",
    "It uses `view` where a `reshape` is needed, so an input that is not contiguous is refused.",
    2, FUNCTION, SPLIT, MERGE,
)  # fmt: skip
class _:
    def attend(self, q, k, v, *args, **kwargs):
        q, k, v = (x.view(-1).view(x.shape) for x in (q, k, v))
        return super().attend(q, k, v, *args, **kwargs)

    def split(self, x, num_heads):
        return super().split(x.view(-1).view(x.shape), num_heads)

    def merge(self, x):
        return super().merge(x.view(-1).view(x.shape))


@_mutant(
    "lengths-unchecked",
    "A value of another length than the key is accepted without a word, and zeros stand in for "
    "what is missing.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def attend(self, q, k, v, *args, **kwargs):
        missing = k.shape[-2] - v.shape[-2]
        return super().attend(q, k, F.pad(v, (0, 0, 0, missing)), *args, **kwargs)
