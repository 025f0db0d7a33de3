"""What a reading says: the attentions of a layer, each with what it computes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mha_tutor.read import drawing
from mha_tutor.reference import attention_loop

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
        empty_rows: what a query gets that may attend to nothing: "zeros", "NaN", "even" (equal
            weights), "as if shown"; empty if there is no such query in this call.
        extra_scores: (B, H, L, n), scores that the softmax takes besides those of the keys (a
            sink); None if there are none.
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
        sources: what was cut into heads, "query", "key", "value": (B, length, columns); and
            "output", what the heads were merged into.
        merged_in: stands for the tensor that they were merged into.
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
    empty_rows: str = ""
    extra_scores: Tensor | None = None
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
    sources: dict[str, Tensor] = field(default_factory=dict)
    merged_in: object = None

    EMPTY_ROWS: ClassVar = ("zeros", "NaN", "even", "as if shown")

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

    def __repr__(self) -> str:
        return drawing.attention_text(self)

    @property
    def lines(self) -> list[str]:
        """The steps as text, a line each."""
        return drawing.step_lines(self)

    def _repr_html_(self) -> str:
        return drawing.reading_html(Reading(self.module, [self]))

    @property
    def extra(self) -> int:
        """The number of scores without a key that each row has."""
        return 0 if self.extra_scores is None else self.extra_scores.shape[-1]

    @property
    def weights(self) -> Tensor:
        """The weights, (B, H, L, S), computed from what was read; before dropout."""
        return self._weights({})

    def cut(self, name: str, features: Features | None = None) -> Tensor:
        """Cut what stands in `sources` into heads, by the columns that were read."""
        return self.sources[name][..., getattr(features or self.features, name)].transpose(1, 2)

    def replay(self, **changed: Any) -> float:
        """Compute the output again, and return by how much it differs from the layer's.

        Args:
            changed: items to be replaced, by the names of the attributes: query, key, value,
                kv_head, scale, head_scale, axis, hidden, bias, extra_scores, empty_rows, features.

        Returns:
            The largest difference, over the output's largest entry. A NaN agrees with a NaN.
        """
        features = changed.get("features", self.features)
        if features is not self.features:
            cut = (n for n in ("query", "key", "value") if getattr(features, n) is not None)
            changed = {n: self.cut(n, features) for n in cut} | changed
        wanted = self.output if features.output is None else self.cut("output", features)
        value = changed.get("value", self.value)[:, list(changed.get("kv_head", self.kv_head))]
        return _difference(self._weights(changed) @ value, wanted)

    def prove(self) -> None:
        """Find out whether the output follows from what was read, and no more."""
        self.tolerance = 4 * self._rounding()
        self.error = max(self.replay(), self._loops())
        self.explained = self.error <= self.tolerance

    def _scores(self, changed: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the products and what is added to them; -inf hides."""
        items = {n: changed.get(n, getattr(self, n)) for n in ("bias", "hidden", "scale")}
        scale = changed.get("head_scale", self.head_scale)
        query, key = changed.get("query", self.query), changed.get("key", self.key)
        key = key[:, list(changed.get("kv_head", self.kv_head))]
        products = query @ key.mT * (items["scale"] if scale is None else scale)
        plus = torch.zeros(()).double() if items["bias"] is None else items["bias"]
        hidden = torch.tensor(False) if items["hidden"] is None else items["hidden"]
        return products, plus.masked_fill(hidden, -torch.inf).expand(products.shape)

    def _weights(self, changed: dict[str, Any]) -> Tensor:
        products, plus = self._scores(changed)
        axis = {"keys": -1, "queries": -2, "heads": 1, "batch": 0}[changed.get("axis", self.axis)]
        extra = changed.get("extra_scores", self.extra_scores)
        if extra is not None:
            return torch.cat([products + plus, extra], -1).softmax(axis)[..., : plus.shape[-1]]
        empty = plus.isneginf().all(axis, keepdim=True)
        rule = changed.get("empty_rows", self.empty_rows) or "zeros"
        even = torch.full_like(products, 1 / products.shape[-1])
        rows = {"zeros": even * 0, "NaN": even * torch.nan, "even": even}
        other = rows[rule] if rule in rows else products.softmax(axis)
        return torch.where(empty, other, (products + plus).softmax(axis))

    def _rounding(self) -> float:
        """Return the error of three plain lines in the layer's own dtype."""
        dtype, soft = getattr(torch, self.dtype), getattr(torch, self.softmax_dtype)
        heads = list(self.kv_head)
        products, plus = self._scores({})
        query, key, value = (x.to(dtype) for x in (self.query, self.key, self.value))
        scale = self.scale if self.head_scale is None else self.head_scale.to(dtype)
        plain = (query @ key[:, heads].mT * scale + plus.to(dtype)).to(soft).softmax(-1)
        plain = plain.to(dtype) @ value[:, heads]
        exact = (products + plus).softmax(-1) @ self.value[:, heads]
        error = _difference(plain.double(), exact)
        return max(error if error < 0.1 else 0.0, *(torch.finfo(d).eps for d in (dtype, soft)))

    def _loops(self, budget: int = 100_000) -> float:
        """Compute a part of the output by `attention_loop`, as many rows as the budget allows.

        Weights that sum to 1 over the queries are those of keys that attend to queries.
        """
        batch, heads, length, size = self.output.shape[:3] + self.key.shape[2:3]
        each = size * (self.head_dim + self.value.shape[-1])  # steps a row
        over_queries = self.axis == "queries"
        rows = length if over_queries else max(1, min(length, budget // (batch * heads * each)))
        pairs = [(b, h) for b in range(batch) for h in range(heads)]
        pairs = pairs[:: math.ceil(len(pairs) * rows * each / budget)]
        scale = self.scale
        if self.head_scale is not None or self.axis not in ("keys", "queries"):
            return 0.0  # the loops know no such thing
        chosen = torch.linspace(0, length - 1, rows).round().long().unique()
        plus = self._scores({})[1][:, :, chosen]
        extra = plus[..., :0] if self.extra_scores is None else self.extra_scores[:, :, chosen]
        outputs = []
        for b, h in pairs:
            g = self.kv_head[h]
            query, key, value = self.query[b, h], self.key[b, g], self.value[b, g]
            added = torch.cat([plus[b, h], extra[b, h]], -1)
            if over_queries:
                same = torch.eye(length).double()
                weights = torch.from_numpy(attention_loop(key, query, same, added.mT, scale)).mT
                outputs.append(weights @ value)
            else:  # a score without a key is that of a key 0, which has nothing to give
                more = added.shape[-1] - size
                key, value = (F.pad(x, (0, 0, 0, more)) for x in (key, value))
                output = torch.from_numpy(attention_loop(query[chosen], key, value, added, scale))
                outputs.append(output)
        wanted = torch.stack([self.output[b, h, chosen] for b, h in pairs])
        full = plus.isneginf().all(-1)  # of empty rows, `empty_rows` tells
        full = torch.stack([full[b, h] for b, h in pairs])
        return _difference(
            torch.stack(outputs)[~full], wanted[~full], float(self.output.nan_to_num().abs().max())
        )


@dataclass(eq=False, repr=False)
class Reading:
    """What `explain_layer` found. Print it, show it in a notebook, or `save` it.

    Attributes:
        title: what was read.
        attentions: in the order in which they were computed; empty if none was found.
        parameters_used: names of the parameters that the call read.
        parameters_unused: names of the others.
        dropouts: those that belong to no attention.
        notes: what recording changed, what was not read, in sentences.
        seconds: how long it took.
    """

    title: str
    attentions: list[Attention] = field(default_factory=list)
    parameters_used: list[str] = field(default_factory=list)
    parameters_unused: list[str] = field(default_factory=list)
    dropouts: list[Dropout] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __repr__(self) -> str:
        return drawing.reading_text(self)

    def _repr_html_(self) -> str:
        return drawing.reading_html(self)

    def to_html(self) -> str:
        """Return the reading as a page of HTML, which needs nothing else."""
        return drawing.page(self)

    def save(self, path: str | Path) -> None:
        """Write that page to a file."""
        Path(path).write_text(self.to_html(), encoding="utf-8")

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


def _difference(mine: Tensor, other: Tensor, largest: float | None = None) -> float:
    """Return the largest difference over the largest entry; infinite where only one is NaN."""
    if not torch.equal(mine.isnan(), other.isnan()):
        return math.inf
    mine, other = mine.nan_to_num(), other.nan_to_num()
    if not mine.numel():
        return 0.0
    largest = float(other.abs().max()) if largest is None else largest
    return float((mine - other).abs().max()) / (largest or 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class HeadMaps:
    """What the heads of one attention look at.

    Attributes:
        module: dotted name of the module.
        weights: (B, H, L, S), float64, in index order; None if they could not be read.
        tokens: what stands at each position, if it was told.
        reason: why there are no weights; else empty.
    """

    module: str
    weights: Tensor | None
    tokens: list[str] | None = None
    reason: str = ""

    def __repr__(self) -> str:
        return drawing.maps_text(self)

    def _repr_html_(self) -> str:
        return drawing.maps_html(self)
