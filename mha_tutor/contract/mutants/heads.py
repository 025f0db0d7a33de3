"""Heads, keys and values are confused."""

import torch

from mha_tutor.contract.mutants.catalog import BLACK_BOX, FUNCTION, MODULE, mutant, variant


@mutant(
    "heads-shared",
    "All heads use the weights of head 0: many heads, one pattern.",
    1, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        return super().mix(weights[:, :1], v)


@mutant(
    "keys-of-head-0",
    "All heads use the keys of head 0.",
    1, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def score(self, q, k, scale):
        return super().score(q, k[:, :1], scale)


@mutant(
    "values-of-head-0",
    "All heads use the values of head 0.",
    1, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        return super().mix(weights, v[:, :1].expand_as(v))


@mutant(
    "weights-averaged",
    "The weights are averaged over the heads before they are used.",
    6, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        return super().mix(weights.mean(1, keepdim=True).expand_as(weights), v)


@mutant(
    "scores-added-over-heads",
    "The heads' scores are added before the softmax: one big head.",
    1, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def score(self, q, k, scale):
        scores = super().score(q, k, scale)
        return scores.sum(1, keepdim=True).expand_as(scores)


@mutant(
    "last-head-lost",
    "The last head is left at zero.",
    1, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        heads = super().mix(weights, v)
        return torch.cat([heads[:, :-1], torch.zeros_like(heads[:, -1:])], dim=1)


@mutant(
    "key-and-value-swapped",
    "Key and value are swapped.",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def attend(self, q, k, v, *args, **kwargs):
        return super().attend(q, v, k, *args, **kwargs)


@mutant(
    "scores-transposed",
    "The scores are those of the keys for the queries, K Qᵀ instead of Q Kᵀ (seen where L = S).",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def score(self, q, k, scale):
        same = q.shape[-2] == k.shape[-2]
        return super().score(k, q, scale) if same else super().score(q, k, scale)


@mutant(
    "weights-transposed",
    "The weights are transposed before they mix the values (seen where L = S).",
    4, FUNCTION, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def mix(self, weights, v):
        square = weights.shape[-1] == weights.shape[-2]
        return super().mix(weights.mT if square else weights, v)


@mutant(
    "gqa-order",
    "Grouped key and value heads are repeated in the wrong order: 0 1 0 1 instead of 0 0 1 1.",
    6, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def share(self, x, num_heads):
        return x.repeat(1, num_heads // x.shape[1], 1, 1)


@variant("gqa-order")
class _:  # of the keys alone
    def share(self, x, num_heads):
        return x.repeat(1, num_heads // x.shape[1], 1, 1)

    def share_values(self, x, num_heads):
        return super().share(x, num_heads)


@variant("gqa-order")
class _:  # of the values alone
    def share_values(self, x, num_heads):
        return x.repeat(1, num_heads // x.shape[1], 1, 1)


@mutant(
    "value-from-key",
    "The value argument is ignored; the key is taken for it.",
    6, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def project(self, query, key, value):
        return super().project(query, key, key)


@mutant(
    "key-from-query",
    "The key argument is ignored: cross-attention attends to the query's own sequence.",
    6, MODULE, BLACK_BOX,
)  # fmt: skip
class _:
    def project(self, query, key, value):
        if key.shape == query.shape:
            key = query
        return super().project(query, key, value)
