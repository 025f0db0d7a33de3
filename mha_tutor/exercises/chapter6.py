"""Exercises of chapter 6, *Assemble multi-head attention*."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mha_tutor.contract import check
from mha_tutor.exercises._exercise import (
    Case,
    Exercise,
    Wrong,
    answer,
    draw,
    exercise,
    expect,
    whole,
)
from mha_tutor.masks import padding_mask
from mha_tutor.multihead import MultiHeadAttention

__all__ = ["cross_attention", "grouped_count", "silence_head", "torch_state", "whole_layer"]


# --- count the parameters ------------------------------------------------------------------------


def _count(rule: Callable[[int, int, int], int]) -> Callable[[int, int, int], int]:
    """Make a count of a rule on E, D = E / H and the rows of k_proj and v_proj, G · D."""
    return lambda E, H, G: rule(E, E // H, G * (E // H))


grouped_count = Exercise(
    task="Count a layer's parameters, biases too: `count(embed_dim, num_heads, num_kv_heads)`.",
    cases=[
        Case(f"for embed_dim={E}, num_heads={H}, num_kv_heads={G}", (E, H, G))
        for E, H, G in ((600, 15, 3), (512, 8, 4), (512, 8, 8), (30, 6, 1), (33, 3, 3))
    ],
    right=_count(lambda E, D, rows: 2 * (E * E + E) + 2 * rows * (E + 1)),
    mistakes={
        "this is the count of H key and value heads. Here they are fewer, and k_proj and v_proj "
        "have only num_kv_heads · D rows.": _count(lambda E, D, rows: 4 * E * E + 4 * E),
        "this leaves out the biases: each row of each of the four matrices has one.": _count(
            lambda E, D, rows: 2 * E * E + 2 * rows * E
        ),
        "this leaves out the bias of out_proj.": _count(
            lambda E, D, rows: 2 * E * E + E + 2 * rows * (E + 1)
        ),
        "this leaves out out_proj, E² + E.": _count(
            lambda E, D, rows: E * E + E + 2 * rows * (E + 1)
        ),
        "this leaves out the output projection, and all biases.": _count(
            lambda E, D, rows: E * E + 2 * rows * E
        ),
        "this gives k_proj and v_proj biases of E numbers; a bias has one for each row.": _count(
            lambda E, D, rows: 2 * E * E + 2 * rows * E + 4 * E
        ),
        "this counts one of key and value only; both have few heads, and both are there.": _count(
            lambda E, D, rows: 2 * E * E + 2 * E + rows * (E + 1)
        ),
        "this lets the value keep all heads; key and value have num_kv_heads each.": _count(
            lambda E, D, rows: 3 * (E * E + E) + rows * (E + 1)
        ),
        "this is the count of num_kv_heads heads in all four. Queries keep num_heads heads, so "
        "q_proj and out_proj stay (E, E).": _count(lambda E, D, rows: 4 * rows * (E + 1)),
        "this gives out_proj num_kv_heads heads, too. There are as many outputs as queries: it "
        "stays (E, E).": _count(lambda E, D, rows: E * E + E + 3 * rows * (E + 1)),
        "this gives q_proj num_kv_heads heads, too, and out_proj as many columns. Queries keep "
        "num_heads heads: both stay (E, E).": _count(
            lambda E, D, rows: 4 * rows * E + 3 * rows + E
        ),
        "this gives key and value num_kv_heads rows; a head has D rows.": _count(
            lambda E, D, rows: 2 * E * E + 2 * E + 2 * (rows // D) * (E + 1)
        ),
        "this gives key and value one head only.": _count(
            lambda E, D, rows: 2 * E * E + 2 * E + 2 * D * (E + 1)
        ),
        "this gives each head matrices (E, E) of its own. The heads share out the rows of one.": (
            _count(lambda E, D, rows: E // D * (2 * (E * E + E) + 2 * rows * (E + 1)))
        ),
        "this counts matrices (D, D), as if a head read only its own slice. Each reads all E "
        "features.": _count(lambda E, D, rows: E * E + E + (E + 2 * rows) * (D + 1)),
    },
    praise="Also for one key and value head that all query heads share.",
    read=whole,
)


# --- silence a head ------------------------------------------------------------------------------


def _zeroed(
    columns: Callable[[int, int, int], slice] | None = None,
    rows: Callable[[int, int, int], slice] | None = None,
) -> Callable[[Tensor, int, int], Tensor]:
    """Set what a rule on D, H and h picks to 0."""

    def silence(weight: Tensor, num_heads: int, h: int) -> Tensor:
        sizes = len(weight) // num_heads, num_heads, h
        out = weight.clone()
        if columns:
            out[:, columns(*sizes)] = 0
        if rows:
            out[rows(*sizes)] = 0
        return out

    return silence


_silenced = _zeroed(lambda D, H, h: slice(h * D, (h + 1) * D))

silence_head = Exercise(
    task="Take head h out of the output: `silence(weight, num_heads, h)`, (E, E) → (E, E).",
    cases=[
        Case(f"for a matrix ({E}, {E}), {H} heads and h={h}", (draw(E, E), H, h))
        for E, H, h in ((12, 3, 1), (15, 5, 3), (8, 4, 0))
    ],
    right=_silenced,
    mistakes={
        "nothing has changed.": _zeroed(),
        "rows are set to 0: they are output features, to which all heads write. What a head "
        "writes with are columns.": _zeroed(rows=lambda D, H, h: slice(h * D, (h + 1) * D)),
        "every H-th column is set to 0. The columns of a head stand side by side: h·D to "
        "h·D + D − 1.": _zeroed(lambda D, H, h: slice(h, None, H)),
        "columns h·H to h·H + H − 1 are set to 0; each head has D columns.": _zeroed(
            lambda D, H, h: slice(h * H, (h + 1) * H)
        ),
        "only one column is set to 0; the head has D of them.": _zeroed(
            lambda D, H, h: slice(h, h + 1)
        ),
        "it is the other way round: this head alone is left.": lambda w, H, h: (
            w - _silenced(w, H, h)
        ),
        "the wrong head is silent: heads are counted from 0.": _zeroed(
            lambda D, H, h: slice((h - 1) % H * D, ((h - 1) % H + 1) * D)
        ),
        "the matrix is transposed as well.": lambda w, H, h: _silenced(w, H, h).mT,
        "the columns are cut out. Set them to 0, and the shape stays.": lambda w, H, h: torch.cat(
            [w[:, : h * (len(w) // H)], w[:, (h + 1) * (len(w) // H) :]], 1
        ),
    },
    praise="Its columns are 0, and the others are untouched.",
)


# --- from torch's packed parameters to four linear layers ----------------------------------------

ROLES = {"q_proj": "the query", "k_proj": "the key", "v_proj": "the value"}


@exercise
def torch_state(candidate: Any) -> str:
    """Turn the state dict of `nn.MultiheadAttention` into that of `MultiHeadAttention`."""
    for what, options in {
        "a packed layer": {},
        "a layer with bias=False": {"bias": False},
        "a layer with kdim=5, vdim=7": {"kdim": 5, "vdim": 7},
    }.items():
        theirs = _random_layer(nn.MultiheadAttention(12, 3, dtype=torch.float64, **options))
        state = theirs.state_dict()
        want = MultiHeadAttention.from_torch(theirs).state_dict()
        try:
            got = answer(candidate, {name: x.clone() for name, x in state.items()})
        except Wrong as wrong:
            if not isinstance(wrong.__cause__, KeyError):
                raise
            raise Wrong(
                f"for {what} it looks for {wrong.__cause__}, which is not there. "
                f"There are {', '.join(state)}."
            ) from wrong
        if not isinstance(got, Mapping):
            raise Wrong(f"it returns {type(got).__name__}; asked for is a dict, name → tensor.")
        _compare_names(got, want, what)
        for name in want:
            _compare_parameter(name, got[name], want, state, what)
    return "Every parameter is in its place, in all three forms."


def _random_layer(layer: nn.Module) -> nn.Module:
    """Fill every parameter, the biases too, with numbers that differ."""
    with torch.no_grad():
        for seed, p in enumerate(layer.parameters()):
            p.copy_(draw(*p.shape, seed=seed) / p.shape[-1] ** 0.5)
    return layer


def _compare_names(got: Mapping, want: Mapping, what: str) -> None:
    missing = [name for name in want if name not in got]
    extra = [str(name) for name in got if name not in want]
    if missing:
        raise Wrong(f"for {what} there is no {', '.join(missing)}.")
    if extra:
        raise Wrong(f"for {what} there is {', '.join(extra)} too much; our layer has no such name.")


def _compare_parameter(name: str, got: Any, want: Mapping, state: Mapping, what: str) -> None:
    layer, _, kind = name.partition(".")
    mistakes: dict[str, Tensor | None] = {}
    for other, role in ROLES.items():
        if other != layer:
            mistakes[f"{name} holds the numbers of {role}."] = want[f"{other}.{kind}"]
    if kind == "weight":
        mistakes[f"{name} is transposed. Both layers store (out, in)."] = want[name].mT
    packed = state.get(f"in_proj_{kind}")
    if packed is not None and layer in ROLES:
        third = list(ROLES).index(layer)
        mistakes[
            f"{name} holds every third row. The packed rows are all of the query, all of the key, "
            "all of the value."
        ] = packed[third::3]
        by_head = packed.unflatten(0, (3, 3, 4))[:, third].flatten(0, 1)  # (head, role, row)
        mistakes[
            f"{name} is read as if the packed rows were ordered head by head. In torch's layer "
            "the role changes slowest."
        ] = by_head
        mistakes[f"{name} is the whole packed tensor; take a third of its rows."] = packed
        if packed.ndim == 2:
            mistakes[f"{name} is cut by columns; query, key and value are blocks of rows."] = (
                packed.chunk(3, dim=1)[third]
            )
    expect(got, want[name], f"for {what}, {name}:", mistakes)


# --- cross-attention with padding, by torch's layer ----------------------------------------------


@exercise
def cross_attention(candidate: Any) -> str:
    """Ask a padded source by torch's layer: `cross(layer, query, source, lengths)`.

    (B, L, E), (B, S, F), (B,) → the output (B, L, E) and the weights of each head (B, H, L, S).
    """
    # Then as many sequences as queries: there a mask can be lined up wrongly without an error.
    for lengths, L in ((torch.tensor([4, 6]), 5), (torch.tensor([2, 6, 5]), 3)):
        E, H, F, S, B = 12, 3, 8, 7, len(lengths)
        layer = nn.MultiheadAttention(
            E, H, kdim=F, vdim=F, batch_first=True, dtype=torch.float64, device="cpu"
        )
        layer = _random_layer(layer)
        query, source = draw(B, L, E), draw(B, S, F, seed=1)
        real = padding_mask(lengths, S)[:, 0, 0]  # (B, S)

        def by(hide: Tensor | None, layer=layer, query=query, source=source):
            return layer(query, source, source, key_padding_mask=hide, average_attn_weights=False)

        want = by(~real)
        got = _answer_in_some_type(candidate, layer, query, source, lengths)
        if isinstance(got, Tensor):
            raise Wrong("it returns one tensor; asked for is the pair (output, weights).")
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise Wrong("asked for is the pair (output, weights).")
        if all(isinstance(x, Tensor) for x in got):
            if got[0].shape == want[1].shape and got[1].shape == want[0].shape:
                raise Wrong("the two are exchanged: first the output, then the weights.")
            if got[1].shape == (B, L, S):
                raise Wrong(
                    f"the weights are {(B, L, S)}: the average over the heads. Ask for those of "
                    "each head: average_attn_weights=False."
                )
        if got[1] is None:
            raise Wrong("the weights are None: need_weights=False does not return them.")
        j = torch.arange(S)
        wrongs = {
            "the filler is read as if it were real: pass key_padding_mask.": by(None),
            "the mask is upside down: in nn.MultiheadAttention True means “may NOT attend”, so "
            "pass True where the source is filler.": by(real),
            "one filler token is still read: hidden are j ≥ lengths.": by(j > lengths[:, None]),
            "one real token is hidden: hidden are j ≥ lengths.": by(j >= lengths[:, None] - 1),
        }
        if len(set(lengths.tolist())) > 1:
            shortest = j.expand(B, S) >= lengths.min()
            wrongs["every sequence is cut to the shortest; the lengths differ."] = by(shortest)
        for which, part in enumerate(("output", "weights")):
            mistakes = {sentence: wrong[which].detach() for sentence, wrong in wrongs.items()}
            right = want[which].detach()
            close = _without_rounding(got[which], [right, *mistakes.values()])
            expect(close, right, f"for B={B}, L={L}, S={S}, the {part}:", mistakes)
    return "No query reads filler, and each head shows its weights."


def _answer_in_some_type(
    candidate: Any, layer: nn.Module, query: Tensor, source: Tensor, lengths: Tensor
) -> Any:
    """Ask in float64, then in float32: a mask of numbers has to be of the inputs' type."""
    try:
        return answer(candidate, layer, query, source, lengths)
    except Wrong as wrong:
        if wrong.__cause__ is None:
            raise
        single = copy.deepcopy(layer).float()
        try:
            return answer(candidate, single, query.float(), source.float(), lengths)
        except Wrong:
            raise wrong from wrong.__cause__


