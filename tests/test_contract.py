"""The contract: right attentions pass, each mutant is caught and named, bad candidates are told.

This is a sample; `make mutants` computes the figures in full.
"""

import itertools
import json
import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mha_tutor
from mha_tutor import check
from mha_tutor.contract import (
    FORMS,
    MUTANTS,
    Report,
    Verdict,
    adapters,
    combine,
    find_mutant,
    readings,
    trial,
)
from mha_tutor.contract.bench import Bench
from mha_tutor.contract.subjects import FunctionSubject, ModuleSubject
from mha_tutor.contract.trial import (
    load_bugs,
    random_pairs,
    right_attentions,
    try_bug,
    try_mutant,
    try_pair,
)
from mha_tutor.contract.watch import Clock

UNSEEN = Path(__file__).parent / "unseen_bugs.py"
RIGHT = {name: (make, options) for name, make, options in right_attentions(others=False)}
# Three of four mutants, each in one form; `make mutants` takes all of them in every form.
SAMPLE = [
    (mutant, sorted(mutant.forms)[i % len(mutant.forms)])
    for i, mutant in enumerate(MUTANTS)
    if i % 4 != 3
]
sdpa = nn.functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- what is right passes ------------------------------------------------------------------------


@pytest.mark.parametrize("name", RIGHT)
def test_right_attentions_hold(name):
    make, options = RIGHT[name]
    report = check(make(), seed=11, **options)
    assert report, report


def test_torch_function_shows_what_it_lets_pass():
    report = check(sdpa)
    assert report
    query = torch.randn(1, 1, 3, 2)
    try:  # PyTorch 2.13 lets it pass, 2.14 refuses: ask the one that is here
        sdpa(query, query, query, torch.ones(3, 3, dtype=torch.bool), is_causal=True)
        passes = ["mask with causal"]
    except RuntimeError:
        passes = []
    assert [f.name for f in report.conventions] == ["lengths refused", *passes]


def test_torch_module_shows_its_conventions():
    names = {f.name for f in check(nn.MultiheadAttention(12, 3)).conventions}
    assert {"one tensor", "polarity"} <= names


class Plain(nn.Module):
    """Self-attention under other names, causal by itself."""

    def __init__(self, d_model=12, heads=3, shift=0):
        super().__init__()
        self.heads, self.shift = heads, shift
        self.to_qkv = nn.Linear(d_model, 3 * d_model)
        self.to_out = nn.Linear(d_model, d_model)

    def forward(self, x):
        q, k, v = (mha_tutor.split_heads(t, self.heads) for t in self.to_qkv(x).chunk(3, -1))
        mask = mha_tutor.causal_mask(x.shape[1], offset=self.shift, device=x.device)
        return self.to_out(mha_tutor.merge_heads(sdpa(q, k, v, mask)))


def test_a_layer_with_other_names_that_is_causal_by_itself():
    report = check(Plain(), causal=True)
    assert report, report
    verdicts = {f.name: f.verdict for f in report.findings}
    assert verdicts["permutation"] == Verdict.NOT_APPLICABLE
    assert verdicts["parity"] == verdicts["future"] == Verdict.HOLDS
    found = check(Plain())
    assert found, found
    assert "taken for causal by itself" in str(found)
    assert not check(Plain(), causal=False)
    assert check(Plain(shift=1), causal=True).names == ("causal-sees-one-ahead",)


class Packed(nn.Module):
    """Causal self-attention whose packed map is cut in some way, with dropout in two places."""

    def __init__(self, cut, scale=4**-0.5, context=100, shared=False):
        super().__init__()
        self.n_head, self.scale, self.cut, self.shared = 3, scale, cut, shared
        self.c_attn, self.attn_dropout = nn.Linear(12, 36), nn.Dropout(0.1)
        self.c_proj = nn.Sequential(nn.Linear(12, 12), nn.Dropout(0.1))
        self.register_buffer("mask", torch.ones(context, context, dtype=torch.bool).tril())

    def forward(self, x):
        L = x.shape[1]
        q, k, v = self.cut(self.c_attn(x))  # each (B, H, L, D)
        scores = (q @ k.mT * self.scale).masked_fill(~self.mask[:L, :L], float("-inf"))
        weights = torch.softmax(scores, -1)
        if self.shared:
            weights = weights * self.attn_dropout(torch.ones_like(weights[:, :1]))
        else:
            weights = self.attn_dropout(weights)
        return self.c_proj(mha_tutor.merge_heads(weights @ v))


