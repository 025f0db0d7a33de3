"""The general sentences of chapter 6, each tried over many sizes, with the code of the page."""

import copy
import math

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import mha_tutor
from mha_tutor import head_columns, head_rows, split_heads

from .ledger import claim
from .sizes import SEED, B, D, H, L, close, from_page, normal

GIVEN = {
    "torch": torch,
    "nn": nn,
    "F": F,
    "math": math,
    "split_heads": split_heads,
    "head_rows": head_rows,
    "head_columns": head_columns,
    "copy": copy,
}
TWO = st.integers(2, 6)


def page():
    given = {**GIVEN, "draw": lambda *shape, seed: normal(*shape, seed=seed), "x": None}
    names = ("MultiHead", "parts", "copy_parameters")
    return from_page("06", *names, **given)


def random_layer(E, H, seed, *widths, cls=None):
    layer = (cls or page().MultiHead)(E, H, *widths).double()
    return fill(layer, seed)


def fill(module, seed):
    with torch.no_grad():
        for n, p in enumerate(module.parameters()):
            p.copy_(normal(*p.shape, seed=seed + n) / p.shape[-1] ** 0.5)
    return module


@claim(
    "06",
    "4E² + 4E parameters for every H",
    right=lambda E: 4 * E**2 + 4 * E,
    broken=lambda E: 4 * E**2,
    H=H, D=D,
)  # fmt: skip
def test_parameters(formula, H, D):
    assert sum(p.numel() for p in page().MultiHead(H * D, H).parameters()) == formula(H * D)


@claim(
    "06",
    "With other widths the count is $2E^2 + E\\,\\text{kdim} + E\\,\\text{vdim} + 4E$.",
    right=lambda E, k, v: 2 * E * E + E * k + E * v + 4 * E,
    broken=lambda E, k, v: 3 * E * E + E * k + 4 * E,
    H=H, D=D, kdim=st.integers(1, 20), vdim=st.integers(1, 20),
)  # fmt: skip
def test_parameters_of_other_widths(formula, H, D, kdim, vdim):
    E = H * D
    theirs = nn.MultiheadAttention(E, H, kdim=kdim, vdim=vdim)
    for layer in (page().MultiHead(E, H, kdim, vdim), theirs):
        assert sum(p.numel() for p in layer.parameters()) == formula(E, kdim, vdim)


@claim(
    "06",
    "Copy the parameters of `nn.MultiheadAttention` into yours, and both must give the same "
    "numbers.",
    right=1.0,
    broken=2.0,
    B=B, H=H, L=L, S=TWO, D=D, seed=SEED, packed=st.booleans(),
)  # fmt: skip
def test_parity(factor, B, H, L, S, D, seed, packed):
    here, E = page(), H * D
    widths = (E, E) if packed else (E + 2, E + 5)
    theirs = nn.MultiheadAttention(E, H, kdim=widths[0], vdim=widths[1], batch_first=True)
    theirs, ours = fill(theirs.double(), seed), random_layer(E, H, seed + 99, *widths)
    here.copy_parameters(theirs, ours)
    with torch.no_grad():
        ours.q_proj.weight.mul_(factor)
    inputs = [
        normal(B, n, w, seed=seed + i)
        for i, (n, w) in enumerate(zip((L, S, S), (E, *widths), strict=True))
    ]
    may = normal(L, S, seed=seed) > 0
    may[:, 0] = True
    out, weights = theirs(*inputs, attn_mask=~may, average_attn_weights=False)
    mine = ours(*inputs, attn_mask=may)
    assert close(mine[0], out)
    assert close(mine[1], weights)


@claim(
    "06",
    "The three functions below read the same parameters and must give the same output.",
    right=("per_head", "einsummed", "in_blocks"),
    broken=[("without_biases",)],
    B=B, H=H, L=L, D=D, seed=SEED,
)  # fmt: skip
def test_four_ways(ways, B, H, L, D, seed):
    layer, x = random_layer(H * D, H, seed), normal(B, L, H * D, seed=seed)
    for way in ways:
        if way == "without_biases":
            stripped = copy.deepcopy(layer)
            nn.init.zeros_(stripped.v_proj.bias)
            out = stripped(x)[0]
        else:
            out = getattr(from_page_way(way), way)(layer, x, H)
        assert close(out, layer(x)[0])


