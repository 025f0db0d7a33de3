"""Every backend computes the same, says what it refuses, and keeps to the memory it promises."""

import functools
import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from mha_tutor import (
    MultiHeadAttention,
    attention_loop,
    causal_mask,
    combine_masks,
    padding_mask,
    scaled_dot_product_attention,
    sliding_window_mask,
)
from mha_tutor.backends import BACKENDS, attend, available_backends, readable
from mha_tutor.backends.call import Call
from mha_tutor.benchmark import peak_bytes

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

# (query, key, value); the letters differ in every axis.
FAMILIES = {
    "square": ((2, 3, 7, 11), (2, 3, 7, 11), (2, 3, 7, 11)),
    "longer key": ((2, 3, 5, 11), (2, 3, 7, 11), (2, 3, 7, 11)),
    "longer query": ((2, 3, 13, 11), (2, 3, 7, 11), (2, 3, 7, 11)),
    "grouped": ((2, 6, 7, 11), (2, 2, 7, 11), (2, 2, 7, 11)),
    "wide value": ((2, 3, 7, 11), (2, 3, 7, 11), (2, 3, 7, 13)),
    "no batch": ((3, 7, 11), (3, 7, 11), (3, 7, 11)),
    "many blocks": ((1, 1, 587, 17), (1, 1, 587, 17), (1, 1, 587, 17)),
    "no key": ((2, 3, 5, 11), (2, 3, 0, 11), (2, 3, 0, 11)),
}
MASKS = ["none", "causal", "window", "boolean", "padding", "added", "boolean and window"]
WINDOW = 3

