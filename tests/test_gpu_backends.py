"""Every backend that a CUDA device has, every dtype and mask, forward and backward, and memory."""

import pytest
import torch
from torch.nn import functional as F

from mha_tutor import causal_mask, padding_mask, scaled_dot_product_attention
from mha_tutor.backends import BACKENDS, attend, available_backends
from mha_tutor.benchmark import measure_backends, peak_bytes

pytestmark = [
    pytest.mark.gpu,
    # Torch's own compiler still uses what torch deprecates.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning"),
]

B, H, L, D, WINDOW = 2, 4, 333, 64, 50
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
MASKS = ["none", "causal", "window", "boolean", "added"]


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def options_of(mask):
    if mask == "boolean":
        return {"attn_mask": causal_mask(L) & padding_mask([L, L - 40], L)}
    if mask == "added":
        return {"attn_mask": draw(B, H, L, L, seed=5)}
    return {"none": {}, "causal": {"is_causal": True}, "window": {"window": WINDOW}}[mask]


def written_out(mask):
    given = options_of(mask)
    if mask == "causal":
        return causal_mask(L)
    if mask == "window":
        return causal_mask(L).triu(1 - WINDOW)
    return given.get("attn_mask")


def on_gpu(options, dtype):
    mask = options.get("attn_mask")
    if mask is None:
        return options
    return {"attn_mask": mask.to("cuda", dtype if mask.is_floating_point() else torch.bool)}


def relative_error(output, exact):
    return ((output.cpu().double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_error_is_at_most_twice_that_of_torch(backend, dtype, mask):
    inputs = [draw(B, H, L, D, seed=seed).to(dtype) for seed in range(3)]
    upstream = draw(B, H, L, D, seed=7).to(dtype)
    exact = [x.double().requires_grad_() for x in inputs]
    allowed = written_out(mask)
    if allowed is not None and allowed.is_floating_point():
        allowed = allowed.to(dtype).double()
    expected = scaled_dot_product_attention(*exact, allowed)
    expected_grads = torch.autograd.grad(expected, exact, upstream.double())

    def errors(attention):
        tensors = [x.cuda().requires_grad_() for x in inputs]
        out = attention(tensors)
        grads = torch.autograd.grad(out, tensors, upstream.cuda())
        pairs = zip((out.detach(), *grads), (expected.detach(), *expected_grads), strict=True)
        return [relative_error(*pair) for pair in pairs]

    options = on_gpu(options_of(mask), dtype)
    try:
        own = errors(lambda tensors: attend(*tensors, **options, backend=backend))
    except ValueError as refusal:
        assert "cannot run this" in str(refusal)  # noqa: PT017
        pytest.skip(str(refusal).partition(" These can")[0])
    gpu_mask = None if allowed is None else on_gpu({"attn_mask": allowed}, dtype)["attn_mask"]
    theirs = errors(lambda tensors: F.scaled_dot_product_attention(*tensors, gpu_mask))
    floor = torch.finfo(dtype).eps / 2  # where torch happens to hit the rounding exactly
    for name, mine, torchs in zip(("out", "dq", "dk", "dv"), own, theirs, strict=True):
        assert mine <= 2 * max(torchs, floor), name


def test_the_kernel_and_the_fused_kinds_run_here():
    reasons = available_backends("cuda", torch.bfloat16, is_causal=True, training=True)
    for name in ("explicit", "einsum", "online", "sdpa", "flash", "math", "flex", "triton"):
        assert reasons[name] is None, (name, reasons[name])


@pytest.mark.parametrize("head_dim", [16, 40, 64, 80, 128])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_kernel_at_full_size(head_dim, grouped):
    """Blocks as they are tuned, several of them, with a ragged end."""
    shapes = (1, 8, 1000, head_dim), *[(1, 2 if grouped else 8, 1000, head_dim)] * 2
    inputs = [draw(*shape, seed=seed).to(torch.bfloat16) for seed, shape in enumerate(shapes)]
    for options in ({}, {"is_causal": True}, {"window": 300}):
        results = []
        for backend, dtype in (("explicit", torch.float64), ("triton", torch.bfloat16)):
            tensors = [x.to("cuda", dtype).requires_grad_() for x in inputs]
            out = attend(*tensors, **options, enable_gqa=True, backend=backend)
            grads = torch.autograd.grad(out.float().square().sum(), tensors)
            results.append([out.detach().cpu().double(), *(g.cpu().double() for g in grads)])
        for expected, own in zip(*results, strict=True):
            assert relative_error(own, expected) <= 2 * torch.finfo(torch.bfloat16).eps


def test_the_kernel_compiles_inside_a_graph():
    tensors = [draw(1, 2, 200, 64, seed=seed).to("cuda", torch.bfloat16) for seed in range(3)]

    def run(*tensors):
        return attend(*tensors, is_causal=True, backend="triton") + 1

    compiled = torch.compile(run, fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), run(*tensors))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "flash", "triton", "flex"])
def test_memory_stays_linear(backend, training):
    def peak(length):
        tensors = [
            torch.randn(1, 2, length, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)
        ]
        for x in tensors:
            x.requires_grad_(training)

        def run():
            out = attend(*tensors, is_causal=True, backend=backend)
            if training:
                torch.autograd.grad(out.sum(), tensors)

        run()  # compiled, tuned
        return peak_bytes(run, "cuda")

    assert peak(16384) <= 2.1 * peak(8192)
    assert peak(16384) < 16384**2  # half of one head's scores


def test_the_benchmark_runs_on_cuda():
    run = measure_backends(
        [512], dtypes=[torch.bfloat16], masks=["causal"], rounds=2, seconds=0.001, device="cuda"
    )
    measured = {cell["backend"] for cell in run["cells"] if "seconds" in cell}
    assert {"sdpa", "flash", "triton", "flex"} <= measured
    assert run["machine"]["device"] == "cuda"
