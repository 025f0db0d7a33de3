"""Masks that are made wrongly: causal, padding, window."""

import torch

from mha_tutor.contract.mutants.catalog import BLACK_BOX, FUNCTION, MASK, MODULE, mutant


@mutant(
    "causal-sees-one-ahead",
    "The causal mask is off by one: each query sees one token of the future.",
    5, FUNCTION, MODULE, BLACK_BOX, MASK,
)  # fmt: skip
class _:
    def causal(self, L, S=None):
        return torch.ones(L, L if S is None else S, dtype=torch.bool).tril(1)


@mutant(
    "causal-hides-itself",
    "The causal mask is off by one: a query does not see its own position.",
    5, FUNCTION, MODULE, BLACK_BOX, MASK,
)  # fmt: skip
class _:
    def causal(self, L, S=None):
        return torch.ones(L, L if S is None else S, dtype=torch.bool).tril(-1)


@mutant(
    "causal-bottom-right",
    "For L ≠ S the causal mask is aligned at the bottom right, not at the top left as in torch.",
    5, FUNCTION, MODULE, BLACK_BOX, MASK,
)  # fmt: skip
class _:
    def causal(self, L, S=None):
        S = L if S is None else S
        return torch.ones(L, S, dtype=torch.bool).tril(S - L)


@mutant(
    "causal-transposed",
    "The causal mask is transposed: a query sees the future and not the past.",
    5, FUNCTION, MODULE, BLACK_BOX, MASK,
)  # fmt: skip
class _:
    def causal(self, L, S=None):
        return torch.ones(L, L if S is None else S, dtype=torch.bool).triu()


@mutant(
    "causal-strictly-future",
    "The causal mask is the complement of the right one: True marks what must not be seen.",
    5, FUNCTION, MODULE, BLACK_BOX, MASK,
    seen="https://github.com/rasbt/LLMs-from-scratch/issues/1061",
)  # fmt: skip
class _:
    def causal(self, L, S=None):
        return torch.ones(L, L if S is None else S, dtype=torch.bool).triu(1)


@mutant(
    "padding-on-queries",
    "The padding mask lies along the queries instead of the keys.",
    5, MASK,
)  # fmt: skip
class _:
    def padding(self, lengths, S):
        return super().padding(lengths, S).mT


@mutant(
    "padding-off-by-one",
    "The padding mask is off by one: it lets the first padded key through.",
    5, MASK,
)  # fmt: skip
class _:
    def padding(self, lengths, S):
        return super().padding(torch.as_tensor(lengths) + 1, S)


@mutant(
    "padding-inverted",
    "The padding mask is upside down: True marks the padding.",
    5, MASK,
)  # fmt: skip
class _:
    def padding(self, lengths, S):
        return ~super().padding(lengths, S)


@mutant(
    "window-off-by-one",
    "The window is one key too wide.",
    5, MASK,
)  # fmt: skip
class _:
    def window(self, L, window):
        return super().window(L, window + 1)


@mutant(
    "window-not-causal",
    "The window reaches into the future as well.",
    5, MASK,
)  # fmt: skip
class _:
    def window(self, L, window):
        return super().window(L, window) | super().window(L, window).mT


@mutant(
    "window-far-side",
    "The window keeps what lies farther back and hides the near keys.",
    5, MASK,
)  # fmt: skip
class _:
    def window(self, L, window):
        return torch.ones(L, L, dtype=torch.bool).tril(-window)