# What is refused on the CPU, beside what the dtype rules out. Whatever is not here must run.
NEVER = set(itertools.product(MASKS, FAMILIES))
WITH_MASK = set(itertools.product(["boolean", "padding", "added", "boolean and window"], FAMILIES))
UNEQUAL = {"longer key", "longer query", "no key"}
REFUSED = {
    "explicit": set(),
    "einsum": set(),
    "online": set(),
    "sdpa": set(),
    "math": set(),
    "flash": set(itertools.product(MASKS, ["wide value"])),
    "efficient": NEVER,
    "cudnn": NEVER,
    "banded": {cell for cell in NEVER if cell[0] != "window" or cell[1] in UNEQUAL},
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sizes(family):
    query, key, _ = FAMILIES[family]
    return query[:-2], query[-2], key[-2]


@functools.cache
def options(mask, family):
    """The arguments of `attend` that stand for a kind of mask."""
    (*batch, H), L, S = sizes(family)
    if mask == "none":
        return {}
    if mask == "causal":
        return {"is_causal": True}
    if mask == "window":
        return {"window": WINDOW}
    if mask == "padding":
        lengths = [S, max(S - 3, 0)] if batch == [2] else [max(S - 3, 0)]
        padding = padding_mask(lengths, S)
        return {"attn_mask": padding if batch else padding[0]}
    if mask == "added":
        bias = draw(H, L, S, seed=5)
        bias[..., L // 2, :] = float("-inf")  # a query that sees nothing
        return {"attn_mask": bias}
    allowed = draw(*batch, 1, L, S, seed=6) > 0
    allowed[..., L // 2, :] = False
    if mask == "boolean":
        return {"attn_mask": allowed}
    return {"attn_mask": allowed, "window": WINDOW}


def written_out(mask, family):
    """The same as one mask, made without the package's backends."""
    _, L, S = sizes(family)
    given = options(mask, family)
    if given.get("is_causal"):
        return causal_mask(L, S)
    if "window" in given:
        band = causal_mask(L, S) & ~causal_mask(L, S, offset=-WINDOW)
        if L == S:
            assert torch.equal(band, sliding_window_mask(L, WINDOW))
        return combine_masks(band, *([given["attn_mask"]] if "attn_mask" in given else []))
    return given.get("attn_mask")


def given_in(dtype, mask, family):
    """The arguments, with what is added to the scores in the dtype of the query."""
    given = dict(options(mask, family), enable_gqa=family == "grouped")
    if "attn_mask" in given and given["attn_mask"].is_floating_point():
        given["attn_mask"] = given["attn_mask"].to(dtype)
    return given


def inputs(family, dtype):
    return [draw(*shape, seed=seed).to(dtype) for seed, shape in enumerate(FAMILIES[family])]


@functools.cache
def exact(mask, family, dtype):
    """Output and gradients in float64, of the inputs as rounded to the dtype."""
    tensors = [x.double().requires_grad_() for x in inputs(family, dtype)]
    allowed = written_out(mask, family)
    grouped = family == "grouped"
    if allowed is not None and allowed.is_floating_point():
        allowed = allowed.to(dtype).double()
    out = scaled_dot_product_attention(*tensors, allowed, enable_gqa=grouped)
    if dtype == torch.float64 and family != "many blocks":  # and the loop over single numbers
        arrays = [x.detach().numpy() for x in tensors]
        if grouped:
            arrays[1:] = [x.repeat(3, axis=1) for x in arrays[1:]]
        loop = attention_loop(*arrays, None if allowed is None else allowed.numpy())
        torch.testing.assert_close(out.detach(), torch.from_numpy(loop))
    grads = torch.autograd.grad(out, tensors, draw(*out.shape, seed=7).to(dtype).double())
    return out.detach(), *grads


def error(output, expected, dtype):
    """The relative error in units of the dtype's precision."""
    norm = expected.norm().item()
    difference = (output.double() - expected).norm().item()
    if norm == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / norm / torch.finfo(dtype).eps


# In units of the dtype's precision, for the output and for the gradients. The gradients of 587
# keys are what comes nearest; torch's own kernels reach 8.
BOUNDS = {
    torch.float64: (8, 16),
    torch.float32: (4, 16),
    torch.float16: (0.5, 1.5),
    torch.bfloat16: (0.5, 1.5),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", REFUSED)
def test_equals_the_reference(backend, dtype, mask):
    for family in FAMILIES:
        if family == "many blocks" and mask not in ("none", "causal", "window"):
            continue
        tensors = [x.requires_grad_() for x in inputs(family, dtype)]
        given = given_in(dtype, mask, family)
        if (mask, family) in REFUSED[backend]:
            with pytest.raises(ValueError, match=f"'{backend}' cannot run this: .*These can: "):
                attend(*tensors, **given, backend=backend)
            continue
        expected, *expected_grads = exact(mask, family, dtype)
        out = attend(*tensors, **given, backend=backend)
        assert out.dtype == dtype
        assert out.shape == expected.shape
        bound, grad_bound = BOUNDS[dtype]
        assert error(out, expected, dtype) <= bound, family
        grads = torch.autograd.grad(out, tensors, draw(*out.shape, seed=7).to(dtype))
        for name, grad, expected_grad in zip("qkv", grads, expected_grads, strict=True):
            assert error(grad, expected_grad, dtype) <= grad_bound, (family, name)


FLEX_CASES = [
    *(("float32", mask, "longer key") for mask in MASKS if mask != "padding"),
    ("bfloat16", "causal", "longer query"),
    ("float32", "window", "grouped"),
]


# Each case is compiled: seconds. (Torch's own compiler still uses what torch deprecates.)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(("dtype", "mask", "family"), FLEX_CASES)
def test_flex_equals_the_reference(dtype, mask, family):
    dtype = getattr(torch, dtype)
    reason = available_backends(CPU, dtype)["flex"]
    if reason is not None:
        pytest.skip(reason)
    tensors = inputs(family, dtype)
    out = attend(*tensors, **given_in(dtype, mask, family), backend="flex")
    assert error(out, exact(mask, family, dtype)[0], dtype) <= BOUNDS[dtype][0]


@pytest.mark.parametrize("backend", ["explicit", "einsum", "online", "sdpa", "math"])
@pytest.mark.parametrize("window", [None, 3])
def test_scale_and_gradients_of_the_mask(backend, window):
    query, key, value = inputs("square", torch.float64)
    grads = []
    for name in ("explicit", backend):
        bias = draw(7, 7, seed=5).requires_grad_()
        out = attend(query, key, value, bias, window=window, scale=0.3, backend=name)
        grads.append((out.detach(), *torch.autograd.grad(out.square().sum(), bias)))
    torch.testing.assert_close(grads[1], grads[0])


def test_scale_of_a_band():
    tensors = [draw(1, 2, 200, 8, seed=seed) for seed in range(3)]
    out, expected = (
        attend(*tensors, window=3, scale=0.3, backend=name) for name in ("banded", "explicit")
    )
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("backend", "operator"),
    [
        ("flash", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        ("math", "aten::_scaled_dot_product_attention_math"),
    ],
)
def test_a_kind_is_the_kernel_that_runs(backend, operator):
    query = torch.randn(1, 1, 8, 16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attend(query, query, query, backend=backend)
    assert operator in {event.name for event in profile.events()}


@pytest.mark.parametrize("backend", ["explicit", "einsum", "online", "sdpa", "math", "banded"])
def test_dropout_drops_weights_and_keeps_the_mean(backend):
    torch.manual_seed(0)
    query, key = torch.zeros(1, 1, 200, 8), torch.zeros(1, 1, 200, 8)
    value = torch.eye(200)[None, None]
    options = {"window": 50} if backend == "banded" else {}
    before = attend(query, key, value, **options, backend=backend)
    after = attend(query, key, value, **options, dropout_p=0.5, backend=backend)
    kept = after[before > 0] / before[before > 0]  # the output is the weights
    assert set(kept.round().int().tolist()) == {0, 2}
    assert abs(kept.mean().item() - 1) < 0.05


@pytest.mark.parametrize("window", [1, 63, 64, 65, 130, 1000])
@pytest.mark.parametrize("length", [1, 64, 65, 129, 391])
def test_banded_at_the_edges_of_its_blocks(window, length):
    tensors = [draw(1, 2, length, 8, seed=seed) for seed in range(3)]
    out = attend(*tensors, window=window, backend="banded")
    expected = F.scaled_dot_product_attention(*tensors, sliding_window_mask(length, window))
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("block", [1, 2, 5, 7, 100])
def test_online_does_not_depend_on_its_block(block):
    tensors = inputs("longer query", torch.float64)
    given = {"is_causal": True, "window": None, "dropout_p": 0.0, "scale": 0.3}
    out = readable.attend_online(*tensors, attn_mask=None, enable_gqa=False, block=block, **given)
    torch.testing.assert_close(
        out, scaled_dot_product_attention(*tensors, is_causal=True, scale=0.3)
    )


def test_large_scores_do_not_overflow_any_backend():
    query, key, value = (1e4 * x for x in inputs("square", torch.float32))
    for name in ("explicit", "einsum", "online", "sdpa", "flash", "math"):
        assert attend(query, key, value, backend=name).isfinite().all(), name


def test_the_reasons():
    reasons = available_backends(CPU)
    assert list(reasons) == list(BACKENDS)
    runs_anywhere = ["explicit", "einsum", "online", "sdpa", "flash", "math", "banded"]
    assert [name for name in runs_anywhere if reasons[name] is None] == runs_anywhere
    assert reasons["cudnn"] == "torch has no cudnn kernel for this on cpu"
    assert available_backends(CPU, dropout=True)["flash"].endswith("non-zero dropout.")
    assert available_backends(CPU, dropout=True)["flex"] == "FlexAttention has no dropout"
    training = available_backends(CPU, training=True)
    assert training["flex"] == "FlexAttention has no backward pass on the CPU"
    assert "float32, bfloat16" in available_backends(CPU, torch.float64)["flex"]
    assert available_backends(CPU, attn_mask=True)["banded"] == "banded takes no attn_mask"


def test_flex_says_when_there_is_no_compiler(monkeypatch):
    from mha_tutor.backends import flex

    monkeypatch.setattr(flex, "_cpu_is_too_old", lambda: None)
    monkeypatch.setattr(flex.shutil, "which", lambda name: None)
    flex._compiler_is_missing.cache_clear()
    try:
        assert "needs a C++ compiler" in available_backends(CPU)["flex"]
    finally:
        flex._compiler_is_missing.cache_clear()


def test_flex_says_when_torch_compiles_nothing_for_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert "CPUs with AVX2" in available_backends(CPU)["flex"]
    with pytest.raises(ValueError, match="cannot run this: torch compiles FlexAttention only"):
        attend(*inputs("square", torch.float32), backend="flex")


def test_flex_still_has_no_backward_on_the_cpu():
    # When this fails, torch has learned it: let `refuse_flex` allow it.
    from torch.nn.attention.flex_attention import flex_attention

    query = torch.randn(1, 1, 16, 16, requires_grad=True)
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        torch.compile(flex_attention, backend="eager")(query, query, query)


@pytest.mark.parametrize(
    ("triton", "numpy", "refused"),
    [("3.6.0", "2.4.6", True), ("3.6.0", "2.3.5", False), ("3.7.1", "2.4.6", False)],
)
def test_an_old_interpreter_beside_a_new_numpy_is_refused(monkeypatch, triton, numpy, refused):
    from mha_tutor.backends import fused

    versions = {"triton": triton, "numpy": numpy}
    monkeypatch.setattr(fused.importlib.metadata, "version", versions.__getitem__)
    fused._interpreter_is_too_old.cache_clear()
    monkeypatch.setattr(fused, "_interpreted", lambda: True)
    try:
        reason = available_backends(CPU)["triton"]
        assert (reason is not None and "before 3.7 does not run" in reason) == refused
    finally:
        fused._interpreter_is_too_old.cache_clear()


def test_triton_is_not_offered_on_the_cpu_unless_asked_for():
    code = (
        "from mha_tutor.backends import available_backends as a; print(a('cpu')['triton']);"
        "import sys; print('triton' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    told = [
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for env in (environment, {**environment, "TRITON_INTERPRET": "1"})
    ]
    pytest.importorskip("triton")
    assert "set the variable TRITON_INTERPRET=1 before Python starts" in told[0][0]
    assert told[1][0] == "None" or "before 3.7 does not run" in told[1][0]
    assert told[0][1] == told[1][1] == "False"  # asking does not import it


def test_bad_input():
    query = torch.zeros(1, 1, 4, 8)
    with pytest.raises(ValueError, match=r"backend must be one of explicit, .*, got 'fast'"):
        attend(query, query, query, backend="fast")
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        attend(query, query, query, window=0)
    with pytest.raises(TypeError, match=r"window must be an integer, got 2\.5"):
        attend(query, query, query, window=2.5)
    with pytest.raises(ValueError, match=r"banded needs a window\. These can: explicit, einsum"):
        attend(query, query, query, backend="banded")
    for name in BACKENDS:  # all are checked alike, before any runs
        with pytest.raises(ValueError, match="the same head_dim, got 8 and 7"):
            attend(query, query[..., :7], query, backend=name)
        with pytest.raises(ValueError, match="is_causal=True cannot be used together"):
            attend(query, query, query, causal_mask(4), is_causal=True, backend=name)
        with pytest.raises(ValueError, match="the same length S, got 4 and 3"):
            attend(query, query, query[:, :, :3], backend=name)


def test_a_call_is_hashable_and_small():
    assert Call(CPU, torch.float32) == Call(CPU, torch.float32)
    assert len({Call(CPU, torch.float32), Call(CPU, torch.float64)}) == 2


class TestTheLayer:
    def layer(self, **given):
        torch.manual_seed(0)
        return MultiHeadAttention(48, 3, **given).double()

    @pytest.mark.parametrize("backend", ["explicit", "einsum", "online", "sdpa", "flash", "math"])
    @pytest.mark.parametrize("window", [None, 3])
    def test_any_backend_gives_the_same(self, backend, window):
        x = draw(2, 11, 48)
        expected = self.layer(window=window)(x, need_weights=True)[0]
        torch.testing.assert_close(self.layer(window=window, backend=backend)(x), expected)

    def test_a_window_in_the_layer(self):
        x = draw(2, 131, 48)
        layer = self.layer(window=5, backend="banded")
        expected = self.layer()(x, attn_mask=sliding_window_mask(131, 5))
        torch.testing.assert_close(layer(x), expected)
        weights = layer(x, need_weights=True)[1]
        assert torch.equal((weights > 0)[0, 0], sliding_window_mask(131, 5))

    def test_refusals(self):
        with pytest.raises(ValueError, match="backend must be one of"):
            self.layer(backend="fast")
        with pytest.raises(ValueError, match="window must be at least 1, got 0"):
            self.layer(window=0)
        with pytest.raises(ValueError, match="banded needs a window"):
            self.layer(backend="banded")(draw(1, 5, 48))
        with pytest.raises(ValueError, match="a layer with window=3 cannot be carried over"):
            self.layer(window=3).to_torch()

    def test_what_it_shows(self):
        assert "dropout=0.0\n" in repr(self.layer())
        assert "dropout=0.0, window=3, backend='banded'" in repr(
            self.layer(window=3, backend="banded")
        )


def _peak_of(backend, length, **given):
    tensors = [torch.randn(1, 1, length, 16) for _ in range(3)]
    training = given.pop("training", False)
    for x in tensors:
        x.requires_grad_(training)

    def run():
        out = attend(*tensors, **given, backend=backend)
        if training:
            out.sum().backward()

    return peak_bytes(run)


# At L = 16384 one set of scores is 1 GiB; query, key and value are 1 MiB each.
@pytest.mark.parametrize(
    ("backend", "length", "given", "mebibytes"),
    [
        ("sdpa", 16384, {}, 8),
        ("flash", 16384, {"is_causal": True}, 8),
        ("sdpa", 16384, {"is_causal": True, "training": True}, 12),
        ("banded", 16384, {"window": 256}, 8),
        ("banded", 16384, {"window": 256, "training": True}, 40),
        ("online", 4096, {"is_causal": True}, 25),  # scores of one block: 4 MiB
    ],
)
def test_memory_stays_linear(backend, length, given, mebibytes):
    half, full = (_peak_of(backend, size, **given) for size in (length // 2, length))
    assert 2**18 <= full <= mebibytes * 2**20
    assert full <= 2.1 * half


def test_the_measure_of_memory_sees_the_scores():
    full, half = (_peak_of("explicit", length) for length in (2048, 1024))
    assert full >= 2 * 2048**2 * 4  # scores and weights
    assert full >= 3.5 * half