def _without_rounding(got: Any, exact: list[Tensor]) -> Any:
    """Return the one of `exact` that an answer in float32 stands for, if any."""
    if isinstance(got, Tensor) and got.dtype == torch.float32:
        for x in exact:
            if got.shape == x.shape and torch.allclose(got.detach().double(), x, atol=1e-5):
                return x
    return got


# --- the whole layer -----------------------------------------------------------------------------

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj")
ARGUMENTS = ["query", "key", "value", "attn_mask"]
# Not asked for in the exercise, and no mistake.
OPTIONAL = {"additive mask", "lengths refused", "mask shape refused", "width refused"}
HALF_MASK = "mask in half precision"
MOST = 3  # bugs to tell at once


@exercise
def whole_layer(candidate: Any) -> str:
    """Write multi-head attention as a class; `mha_tutor.check` is the judge.

    `Layer(embed_dim, num_heads)` with `forward(query, key=None, value=None, attn_mask=None)`,
    (B, L, E), (B, S, E), (B, S, E) and a boolean mask → (B, L, E).
    """
    if isinstance(candidate, nn.Module):
        raise Wrong("pass the class itself, without calling it.")
    layer = _made(candidate, 15, 3)
    report = check(layer, "module")
    wrong = [finding for finding in report.violated if finding.name not in OPTIONAL]
    if wrong or report.reason:
        raise Wrong(_in_a_few_words(report, wrong, getattr(candidate, "__name__", "layer")))
    _check_defaults(layer)
    _check_other_size(candidate)
    return "mha_tutor.check finds nothing wrong with it."


