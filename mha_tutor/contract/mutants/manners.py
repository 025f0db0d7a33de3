"""The numbers are right, and the caller is harmed: state, side effects, dtypes."""

import torch
from torch.nn import functional as F

from mha_tutor.contract.mutants.catalog import BLACK_BOX, FUNCTION, MERGE, MODULE, SPLIT, mutant


@mutant(
    "inputs-modified",
    "The caller's tensors are changed in place.",
    4, FUNCTION,
)  # fmt: skip
class _:
    def score(self, q, k, scale):
        with torch.no_grad():
            scaled = q.mul_(scale)
        return super().score(scaled, k, 1.0)


@mutant(
    "query-modified",
    "The layer changes the caller's query in place.",
    6, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def output(self, x, query):
        out = super().output(x, query)
        with torch.no_grad():
            query.add_(1.0)
        return out


@mutant(
    "state-kept",
    "Something is kept from one call to the next: the same input gives another output.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    calls = 0

    def mix(self, weights, v):
        self.calls += 1
        return super().mix(weights, v) + 0.01 * self.calls


@mutant("dtype-lost", "The output is always float32.", 6, FUNCTION, MODULE, BLACK_BOX)
class _:
    def mix(self, weights, v):
        return super().mix(weights, v).float()

    def output(self, x, query):
        return super().output(x.to(query.dtype), query).float()


@mutant(
    "gradient-cut",
    "The weights are detached: no gradient reaches query and key.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        return super().mix(weights.detach(), v)


@mutant(
    "seed-changed",
    "It sets the global random seed.",
    6, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def check(self, *args):
        torch.manual_seed(0)
        super().check(*args)


@mutant(
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


@mutant(
    "lengths-unchecked",
    "A value of another length than the key is accepted without a word.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def attend(self, q, k, v, *args, **kwargs):
        missing = k.shape[-2] - v.shape[-2]
        return super().attend(q, k, F.pad(v, (0, 0, 0, missing)), *args, **kwargs)
