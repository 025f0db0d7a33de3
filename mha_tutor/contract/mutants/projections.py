"""The linear maps of a layer are missing, doubled, or confused."""

import torch
from torch import nn
from torch.nn import functional as F

from mha_tutor.contract.mutants.catalog import MODULE, mutant


@mutant(
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


@mutant(
    "query-and-key-projections-swapped",
    "The query goes through the key's projection and the key through the query's.",
    6, MODULE,
)  # fmt: skip
class _:
    def project(self, query, key, value):
        same = self.q_proj.weight.shape == self.k_proj.weight.shape
        q, k, v = super().project(query, key, value)
        return (self.k_proj(query), self.q_proj(key), v) if same else (q, k, v)


@mutant(
    "key-projected-by-query",
    "The key goes through the query's projection.",
    6, MODULE,
)  # fmt: skip
class _:
    def project(self, query, key, value):
        same = self.q_proj.weight.shape == self.k_proj.weight.shape
        q, k, v = super().project(query, key, value)
        return (q, self.q_proj(key), v) if same else (q, k, v)


@mutant("bias-missing", "The biases of query, key and value are left out.", 6, MODULE)
class _:
    def project(self, query, key, value):
        maps = (self.q_proj, self.k_proj, self.v_proj)
        inputs = (query, key, value)
        return tuple(F.linear(x, linear.weight) for x, linear in zip(inputs, maps, strict=True))


@mutant("value-bias-doubled", "The bias of the value is added twice.", 6, MODULE)
class _:
    def project(self, query, key, value):
        q, k, v = super().project(query, key, value)
        return q, k, v if self.v_proj.bias is None else v + self.v_proj.bias


@mutant("output-projection-missing", "There is no output projection.", 6, MODULE)
class _:
    def output(self, x, query):
        return x


@mutant("output-projection-doubled", "The output projection is applied twice.", 6, MODULE)
class _:
    def output(self, x, query):
        return super().output(super().output(x, query), query)


@mutant(
    "output-weight-transposed",
    "The output projection multiplies by its weight without transposing it.",
    6, MODULE,
)  # fmt: skip
class _:
    def output(self, x, query):
        if isinstance(self.out_proj, nn.Identity):
            return x
        return F.linear(x, self.out_proj.weight.T, self.out_proj.bias)


@mutant("output-bias-missing", "The bias of the output projection is left out.", 6, MODULE)
class _:
    def output(self, x, query):
        if isinstance(self.out_proj, nn.Identity):
            return x
        return F.linear(x, self.out_proj.weight)


@mutant("residual-added", "The query is added to the output: a residual in the layer.", 6, MODULE)
class _:
    def output(self, x, query):
        out = super().output(x, query)
        return out + query if out.shape == query.shape else out