def one_after_the_other(x):
    return x.unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)


def side_by_side(x):
    return x.unflatten(-1, (3, 3, 4)).permute(3, 0, 2, 1, 4)


def in_turn(x):
    return x.unflatten(-1, (3, 4, 3)).permute(4, 0, 2, 1, 3)


def key_first(x):
    k, q, v = one_after_the_other(x)
    return q, k, v


CUTS = [one_after_the_other, side_by_side, in_turn, key_first]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.__name__)
def test_a_packed_map_may_be_cut_in_any_way(cut):
    report = check(Packed(cut))
    assert report, report
    assert "parity" in [f.name for f in report.with_verdict(Verdict.HOLDS)]


def test_a_bug_is_named_under_the_layout_of_the_candidate():
    assert check(Packed(side_by_side, scale=12**-0.5)).names == ("scale-sqrt-embed-dim",)


def test_dropout_of_the_weights_is_seen_behind_dropout_of_the_output():
    report = check(Packed(one_after_the_other, shared=True))
    assert [f.name for f in report.violated] == ["dropout apart"]
    assert report.names == ("dropout-shared-by-heads",)


def test_a_layer_for_short_sequences_is_not_asked_for_long_ones():
    assert check(Packed(one_after_the_other, context=6))


class Listed(nn.Module):
    """The Annotated Transformer's way to keep the weights, or none that tells anything."""

    def __init__(self, listed=True, order=(0, 1, 2, 3), fill=float("-inf")):
        super().__init__()
        maps = [nn.Linear(12, 12) for _ in range(4)]
        if listed:
            self.linears = nn.ModuleList(maps)
        else:
            self.one, self.two, self.three = maps[:3]
            self.last = nn.Sequential(maps[3])
        self.h, self.order, self.fill = 3, order, fill

    def forward(self, query, key, value, mask=None):
        maps = [part for part in self.modules() if isinstance(part, nn.Linear)]
        a, b, c, out = (maps[i] for i in self.order)
        projected = zip((a, b, c), (query, key, value), strict=True)
        q, k, v = (mha_tutor.split_heads(linear(x), 3) for linear, x in projected)
        scores = q @ k.mT / 2
        if mask is not None:
            scores = scores.masked_fill(~mask, self.fill)
        return out(mha_tutor.merge_heads(torch.softmax(scores, -1) @ v))


@pytest.mark.parametrize(
    "options", [{}, {"listed": False}, {"listed": False, "order": (1, 0, 2, 3)}]
)
def test_weights_are_found_by_their_order(options):
    report = check(Listed(**options), allow=["empty row"])
    assert report, report
    assert "parity" in [f.name for f in report.with_verdict(Verdict.HOLDS)]


@pytest.mark.parametrize("fill", [-1e4, -1e9, torch.finfo(torch.float32).min])
def test_a_bug_is_known_by_any_of_its_numbers(fill):
    assert check(Listed(fill=fill)).names == ("fill-finite",)


def test_a_declared_polarity_is_a_convention():
    def inverted(query, key, value, attn_mask=None):
        return sdpa(query, key, value, None if attn_mask is None else _turned(attn_mask))

    assert check(inverted).names == ("mask-inverted",)
    report = check(inverted, mask_true="hide")
    assert report, report
    assert "polarity" in [f.name for f in report.conventions]


def _turned(mask):
    return ~mask if mask.dtype == torch.bool else mask


def test_allow_makes_a_violation_a_convention():
    nan = find_mutant("empty-row-is-nan").function()
    assert not check(nan)
    report = check(nan, allow=["empty_row"])
    assert [f.name for f in report.conventions] == ["empty row"]
    assert report, report


# --- what is not known is told first -------------------------------------------------------------


