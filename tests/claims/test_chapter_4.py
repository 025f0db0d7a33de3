"""The general sentences of chapter 4, each tried over many sizes."""

import math
from statistics import median

import pytest
import torch
from hypothesis import strategies as st

import mha_tutor
from mha_tutor.experiments.scale import load_runs, steps_to_learn

from .ledger import claim
from .pages import stands
from .sizes import SEED, B, D, H, L, S, close, normal

DEEPER = "deeper_positions"
WIDE = st.sampled_from([4, 8, 16, 32, 64, 128, 256, 512])


def three_lines(q, k, v, dim=-1):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=dim) @ v


def qkv(B, H, L, S, D, seed):
    return [normal(B, H, n, D, seed=seed + i) for i, n in enumerate((L, S, S))]


@claim(
    "04",
    "`@` and `softmax(dim=-1)` work on the last axes and repeat over the leading ones, batch "
    "included, so the three lines stay what they are.",
    right=three_lines,
    broken=lambda *t: three_lines(*t, dim=-2),
    B=B,
    H=H,
    L=L,
    S=S,
    D=D,
    seed=SEED,
)
def test_three_lines_serve_batch_and_heads(attention, B, H, L, S, D, seed):
    q, k, v = qkv(B, H, L, S, D, seed)
    expected = mha_tutor.attention_loop(q.numpy(), k.numpy(), v.numpy())
    assert close(attention(q, k, v), torch.from_numpy(expected))


@claim(
    "04",
    "In between the outputs stay in the shaded area that the values span, because weights are "
    "positive and sum to 1.",
    right=torch.softmax,
    broken=lambda s, dim: s.exp(),
    B=B,
    H=H,
    L=L,
    S=S,
    D=D,
    seed=SEED,
)
def test_outputs_lie_between_the_values(weights_of, B, H, L, S, D, seed):
    q, k, v = qkv(B, H, L, S, D, seed)
    out = weights_of(q @ k.mT, dim=-1) @ v
    assert (out <= v.amax(-2, keepdim=True) + 1e-9).all()
    assert (out >= v.amin(-2, keepdim=True) - 1e-9).all()


@claim(
    "04",
    "Softmax passes gradient to a score in proportion to its weight.",
    right=lambda p, g: p * (g - (p * g).sum(-1, keepdim=True)),
    broken=lambda p, g: p * g,
    L=L,
    S=S,
    seed=SEED,
)
def test_gradient_of_the_softmax(formula, L, S, seed):
    s = (3 * normal(L, S, seed=seed)).requires_grad_()
    g, p = normal(L, S, seed=seed + 1), torch.softmax(s, dim=-1)
    p.backward(g)
    assert close(s.grad, formula(p.detach(), g))


