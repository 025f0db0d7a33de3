"""Masks that are right, and used wrongly."""

import torch

from mha_tutor.contract.mutants.catalog import BLACK_BOX, FUNCTION, MODULE, mutant, variant


class Filled:
    """A number in the place of the masked scores; a mask of numbers is added as it should be."""

    number: float

    def bias(self, scores, attn_mask, is_causal, dropout_p):
        self.filled = is_causal or attn_mask is None or attn_mask.dtype == torch.bool
        return super().bias(scores, attn_mask, is_causal, dropout_p)

    def weigh(self, scores, bias):
        if bias is None or not self.filled:
            return super().weigh(scores, bias)
        hidden = bias.isneginf().expand(scores.shape)
        return super().weigh(scores.masked_fill(hidden, self.number), None)


@mutant(
    "mask-inverted",
    "The mask is upside down: True is taken as “may not attend”.",
    5, FUNCTION, MODULE, BLACK_BOX,
    seen="https://github.com/rasbt/LLMs-from-scratch/issues/1061",
)  # fmt: skip
class _:
    def allowed(self, mask):
        return ~mask


@variant("mask-inverted")
class _:  # but the causal mask is right
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask
        return super().bias(scores, attn_mask, is_causal, dropout_p)


@mutant(
    "mask-ignored",
    "The mask is taken as an argument and never used.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        return super().bias(scores, None, is_causal, dropout_p)


@mutant(
    "causal-ignored",
    "`is_causal` is taken as an argument and never used.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        return super().bias(scores, attn_mask, False, dropout_p)


@mutant(
    "mask-transposed",
    "The mask is applied with queries and keys exchanged.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def allowed(self, mask):
        return mask.mT if mask.shape[-1] == mask.shape[-2] else mask


@mutant(
    "mask-after-softmax",
    "The mask acts after the softmax: rows no longer sum to 1.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        weights = super().weigh(scores, None)
        return weights if bias is None else weights * bias.exp()


@variant("mask-after-softmax")
class _:  # only a boolean mask; numbers are added before
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        self.numbers = attn_mask is not None and attn_mask.dtype != torch.bool
        return super().bias(scores, attn_mask, is_causal, dropout_p)

    def weigh(self, scores, bias):
        if bias is None or self.numbers:
            return super().weigh(scores, bias)
        return super().weigh(scores, None) * bias.exp()


@mutant(
    "mask-multiplies-scores",
    "Masked scores are set to 0 instead of -inf: a masked key keeps a weight.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        if bias is not None:
            scores, bias = scores * bias.exp(), None
        return super().weigh(scores, bias)


@variant("mask-multiplies-scores")
class _(Filled):  # only by a boolean mask; numbers are added
    number = 0.0


@mutant(
    "mask-added-as-numbers",
    "A boolean mask is added to the scores as 0 and 1.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = attn_mask.to(scores.dtype)
        return super().bias(scores, attn_mask, is_causal, dropout_p)


@mutant(
    "additive-mask-as-boolean",
    "A floating-point mask is taken as a boolean one, so its numbers are lost.",
    5, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            attn_mask = attn_mask == 0
        return super().bias(scores, attn_mask, is_causal, dropout_p)


@mutant(
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


@mutant(
    "mask-of-first-sequence",
    "The mask of the first sequence is used for the whole batch.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def allowed(self, mask):
        return mask[:1] if mask.ndim == 4 else mask


@mutant(
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


@mutant(
    "mask-ignored-in-eval",
    "The mask is used in training and ignored in evaluation.",
    5, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        return super().weigh(scores, bias if self.training else None)


@mutant(
    "mask-ignored-in-training",
    "The mask is used in evaluation and ignored in training.",
    5, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        return super().weigh(scores, None if self.training else bias)


@mutant(
    "mask-ignored-with-dropout",
    "The mask is ignored whenever there is dropout.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def bias(self, scores, attn_mask, is_causal, dropout_p):
        if dropout_p:
            return None
        return super().bias(scores, attn_mask, is_causal, dropout_p)


@mutant(
    "fill-finite",
    "Masked scores are filled with a large negative number instead of -inf: it may not fit half "
    "precision, and a row with nothing left yields a mean of what was masked, not "
    "zeros.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    fill = -1e9


@variant("fill-finite")
class _(Filled):  # in the place of the score
    number = -1e9


@mutant(
    "fill-too-small",
    "Masked scores are filled with a number that is not far enough below the others, such as -10: "
    "a masked key keeps a weight.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    fill = -10.0


def _fills() -> None:
    for number in (-1.0, -2.0, -5.0, -10.0, -20.0, -50.0, -100.0):
        variant("fill-too-small")(type("_", (Filled,), {"number": number}))
        if number != -1.0:  # -1 for the hidden is +1 for the others: mask-added-as-numbers
            variant("fill-too-small")(type("_", (), {"fill": number}))


_fills()


@mutant(
    "empty-row-is-nan",
    "A row with nothing to attend to yields NaN, as in the textbook: -inf and then the softmax.",
    5, FUNCTION, MODULE, BLACK_BOX,
    seen="https://github.com/pytorch/pytorch/issues/41508",
)  # fmt: skip
class _:
    def weigh(self, scores, bias):
        return self.softmax(scores if bias is None else scores + bias)


@mutant(
    "causal-replaces-mask",
    "With `is_causal` the mask is dropped without a word.",
    5, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def check(self, q, k, v, attn_mask, is_causal):
        super().check(q, k, v, None if is_causal else attn_mask, is_causal)