class OwnNames(nn.Module):
    """Self-attention whose names, arguments and number of heads nobody can know."""

    def __init__(self, scale=4**-0.5, extra=False, **maps):
        super().__init__()
        self.extra = nn.Linear(12, 12) if extra else nn.Identity()
        self.ask, self.offer = nn.Linear(12, 12), nn.Linear(12, 12)
        self.tell, self.mixer = nn.Linear(12, 12), nn.Linear(12, 12)
        self.n_parts, self.scale = 3, scale

    def forward(self, x, autoreg=False, pad=None, need_weights=False):
        x = self.extra(x)
        maps = (self.ask, self.offer, self.tell)
        q, k, v = (mha_tutor.split_heads(linear(x), self.n_parts) for linear in maps)
        return self.mixer(mha_tutor.merge_heads(sdpa(q, k, v, scale=self.scale)))


def test_a_layer_judged_from_outside_does_not_look_like_a_pass():
    report = check(OwnNames(scale=12**-0.5, extra=True))
    holds = len(report.with_verdict(Verdict.HOLDS))
    head = f"{holds} of {holds} properties that could be asked hold; {len(report.not_asked)} could"
    assert head in report.headline
    assert "its weights were not found, and its number of heads is not known" in report.headline
    second = str(report).split("\n? ")[1]
    for word in ("num_heads=…", "`Adapter`", "documentation of `check`"):
        assert word in " ".join(second.split())
    assert "`autoreg`, `pad`." in str(report)
    assert "left at their defaults: `need_weights`" in str(report)
    told = {f.name: f.verdict for f in report.findings}
    assert told["parity"] == told["mask"] == told["causal"] == Verdict.NOT_ASKED
    assert told["cross"] == told["mask with dropout"] == Verdict.NOT_APPLICABLE
    assert "num_heads=" not in str(check(OwnNames(extra=True), num_heads=3))


def test_strict_asks_for_parity():
    hidden = OwnNames(extra=True)
    assert check(hidden)
    report = check(hidden, strict=True)
    assert not report
    assert "not compared with the formula" in report.reason
    assert report.exit_status == 2
    assert Report.from_json(report.to_json()) == report
    assert check(OwnNames(), strict=True)
    assert check(OwnNames(scale=1.0), strict=True).exit_status == 1


def test_a_layer_that_fits_nowhere_may_be_wrong():
    report = check(OwnNames(scale=0.123))
    assert "not found where they were looked for" in report.headline
    assert "it is wrong, or they lie elsewhere" in report.missing[0]


@pytest.mark.parametrize("options", [{}, {"num_heads": 3}])
def test_a_number_of_heads_is_tried_and_verified(options):
    report = check(OwnNames(), **options)
    assert "parity" in [f.name for f in report.with_verdict(Verdict.HOLDS)], report
    assert check(OwnNames(scale=12**-0.5), **options).names == ("scale-sqrt-embed-dim",)


def test_all_known_names_are_documented():
    words = set(re.findall(r"\w+", check.__doc__))
    known = readings.QUERY_NAMES + readings.OUT_NAMES + readings.PACKED_NAMES
    known = known + adapters.HEAD_NAMES + adapters.WIDTH_NAMES
    for name in known + adapters.MASK_NAMES + adapters.CAUSAL_NAMES:
        assert name in words, name


class Bare(nn.Module):
    """torch's names, or a matrix for each map, without modules."""

    def __init__(self, packed=True, scale=4**-0.5):
        super().__init__()
        self.num_heads, self.scale, self.packed = 3, scale, packed
        if packed:
            self.in_proj_weight = nn.Parameter(torch.zeros(36, 12))
            self.in_proj_bias = nn.Parameter(torch.zeros(36))
            self.out_proj = nn.Linear(12, 12)
        else:
            self.W_q, self.W_k = (
                nn.Parameter(torch.zeros(12, 12)),
                nn.Parameter(torch.zeros(12, 12)),
            )
            self.W_v, self.W_o = (
                nn.Parameter(torch.zeros(12, 12)),
                nn.Parameter(torch.zeros(12, 12)),
            )
            self.b_q = nn.Parameter(torch.zeros(12))

    def forward(self, x):
        if self.packed:
            maps = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            maps = x @ self.W_q + self.b_q, x @ self.W_k, x @ self.W_v
        q, k, v = (mha_tutor.split_heads(each, 3) for each in maps)
        merged = mha_tutor.merge_heads(sdpa(q, k, v, scale=self.scale))
        return self.out_proj(merged) if self.packed else merged @ self.W_o


