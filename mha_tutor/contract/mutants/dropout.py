"""Dropout in the wrong place, at the wrong time, or of the wrong size."""

import torch
from torch.nn import functional as F

from mha_tutor.contract.mutants.catalog import BLACK_BOX, FUNCTION, MODULE, mutant


@mutant(
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


@mutant(
    "dropout-in-eval",
    "Dropout goes on in evaluation.",
    6, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def dropout_p(self):
        return self.dropout


@mutant(
    "dropout-unscaled",
    "Dropout does not scale up the weights that it keeps.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def drop(self, weights, p):
        return super().drop(weights, p) * (1 - p)


@mutant(
    "dropout-ignored",
    "There is an option for dropout and it does nothing.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def drop(self, weights, p):
        return weights


@mutant(
    "dropout-shared-by-heads",
    "One draw of dropout serves all heads.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def drop(self, weights, p):
        return weights * super().drop(torch.ones_like(weights[:, :1]), p)


@mutant(
    "dropout-shared-by-queries",
    "One draw of dropout serves all queries: whole keys are dropped.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def drop(self, weights, p):
        return weights * super().drop(torch.ones_like(weights[:, :, :1]), p)


@mutant(
    "dropout-shared-by-keys",
    "One draw of dropout serves all keys: whole rows of weights are dropped.",
    6, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def drop(self, weights, p):
        return weights * super().drop(torch.ones_like(weights[..., :1]), p)


@mutant(
    "dropout-shared-by-batch",
    "One draw of dropout serves all sequences of the batch.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def drop(self, weights, p):
        return weights * super().drop(torch.ones_like(weights[:1]), p)


@mutant(
    "dropout-keeps-p",
    "The probability of dropping is taken for the probability of keeping.",
    6, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def drop(self, weights, p):
        return super().drop(weights, 1 - p) if p else weights
