"""The checkers of chapter 6: right answers pass, known mistakes are told by name."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import mha_tutor
from mha_tutor import MultiHeadAttention, exercises, merge_heads, split_heads
from mha_tutor.contract import find_mutant

inf = float("inf")


# --- grouped_count -------------------------------------------------------------------------------


def counted(E, H, G):
    rows = E // H * G
    return 2 * (E * E + E) + 2 * (rows * E + rows)


def counted_by_building(E, H, G):
    shapes = [(E, E), (E, E // H * G), (E, E // H * G), (E, E)]
    return sum(p.numel() for shape in shapes for p in nn.Linear(*shape).parameters())


@pytest.mark.parametrize(
    "count",
    [
        counted,
        counted_by_building,
        lambda E, H, G: (E + 1) * (2 * E + 2 * G * (E / H)),
        lambda E, H, G: torch.tensor(counted(E, H, G)),
        lambda E, H, G: np.int64(counted(E, H, G)),
    ],
)
def test_grouped_count_right(count):
    assert exercises.grouped_count(count)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (lambda E, H, G: 4 * E * E + 4 * E, "the count of H key and value heads"),
        (lambda E, H, G: 2 * E * E + 2 * E * (E // H * G), "leaves out the biases"),
        (lambda E, H, G: counted(E, H, G) - E, "leaves out the bias of out_proj"),
        (lambda E, H, G: counted(E, H, G) - E * E - E, "leaves out out_proj"),
        (lambda E, H, G: E * E + 2 * E * (E // H * G), "and all biases"),
        (lambda E, H, G: 2 * E * E + 2 * E * (E // H * G) + 4 * E, "one for each row"),
        (lambda E, H, G: 3 * (E * E + E) + (E + 1) * (E // H * G), "lets the value keep"),
        (lambda E, H, G: 2 * (E * E + E) + 2 * (E * G + G), "a head has D rows"),
        (lambda E, H, G: 2 * (E * E + E) + 2 * (E + 1) * (E // H), "one head only"),
        (lambda E, H, G: H * counted(E, H, G), "of its own"),
        (lambda E, H, G: counted(E, H, G) - (E + 1) * (E // H * G), "one of key and value only"),
        (
            lambda E, H, G: E * E + E + (H + 2 * G) * ((E // H) ** 2 + E // H),
            "counts matrices (D, D)",
        ),
        (lambda E, H, G: 4 * (E + 1) * (E // H * G), "num_kv_heads heads in all four"),
        (
            lambda E, H, G: (E + 1) * (E + 3 * (E // H * G)),
            "gives out_proj num_kv_heads heads, too",
        ),
        (lambda E, H, G: 4 * E * (E // H * G) + 3 * (E // H * G) + E, "as many columns"),
        (lambda E, H, G: counted(600, 15, 3), "it returns 865440, whatever the input"),
        (lambda E, H, G: 12 * H, "it should be 865440"),
    ],
)
def test_grouped_count_wrong(count, said):
    text = repr(exercises.grouped_count(count))
    assert text.startswith("✗")
    assert said in text


# --- silence_head --------------------------------------------------------------------------------


def silenced(columns=lambda h, H, D: slice(h * D, (h + 1) * D), turned=False):
    def silence(weight, num_heads, h):
        out = weight.clone()
        D = weight.shape[1] // num_heads
        if turned:
            out[columns(h, num_heads, D)] = 0
        else:
            out[:, columns(h, num_heads, D)] = 0
        return out

    return silence


def silenced_by_mask(weight, num_heads, h):
    keep = (torch.arange(num_heads) != h).repeat_interleave(weight.shape[1] // num_heads)
    return weight * keep


def silenced_by_view(weight, num_heads, h):
    out = weight.clone()
    out.view(len(out), num_heads, -1)[:, h] = 0
    return out


@pytest.mark.parametrize("silence", [silenced(), silenced_by_mask, silenced_by_view])
def test_silence_head_right(silence):
    assert exercises.silence_head(silence)


def silenced_in_place(weight, num_heads, h):
    D = weight.shape[1] // num_heads
    weight[:, h * D : (h + 1) * D] = 0
    return weight


def cut_out(weight, num_heads, h):
    D = weight.shape[1] // num_heads
    return torch.cat([weight[:, : h * D], weight[:, (h + 1) * D :]], 1)


@pytest.mark.parametrize(
    ("silence", "said"),
    [
        (lambda weight, H, h: weight, "nothing has changed"),
        (silenced(turned=True), "rows are set to 0"),
        (silenced(lambda h, H, D: slice(h, None, H)), "stand side by side"),
        (silenced(lambda h, H, D: slice(h * H, (h + 1) * H)), "each head has D columns"),
        (silenced(lambda h, H, D: h), "only one column"),
        (lambda weight, H, h: weight - silenced()(weight, H, h), "other way round"),
        (silenced(lambda h, H, D: slice((h - 1) * D, h * D)), "counted from 0"),
        (lambda weight, H, h: silenced()(weight, H, h).mT, "transposed"),
        (cut_out, "the shape stays"),
        (silenced_in_place, "changes its input in place"),
        (lambda weight, H, h: silenced()(weight, H, 1), "5 heads and h=3"),
        (lambda weight, H, h: silenced()(weight, 3, h), "nothing has changed"),
        (lambda weight, H, h: silenced()(weight, H, h).numpy(), "an ndarray, not a tensor"),
    ],
)
def test_silence_head_wrong(silence, said):
    text = repr(exercises.silence_head(silence))
    assert text.startswith("✗")
    assert said in text


# --- torch_state ---------------------------------------------------------------------------------


def converted(order="qkv", thirds=lambda packed: packed.chunk(3), bias_order=None, turn=False):
    def convert(state):
        new = {name: p for name, p in state.items() if name.startswith("out_proj")}
        if "in_proj_weight" in state:
            matrices = thirds(state["in_proj_weight"])
        else:
            matrices = [state[f"{role}_proj_weight"] for role in "qkv"]
        for role, matrix in zip(order, matrices, strict=True):
            new[f"{role}_proj.weight"] = matrix.mT if turn else matrix
        if "in_proj_bias" in state:
            for role, bias in zip(bias_order or order, thirds(state["in_proj_bias"]), strict=True):
                new[f"{role}_proj.bias"] = bias
        return new

    return convert


def by_renaming(state):
    state = dict(state)
    for kind in ("weight", "bias"):
        packed = state.pop(f"in_proj_{kind}", None)
        for i, role in enumerate("qkv"):
            if packed is not None:
                E = len(packed) // 3
                state[f"{role}_proj.{kind}"] = packed[i * E : (i + 1) * E]
    return {name.replace("proj_weight", "proj.weight"): p for name, p in state.items()}


def by_package(state):
    matrices = [state.get(f"{role}_proj_weight") for role in "qkv"]
    widths = {} if matrices[0] is None else {"kdim": 5, "vdim": 7}
    layer = nn.MultiheadAttention(12, 3, bias="in_proj_bias" in state, **widths).double()
    layer.load_state_dict(state)
    return MultiHeadAttention.from_torch(layer).state_dict()


@pytest.mark.parametrize("convert", [converted(), by_renaming, by_package])
def test_torch_state_right(convert):
    assert exercises.torch_state(convert)


def by_head(packed):
    return packed.unflatten(0, (3, 3, 4)).transpose(0, 1).flatten(1, 2)


def with_zero_biases(state):
    return {
        name: torch.zeros_like(p) if "bias" in name else p for name, p in converted()(state).items()
    }


def without_biases(state):
    return {name: p for name, p in converted()(state).items() if "bias" not in name}


@pytest.mark.parametrize(
    ("convert", "said"),
    [
        (converted("kqv"), "q_proj.weight holds the numbers of the key"),
        (converted("qvk"), "k_proj.weight holds the numbers of the value"),
        (converted(bias_order="kqv"), "q_proj.bias holds the numbers of the key"),
        (converted(turn=True), "q_proj.weight is transposed"),
        (converted(thirds=lambda p: (p[0::3], p[1::3], p[2::3])), "holds every third row"),
        (converted(thirds=by_head), "ordered head by head"),
        (converted(thirds=lambda p: p.chunk(3, dim=-1)), "cut by columns"),
        (converted(thirds=lambda p: (p, p, p)), "take a third of its rows"),
        (without_biases, "a packed layer there is no q_proj.bias, k_proj.bias"),
        (with_zero_biases, "q_proj.bias: "),
        (lambda state: {**converted()(state), **state}, "in_proj_weight, in_proj_bias too much"),
        (
            lambda s: dict(
                zip(["q_proj.weight"], s["in_proj_weight"].chunk(3), strict=False),
                bias=s["in_proj_bias"],
            ),
            "there is no",
        ),
        (
            lambda s: converted()({**s, "in_proj_bias": s["in_proj_bias"]}),
            "a layer with bias=False",
        ),
        (lambda s: converted()({**s, "in_proj_weight": s["in_proj_weight"]}), "kdim=5, vdim=7"),
        (lambda state: list(converted()(state).values()), "returns list"),
        (lambda state: {n: p.numpy() for n, p in converted()(state).items()}, "an ndarray"),
    ],
)
def test_torch_state_wrong(convert, said):
    text = repr(exercises.torch_state(convert))
    assert text.startswith("✗")
    assert said in text


def test_torch_state_names_the_missing_key():
    def convert(state):
        return converted()({**state, "in_proj_bias": state["in_proj_bias"]})

    text = repr(exercises.torch_state(convert))
    assert "it looks for 'in_proj_bias', which is not there" in text
    assert "There are in_proj_weight, out_proj.weight." in text


# --- cross_attention -----------------------------------------------------------------------------


def crossed(hide=lambda j, n: j >= n, average=False, after=tuple):
    def cross(layer, query, source, lengths):
        j = torch.arange(source.shape[1])
        hidden = hide(j, lengths[:, None])
        return after(
            layer(query, source, source, key_padding_mask=hidden, average_attn_weights=average)
        )

    return cross


def crossed_by_attn_mask(layer, query, source, lengths):
    real = mha_tutor.padding_mask(lengths, source.shape[1])  # (B, 1, 1, S)
    B, L, S, H = len(query), query.shape[1], source.shape[1], layer.num_heads
    mask = real.expand(B, H, L, S).reshape(-1, L, S)
    return layer(query, source, source, attn_mask=~mask, average_attn_weights=False)


def crossed_by_package(layer, query, source, lengths):
    ours = MultiHeadAttention.from_torch(layer)
    real = mha_tutor.padding_mask(lengths, source.shape[1])
    return ours(query, source, attn_mask=real, need_weights=True)


def crossed_by_numbers(hide=lambda j, n: j >= n, as_attn_mask=False):
    """Pass a mask of float32 numbers, to add."""

    def cross(layer, query, source, lengths):
        hidden = hide(torch.arange(source.shape[1]), lengths[:, None])
        bias = torch.zeros(hidden.shape, dtype=torch.float32).masked_fill(hidden, -inf)
        if as_attn_mask:  # (B · H, L, S)
            bias = bias.repeat_interleave(layer.num_heads, 0)[:, None]
            bias = bias.expand(-1, query.shape[1], -1)
            return layer(query, source, source, attn_mask=bias, average_attn_weights=False)
        return layer(query, source, source, key_padding_mask=bias, average_attn_weights=False)

    return cross


@pytest.mark.parametrize(
    "cross",
    [
        crossed(),
        crossed_by_attn_mask,
        crossed_by_package,
        crossed_by_numbers(),
        crossed_by_numbers(as_attn_mask=True),
    ],
)
def test_cross_attention_right(cross):
    assert exercises.cross_attention(cross)


def upside_down_by_package(layer, query, source, lengths):
    ours = MultiHeadAttention.from_torch(layer)
    real = mha_tutor.padding_mask(lengths, source.shape[1])
    return ours(query, source, attn_mask=~real, need_weights=True)


@pytest.mark.parametrize(
    ("cross", "said"),
    [
        (crossed(lambda j, n: (j < 0) & (n < 0)), "filler is read as if it were real"),
        (lambda layer, q, s, n: layer(q, s, s, average_attn_weights=False), "as if it were real"),
        (crossed(lambda j, n: j < n), "upside down"),
        (upside_down_by_package, "upside down"),
        (crossed_by_numbers(lambda j, n: j < n), "upside down"),
        (crossed(lambda j, n: j > n), "one filler token is still read"),
        (crossed(lambda j, n: j >= n - 1), "one real token is hidden"),
        (crossed(lambda j, n: (j >= n.min()) & (n > 0)), "cut to the shortest"),
        (crossed(average=True), "average over the heads"),
        (crossed(after=lambda pair: pair[0]), "asked for is the pair"),
        (crossed(after=lambda pair: pair[::-1]), "the two are exchanged"),
        (crossed(after=lambda pair: (pair[0], None)), "need_weights=False"),
        (crossed(after=lambda pair: (pair[0], pair[1].numpy(force=True))), "an ndarray"),
        (crossed(after=lambda pair: (pair[0] + 1e-3, pair[1])), "the output: "),
        (lambda layer, q, s, n: layer(q, q, q), "raises"),
        (lambda layer, q, s, n: crossed()(layer, q, s, torch.tensor([4, 6])), "raises"),
    ],
)
def test_cross_attention_wrong(cross, said):
    text = repr(exercises.cross_attention(cross))
    assert text.startswith("✗")
    assert said in text


# --- whole_layer ---------------------------------------------------------------------------------


class Layer(nn.Module):
    """A right one, in pieces that others replace."""

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(embed_dim, embed_dim))

    def split(self, x):
        return split_heads(x, self.num_heads)

    def merge(self, heads):
        return merge_heads(heads)

    def scores(self, q, k):
        return q @ k.mT / math.sqrt(q.shape[-1])

    def weights(self, scores, mask):
        if mask is None:
            return scores.softmax(-1)
        empty = ~mask.any(-1, keepdim=True)
        scores = scores.masked_fill(~mask, -inf).masked_fill(empty, 0)
        return scores.softmax(-1).masked_fill(empty, 0)

    def forward(self, query, key=None, value=None, attn_mask=None):
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        q, k, v = self.split(q), self.split(k), self.split(v)
        heads = self.weights(self.scores(q, k), attn_mask) @ v
        return self.out_proj(self.merge(heads))


class ByReshape(Layer):
    def split(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def merge(self, heads):
        return heads.transpose(1, 2).flatten(2)


class ByTorch(Layer):
    def forward(self, query, key=None, value=None, attn_mask=None):
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = (
            self.split(linear(x))
            for linear, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask)
        return self.out_proj(self.merge(out))


class WithoutBias(Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__(embed_dim, num_heads)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(embed_dim, embed_dim, bias=False))


class ByPackage(MultiHeadAttention):
    def forward(self, query, key=None, value=None, attn_mask=None):
        return super().forward(query, key, value, attn_mask)


class SmallestFillThenZeros(Layer):
    def weights(self, scores, mask):
        if mask is None:
            return scores.softmax(-1)
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        return weights.masked_fill(~mask.any(-1, keepdim=True), 0)


@pytest.mark.parametrize(
    "layer", [Layer, ByReshape, ByTorch, WithoutBias, ByPackage, SmallestFillThenZeros]
)
def test_whole_layer_right(layer):
    feedback = exercises.whole_layer(layer)
    assert feedback, feedback
    assert "mha_tutor.check finds nothing wrong" in repr(feedback)


def test_the_stub_of_the_notebook():
    class Stub(nn.Module):
        def __init__(self, embed_dim, num_heads):
            super().__init__()

        def forward(self, query, key=None, value=None, attn_mask=None): ...

    text = repr(exercises.whole_layer(Stub))
    assert text.startswith("… Stub: returns nothing yet. Put your code where the dots are")


def test_the_layer_of_the_chapter_is_no_answer_yet():
    """It returns a pair."""

    class MultiHead(Layer):
        def forward(self, *args, **options):
            return super().forward(*args, **options), None

    assert "forward takes query" in repr(exercises.whole_layer(MultiHead))


class ReturnsPair(Layer):
    def forward(self, query, key=None, value=None, attn_mask=None):
        return super().forward(query, key, value, attn_mask), None


class ScaledByWidth(Layer):
    def scores(self, q, k):
        return q @ k.mT / math.sqrt(q.shape[-1] * self.num_heads)


class Unscaled(Layer):
    def scores(self, q, k):
        return q @ k.mT


class Fixed(Layer):
    def scores(self, q, k):
        return q @ k.mT / math.sqrt(5)


class MergedWrongly(Layer):
    def merge(self, heads):
        B, _, L, _ = heads.shape
        return heads.reshape(B, L, -1)


class SplitWrongly(Layer):
    def split(self, x):
        return x.reshape(len(x), self.num_heads, x.shape[1], -1)


class UpsideDown(Layer):
    def weights(self, scores, mask):
        return super().weights(scores, None if mask is None else ~mask)


class Textbook(Layer):
    def weights(self, scores, mask):
        return (scores if mask is None else scores.masked_fill(~mask, -inf)).softmax(-1)


class FiniteFill(Layer):
    def weights(self, scores, mask):
        return (scores if mask is None else scores.masked_fill(~mask, -1e4)).softmax(-1)


class FiniteFillThenZeros(Layer):
    def weights(self, scores, mask):
        if mask is None:
            return scores.softmax(-1)
        weights = scores.masked_fill(~mask, -1e9).softmax(-1)
        return weights.masked_fill(~mask.any(-1, keepdim=True), 0)


class ScoresCubed(Layer):  # a bug that no one has named
    def scores(self, q, k):
        return super().scores(q, k) ** 3 + 1e-2 * k.sum(-1)[..., None, :].cos()


class Unmasked(Layer):
    def weights(self, scores, mask):
        return scores.softmax(-1)


class OverQueries(Layer):
    def weights(self, scores, mask):
        return super().weights(scores.mT, None if mask is None else mask.mT).mT


class ValueFromKey(Layer):
    def forward(self, query, key=None, value=None, attn_mask=None):
        return super().forward(query, key, key, attn_mask)


class ValueFromQuery(Layer):
    def forward(self, query, key=None, value=None, attn_mask=None):
        return super().forward(query, key, query if value is None else value, attn_mask)


class NoDefaultValue(Layer):
    def forward(self, query, key=None, value=None, attn_mask=None):
        value = torch.zeros_like(query if key is None else key) if value is None else value
        return super().forward(query, key, value, attn_mask)


class OneForTwo(Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__(embed_dim, num_heads)
        self.k_proj = self.q_proj


class TiedWeights(Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__(embed_dim, num_heads)
        self.out_proj.weight = self.v_proj.weight


class TwoBugs(ScaledByWidth):
    def merge(self, heads):
        return MergedWrongly.merge(self, heads)


class Shared(Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__(embed_dim, num_heads)
        D = embed_dim // num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(D, D) for _ in range(3))

    def forward(self, query, key=None, value=None, attn_mask=None):
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = (self.split(x) for x in (query, key, value))
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        heads = self.weights(self.scores(q, k), attn_mask) @ v
        return self.out_proj(self.merge(heads))


class Renamed(Layer):
    def forward(self, query, attn_mask=None):
        return super().forward(query, attn_mask=attn_mask)


class NoHeads(Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__(embed_dim, num_heads)
        self.heads = num_heads
        del self.num_heads

    def split(self, x):
        return split_heads(x, self.heads)


class Raises(Layer):
    def merge(self, heads):
        return heads.transpose(1, 2).view(len(heads), heads.shape[2], -1)


class Plain:
    def __init__(self, embed_dim, num_heads):
        pass


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Fixed, "holds for embed_dim=15 and 3 heads, but for 8 and 4"),
        (FiniteFill, "large negative number"),
        (FiniteFillThenZeros, "all holds but a mask in half precision: in float16 it raises"),
        (ScoresCubed, "✗ ScoresCubed: Should hold: "),
        (TwoBugs, "properties fail; mha_tutor.check(TwoBugs(15, 3)) tells the rest"),
        (Shared, "Linear(D, D), shared by the heads"),
        (ReturnsPair, "tensor"),
        (ValueFromQuery, "the key should be the value, too"),
        (NoDefaultValue, "✗"),
        (OneForTwo, "self.q_proj and self.k_proj share one matrix"),
        (TiedWeights, "self.v_proj and self.out_proj share one matrix"),
        (Renamed, "forward takes query, key, value, attn_mask, in this order"),
        (NoHeads, "keep the number of heads in self.num_heads"),
        (Raises, "it raises RuntimeError"),
        (Plain, "should be an nn.Module"),
        (Layer(15, 3), "pass the class itself"),
        (nn.Linear, "there is no self.q_proj"),
    ],
)
def test_whole_layer_wrong(layer, said):
    text = repr(exercises.whole_layer(layer))
    assert text.startswith("✗")
    assert said in text


@pytest.mark.parametrize(
    ("layer", "bug"),
    [
        (ScaledByWidth, "scale-sqrt-embed-dim"),
        (Unscaled, "scale-none"),
        (MergedWrongly, "merge-without-transpose"),
        (SplitWrongly, "split-without-transpose"),
        (UpsideDown, "mask-inverted"),
        (Textbook, "empty-row-is-nan"),
        (Unmasked, "mask-ignored"),
        (OverQueries, "softmax-over-queries"),
        (ValueFromKey, "value-from-key"),
    ],
)
def test_whole_layer_names_the_bug(layer, bug):
    text = repr(exercises.whole_layer(layer))
    assert text.startswith("✗")
    assert find_mutant(bug).story in text


def test_whole_layer_in_float64_by_default():
    """As the chapter sets it."""
    torch.set_default_dtype(torch.float64)
    try:
        assert exercises.whole_layer(Layer)
        assert exercises.cross_attention(crossed())
        assert exercises.torch_state(converted())
    finally:
        torch.set_default_dtype(torch.float32)