@pytest.mark.parametrize("packed", [True, False])
def test_parameters_without_a_module_are_recognized(packed):
    report = check(Bare(packed))
    assert "parity" in [f.name for f in report.with_verdict(Verdict.HOLDS)], report
    assert check(Bare(packed, scale=1.0)).names == ("scale-none",)


@pytest.mark.parametrize("name", ["Wqkv", "qkv_proj", "query_key_value", "to_qkv", "c_attn"])
def test_a_packed_map_has_many_names(name):
    layer = Packed(one_after_the_other)
    layer.__class__ = type("Renamed", (Packed,), {"c_attn": property(lambda s: getattr(s, name))})
    if name != "c_attn":
        layer._modules[name] = layer._modules.pop("c_attn")
    else:
        layer.__class__ = Packed
    report = check(layer, strict=True)
    assert report, report


def test_what_true_means_is_said_as_it_is_used():
    def mirrored(mask):
        return None if mask is None else ~mask

    class Hides(Listed):
        def forward(self, query, key, value, mask=None):
            return super().forward(query, key, value, mirrored(mask))

    report = check(Hides(), mask_true="hide", allow=["empty row"])
    assert report, report
    assert "True = may not attend" in str(report)
    assert "True = may attend" not in str(report)
    for candidate, form in ((Plain(), None), (clamped, None), (mha_tutor.causal_mask, "causal")):
        report = check(candidate, form, mask_true="hide")
        assert "mask_true='hide' has no effect" in " ".join(str(report).split())


# --- what is wrong is caught, and named ----------------------------------------------------------


def test_the_catalog_is_large_and_well_formed():
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        assert mutant.forms <= set(FORMS), mutant.name
        assert mutant.forms, mutant.name
        assert mutant.story.endswith("."), mutant.name
        assert 1 <= mutant.chapter <= 6, mutant.name


@pytest.mark.parametrize(("mutant", "form"), SAMPLE, ids=lambda x: getattr(x, "name", x))
def test_mutants_are_rejected_and_named(mutant, form):
    report = try_mutant(mutant, form, seed=3)
    assert not report
    if form != "black box":  # from outside a bug can be seen, rarely named
        assert report.names == (mutant.name,), report


@pytest.mark.parametrize("pair", random_pairs(3, seed=5), ids=lambda p: f"{p[0].name}+{p[1].name}")
def test_of_two_bugs_one_is_named_at_least(pair):
    report = try_pair(*pair)
    assert not report
    assert set(report.names) & {pair[0].name, pair[1].name}, report


@pytest.mark.parametrize("form", ["function", "module"])
def test_no_two_names_stand_for_the_same_numbers(form):
    """Else one of them would be named beside the other, and wrongly."""
    clock, cpu = Clock(), torch.device("cpu")
    if form == "function":
        subject = FunctionSubject(sdpa, "", cpu, clock)
    else:
        layer = mha_tutor.MultiHeadAttention(12, 3)
        subject = ModuleSubject(layer, adapters.adapter_for(layer), "", cpu, clock)
    subject.takes_causal = False  # the fewer questions, the more is alike
    bench = Bench(subject)
    given = [(suspect.name, bench.ask((suspect.steps,))) for suspect in bench.suspects]

    def agree(one, other):
        return all(bench.agree(a, b) for a, b in zip(one, other, strict=True))

    wrong = [(name, answers) for name, answers in given if not agree(answers, bench.right)]
    assert len(wrong) > 50
    for (one, answers), (other, same) in itertools.combinations(wrong, 2):
        assert one == other or not agree(answers, same), (one, other)


def test_pairs_on_one_step_are_refused():
    with pytest.raises(ValueError, match="both replace scale"):
        combine(find_mutant("scale-none"), find_mutant("scale-head-dim"))


def test_a_renaming_is_no_bug_from_outside():
    """What a mutant does not declare cannot be seen; else `forms` would be a poor excuse."""
    layer = find_mutant("query-and-key-projections-swapped").layer(12, 3)
    assert check(layer, black_box=True)


BUGS = load_bugs(UNSEEN)
HARD = {"gpt-dropout-shared-by-heads", "function-scores-clamped", "function-root-of-scores"}
SECOND_SET = [bug for i, bug in enumerate(BUGS) if i % 4 == 0 or bug.name in HARD]


