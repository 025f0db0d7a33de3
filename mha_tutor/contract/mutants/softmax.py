"""The softmax is missing, runs over the wrong axis, or breaks down."""

import torch
from torch.nn import functional as F

from mha_tutor.contract.mutants.catalog import BLACK_BOX, FUNCTION, MODULE, mutant, variant


@mutant(
    "softmax-over-queries",
    "The softmax runs over the queries instead of the keys.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return torch.softmax(scores, dim=-2).nan_to_num(0.0)


@variant("softmax-over-queries")
class _:  # with NaN where all is masked
    def weigh(self, scores, bias):
        return torch.softmax(scores if bias is None else scores + bias, dim=-2)


@mutant(
    "softmax-over-heads",
    "The softmax runs over the heads instead of the keys.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return torch.softmax(scores, dim=1).nan_to_num(0.0)


@variant("softmax-over-heads")
class _:  # with NaN where all is masked
    def weigh(self, scores, bias):
        return torch.softmax(scores if bias is None else scores + bias, dim=1)


@mutant(
    "softmax-over-batch",
    "The softmax runs over the batch instead of the keys.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return torch.softmax(scores, dim=0).nan_to_num(0.0)


@variant("softmax-over-batch")
class _:  # with NaN where all is masked
    def weigh(self, scores, bias):
        return torch.softmax(scores if bias is None else scores + bias, dim=0)


@mutant(
    "softmax-missing",
    "There is no softmax: the scores themselves mix the values.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return scores.masked_fill(scores.isneginf(), 0.0)


@variant("softmax-missing")
class _:  # -inf included
    def weigh(self, scores, bias):
        return scores if bias is None else scores + bias


@mutant(
    "softmax-twice",
    "The softmax is applied twice: the weights are far too flat.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return torch.softmax(super().softmax(scores), dim=-1)


@mutant(
    "softmax-overflows",
    "The softmax takes exponentials without subtracting the largest score: large scores overflow.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        weights = scores.exp()
        return weights / weights.sum(-1, keepdim=True)


@mutant(
    "softmax-in-half-precision",
    "The scores are cast to half precision before the softmax.",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return super().softmax(scores.half()).to(scores.dtype)


@mutant(
    "softmax-denominator-plus-one",
    "The softmax has one exponential too many in its denominator: rows sum to less than 1.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def softmax(self, scores):
        return super().softmax(F.pad(scores, (0, 1)))[..., :-1]