def _made(candidate: Any, embed_dim: int, num_heads: int) -> nn.Module:
    layer = answer(candidate, embed_dim, num_heads)
    if not isinstance(layer, nn.Module):
        raise Wrong("the class should be an nn.Module: `class …(nn.Module)`.")
    layer = layer.to("cpu", torch.float64).eval()
    answer(layer, draw(2, 5, embed_dim))  # is there anything yet?
    for name in LINEARS:
        linear = getattr(layer, name, None)
        if not isinstance(linear, nn.Linear):
            raise Wrong(f"there is no self.{name}, or it is no nn.Linear.")
        size = linear.in_features, linear.out_features
        if size == (embed_dim // num_heads,) * 2:
            raise Wrong(
                f"self.{name} is Linear(D, D), shared by the heads. Each head must read all "
                "features: Linear(E, E), then split."
            )
        if size != (embed_dim, embed_dim):
            raise Wrong(
                f"self.{name} is Linear{size}; with embed_dim={embed_dim} it should be "
                f"Linear({embed_dim}, {embed_dim})."
            )
    for first, second in itertools.combinations(LINEARS, 2):
        if getattr(layer, first).weight is getattr(layer, second).weight:
            raise Wrong(
                f"self.{first} and self.{second} share one matrix. Make four linear layers, each "
                "with numbers of its own."
            )
    if getattr(layer, "num_heads", None) != num_heads:
        raise Wrong("keep the number of heads in self.num_heads.")
    names = list(inspect.signature(layer.forward).parameters)
    if names[:4] != ARGUMENTS:
        raise Wrong(f"forward takes {', '.join(ARGUMENTS)}, in this order; yours {names}.")
    return layer


def _in_a_few_words(report: Any, wrong: list, name: str) -> str:
    if not wrong:
        return f"it could not be checked: {report.reason}"
    if [finding.name for finding in wrong] == [HALF_MASK]:  # the empty rows are zeros then
        return (
            f"all holds but a mask in half precision: {_first_detail(wrong)}. A large negative "
            "number may not exist there; fill with −∞, which does."
        )
    told = [str(diagnosis) for diagnosis in report.diagnoses if diagnosis.name != "unknown"]
    if not told:
        detail = _first_detail(wrong)
        told = [f"Should hold: {wrong[0].promise}" + (f" Here {detail}." if detail else "")]
    more = f" {len(wrong)} properties fail; mha_tutor.check({name}(15, 3)) tells the rest."
    return " ".join(told[:MOST]) + (more if len(wrong) > 1 else "")


def _first_detail(wrong: list) -> str:
    return wrong[0].detail.partition("\n")[0]


def _check_defaults(layer: nn.Module) -> None:
    """Call forward(query, key), with as many keys as queries first: there nothing raises."""
    for L, S in ((5, 5), (5, 7)):
        query, key = draw(2, L, 15), draw(2, S, 15, seed=1)
        mistakes = {}
        if L == S:
            mistakes[
                "without a value, forward(query, key) mixes the query; the key should be the "
                "value, too."
            ] = answer(layer, query, key, query).detach()
        want = answer(layer, query, key, key).detach()
        when = f"called as forward(query, key), without a value, for L={L} and S={S}"
        expect(answer(layer, query, key), want, when, mistakes)


def _check_other_size(candidate: Any) -> None:
    """Compare a layer of another size, for who writes a number where a name belongs."""
    layer = _made(candidate, 8, 4)
    ours = MultiHeadAttention(8, 4).double()
    for name in LINEARS:
        mine, theirs = getattr(ours, name), getattr(layer, name)
        with torch.no_grad():
            mine.weight.copy_(theirs.weight)
            mine.bias.copy_(torch.zeros(()) if theirs.bias is None else theirs.bias)
    query, source = draw(3, 7, 8), draw(3, 2, 8, seed=1)
    mask = torch.tensor([[True, False]] * 3 + [[True, True]] * 4)
    when = "it holds for embed_dim=15 and 3 heads, but for 8 and 4"
    expect(answer(layer, query), ours(query).detach(), when)
    got = answer(layer, query, source, source, attn_mask=mask)
    expect(got, ours(query, source, attn_mask=mask).detach(), f"{when}, with a mask,")
