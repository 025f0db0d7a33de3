"""`explain_layer` changes nothing, says what recording changed, and fails in sentences."""

import copy
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from idioms import IDIOMS, Layer, Sizes, root
from torch import nn

import mha_tutor
from mha_tutor.read import CallError, TooLargeError
from mha_tutor.read.drawing import CHAPTERS

S = Sizes(2, 3, 5, 5, 4)
X = torch.randn(2, 5, 12)


class Busy(Layer):
    """Keeps what it should not, draws random numbers, counts its calls, writes into a buffer."""

    def __init__(self, s=S):
        super().__init__(s)
        self.register_buffer("calls", torch.zeros(()))
        self.kept, self.seen = [], {}
        self.norm = nn.BatchNorm1d(s.L)

    def forward(self, x):
        self.calls += 1
        self.kept.append(x)
        self.seen["last"] = x
        x = self.norm(x) + torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        q, k, v = self.heads(x, x)
        self.weights = (q @ k.mT / root(q)).softmax(-1)
        return self.delta((self.weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed(training):
    layer = Busy().train(training)
    layer.norm.eval()
    before = copy.deepcopy(layer.state_dict())
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    x = X.clone()
    modes = [m.training for m in layer.modules()]
    reading = mha_tutor.explain_layer(layer, x)
    assert reading[0].explained
    assert not reading.notes
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert layer.kept == []
    assert layer.seen == {}
    assert not hasattr(layer, "weights")
    assert [m.training for m in layer.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert (np.random.get_state()[1] == generators[2]).all()  # noqa: NPY002
    assert torch.equal(x, X)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())
    layer(x).sum().backward()  # nothing that was kept stands in the way of training


def test_an_input_that_is_written_into_is_put_back():
    x = X.clone()

    def function(x):
        x *= 2
        return F.scaled_dot_product_attention(x, x, x)

    reading = mha_tutor.explain_layer(function, x)
    assert reading[0].explained
    assert not reading.notes  # the undisturbed call got the same input
    assert torch.equal(x, X)


class Dropouts(Layer):
    def __init__(self, where, p=0.25):
        super().__init__(S)
        self.where, self.p = where, p

    def drop(self, where, x):
        if where != self.where.split()[0]:
            return x
        if "by hand" in self.where and self.training:
            return x * (torch.rand(x.shape) >= self.p) / (1 - self.p)
        return F.dropout(x, self.p, self.training or "always" in self.where)

    def forward(self, x):
        q, k, v = self.heads(x, x)
        q, k, v = self.drop("query", q), self.drop("key", k), self.drop("value", v)
        w = self.drop("weights", self.drop("scores", q @ k.mT / root(q)).softmax(-1))
        return self.drop("output", self.delta((w @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("where", ["query", "key", "value", "scores", "weights", "output"])
def test_where_dropout_acts(where):
    torch.manual_seed(0)
    a = mha_tutor.explain_layer(Dropouts(where), X)[0]
    assert a.explained
    assert [(d.where, d.p, d.mode) for d in a.dropouts] == [(where, 0.25, "train")]
    assert a.dropouts[0].file == __file__
    assert f"dropout  0.25 on the {where}, in train" in repr(a)
    assert "the rate of dropout, in evaluation, has no influence" in repr(a)


def test_dropout_by_hand_is_measured():
    torch.manual_seed(0)
    x = torch.randn(8, 5, 12)
    layer = Dropouts("weights by hand")
    (dropout,) = mha_tutor.explain_layer(layer, x)[0].dropouts
    assert (dropout.where, dropout.mode) == ("weights", "train")
    assert dropout.p == pytest.approx(0.25, abs=0.06)


def test_dropout_in_evaluation_is_seen():
    reading = mha_tutor.explain_layer(Dropouts("weights always"), X)
    assert [d.mode for d in reading[0].dropouts] == ["eval", "train"]

    def function(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    torch.manual_seed(0)
    (d,) = mha_tutor.explain_layer(function, *torch.randn(3, 2, 3, 5, 4))[0].dropouts
    assert (d.where, d.p, d.mode) == ("weights", 0.5, "eval")


def test_parameters_that_are_not_used_are_named():
    reading = mha_tutor.explain_layer(IDIOMS["three lines"](S), X, X)
    assert reading.parameters_unused == []
    layer = IDIOMS["three lines"](S)
    layer.spare = nn.Linear(2, 2)
    reading = mha_tutor.explain_layer(layer, X, X)
    assert reading.parameters_unused == ["spare.weight", "spare.bias"]
    assert "not used: spare.weight, spare.bias" in str(reading)


def test_the_reader_sees_his_own_line():
    a = mha_tutor.explain_layer(Dropouts("none"), X)[0]
    (line,) = [s for s in a.steps if s.role == "softmax"]
    assert line.file == __file__
    assert line.code.startswith('w = self.drop("weights"')
    assert any(line.code in text for text in a.lines)


def test_the_fast_path_and_its_nan_are_told():
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True).eval()
    padded = torch.zeros(2, 5, dtype=torch.bool)
    padded[0] = True
    plain = mha_tutor.explain_layer(layer, X)
    assert plain[0].explained
    assert plain[0].module == "self_attn"
    assert not plain.notes
    reading = mha_tutor.explain_layer(layer, X, src_key_padding_mask=padded, modes=("eval",))
    assert "NaN" in " ".join(reading.notes)
    assert "fast path" in " ".join(reading.notes)


def test_a_query_that_may_see_nothing():
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False

    def by_hand(q, k, v, fill=-torch.inf, rescue=False):
        w = (q @ k.mT).masked_fill(~mask, fill).softmax(-1)
        return (w.nan_to_num() if rescue else w) @ v

    q, k, v = torch.randn(3, 2, 3, 5, 4)
    for options, rule in (({}, "NaN"), ({"rescue": True}, "zeros"), ({"fill": -1e9}, "even")):
        a = mha_tutor.explain_layer(by_hand, q, k, v, **options)[0]
        assert a.explained, a.reason
        assert a.empty_rows == rule
    a = mha_tutor.explain_layer(F.scaled_dot_product_attention, q, k, v, attn_mask=mask)[0]
    assert a.explained
    assert a.empty_rows == "zeros"


def future(length, size, offset):
    return torch.arange(size) - torch.arange(length)[:, None] > offset


PADDING = torch.zeros(2, 1, 1, 7, dtype=torch.bool)
PADDING[1, ..., 5:] = True
FAR = torch.arange(7) - torch.arange(5)[:, None]
MASKS = {
    "causal": future(5, 7, 2),
    "causal from the first key": future(5, 7, 0),
    "padding": PADDING,
    "causal + padding": future(5, 7, 2) | PADDING,
    "causal, window of 2": future(5, 7, 2) | (FAR <= 0),
    "window of 2 to either side": FAR.abs() > 2,
    "other": torch.eye(5, 7, dtype=torch.bool),
}


@pytest.mark.parametrize("words", MASKS)
def test_masks_have_names(words):
    def function(q, k, v, hidden):
        return (q @ k.mT).masked_fill(hidden, -1e9).softmax(-1) @ v

    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    a = mha_tutor.explain_layer(function, q, k, v, hidden=MASKS[words])[0]
    assert a.explained
    assert a.mask_words == words
    assert torch.equal(a.hidden, MASKS[words].expand(2, 3, 5, 7))


def test_only_a_part_of_the_merged_heads_is_used():
    layer = IDIOMS["torch"](S)

    def first_token(x):
        out = layer.attend(*layer.heads(x, x)).transpose(1, 2).flatten(2)
        return layer.delta(out[:, :1])

    a = mha_tutor.explain_layer(first_token, X)[0]
    assert a.explained
    assert a.features.output.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


class Stack(nn.Module):
    def __init__(self, n, E=12, H=3):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(E, H, 2 * E, batch_first=True) for _ in range(n)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_loop_over_the_batch_is_not_taken_for_heads():
    def function(q, k, v):
        return torch.stack([(q[b] @ k[b].mT / 2).softmax(-1) @ v[b] for b in range(3)])

    reading = mha_tutor.explain_layer(function, *torch.randn(3, 3, 5, 4))
    assert [a.num_heads for a in reading] == [1, 1, 1]
    assert all(a.explained for a in reading)


def test_a_large_bias_hides_no_other_row():
    bias = torch.zeros(5, 5)
    bias[0, 0] = 500.0

    def function(q, k, v):
        return (q @ k.mT / 2 + bias).softmax(-1) @ v

    a = mha_tutor.explain_layer(function, *torch.randn(3, 2, 3, 5, 4))[0]
    assert a.explained
    assert a.hidden[..., 0, 1:].all()
    assert not a.hidden[..., 1:, :].any()


def test_several_attentions_are_listed_and_opened():
    reading = mha_tutor.explain_layer(Stack(3), X)
    assert len(reading) == 3
    assert [a.module for a in reading] == [f"layers.{i}.self_attn" for i in range(3)]
    assert reading["layers.1.self_attn"] is reading[1]
    assert "3 attentions, 3 explained" in str(reading)
    assert "[2] layers.2.self_attn:" in str(reading)
    with pytest.raises(KeyError, match=r"there is one in 'layers\.0\.self_attn', 'layers"):
        reading["attention"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["three lines", "torch", "softmax in float32", "bias by distance"])
def test_other_dtypes(name, dtype):
    torch.manual_seed(0)
    layer = IDIOMS[name](S).to(dtype)
    a = mha_tutor.explain_layer(layer, X.to(dtype), X.to(dtype), modes=("eval",))[0]
    assert a.explained, (a.error, a.tolerance, a.reason)
    assert a.dtype == str(dtype).removeprefix("torch.")
    assert a.softmax_dtype == ("float32" if "float32" in name else a.dtype)
    assert a.scale == pytest.approx(0.5, rel=1e-6)


def test_flex_attention():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])

    def alibi(score, b, h, i, j):
        return score - slopes[h] * (i - j)

    block = flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, 5, 5, device="cpu")
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)

    def layer(q, k, v):
        return flex.flex_attention(
            q, k, v, score_mod=alibi, block_mask=block, scale=0.7, enable_gqa=True
        )

    with torch.compiler.set_stance("force_eager"), pytest.warns(UserWarning, match="flex"):
        reading = mha_tutor.explain_layer(layer, q, k, v)
    a = reading[0]
    assert a.kind == "flex_attention"
    assert a.explained, a.reason
    assert not reading.notes
    assert a.scale == pytest.approx(0.7)
    assert a.mask_words == "causal"
    assert a.bias_words == "by distance"
    assert a.num_kv_heads == 2


def test_heads_of_gives_the_weights_in_index_order():
    torch.manual_seed(0)
    for name in ("torch, attn_mask", "nn.MultiheadAttention, no weights", "heads folded outermost"):
        layer = IDIOMS[name](S)
        (maps,) = mha_tutor.heads_of(layer, X, X, tokens=["the", "cat", "sat", "on", "mats"])
        t = layer.truth(X, X)
        for b, h in ((0, 0), (1, 2)):
            loop = mha_tutor.attention_loop(
                t.query[b, h].detach(),
                t.key[b, h].detach(),
                torch.eye(5),
                None if t.hidden is None else ~t.hidden,
            )
            assert abs(maps.weights[b, h].numpy() - loop).max() < 1e-6
        assert "cat" in repr(maps)
        assert "cat → on" in maps._repr_html_()


def test_a_call_that_fails_is_shown_with_its_error():
    with pytest.raises(
        CallError, match=r"Stack\(float32 \(2, 5, 11\)\) raises .*Error: "
    ) as caught:
        mha_tutor.explain_layer(Stack(1), torch.randn(2, 5, 11))
    assert caught.value.__cause__ is not None
    with pytest.raises(CallError, match="missing 1 required"):
        mha_tutor.explain_layer(IDIOMS["three lines"](S), X)
    with pytest.raises(TypeError, match="layer must be a module or a function, got int"):
        mha_tutor.explain_layer(3, X)
    with pytest.raises(ValueError, match="lazy parameters"):
        mha_tutor.explain_layer(nn.LazyLinear(3), X)
    with pytest.raises(ValueError, match="modes must be some of 'eval' and 'train', got"):
        mha_tutor.explain_layer(Stack(1), X, modes=("test",))


def test_a_table_that_is_too_large_is_refused():
    x = torch.randn(1, 1, 1_000_000, 1)
    with pytest.raises(TooLargeError, match=r"1,000,000,000,000 entries here, more than limit=16"):
        mha_tutor.explain_layer(F.scaled_dot_product_attention, x, x, x)
    with pytest.raises(TooLargeError, match="150 entries here, more than limit=149"):
        mha_tutor.explain_layer(IDIOMS["three lines"](S), X, X, limit=149)
    assert mha_tutor.explain_layer(IDIOMS["three lines"](S), X, X, limit=150)[0].explained


class Cache:
    """A cache of keys, changed by each call."""

    def __init__(self):
        self.key = self.value = None

    def update(self, k, v):
        self.key = k if self.key is None else torch.cat([self.key, k], 2)
        self.value = v if self.value is None else torch.cat([self.value, v], 2)
        return self.key, self.value


class Decoder(Layer):
    def forward(self, x, cache):
        q, k, v = self.heads(x, x)
        k, v = cache.update(k, v)
        return self.delta(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_cache_is_not_filled_by_being_read():
    layer, cache = Decoder(S), Cache()
    layer(X, cache)
    a = mha_tutor.explain_layer(layer, X[:, :1], cache)[0]
    assert a.weights.shape == (2, 3, 1, 6)
    assert a.explained
    assert cache.key.shape[2] == 5


def test_a_report_is_one_file(tmp_path):
    reading = mha_tutor.explain_layer(Stack(2), X)
    reading.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    for outside in ("src=", "@import", "<script", "<link"):
        assert outside not in page
    assert page.count("<details") == 2
    assert page.count("<svg") == 6
    assert "<script" not in mha_tutor.explain_layer(Stack(1), X)._repr_html_()


def test_the_chapters_that_are_linked_are_there():
    book = Path(mha_tutor.__file__).parents[1] / "book"
    for page in CHAPTERS:
        assert (book / f"{page}.ipynb").is_file(), page
    assert "chapter 4</a>" in mha_tutor.explain_layer(Stack(1), X)._repr_html_()


def test_a_compiled_module_is_read_as_the_module_it_was():
    layer = IDIOMS["three lines"](S)
    compiled = torch.compile(layer, backend="eager")
    reading = mha_tutor.explain_layer(compiled, X, X, modes=("eval",))
    assert reading[0].explained
    assert reading.title == type(layer).__name__
    assert "compiled" in " ".join(reading.notes)
    outer = nn.Sequential(torch.compile(nn.TransformerEncoderLayer(12, 3, 24), backend="eager"))
    assert mha_tutor.explain_layer(outer, X, modes=("eval",))[0].explained


def test_time():
    layer = nn.MultiheadAttention(512, 8, batch_first=True)
    x = torch.randn(1, 64, 512)
    mha_tutor.explain_layer(layer, x, x, x)
    began = time.process_time()
    assert mha_tutor.explain_layer(layer, x, x, x)[0].explained
    assert time.process_time() - began < 30  # seconds of one core; the figures stand in the notes
