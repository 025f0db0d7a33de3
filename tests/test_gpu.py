"""Both paths on CUDA, every dtype, against the float64 oracle on the CPU."""

import pytest
import torch
from torch.nn import functional as F

from mha_tutor import (
    MultiHeadAttention,
    attention_loop,
    available_devices,
    causal_mask,
    default_device,
    scaled_dot_product_attention,
)

pytestmark = pytest.mark.gpu

B, H, L, S, D = 2, 3, 17, 31, 16

# Of torch.float32: CUDA may use tf32 only if it is asked to, and by default it is not.
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative_error(output, exact):
    return ((output.cpu().double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["none", "causal", "empty row"])
def test_error_is_at_most_twice_that_of_torch(dtype, mask):
    query, key, value = (draw(B, H, n, D, seed=n).to(dtype) for n in (L, S, S))
    allowed = {
        "none": None,
        "causal": causal_mask(L, S),
        "empty row": causal_mask(L, S, offset=-1),
    }[mask]
    exact = torch.from_numpy(
        attention_loop(
            *(x.double().numpy() for x in (query, key, value)),
            None if allowed is None else allowed.numpy(),
        )
    )
    on_gpu = [x.cuda() for x in (query, key, value)]
    gpu_mask = None if allowed is None else allowed.cuda()
    ours = scaled_dot_product_attention(*on_gpu, gpu_mask)
    theirs = F.scaled_dot_product_attention(*on_gpu, gpu_mask)
    assert ours.device.type == "cuda"
    assert ours.dtype == dtype
    assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_layer_on_cuda_equals_the_layer_on_the_cpu(dtype, is_causal):
    torch.manual_seed(0)
    layer = MultiHeadAttention(48, 3).double()
    x = draw(B, L, 48, seed=0)
    exact = layer(x, is_causal=is_causal).detach()
    layer = layer.to("cuda", dtype)
    fused = layer(x.to("cuda", dtype), is_causal=is_causal)
    readable, weights = layer(x.to("cuda", dtype), is_causal=is_causal, need_weights=True)
    assert weights.device.type == "cuda"
    # A few roundings to the dtype on the way through four projections.
    bound = 8 * torch.finfo(dtype).eps
    assert relative_error(fused.detach(), exact) <= bound
    assert relative_error(readable.detach(), exact) <= bound


def test_gradients_on_cuda_equal_those_on_the_cpu():
    gradients = []
    for device in ("cpu", "cuda"):
        tensors = [draw(B, H, n, D, seed=n).to(device).requires_grad_() for n in (L, S, S)]
        mask = causal_mask(L, S, offset=-1, device=device)
        scaled_dot_product_attention(*tensors, mask).square().sum().backward()
        gradients.append([x.grad.cpu() for x in tensors])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_cuda_is_the_default_device(monkeypatch):
    monkeypatch.delenv("MHA_TUTOR_DEVICE", raising=False)
    assert default_device().type == "cuda"
    assert [device.type for device in available_devices()] == ["cpu", "cuda"]
