"""What a reading says: the attentions of a layer, each with what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Attention", "Dropout", "Features", "Reading", "Step"]


@dataclass(frozen=True)
class Step:
    """One thing that the layer does, and the line that does it.

    Attributes:
        role: "query", "key", "value", "position", "norm", "scores", "scale", "mask", "bias",
            "softmax", "dropout", "mix", "merge", "output", "residual".
        words: what it does, in a sentence.
        shape: of what comes out.
        letters: the same by letters, as "B H L S"; empty where they cannot be told.
        file: where the line stands.
        line: its number; 0 if no line of the reader's was found.
        code: the line itself.
        explained: False for what is only run again: it stands before q, k, v or after the merge.
    """

    role: str
    words: str
    shape: tuple[int, ...] = ()
    letters: str = ""
    file: str = ""
    line: int = 0
    code: str = ""
    explained: bool = True


@dataclass(frozen=True)
class Dropout:
    """A dropout that acted in one of the calls.

    Attributes:
        where: "weights", "scores", "query", "key", "value", "output" (after the mix) or "other".
        p: the share that is dropped.
        mode: "train" or "eval"; one that acts in "eval" is a bug, or is meant.
        file: where the line stands.
        line: its number.
    """

    where: str
    p: float
    mode: str
    file: str = ""
    line: int = 0


@dataclass(frozen=True, eq=False)
class Features:
    """Which columns make which head, found by following every element.

    Each is (H, D) (for key and value (H_kv, D)), the columns of the last axis of the tensor that
    was cut into heads, or None where the elements are mixed on the way (by rotary positions, a
    norm) or there is no such tensor (a function that takes heads).

    Attributes:
        query: columns of the projected query, or of the packed projection.
        key: the same for the key.
        value: the same for the value.
        output: columns of the merged output.
    """

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    output: Tensor | None = None


@dataclass(eq=False, repr=False)
class Attention:
    """One attention that was found: output = softmax(scale · query keyᵀ + bias) value.

    All tensors are float64, on the CPU, without a gradient. H counts the heads of the query.

    Attributes:
        module: dotted name of the module whose forward computes it; "" for the layer itself.
        kind: "by hand" (product, softmax, product), "scaled_dot_product_attention" or
            "flex_attention".
        query: (B, H, L, D), as it is before the scale, wherever the scale is applied.
        key: (B, H_kv, S, D).
        value: (B, H_kv, S, Dv).
        output: (B, H, L, Dv), as the layer computed it, before it is merged.
        kv_head: for each of the H heads the index of the key and value head that it reads.
        scale: what the products are multiplied by, all factors between the (projected, normed,
            rotated) query and key and the softmax together; None if it is not one number.
        head_scale: (B, H, L, S) where the factor is not one number, else None.
        scale_parts: the factors as they are applied: (factor, "query" | "key" | "scores", line).
        scale_words: the scale in closed form, as "1 / √head_dim".
        axis: what the weights sum to 1 over: "keys" is right; "queries", "heads", "batch".
        hidden: bool (B, H, L, S), True = may not be attended to; None if nothing is hidden.
        fill: what hides: -inf, -1e9, …; None if nothing is hidden.
        mask_words: "nothing", "causal", "padding", "window of 3", "causal + padding", "other".
        bias: (B, H, L, S), what is added to the scores where nothing is hidden; None if nothing.
        bias_words: "by distance", "by key", …; empty without a bias.
        extra: number of columns that the softmax has besides the S keys (a sink).
        softmax_dtype: in which the softmax is taken, as "float32".
        dtype: of the output, as "bfloat16".
        features: which columns make which head.
        dropouts: those that acted, in the calls that were made.
        steps: all that is shown, in order.
        explained: whether the output was computed again from the above alone.
        error: the largest difference of that from the output, over the output's largest entry.
        tolerance: what `error` may be: 4 times the rounding of the layer's dtype.
        reason: why it is not explained; empty if it is.
        without_influence: items that the output does not depend on, as "key bias".
        notes: more to say, in sentences.
    """

    module: str
    kind: str
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    output: Tensor | None = None
    kv_head: tuple[int, ...] = ()
    scale: float | None = None
    head_scale: Tensor | None = None
    scale_parts: list[tuple[float, str, int]] = field(default_factory=list)
    scale_words: str = ""
    axis: str = "keys"
    hidden: Tensor | None = None
    fill: float | None = None
    mask_words: str = "nothing"
    bias: Tensor | None = None
    bias_words: str = ""
    extra: int = 0
    softmax_dtype: str = ""
    dtype: str = ""
    features: Features = field(default_factory=Features)
    dropouts: list[Dropout] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    explained: bool = False
    error: float = float("nan")
    tolerance: float = float("nan")
    reason: str = ""
    without_influence: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_heads(self) -> int:
        """H."""
        return len(self.kv_head)

    @property
    def num_kv_heads(self) -> int:
        """The number of key and value heads that differ."""
        return len(set(self.kv_head))

    @property
    def head_dim(self) -> int:
        """D."""
        return 0 if self.query is None else self.query.shape[-1]


@dataclass(eq=False, repr=False)
class Reading:
    """What `explain_layer` found. Print it, show it in a notebook, or `save` it.

    Attributes:
        title: what was read.
        attentions: in the order in which they were computed; empty if none was found.
        parameters_used: names of the parameters that the call read.
        parameters_unused: names of the others.
        notes: what recording changed, what was not read, in sentences.
        seconds: how long it took.
    """

    title: str
    attentions: list[Attention] = field(default_factory=list)
    parameters_used: list[str] = field(default_factory=list)
    parameters_unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.attentions)

    def __iter__(self) -> Iterator[Attention]:
        return iter(self.attentions)

    def __getitem__(self, which: int | str) -> Attention:
        """Return an attention by index, or by the name of its module."""
        if isinstance(which, int):
            return self.attentions[which]
        found = [a for a in self.attentions if a.module == which]
        if not found:
            names = ", ".join(repr(a.module) for a in self.attentions)
            raise KeyError(f"no attention in the module {which!r}; there is one in {names}")
        return found[0]
