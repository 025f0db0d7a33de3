"""The layer: against its own parts, against torch's module, through saving and compiling."""

import copy
import io
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mha_tutor import (
    MultiHeadAttention,
    attention_loop,
    causal_mask,
    head_columns,
    head_rows,
    padding_mask,
)

B, L, S, H, E, KDIM, VDIM = 2, 5, 7, 3, 33, 13, 17

WIDTHS = {
    "one width": {},
    "key and value": {"kdim": KDIM, "vdim": VDIM},
    "key alone": {"kdim": KDIM},
    "given but equal": {"kdim": E, "vdim": E},
}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer(seed=0, dtype=torch.float64, **options):
    """A layer in which no two numbers are equal and no bias is zero."""
    torch.manual_seed(seed)
    made = MultiHeadAttention(E, H, **options).to(dtype)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def torch_module(seed=0, **options):
    torch.manual_seed(seed)
    made = nn.MultiheadAttention(E, H, dtype=torch.float64, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def cross_inputs(options, batch=B):
    return (
        draw(batch, L, E, seed=1),
        draw(batch, S, options.get("kdim", E), seed=2),
        draw(batch, S, options.get("vdim", E), seed=3),
    )


MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": causal_mask(L, S, offset=1)},
    "padding": {"attn_mask": padding_mask([2, 7], S)},
    "empty rows": {"attn_mask": padding_mask([0, 7], S)},
    "each head its own": {"attn_mask": draw(1, H, L, S, seed=5) > -0.5},
    "additive": {"attn_mask": draw(B, 1, L, S, seed=6)},
    "additive in float32": {"attn_mask": draw(B, 1, L, S, seed=6).float()},
    "additive -inf": {"attn_mask": draw(L, S, seed=7).masked_fill(~causal_mask(L, S), -torch.inf)},
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", WIDTHS.values(), ids=WIDTHS)
def test_output_is_the_sum_over_heads_of_the_loop_oracle(options, mask):
    module = layer(**options)
    query, key, value = cross_inputs(options)
    attn_mask = causal_mask(L, S) if "is_causal" in mask else mask.get("attn_mask")
    expected = module.out_proj.bias.expand(B, L, E).clone()
    for h in range(H):
        q, k, v = (
            x @ head_rows(p.weight, H)[h].T + p.bias.reshape(H, -1)[h]
            for x, p in zip(
                (query, key, value), (module.q_proj, module.k_proj, module.v_proj), strict=True
            )
        )
        own = attn_mask
        if attn_mask is not None and attn_mask.ndim == 4:
            own = attn_mask[:, h if attn_mask.shape[1] == H else 0]
        arrays = [x.detach().numpy() for x in (q, k, v)]
        mixed = attention_loop(*arrays, None if own is None else own.numpy())
        expected += torch.from_numpy(mixed) @ head_columns(module.out_proj.weight, H)[h].T
    torch.testing.assert_close(module(query, key, value, **mask), expected)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("training", [False, True])
def test_fused_and_readable_path_agree_forward_and_backward(training, mask):
    fused, readable = layer().train(training), layer().train(training)
    inputs = [[x.requires_grad_() for x in cross_inputs({})] for _ in range(2)]
    output = fused(*inputs[0], **mask)
    same, weights = readable(*inputs[1], **mask, need_weights=True)
    assert weights.shape == (B, H, L, S)
    torch.testing.assert_close(output, same)
    output.square().sum().backward()
    same.square().sum().backward()
    for x, y in zip(
        (*inputs[0], *fused.parameters()), (*inputs[1], *readable.parameters()), strict=True
    ):
        assert x.grad.isfinite().all()
        torch.testing.assert_close(x.grad, y.grad)


def test_key_defaults_to_query_and_value_to_key():
    module, (query, memory, _) = layer(), cross_inputs({})
    torch.testing.assert_close(module(query), module(query, query, query))
    torch.testing.assert_close(module(query, memory), module(query, memory, memory))


def test_weights_are_those_before_dropout_and_rows_sum_to_one():
    module, (query, key, value) = layer(dropout=0.5), cross_inputs({})
    _, trained = module.train()(query, key, value, need_weights=True)
    _, evaluated = module.eval()(query, key, value, need_weights=True)
    torch.testing.assert_close(trained, evaluated)
    torch.testing.assert_close(trained.sum(-1), torch.ones(B, H, L, dtype=torch.float64))


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_acts_in_training_alone(need_weights):
    module, inputs = layer(dropout=0.5), cross_inputs({})

    def run():
        output = module(*inputs, need_weights=need_weights)
        return output[0] if need_weights else output

    torch.manual_seed(0)
    module.eval()
    torch.testing.assert_close(run(), layer().eval()(*inputs))
    module.train()
    outputs = torch.stack([run() for _ in range(600)])
    assert not torch.equal(outputs[0], outputs[1])
    # Kept weights are scaled up, so that the mean over many draws is the output without dropout.
    error = (outputs.mean(0) - module.eval()(*inputs)).abs()
    assert (error <= 5 * outputs.std(0) / 600**0.5).all()


@pytest.mark.parametrize("options", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("training", [False, True])
class TestTorch:
    """Weights go both ways, and the numbers stay."""

    def test_from_torch(self, options, bias, training):
        theirs = torch_module(bias=bias, batch_first=True, **options).train(training)
        ours = MultiHeadAttention.from_torch(theirs)
        assert ours.training == training
        query, key, value = cross_inputs(options)
        expected, average = theirs(query, key, value)
        output, weights = ours(query, key, value, need_weights=True)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(ours(query, key, value), expected)
        torch.testing.assert_close(weights.mean(1), average)
        _, per_head = theirs(query, key, value, average_attn_weights=False)
        torch.testing.assert_close(weights, per_head)

    def test_to_torch_and_back(self, options, bias, training):
        ours = layer(bias=bias, **options).train(training)
        theirs = ours.to_torch()
        assert theirs.batch_first
        assert theirs.training == training
        inputs = cross_inputs(options)
        torch.testing.assert_close(theirs(*inputs)[0], ours(*inputs))
        back = MultiHeadAttention.from_torch(theirs)
        for name, parameter in ours.state_dict().items():
            assert torch.equal(back.state_dict()[name], parameter)

    def test_masks_mean_the_opposite(self, options, bias, training):
        theirs = torch_module(bias=bias, batch_first=True, **options).train(training)
        ours = MultiHeadAttention.from_torch(theirs)
        inputs = cross_inputs(options)
        allowed = causal_mask(L, S)
        torch.testing.assert_close(
            ours(*inputs, attn_mask=allowed), theirs(*inputs, attn_mask=~allowed)[0]
        )
        real = padding_mask([4, 7], S)
        torch.testing.assert_close(
            ours(*inputs, attn_mask=real),
            theirs(*inputs, key_padding_mask=~real[:, 0, 0])[0],
        )


def test_from_torch_where_the_length_comes_first():
    theirs = torch_module(batch_first=False)
    ours = MultiHeadAttention.from_torch(theirs)
    query, key, value = cross_inputs({})
    expected = theirs(*(x.transpose(0, 1) for x in (query, key, value)))[0].transpose(0, 1)
    torch.testing.assert_close(ours(query, key, value), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_and_the_dropout_are_carried_over(dtype):
    theirs = nn.MultiheadAttention(E, H, dropout=0.3, dtype=dtype)
    ours = MultiHeadAttention.from_torch(theirs)
    assert {p.dtype for p in ours.parameters()} == {dtype}
    assert ours.dropout == 0.3
    assert {p.dtype for p in ours.to_torch().parameters()} == {dtype}
    assert ours.to_torch().dropout == 0.3


def test_a_copy_shares_nothing():
    theirs = torch_module()
    ours = MultiHeadAttention.from_torch(theirs)
    before = {name: p.clone() for name, p in theirs.state_dict().items()}
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(torch.equal(p, before[name]) for name, p in theirs.state_dict().items())


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_what_cannot_be_carried_over_is_refused(option):
    with pytest.raises(ValueError, match=f"{option}=True cannot be carried over"):
        MultiHeadAttention.from_torch(nn.MultiheadAttention(E, H, **{option: True}))


def test_only_torchs_module_is_taken():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.MultiheadAttention, got Linear"):
        MultiHeadAttention.from_torch(nn.Linear(2, 2))


def test_state_dict_round_trip():
    module, other = layer(kdim=KDIM), layer(kdim=KDIM, seed=1)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    inputs = cross_inputs({"kdim": KDIM})
    assert torch.equal(other(*inputs), module(*inputs))
    assert list(module.state_dict()) == [
        f"{name}.{kind}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        for kind in ("weight", "bias")
    ]


def test_deepcopy():
    module = layer()
    twin = copy.deepcopy(module)
    inputs = cross_inputs({})
    assert torch.equal(twin(*inputs), module(*inputs))
    twin.q_proj.weight.data.zero_()
    assert not torch.equal(twin(*inputs), module(*inputs))


@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
def test_export(mask):
    module, inputs = layer().eval(), cross_inputs({})
    exported = torch.export.export(module, inputs, MASKS[mask]).module()
    torch.testing.assert_close(exported(*inputs, **MASKS[mask]), module(*inputs, **MASKS[mask]))


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler (g++ or clang++)",
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, in its compiler
@pytest.mark.parametrize("need_weights", [False, True])
def test_compile(need_weights):
    module, inputs = layer(dtype=torch.float32).eval(), [x.float() for x in cross_inputs({})]
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(
        compiled(*inputs, is_causal=True, need_weights=need_weights),
        module(*inputs, is_causal=True, need_weights=need_weights),
    )


def test_autocast():
    module, inputs = layer(dtype=torch.float32), [x.float() for x in cross_inputs({})]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = module(*inputs)
        readable, _ = module(*inputs, need_weights=True)
    assert fused.dtype == torch.bfloat16
    exact = module(*inputs)
    for output in (fused, readable):  # bfloat16 keeps 8 bits: a relative error near 2**-8
        assert (output - exact).norm() / exact.norm() < 0.02


def test_parameters_start_as_announced():
    torch.manual_seed(0)
    module = MultiHeadAttention(64, 4, kdim=32)
    bound = (6 / (64 + 32)) ** 0.5  # Glorot and Bengio (2010), equation 16
    assert 0.95 * bound < module.k_proj.weight.abs().max() <= bound
    assert all((p.bias == 0).all() for p in module.children())


def test_a_subclass_with_other_children_draws_its_projections_alone():
    class Normed(MultiHeadAttention):
        def __init__(self):
            super().__init__(E, H)
            self.norm, self.drop = nn.LayerNorm(E), nn.Dropout()
            nn.init.constant_(self.norm.weight, 3.0)
            self.reset_parameters()

    layer = Normed()
    assert (layer.norm.weight == 3.0).all()
    before = layer.out_proj.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.out_proj.weight, before)


@pytest.mark.parametrize("need_weights", [False, True])
def test_both_modes_refuse_what_the_backend_does(need_weights):
    layer = MultiHeadAttention(E, H, window=2, backend="banded")
    mask = torch.ones(L, L, dtype=torch.bool)
    with pytest.raises(ValueError, match="banded takes no attn_mask"):
        layer(torch.randn(B, L, E), attn_mask=mask, need_weights=need_weights)


def test_the_backend_is_given_anew_on_the_way_back_from_torch():
    theirs = MultiHeadAttention(E, H, backend="online").to_torch()
    assert MultiHeadAttention.from_torch(theirs, backend="online").backend == "online"
    assert MultiHeadAttention.from_torch(theirs).backend == "sdpa"


def test_key_padding_mask_points_to_what_does_the_same():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, batch_first=True)
    ours, x = MultiHeadAttention.from_torch(theirs), torch.randn(B, L, E)
    hidden = torch.tensor([[False] * (L - 2) + [True] * 2, [False] * L])
    with pytest.raises(TypeError, match=r"attn_mask=~key_padding_mask\[:, None, None, :\]"):
        ours(x, key_padding_mask=hidden)
    expected = theirs(x, x, x, key_padding_mask=hidden)[0]
    torch.testing.assert_close(ours(x, attn_mask=~hidden[:, None, None, :]), expected)


def test_repr_shows_heads_and_dropout():
    assert "num_heads=3, dropout=0.1" in repr(MultiHeadAttention(E, H, dropout=0.1))


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((10, 3), {}, ValueError, r"embed_dim \(10\) must be divisible by num_heads \(3\)"),
        ((6, 0), {}, ValueError, "num_heads must be at least 1, got 0"),
        ((6, 1.5), {}, TypeError, r"num_heads must be an integer, got 1\.5"),
        ((0, 1), {}, ValueError, "embed_dim must be at least 1, got 0"),
        ((6, 3), {"kdim": 0}, ValueError, "kdim must be at least 1, got 0"),
        ((6, 3), {"vdim": -1}, ValueError, "vdim must be at least 1, got -1"),
        (("6", 3), {}, TypeError, "embed_dim must be an integer, got '6'"),
        ((6.0, 3), {}, TypeError, r"embed_dim must be an integer, got 6\.0"),
        ((6, 3), {"dropout": "x"}, TypeError, "dropout must be a number, got 'x'"),
        ((6, 3), {"dropout": 2}, ValueError, "dropout must be between 0 and 1, got 2"),
    ],
)
def test_bad_sizes(args, options, error, message):
    with pytest.raises(error, match=message):
        MultiHeadAttention(*args, **options)