def from_page_way(way):
    if way != "in_blocks":
        return from_page("06", way, **GIVEN)
    # Its cell compares the ways at the end, so it needs what the page has by then.
    others = [getattr(from_page("06", name, **GIVEN), name) for name in ("per_head", "einsummed")]
    layer, x = random_layer(6, 3, 0), normal(2, 4, 6, seed=0)
    ready = dict(zip(("per_head", "einsummed"), others, strict=True))
    ready |= {"layer": layer, "x": x, "wanted": layer(x)[0]}
    ready["assert_close"] = torch.testing.assert_close
    return from_page("06", way, **GIVEN, **ready)


@claim(
    "06",
    "Without rotary positions, the key bias changes no output; the value bias can move into the "
    "output bias (no dropout, no empty rows).",
    right="k_proj",
    broken=["q_proj"],
    B=B, H=H, L=TWO, D=D, seed=SEED,
)  # fmt: skip
def test_redundant_biases(name, B, H, L, D, seed):
    layer, x = random_layer(H * D, H, seed), normal(B, L, H * D, seed=seed)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        getattr(other, name).bias.add_(3)
        other.out_proj.bias.copy_(layer.out_proj(layer.v_proj.bias))
        other.v_proj.bias.zero_()
    assert close(other(x)[0], layer(x)[0])


@claim(
    "06",
    "In cross-attention the output has the query's length; without positions and mask the source "
    "is a set.",
    right=lambda key, order: (key[:, order], key[:, order]),
    broken=lambda key, order: (key[:, order], key),
    B=B, H=H, L=L, S=TWO, D=D, seed=SEED,
)  # fmt: skip
def test_the_source_is_a_set(shuffle, B, H, L, S, D, seed):
    layer = random_layer(H * D, H, seed, 5, 5)
    query, source = normal(B, L, H * D, seed=seed), normal(B, S, 5, seed=seed + 1)
    order = torch.randperm(S, generator=torch.Generator().manual_seed(seed))
    out, _ = layer(query, *shuffle(source, order))
    assert out.shape == query.shape
    assert close(out, layer(query, source)[0])


@claim(
    "06",
    "`batch_first=False` reads (B, L, E) as (L, B, E) and attends across the batch.",
    right=False,
    broken=True,
    B=TWO, H=H, L=TWO, D=D, seed=SEED,
)  # fmt: skip
def test_batch_first(batch_first, B, H, L, D, seed):
    x = normal(B, L, H * D, seed=seed)
    layer = nn.MultiheadAttention(H * D, H, batch_first=batch_first, dtype=torch.float64)
    fill(layer, seed)
    changed = x.clone()
    changed[1:] = normal(B - 1, L, H * D, seed=seed + 1)
    assert not close(layer(x, x, x)[0][0], layer(changed, changed, changed)[0][0])


@claim(
    "06",
    "Tables that differ can have the same average over heads.",
    right=lambda t: t.roll(1, dims=1),
    broken=lambda t: t**2,
    B=B, H=st.integers(2, 4), L=L, S=TWO, seed=SEED,
)  # fmt: skip
def test_the_average_hides(change, B, H, L, S, seed):
    tables = normal(B, H, L, S, seed=seed).softmax(-1)
    other = change(tables)
    assert not close(other, tables)
    assert close(other.mean(1), tables.mean(1))


@claim(
    "deeper_one_small",
    "The variant is the standard layer with blocks off the diagonal held at zero, the others held "
    "equal, and the queries divided by √H (÷√E is ÷√D, then ÷√H).",
    right=math.sqrt,
    broken=lambda H: 1.0,
    B=B, H=TWO, L=TWO, D=D, seed=SEED,
)  # fmt: skip
def test_the_small_linear_is_a_special_case(factor, B, H, L, D, seed):
    shared = from_page("deeper_one_small", "SharedLinear", **GIVEN).SharedLinear(H * D, H)
    shared, x = fill(shared.double(), seed), normal(B, L, H * D, seed=seed)
    layer = mha_tutor.MultiHeadAttention(H * D, H).double()
    with torch.no_grad():
        for new, old in zip(layer.children(), shared.children(), strict=True):
            new.weight.copy_(torch.block_diag(*[old.weight] * (H * D // old.in_features)))
        layer.q_proj.weight.div_(factor(H))
        layer.out_proj.bias.copy_(shared.out.bias)
    assert close(layer(x), shared(x)[0])