@pytest.mark.parametrize("bug", SECOND_SET, ids=lambda bug: bug.name)
def test_bugs_written_apart_are_rejected_and_given_no_wrong_name(bug):
    report = try_bug(bug)
    assert not report
    assert set(report.names) <= bug.right_names | {"unknown"}


def test_a_small_fill_is_seen_where_hidden_scores_are_great():
    report = check(Listed(fill=-100.0), allow=["empty row"])
    assert [f.name for f in report.violated] == ["mask"]
    assert report.names == ("fill-too-small",)


def test_one_pattern_for_all_heads_is_no_matter_of_dropout():
    assert try_mutant(find_mutant("heads-shared"), "function").names == ("heads-shared",)


def clamped(query, key, value):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return torch.softmax(scores.clamp(-20, 20), -1) @ value


def lost_when_long(query, key, value):
    return sdpa(query, key, value) * (float("nan") if query.abs().max() > 50 else 1.0)


@pytest.mark.parametrize("candidate", [clamped, lost_when_long], ids=lambda f: f.__name__)
def test_great_scores_go_wrong_in_many_ways(candidate):
    report = check(candidate)
    assert "large scores" in [f.name for f in report.violated]
    assert "unknown" in report.names
    assert "softmax-overflows" not in report.names


def test_a_bug_that_is_in_no_catalog_is_unknown():
    def odd(query, key, value):
        return sdpa(query, key, value) + 0.1 * query.mean()

    assert check(odd).names == ("unknown",)


class Several(nn.Module):
    """A layer with the textbook's mask, which refuses floating-point masks, and other bugs."""

    def __init__(self, scale=4**-0.5, values=False, merge=False, zeros=False):
        super().__init__()
        self.num_heads, self.scale, self.zeros = 3, scale, zeros
        self.q_proj, self.k_proj = nn.Linear(12, 12), nn.Linear(12, 12)
        self.v_proj, self.out_proj = nn.Linear(12, 12), nn.Linear(12, 12)
        split, wrong = mha_tutor.split_heads, find_mutant("split-without-transpose").split
        self.split_values = wrong if values else split
        wrong = find_mutant("merge-without-transpose").merge
        self.merge = wrong if merge else mha_tutor.merge_heads

    def forward(self, query, key, value, attn_mask=None):
        q = mha_tutor.split_heads(self.q_proj(query), 3)
        k = mha_tutor.split_heads(self.k_proj(key), 3)
        v = self.split_values(self.v_proj(value), 3)
        scores = q @ k.mT * self.scale
        if attn_mask is not None:
            hidden = attn_mask == 0 if self.zeros else ~attn_mask
            scores = scores.masked_fill(hidden, float("-inf"))
        return self.out_proj(self.merge(torch.softmax(scores, -1) @ v))


def test_what_the_named_bugs_do_not_explain_is_told():
    report = check(Several(values=True))
    assert report.names == ("empty-row-is-nan", "unknown")
    said = report.diagnoses[-1].sentence
    assert said.startswith("There is more: parity, ")
    assert "sum over heads" in said
    assert "empty row" not in said
    report = check(Several(values=True), black_box=True)
    assert report.names == ("empty-row-is-nan", "unknown")
    assert "masked key" in report.diagnoses[-1].sentence
    assert check(Several()).names == ("empty-row-is-nan",)
    assert check(Several(), black_box=True).names == ("empty-row-is-nan",)


def test_parts_tell_what_is_not_explained():
    def shouting(x):
        print("merge")
        return find_mutant("merge-without-transpose").merge(x)

    report = check(shouting, "merge")
    assert report.names == ("merge-without-transpose", "unknown")
    assert report.diagnoses[-1].sentence == "There is more: no trace is not explained by this."


def test_bugs_are_named_next_to_one_that_is_proved():
    report = check(Several(scale=12**-0.5, merge=True))
    wanted = {"scale-sqrt-embed-dim", "merge-without-transpose", "empty-row-is-nan"}
    assert set(report.names) == wanted
    more = check(Several(scale=12**-0.5, merge=True, zeros=True))
    assert more.names[-1] == "unknown"
    assert "some numbers are not explained" in str(more)


