"""The contract: right attentions pass, each mutant is caught and named, bad candidates are told.

This is a sample; `make mutants` computes the figures in full.
"""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import mha_tutor
from mha_tutor import check
from mha_tutor.contract import FORMS, MUTANTS, Report, Verdict, combine, find_mutant
from mha_tutor.contract.trial import (
    load_bugs,
    random_pairs,
    right_attentions,
    try_bug,
    try_mutant,
    try_pair,
)

UNSEEN = Path(__file__).parent / "unseen_bugs.py"
RIGHT = {name: (make, options) for name, make, options in right_attentions(others=False)}
SAMPLE = [(mutant, sorted(mutant.forms)[i % len(mutant.forms)]) for i, mutant in enumerate(MUTANTS)]
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
    assert [f.name for f in report.conventions] == ["lengths refused", "mask with causal"]


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


@pytest.mark.parametrize("pair", random_pairs(4, seed=5), ids=lambda p: f"{p[0].name}+{p[1].name}")
def test_of_two_bugs_one_is_named_at_least(pair):
    report = try_pair(*pair)
    assert not report
    assert set(report.names) & {pair[0].name, pair[1].name}, report


def test_pairs_on_one_step_are_refused():
    with pytest.raises(ValueError, match="both replace scale"):
        combine(find_mutant("scale-none"), find_mutant("scale-head-dim"))


def test_a_renaming_is_no_bug_from_outside():
    """What a mutant does not declare cannot be seen; else `forms` would be a poor excuse."""
    layer = find_mutant("query-and-key-projections-swapped").layer(12, 3)
    assert check(layer, black_box=True)


SECOND_SET = load_bugs(UNSEEN)[::3]  # the whole set is for `make mutants`


@pytest.mark.parametrize("bug", SECOND_SET, ids=lambda bug: bug.name)
def test_bugs_written_apart_are_rejected_and_given_no_wrong_name(bug):
    report = try_bug(bug)
    assert not report
    assert set(report.names) <= bug.right_names | {"unknown"}


def test_a_bug_that_is_in_no_catalog_is_unknown():
    def odd(query, key, value):
        return sdpa(query, key, value) + 0.1 * query.mean()

    assert check(odd).names == ("unknown",)


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


def test_a_refusal_is_no_proof_of_a_bug():
    assert check(raises).names == ("unknown",)


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
    assert max(map(len, text.splitlines())) <= 88
    page = report._repr_html_()
    assert page.count("<tr>") == len(report.findings) + 1
    assert "√embed_dim" in page


def test_the_report_survives_json():
    report = check(find_mutant("scale-none").function())
    assert Report.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["exit_status"] == 1
