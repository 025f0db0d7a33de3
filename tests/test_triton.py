"""The Triton kernels: on CUDA where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch

from mha_tutor import attention_loop, causal_mask, scaled_dot_product_attention
from mha_tutor.backends import attend, available_backends

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

pytest.importorskip("triton", reason="Triton is not installed")
REFUSED = available_backends(DEVICE)["triton"]  # an old interpreter beside a new NumPy
pytestmark = (
    [pytest.mark.gpu] if ON_GPU else [pytest.mark.skipif(bool(REFUSED), reason=f"{REFUSED}")]
)

# B, H, H_kv, L, S, D, is_causal, window. In the interpreter a block is 32 queries by 16 keys.
CASES = {
    "full": (1, 2, 2, 37, 41, 16, False, None),
    "full, whole blocks": (1, 1, 1, 64, 64, 16, False, None),
    "causal": (1, 2, 2, 67, 67, 24, True, None),
    "causal, whole blocks": (1, 1, 1, 64, 64, 32, True, None),
    "causal, longer key": (1, 1, 1, 19, 53, 16, True, None),
    "causal, longer query": (1, 1, 1, 53, 19, 16, True, None),
    "window": (1, 1, 1, 101, 101, 16, False, 20),
    "window of one": (1, 1, 1, 35, 35, 16, False, 1),
    "window over all": (1, 1, 1, 35, 35, 16, True, 99),
    "window, rows that see nothing": (1, 2, 2, 71, 23, 16, False, 5),
    "grouped": (2, 6, 2, 35, 35, 16, True, None),
    "narrow head": (1, 1, 1, 35, 35, 5, True, None),
    "wide head": (1, 1, 1, 33, 33, 128, True, None),
    "one query, one key": (1, 1, 1, 1, 1, 16, True, None),
}
# In units of the dtype's precision, for the output and for the gradients. (The interpreter drops
# the last bits of a bfloat16 where a GPU rounds.)
BOUNDS = {torch.float32: (4, 8), torch.float16: (0.5, 1.5), torch.bfloat16: (0.6, 1.5)}


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(case, dtype):
    B, H, H_kv, L, S, D, *_ = CASES[case]
    shapes = (B, H, L, D), (B, H_kv, S, D), (B, H_kv, S, D)
    return [draw(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes)]


def mask_of(case):
    *_, L, S, _, is_causal, window = CASES[case]
    if window is not None:
        return causal_mask(L, S) & ~causal_mask(L, S, offset=-window)
    return causal_mask(L, S) if is_causal else None


def error(output, expected, dtype):
    """The relative error in units of the dtype's precision."""
    difference = (output.cpu().double() - expected).norm() / expected.norm()
    return difference.item() / torch.finfo(dtype).eps


def check(case, dtype):
    *_, is_causal, window = CASES[case]
    exact = [x.double().requires_grad_() for x in inputs(case, dtype)]
    expected = scaled_dot_product_attention(*exact, mask_of(case), enable_gqa=True)
    upstream = draw(*expected.shape, seed=7).to(dtype)
    expected_grads = torch.autograd.grad(expected, exact, upstream.double())

    tensors = [x.to(DEVICE).requires_grad_() for x in inputs(case, dtype)]
    options = {"is_causal": is_causal, "window": window, "enable_gqa": True, "backend": "triton"}
    out = attend(*tensors, **options)
    grads = torch.autograd.grad(out, tensors, upstream.to(DEVICE))
    bound, grad_bound = BOUNDS[dtype]
    assert out.dtype == dtype
    assert error(out.detach(), expected.detach(), dtype) <= bound
    for name, grad, expected_grad in zip("qkv", grads, expected_grads, strict=True):
        # Of one key the weights are 1 whatever q and k are: their gradient is 0.
        if expected_grad.norm() > 1e-9:
            assert error(grad, expected_grad, dtype) <= grad_bound, name
        else:
            assert grad.abs().max() <= 1e-5, name


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_in_float32(case):
    check(case, torch.float32)


@pytest.mark.parametrize("case", ["full", "causal", "window, rows that see nothing"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_equals_the_reference_in_half_precision(case, dtype):
    check(case, dtype)


def flash(*tensors, **options):
    from mha_tutor.backends.triton_op import flash_attention

    return flash_attention(*(x.to(DEVICE) for x in tensors), **options)


def test_equals_the_loop_and_keeps_the_log_sum_exp():
    query, key, value = inputs("window, rows that see nothing", torch.float32)
    mask = mask_of("window, rows that see nothing")
    out, lse = (x.cpu() for x in flash(query, key, value, window=5, scale=0.3))
    arrays = [x.numpy() for x in (query, key, value)]
    loop = attention_loop(*arrays, mask.numpy(), scale=0.3)
    torch.testing.assert_close(out.double(), torch.from_numpy(loop), rtol=1e-5, atol=1e-6)
    scores = (0.3 * query.double() @ key.double().mT).masked_fill(~mask, float("-inf"))
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-5, atol=1e-6)
    empty = ~mask.any(-1)
    assert empty.sum() == 71 - 23 - 4
    assert (out[..., empty, :] == 0).all()
    assert lse[..., empty].isneginf().all()


def test_rows_that_see_nothing_pass_back_zero():
    tensors = [x.requires_grad_() for x in inputs("window, rows that see nothing", torch.float32)]
    out, _ = flash(*tensors, window=5)
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in tensors)
    assert (tensors[0].grad[..., 27:, :] == 0).all()
    # Rows 0 and 26 see one key each: their weight is 1 whatever the query, so they move nothing.
    assert (tensors[0].grad[..., 1:26, :].abs() > 1e-3).any(-1).all()