def test_fixed_sizes_are_said():
    report = check(find_mutant("scale-none").function())
    told = next(f for f in report.violated if f.name == "low precision")
    assert told.example == ""
    assert told.detail.startswith("with B=1 H=3 L=11 S=13 D=16 the error in")


def into_the_mask(query, key, value, attn_mask=None):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if attn_mask is None or attn_mask.dtype == torch.bool or attn_mask.shape != scores.shape:
        return sdpa(query, key, value, attn_mask)
    return torch.softmax(attn_mask.add_(scores), -1) @ value


def scaling_the_mask(query, key, value, attn_mask=None):
    if attn_mask is not None and attn_mask.dtype != torch.bool and attn_mask.ndim == 2:
        attn_mask.mul_(1.5).div_(1.5).add_(1.0)
    return sdpa(query, key, value, attn_mask)


class FillingTheMask(Listed):
    def forward(self, query, key, value, mask=None):
        out = super().forward(query, key, value, mask)
        return out if mask is None else out + 0 * mask.fill_(True).sum()


@pytest.mark.parametrize("candidate", [into_the_mask, scaling_the_mask, FillingTheMask()])
def test_a_mask_that_is_changed_is_noticed(candidate):
    report = check(candidate, allow=["empty row"])
    told = {f.name: f.detail for f in report.violated}
    assert "mask" in told["inputs kept"], report
    assert "written to" in told["inputs kept"] or "in place" in told["inputs kept"]


def test_a_single_query_is_asked_for_causal_attention():
    def careless(query, key, value, attn_mask=None, is_causal=False):
        is_causal = is_causal and query.shape[-2] > 1
        return sdpa(query, key, value, attn_mask, is_causal=is_causal)

    report = check(careless)
    assert "causal" in [f.name for f in report.violated]
    assert "for L=1, S=2" in str(report)


class DropsFeatures(Packed):
    """Dropout of features: of what is mixed, of the values, or of the output."""

    def __init__(self, where):
        super().__init__(one_after_the_other)
        self.where, self.drop = where, nn.Dropout(0.1)
        self.c_proj, self.attn_dropout = nn.Linear(12, 12), nn.Identity()

    def forward(self, x):
        L = x.shape[1]
        drop = {self.where: self.drop}.get
        q, k, v = self.cut(self.c_attn(x))
        mixed = sdpa(q, k, drop("values", nn.Identity())(v), self.mask[:L, :L])
        merged = drop("mixed", nn.Identity())(mha_tutor.merge_heads(mixed))
        return drop("output", nn.Identity())(self.c_proj(merged))


@pytest.mark.parametrize("where", ["mixed", "values", "output"])
def test_dropout_of_features_is_no_dropout_of_weights(where):
    told = {f.name: f.detail for f in check(DropsFeatures(where)).violated}
    if where == "output":
        assert told == {}
    else:
        assert "drops features of the values" in told["dropout"]


def test_dropout_of_features_is_seen_in_functions():
    def wrong(query, key, value, dropout_p=0.0):
        return nn.functional.dropout(sdpa(query, key, value), dropout_p)

    told = {f.name: f.detail for f in check(wrong).violated}
    assert "drops features of the values" in told["dropout"]


def test_a_mask_of_numbers_is_no_fill_that_is_too_small():
    class Adds(Listed):
        def forward(self, query, key, value, mask=None):
            if mask is not None:
                q, k, v = (
                    mha_tutor.split_heads(f(x), 3)
                    for f, x in zip(self.linears, (query, key, value), strict=False)
                )
                weights = torch.softmax(q @ k.mT / 2 + mask, -1)
                return self.linears[3](mha_tutor.merge_heads(weights @ v))
            return super().forward(query, key, value)

    assert check(Adds()).names == ("mask-added-as-numbers",)


def test_always_causal_in_training_only_is_told_from_an_option():
    class Forgetful(Packed):
        def forward(self, x):
            q, k, v = self.cut(self.c_attn(x))
            heads = sdpa(q, k, v, is_causal=self.training)
            return self.c_proj(mha_tutor.merge_heads(heads))

    assert check(Forgetful(one_after_the_other), causal=True).names[0] == "mask-ignored-in-eval"