x, memory = torch.zeros(B, L, E), torch.zeros(B, S, E)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((x[0],), {}, ValueError, r"query must be \(batch, length, 33\), got \(5, 33\)"),
        ((x[..., :6],), {}, ValueError, r"query must be \(batch, length, 33\), got \(2, 5, 6\)"),
        ((x, memory[..., :6]), {}, ValueError, r"key must be \(batch, length, 33\)"),
        ((x, memory, memory[:, :6]), {}, ValueError, r"got \(2, 7, 33\) and \(2, 6, 33\)"),
        ((x, memory[:1]), {}, ValueError, "query and key must have the same batch, got 2 and 1"),
        ((x, None, memory), {}, ValueError, "value was given without a key"),
        (([[0.0]],), {}, TypeError, "query must be a torch tensor, got list"),
        ((x.double(),), {}, TypeError, "dtype of the layer, torch.float32, got torch.float64"),
        ((x.to("meta"),), {}, ValueError, "on the device of the layer, cpu, got meta"),
        (
            (x,),
            {"attn_mask": causal_mask(L), "is_causal": True},
            ValueError,
            "attn_mask and is_causal=True cannot be used together",
        ),
        ((x,), {"attn_mask": causal_mask(S)}, ValueError, r"scores \(2, 3, 5, 5\), got \(7, 7\)"),
        ((x,), {"attn_mask": torch.ones(L, L).int()}, TypeError, "got torch.int32"),
        (
            (x,),
            {"attn_mask": torch.ones(H, L, L).bool()},
            ValueError,
            r"attn_mask must have 2 or 4 dimensions.*use mask\[:, None\], got \(3, 5, 5\)",
        ),
    ],
)
@pytest.mark.parametrize("need_weights", [False, True])
def test_bad_input(args, options, error, message, need_weights):
    with pytest.raises(error, match=message):
        MultiHeadAttention(E, H)(*args, **options, need_weights=need_weights)


def test_the_fused_path_is_torchs_fused_attention(monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *args, **options: calls.append(args) or fused(*args, **options),
    )
    module, inputs = layer(), cross_inputs({})
    module(*inputs)
    assert len(calls) == 1
    module(*inputs, need_weights=True)
    assert len(calls) == 1