def measured(D, divisor, seed, S=128):
    q, k, v, g = (normal(512 // D, S, D, seed=4 * seed + n) for n in range(4))
    q.requires_grad_()
    scores = q @ k.mT / divisor
    p = torch.softmax(scores, dim=-1)
    (p @ v).backward(g)
    read = torch.exp(-torch.xlogy(p, p).sum(-1)).mean().item()
    return scores.var().item(), read, q.grad.square().mean().sqrt().item()


@claim(
    "04",
    "For independent components of mean 0 and variance 1, Var(q · k) = D, and the scaled score "
    "has variance 1.",
    right=math.sqrt,
    broken=lambda D: D,
    examples=15,
    D=WIDE,
    seed=st.integers(0, 50),
)
def test_scaled_scores_have_variance_one(divisor, D, seed):
    assert abs(measured(D, divisor(D), seed)[0] - 1) < 0.1


@claim(
    "04",
    "**√D** keeps all three numbers level from D = 4 to D = 512.",
    right=math.sqrt,
    broken=lambda D: 512**0.5,
    examples=15,
    D=WIDE,
    seed=st.integers(0, 50),
)
def test_root_d_is_level(divisor, D, seed):
    variance, read, gradient = measured(D, divisor(D), seed)
    assert abs(variance - 1) < 0.1
    assert abs(read - 80) < 8
    assert abs(gradient / 0.139 - 1) < 0.15


@claim(
    "04",
    "Without a scale the gradient at the query is larger, not smaller.",
    right=1.0,
    broken=512**0.5,
    examples=15,
    D=WIDE,
    seed=st.integers(0, 50),
)
def test_no_scale_has_more_gradient(divisor, D, seed):
    assert measured(D, divisor, seed)[2] > 2 * measured(D, math.sqrt(D), seed)[2]


@claim(
    "04",
    "From `nn.Linear`'s own start a layer with √D reads about 95% of the keys.",
    right=lambda D: D**-0.5,
    broken=lambda D: 1.0,
    examples=12,
    D=st.sampled_from([8, 16, 64]),
    S=st.sampled_from([64, 200]),
    seed=st.integers(0, 100),
)
def test_a_fresh_layer_reads_nearly_all(scale, D, S, seed):
    torch.manual_seed(seed)
    tokens = normal(S, 128, seed=seed, dtype=torch.float32)
    q, k = (torch.nn.Linear(128, 128)(tokens).detach() for _ in range(2))
    q, k = (mha_tutor.split_heads(t, 128 // D) for t in (q, k))
    p = mha_tutor.attention_weights(q, k, scale=scale(D))
    share = torch.exp(-torch.xlogy(p, p).sum(-1)).mean().item() / S
    assert abs(share - 0.95) < 0.025


@claim(
    "04",
    "Multiply $W_Q$ and its bias by √H, and the scores are what they should have been.",
    right=math.sqrt,
    broken=lambda H: H,
    B=B,
    L=L,
    S=S,
    D=D,
    seed=SEED,
    H=st.integers(2, 5),
)
def test_root_e_is_a_factor_in_the_query(factor, B, L, S, D, seed, H):
    q, k, _ = qkv(B, H, L, S, D, seed)
    wrong = mha_tutor.attention_weights(factor(H) * q, k, scale=(H * D) ** -0.5)
    assert close(wrong, mha_tutor.attention_weights(q, k))


def naive(s):
    return s.exp() / s.exp().sum(-1, keepdim=True)


@claim(
    "04",
    "Subtract the row's maximum before exp: no weight changes, and finite scores stay finite.",
    right=lambda s: naive(s - s.amax(-1, keepdim=True)),
    broken=naive,
    L=L,
    S=S,
    seed=SEED,
)
def test_the_maximum_can_be_subtracted(softmax, L, S, seed):
    s = normal(L, S, seed=seed)
    assert close(softmax(s), naive(s))
    for shift in (1e4, -1e4):
        assert close(softmax(s + shift), naive(s), 1e-6)


@claim(
    "04",
    "exp overflows above 88.7 in float32 and bfloat16, above 11.1 in float16.",
    right={torch.float32: 88.7, torch.bfloat16: 88.7, torch.float16: 11.1},
    broken={torch.float32: 11.1},
)
def test_where_exp_overflows(limits):
    for dtype, limit in limits.items():
        assert abs(math.log(torch.finfo(dtype).max) - limit) < 0.1
        assert torch.tensor(limit + 1, dtype=dtype).exp().isinf()
        assert torch.tensor(limit - 1, dtype=dtype).exp().isfinite()


@claim(
    "04",
    "Without mask and positions, shuffled inputs give equally shuffled outputs.",
    right=mha_tutor.scaled_dot_product_attention,
    broken=lambda *t: mha_tutor.scaled_dot_product_attention(*t, is_causal=True),
    B=B,
    H=H,
    L=L,
    D=D,
    seed=SEED,
)
def test_attention_is_equivariant(attention, B, H, L, D, seed):
    q, k, v = qkv(B, H, L, L, D, seed)
    order = torch.randperm(L, generator=torch.Generator().manual_seed(seed))
    shuffled = attention(*(t[:, :, order] for t in (q, k, v)))
    assert close(shuffled, attention(q, k, v)[:, :, order])


# --- the recorded sweep


def steps(start, heads, depth, divisor):
    return median(run.steps for run in load_runs() if run[:4] == (start, heads, depth, divisor))


def test_the_sweep_is_whole():
    assert len(load_runs()) == len({run[:5] for run in load_runs()}) == 150
    assert max(run.steps for run in load_runs()) < 400  # every run learned the task


@pytest.mark.parametrize(
    ("sentence", "holds"),
    [
        (
            "no scale is the fastest of the three, √E the slowest (about 40% more steps). From "
            "unit variance, none and √D differ by 8% at most.",
            lambda: (
                all(
                    steps("usual", 8, n, "none")
                    < steps("usual", 8, n, "√D")
                    < steps("usual", 8, n, "√E")
                    and 1.35 < steps("usual", 8, n, "√E") / steps("usual", 8, n, "none") < 1.5
                    for n in (1, 2, 3)
                )
                and all(
                    abs(steps("unit", 8, n, "none") / steps("unit", 8, n, "√D") - 1) < 0.085
                    for n in (1, 2, 3)
                )
            ),
        ),
        (
            "at the usual start no scale costs 5 to 15%. From unit variance it costs 1.6 times the "
            "steps with one layer, 2.6 with two, 3.8 with three.",
            lambda: (
                all(
                    1.04 < steps("usual", 1, n, "none") / steps("usual", 1, n, "√D") < 1.16
                    for n in (1, 2, 3)
                )
                and [
                    round(steps("unit", 1, n, "none") / steps("unit", 1, n, "√D"), 1)
                    for n in (1, 2, 3)
                ]
                == [1.6, 2.6, 3.8]
            ),
        ),
        (
            "**√D** needs 40 to 63 steps in every line",
            lambda: (
                {min, max}
                and [
                    f(
                        steps(s, h, n, "√D")
                        for s in ("usual", "unit")
                        for h in (8, 1)
                        for n in (1, 2, 3)
                    )
                    for f in (min, max)
                ]
                == [40, 63]
            ),
        ),
    ],
)
def test_what_is_said_of_the_sweep(sentence, holds):
    assert stands("04", sentence)
    assert holds()


@pytest.mark.parametrize("divisor", ["none", "√D"])
def test_a_recorded_run_can_be_run_again(divisor):
    (recorded,) = [r for r in load_runs() if r[:5] == ("unit", 1, 1, divisor, 0)]
    assert abs(steps_to_learn(*recorded[:5]).steps - recorded.steps) <= 5


# --- the page beside it


@claim(
    DEEPER,
    "So a query reads about $S\\,e^{-\\sigma^2/2}$ keys: 61% at variance 1, 95% at 1/9, 88% at "
    "1/4. With few keys it is more:",
    right=1.0,
    broken=2.0,
    examples=8,
    S=st.sampled_from([256, 1024]),
    variance=st.sampled_from([1, 1 / 4, 1 / 9]),
    seed=st.integers(0, 100),
)
def test_keys_read_follow_from_the_variance(factor, S, variance, seed):
    def share(S):
        p = torch.softmax(normal(2000, S, seed=seed) * variance**0.5, -1)
        return torch.exp(-torch.xlogy(p, p).sum(-1).mean()).item() / S

    assert abs(share(S) - math.exp(-factor * variance / 2)) < 0.01
    assert share(4) > share(S)


@claim(
    DEEPER,
    "moving by a fixed number of places is one and the same linear map (a rotation of each pair) "
    "wherever you start",
    right=lambda place, rate: (place * rate).sin(),
    broken=lambda place, rate: (place**2 * rate).sin(),
    start=st.integers(0, 500),
    n=st.integers(1, 50),
    pair=st.integers(0, 31),
)
def test_waves_move_by_one_map(wave, start, n, pair):
    rate = torch.tensor(10_000.0 ** (-pair / 32), dtype=torch.float64)
    here, there = (
        torch.stack([wave(torch.tensor(float(t)), rate), (t * rate).cos()])
        for t in (start, start + n)
    )
    c, s = (n * rate).cos(), (n * rate).sin()
    turn = torch.stack([torch.stack([c, s]), torch.stack([-s, c])])
    assert close(turn @ here.double(), there.double())


@claim(
    DEEPER,
    "In return the score is bounded, $|\\text{score}| \\le \\sum_u |w_u|$.",
    right=torch.tanh,
    broken=lambda x: x,
    L=L,
    S=S,
    seed=SEED,
)
def test_added_scores_are_bounded(squash, L, S, seed):
    pairs = 1000 * (normal(L, 1, 5, seed=seed) + normal(1, S, 5, seed=seed + 1))
    w = normal(5, seed=seed + 2)
    assert ((squash(pairs) @ w).abs() <= w.abs().sum() + 1e-9).all()