def test_the_smallest_failing_case_is_small():
    finding = next(f for f in check(find_mutant("scale-none").function()).violated)
    assert finding.name == "parity"
    assert "B=1 H=1 L=1 S=2" in finding.example


def test_parts_are_diagnosed_with_the_numbers():
    wrong = find_mutant("merge-without-transpose")
    report = check(wrong.merge, "merge")
    assert report.names == (wrong.name,)
    assert report.diagnoses[0].chapter == 2
    assert "the right answer is" in report.violated[0].detail
    pair = check((mha_tutor.split_heads, wrong.merge))
    assert pair.names == (wrong.name,)


# --- candidates that misbehave -------------------------------------------------------------------


def raises(query, key, value):
    raise RuntimeError("no idea")


def nothing(query, key, value):
    return None


def a_pair(query, key, value):
    return sdpa(query, key, value), None


def not_a_number(query, key, value):
    return sdpa(query, key, value) * float("nan")


def exits(query, key, value):
    raise SystemExit(3)


def too_wide(query, key, value):
    return torch.cat([sdpa(query, key, value)] * 2, dim=-1)


def always_float32(query, key, value):
    return sdpa(query, key, value).float()


def printing(query, key, value):
    print("hello")
    return sdpa(query, key, value)


def seeding(query, key, value):
    torch.manual_seed(0)
    return sdpa(query, key, value)


def changing_the_default_dtype(query, key, value):
    torch.set_default_dtype(torch.float64)
    return sdpa(query, key, value)


def changing_its_input(query, key, value):
    out = sdpa(query, key, value)
    with torch.no_grad():
        value.zero_()
    return out


MISBEHAVING = {
    raises: "it raises RuntimeError: no idea",
    nothing: "it returns None",
    a_pair: "it returns a tuple of 2",
    not_a_number: "numbers differ",
    exits: "it raises SystemExit",
    too_wide: "the shape is",
    always_float32: "comes out as float32",
    printing: "it prints: hello",
    seeding: "it sets the global random seed of torch",
    changing_the_default_dtype: "it changes torch's default dtype to torch.float64",
    changing_its_input: "value is changed in place",
}


@pytest.mark.parametrize("candidate", MISBEHAVING, ids=lambda f: f.__name__)
def test_bad_candidates_are_told_in_a_sentence(candidate, capsys):
    before = torch.get_default_dtype(), torch.get_rng_state()
    report = check(candidate)
    assert not report
    said = " ".join(f.detail for f in report.violated)
    assert MISBEHAVING[candidate] in said
    assert torch.get_default_dtype() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("candidate", [raises, not_a_number], ids=lambda f: f.__name__)
def test_what_never_works_is_no_proof_of_a_bug(candidate):
    assert check(candidate).names == ("unknown",)


def test_view_that_always_fails_is_no_matter_of_contiguous_inputs():
    def split(x, num_heads):
        B, L, _ = x.shape
        return x.transpose(0, 1).view(B, num_heads, L, -1)

    report = check(split, "split")
    assert "view size is not compatible" in str(report)
    assert report.names == ("unknown",)


