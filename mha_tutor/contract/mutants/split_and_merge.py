"""Heads are split, merged, or both in the wrong way."""

from mha_tutor.contract.mutants.catalog import BLACK_BOX, MERGE, MODULE, SPLIT, mutant


@mutant(
    "split-without-transpose",
    "The features are reshaped straight to (B, H, L, D) without a transpose: a head gets other "
    "tokens, not a slice of each.",
    2, MODULE, BLACK_BOX, SPLIT,
    seen="https://github.com/harvardnlp/annotated-transformer/issues/118",
)  # fmt: skip
class _:
    def split(self, x, num_heads):
        return x.reshape(x.shape[0], num_heads, x.shape[1], -1)


@mutant(
    "merge-without-transpose",
    "The heads are merged without transposing back: a token gets features of other tokens.",
    2, MODULE, BLACK_BOX, MERGE,
    seen="https://github.com/hyunwoongko/transformer/issues/15",
)  # fmt: skip
class _:
    def merge(self, x):
        return x.reshape(x.shape[0], x.shape[2], -1)


@mutant(
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


@mutant(
    "split-strided",
    "A head takes every H-th feature instead of D neighboring ones.",
    1, MODULE, SPLIT,
)  # fmt: skip
class _:
    def split(self, x, num_heads):
        return x.unflatten(-1, (-1, num_heads)).movedim(-1, 1)


@mutant(
    "merge-strided",
    "The heads are merged feature by feature (0 of every head, 1 of every head, …) instead of "
    "head by head.",
    1, MODULE, MERGE,
)  # fmt: skip
class _:
    def merge(self, x):
        return x.permute(0, 2, 3, 1).flatten(-2)


@mutant(
    "merge-reversed",
    "The heads are merged in the opposite order.",
    1, MODULE, MERGE,
)  # fmt: skip
class _:
    def merge(self, x):
        return super().merge(x.flip(1))


@mutant(
    "batch-and-heads-confused",
    "Batch and heads are folded together in one order and unfolded in the other, so that "
    "sequences of the batch mix.",
    2, MODULE, BLACK_BOX, MERGE,
)  # fmt: skip
class _:
    def merge(self, x):
        B, H = x.shape[:2]
        return super().merge(x.flatten(0, 1).unflatten(0, (H, B)).transpose(0, 1))
