"""Each idiom is read right at several sizes, and proved by its replay."""

import pytest
import torch
from idioms import IDIOMS, Sizes

import mha_tutor

SIZES = [
    Sizes(),
    Sizes(2, 3, 5, 4, 4),  # S = D
    Sizes(2, 3, 6, 6, 4),  # L = S
    Sizes(3, 1, 5, 7, 4, kv=1),  # H = 1
    Sizes(1, 3, 5, 7, 2),  # B = 1
    Sizes(1, 1, 4, 4, 4, kv=1),
    Sizes(2, 4, 4, 4, 4, kv=2),  # all equal
    Sizes(3, 2, 1, 6, 8, kv=1),  # L = 1
    Sizes(2, 6, 3, 5, 2, kv=3),
]


def made(name, s, dtype=torch.float32):
    torch.manual_seed(0)
    layer = IDIOMS[name](s).to(dtype).eval()
    x, y = torch.randn(s.B, s.L, s.E, dtype=dtype), torch.randn(s.B, s.S, s.E, dtype=dtype)
    return layer, x, y


@pytest.mark.parametrize("s", SIZES, ids=lambda s: f"B{s.B}H{s.H}L{s.L}S{s.S}D{s.D}kv{s.kv}")
@pytest.mark.parametrize("name", IDIOMS)
def test_idiom(name, s):
    if ("head" in name and "shared" in name and s.H % s.kv) or ("cache" in name and s.S < s.L):
        pytest.skip("not a size of this idiom")
    layer, x, y = made(name, s)
    reading = mha_tutor.explain_layer(layer, x, y, modes=("eval",))
    assert len(reading) == 1, [a.module for a in reading]
    a = reading[0]
    assert a.explained, a.reason
    with torch.no_grad():
        t = layer.truth(x, y)
    torch.testing.assert_close(a.query.float(), t.query, atol=1e-5, rtol=1e-5)
    kv = list(a.kv_head)
    true_kv = list(t.kv_head or range(t.key.shape[1]))
    torch.testing.assert_close(a.key[:, kv].float(), t.key[:, true_kv], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.value[:, kv].float(), t.value[:, true_kv], atol=1e-5, rtol=1e-5)
    assert a.num_kv_heads == len(set(true_kv))
    assert a.scale == pytest.approx(t.scale, rel=1e-6)
    assert a.axis == t.axis or min(s.L, s.S) == 1 or (t.axis == "heads" and s.H == 1)
    hidden = torch.zeros(s.B, s.H, s.L, a.key.shape[2], dtype=torch.bool)
    expected = hidden if t.hidden is None else t.hidden.expand_as(hidden)
    assert torch.equal(hidden if a.hidden is None else a.hidden, expected)
    if t.bias is not None:
        bias = torch.zeros(hidden.shape) if a.bias is None else a.bias
        torch.testing.assert_close(
            bias.float() - bias.float().amax(-1, keepdim=True),
            (t.bias - t.bias.amax(-1, keepdim=True)).expand_as(bias),
        )


@pytest.mark.parametrize(
    "shape", [(1, 4, 5, 8), (2, 1, 5, 8), (2, 4, 1, 8), (1, 1, 1, 8), (3, 4, 5, 8)]
)
@pytest.mark.parametrize("kv", ["own", "one"])
@pytest.mark.parametrize("transposed", [False, True])
def test_functions_of_heads(shape, kv, transposed):
    def function(q, k, v):
        out = (q @ k.mT / 3).softmax(-1) @ v
        return out.transpose(1, 2) if transposed else out

    B, H, _, D = shape
    heads = H if kv == "own" else 1
    q, k, v = torch.randn(shape), torch.randn(B, heads, 7, D), torch.randn(B, heads, 7, D)
    a = mha_tutor.explain_layer(function, q, k, v)[0]
    assert a.explained
    torch.testing.assert_close(a.query, q.double())
    torch.testing.assert_close(a.key, k.double())
    assert a.num_kv_heads == heads