class LastKey(nn.Module):
    """It hears the last key alone, whatever the mask says."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 12)

    def forward(self, query, key, value, mask=None):
        return self.linear(value[:, -1:]).expand(-1, query.shape[1], -1)


def wrong_sign(query, key, value, attn_mask=None):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, 1e9)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1) @ value


def halves_upcast(query, key, value):
    x = (query, key, value)
    return sdpa(*(t.float() if t.dtype in (torch.half, torch.bfloat16) else t for t in x))


NOT_SO = [
    (LastKey(), "mask-inverted"),
    (wrong_sign, "fill-finite"),
    (halves_upcast, "dtype-lost"),
]


@pytest.mark.parametrize(
    ("candidate", "name"), NOT_SO, ids=lambda x: x if isinstance(x, str) else ""
)
def test_what_only_looks_like_a_bug_is_not_named_after_it(candidate, name):
    report = check(candidate)
    assert not report
    assert name not in report.names


def test_other_generators_of_random_numbers_are_no_state():
    def noisy(query, key, value):
        return sdpa(query, key, value) + float(np.random.rand())  # noqa: NPY002
        +random.random()

    report = check(noisy)
    assert "two equal calls differ, by random numbers" in str(report)
    assert report.names == ("unknown",)


def test_a_slow_candidate_runs_out_of_time():
    def slow(query, key, value):
        time.sleep(0.05)
        return sdpa(query, key, value)

    report = check(slow, timeout=0.2)
    assert not report
    assert "time limit of 0.2 s" in report.reason
    assert report.exit_status == 2


def test_the_candidate_itself_is_left_alone():
    layer = nn.MultiheadAttention(12, 3)
    before = [p.clone() for p in layer.parameters()]
    check(layer)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert layer.training


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="form must be one of"):
        check(sdpa, "nonsense")
    with pytest.raises(ValueError, match="no property is called 'nonsense'"):
        check(sdpa, allow=["nonsense"])
    with pytest.raises(ValueError, match="mask_true must be"):
        check(sdpa, mask_true="maybe")
    with pytest.raises(TypeError, match="a class must be called first"):
        check(nn.MultiheadAttention)


# --- the report ----------------------------------------------------------------------------------


def test_the_report_reads_well():
    report = check(find_mutant("scale-sqrt-embed-dim").function())
    text = str(report)
    assert "divided by √embed_dim instead of √head_dim. (chapter 4)" in text
    assert max(map(len, text.splitlines())) <= 78
    page = report._repr_html_()
    assert page.count("<tr>") == len(report.findings) + 1
    assert "√embed_dim" in page
    assert page.count("<th>") == 2
    assert "`" not in page
    assert "<code>is_causal</code>" in page
    assert "overflow-x: auto" in page


def test_the_report_survives_json():
    report = check(find_mutant("scale-none").function())
    assert Report.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["exit_status"] == 1


# --- the trial itself ----------------------------------------------------------------------------

SOME_BUGS = """
from torch.nn.functional import scaled_dot_product_attention as sdpa
from mha_tutor.contract.trial import Bug

def scaled(q, k, v):
    return sdpa(q, k, v, scale=1.0)

def function(wrong):
    return lambda: wrong

BUGS = [
    Bug("a", "No scale.", function(scaled), "function", {}, frozenset({"scale-none"})),
    Bug("b", "No scale, they say.", function(scaled), "function"),
    Bug("c", "Right.", function(sdpa), "function"),
    Bug("d", "Shifted.", function(lambda q, k, v: sdpa(q, k, v) + 0.1), "function"),
]
"""


def test_the_trial_counts_what_is_wrong_with_the_contract(tmp_path, monkeypatch, capsys):
    few = [find_mutant("scale-none"), find_mutant("dropout-unscaled")]
    named = find_mutant("scale-none").function()
    monkeypatch.setattr(trial, "MUTANTS", few)
    monkeypatch.setattr(trial, "random_pairs", lambda number: [(*few, "function")][:number])
    rights = [("right", lambda: sdpa, {}), ("wrong", lambda: named, {})]
    monkeypatch.setattr(trial, "right_attentions", lambda: rights)
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(SOME_BUGS)
    unseen = [f"--unseen={tmp_path / name}" for name in ("one.py", "two.py")]
    output = tmp_path / "figures" / "contract.json"
    trial.main([str(output), "--seeds=2", "--pairs=1", "--quiet", *unseen])
    figures = json.loads(output.read_text())
    counts = figures["summary"]
    assert counts["checks of right attentions"] == 4
    assert counts["false alarms"] >= 2
    assert figures["right"][0]["false alarms"] == {}
    assert figures["right"][1]["false alarms"]["parity"] == 2
    assert counts["mutants rejected"] == counts["mutants in all their forms"] == 5
    assert counts["mutants named rightly"] == counts["mutants that can be named"] == 4
    assert counts["pairs with both named rightly"] == 1
    assert [bug["verdict"] for bug in figures["unseen"]["one.py"]] == [
        "named rightly",
        "named wrongly",
        "accepted",
        "unknown",
    ]
    assert counts["one.py"] == counts["two.py"]
    assert figures["made"]["torch"] == torch.__version__
    assert "one.py: 4 bugs, 3 rejected" in capsys.readouterr().out


def test_the_trial_refuses_a_set_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        trial.main([str(tmp_path / "x.json"), "--unseen", "nowhere.py"])
    assert "there is no file nowhere.py" in capsys.readouterr().err