def test_gradients_flow_through_the_log_sum_exp():
    tensors = [x.requires_grad_() for x in inputs("full", torch.float32)]
    _, lse = flash(*tensors)
    grads = torch.autograd.grad(lse.cos().sum(), tensors[:2])
    query, key = (x.detach().double().requires_grad_() for x in tensors[:2])
    expected = (query @ key.mT / 4).logsumexp(-1).cos().sum()
    expected_grads = torch.autograd.grad(expected, [query, key])
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert error(grad, expected_grad, torch.float32) <= 8


@pytest.mark.parametrize("scale", [0.0, -0.7])
def test_any_scale(scale):
    tensors = inputs("causal", torch.float32)
    out, _ = flash(*tensors, is_causal=True, scale=scale)
    expected = scaled_dot_product_attention(*tensors, is_causal=True, scale=scale)
    torch.testing.assert_close(out.cpu(), expected)


def test_any_memory_layout():
    query, key, value = inputs("full", torch.float32)
    expected = flash(query, key, value)[0]
    heads_last = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    features_first = [x.mT.contiguous().mT for x in (query, key, value)]
    for tensors in (heads_last, features_first):
        assert not tensors[0].is_contiguous()
        tensors = [x.requires_grad_() for x in tensors]
        out = flash(*tensors)[0]
        torch.testing.assert_close(out, expected)
        out.sum().backward()
    # The layer reads its heads out of one tensor, and its merge must not copy.
    assert flash(*heads_last)[0].transpose(1, 2).is_contiguous()
    shared = flash(query, key[:, :1].expand_as(key), value)[0]
    torch.testing.assert_close(shared, flash(query, key[:, :1].repeat(1, 2, 1, 1), value)[0])


def test_very_large_scores():
    query, key, value = (100 * x for x in inputs("causal", torch.float32))
    out, lse = (x.cpu() for x in flash(query, key, value, is_causal=True))
    expected = scaled_dot_product_attention(
        *(x.double() for x in (query, key, value)), is_causal=True
    )
    assert out.isfinite().all()
    assert lse.isfinite().all()
    assert error(out, expected, torch.float32) <= 2**10  # scores near 1e5: ten bits are lost


def test_torch_accepts_the_operator():
    from mha_tutor.backends.triton_op import _flash_forward

    tensors = [x.to(DEVICE).requires_grad_() for x in inputs("grouped", torch.float32)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_flash_forward, (*tensors, True, 0, 0.25), test_utils=checks)


def test_compiles_without_a_graph_break():
    tensors = [x.to(DEVICE) for x in inputs("causal", torch.float32)]

    def run(query, key, value):
        return flash(query, key, value, is_causal=True)[0] + 1

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), run(*tensors))


def test_refusals():
    query = torch.zeros(1, 1, 8, 16, device=DEVICE)
    with pytest.raises(ValueError, match=r"takes no attn_mask; .* These can: explicit, einsum"):
        attend(query, query, query, causal_mask(8, device=DEVICE), backend="triton")
    with pytest.raises(ValueError, match=r"has no dropout\. These can: explicit"):
        attend(query, query, query, dropout_p=0.5, backend="triton")
    with pytest.raises(ValueError, match=r"values as wide as the keys, got 8 and 16\. These can:"):
        attend(query, query, query[..., :8], backend="triton")
    with pytest.raises(ValueError, match=r"float16, bfloat16 and float32, got torch\.float64"):
        attend(*[query.double()] * 3, backend="triton")
    reason = available_backends(DEVICE, head_dim=256)["triton"]
    assert reason == "the kernel takes a head_dim of at most 128, got 256"


def test_says_when_triton_is_missing(monkeypatch):
    from mha_tutor.backends import fused

    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: None)
    assert available_backends(DEVICE)["triton"].startswith("Triton is not installed: pip install")


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mha_tutor.backends import triton_kernel

floats = {"LSE", "DELTA"}
for name in ("forward", "query_gradient", "key_value_gradient"):
    kernel = getattr(triton_kernel, f"{name}_kernel")
    constants = dict(CAUSAL=True, WINDOWED=True, PRECISION="ieee", DOT=triton.language.bfloat16,
                     D=64, BLOCK_D=64, BLOCK_L=64, BLOCK_S=64)
    signature = {
        arg: "constexpr" if arg in constants
        else ("i32",) * 3 if arg.endswith("strides")
        else "fp32" if arg == "scale"
        else "*fp32" if arg in floats
        else "*bf16" if arg in {"Q", "K", "V", "OUT", "GRAD", "DQ", "DK", "DV"}
        else "i32"
        for arg in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    print(name, "wgmma" in ptx)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its compiler on Linux only")
def test_the_kernels_compile_for_a_gpu_that_is_not_here():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    # Hopper's own matrix instruction, in each.
    assert result.stdout.split() == [
        "forward", "True", "query_gradient", "True", "key_value_gradient", "True"
    ]  # fmt: skip
