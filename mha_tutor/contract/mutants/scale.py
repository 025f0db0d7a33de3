"""The scores get the wrong factor."""

from mha_tutor.contract.mutants.catalog import FUNCTION, MODULE, mutant


@mutant("scale-none", "The scores are not divided by √head_dim.", 4, FUNCTION, MODULE)
class _:
    def scale(self, q, k):
        return 1.0


@mutant(
    "scale-sqrt-embed-dim",
    "The scores are divided by √embed_dim instead of √head_dim.",
    4, FUNCTION, MODULE,
    seen="https://github.com/aladdinpersson/Machine-Learning-Collection/issues/30",
)  # fmt: skip
class _:
    def scale(self, q, k):
        return (q.shape[1] * q.shape[-1]) ** -0.5


@mutant(
    "scale-head-dim",
    "The scores are divided by head_dim instead of √head_dim.",
    4, FUNCTION, MODULE,
    seen="https://github.com/duoan/TorchCode/issues/17",
)  # fmt: skip
class _:
    def scale(self, q, k):
        return 1 / q.shape[-1]


@mutant(
    "scale-sqrt-length",
    "The scores are divided by the root of the query length instead of √head_dim.",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def scale(self, q, k):
        return q.shape[-2] ** -0.5


@mutant(
    "scale-sqrt-num-heads",
    "The scores are divided by √num_heads instead of √head_dim.",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def scale(self, q, k):
        return q.shape[1] ** -0.5


@mutant(
    "scale-multiplied",
    "The scores are multiplied by √head_dim instead of divided by it.",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def scale(self, q, k):
        return q.shape[-1] ** 0.5


@mutant(
    "scale-after-softmax",
    "The weights are divided by √head_dim after the softmax, not the scores before it.",
    4, FUNCTION, MODULE,
)  # fmt: skip
class _:
    def scale(self, q, k):
        return 1.0

    def mix(self, weights, v):
        return super().mix(weights / v.shape[-1] ** 0.5, v)
