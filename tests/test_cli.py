"""The command line: exit status, isolation, what it says without arguments."""

import json
import subprocess
import sys
import textwrap

import pytest

from mha_tutor.cli import main

FILE = """
import os, time
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

def wrong(query, key, value):
    print("noise")
    return torch.softmax(query @ key.mT, dim=-1) @ value

def sleeps(query, key, value):
    time.sleep(1000)

class Hidden(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.maps = torch.nn.Sequential(*(torch.nn.Linear(12, 12) for _ in range(5)))

    def forward(self, x):
        first, q, k, v, out = self.maps
        x = first(x)
        return out(sdpa(q(x), k(x), v(x)))

def dies(query, key, value):
    os._exit(7)
"""


@pytest.fixture
def _candidates(tmp_path, monkeypatch):
    (tmp_path / "some_candidates.py").write_text(textwrap.dedent(FILE))
    monkeypatch.chdir(tmp_path)


def test_alone_it_says_what_it_can_do(capsys):
    assert main([]) == 0
    assert "mha-tutor check torch.nn:MultiheadAttention" in capsys.readouterr().out


def test_torch_module_holds(capsys):
    status = main(["check", "torch.nn:MultiheadAttention", "--kwargs", "embed_dim=12,num_heads=3"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "documented conventions" in said
    assert "True means “may not attend”" in said


@pytest.mark.usefixtures("_candidates")
def test_a_wrong_function_is_named_in_json(capsys):
    assert main(["check", "some_candidates:wrong", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["holds"] is False
    assert report["diagnoses"][0]["name"] == "scale-none"


@pytest.mark.usefixtures("_candidates")
def test_strict_lets_no_layer_pass_that_was_judged_from_outside(capsys):
    assert main(["check", "some_candidates:Hidden"]) == 0
    assert "4 could not (its weights" in capsys.readouterr().out
    assert main(["check", "some_candidates:Hidden", "--strict"]) == 2
    assert "strict: it was not compared with the formula" in capsys.readouterr().out


@pytest.mark.usefixtures("_candidates")
def test_a_candidate_that_hangs_is_stopped(capsys):
    assert main(["check", "some_candidates:sleeps", "--timeout", "4"]) == 2
    assert "did not come to an end within 4 s" in capsys.readouterr().out


@pytest.mark.usefixtures("_candidates")
def test_a_candidate_that_ends_the_process_is_told(capsys):
    assert main(["check", "some_candidates:dies"]) == 2
    assert "its process ended with status 7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such_module:x"], "no_such_module cannot be imported"),
        (["json"], "must be written package.module:Name"),
        (["json:dumps", "--kwargs", "oops"], "kwargs must be written name=value"),
    ],
)
def test_what_cannot_be_checked_has_a_reason(arguments, said, capsys):
    assert main(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.out + captured.err


def test_bench_hands_its_arguments_on(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "layers", "--rounds", "0"])
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.usefixtures("_candidates")
def test_a_reader_that_stops_reading_gets_no_traceback():
    command = [sys.executable, "-m", "mha_tutor", "check", "some_candidates:wrong"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1
    assert said == ""


def test_explain_reads_a_layer_and_saves_the_report(capsys, tmp_path):
    report = tmp_path / "report.html"
    layer = ["torch.nn:TransformerEncoderLayer", "--kwargs", "d_model=12,nhead=3,batch_first=True"]
    status = main(["explain", *layer, "--input", "2x5x12", "--save", str(report)])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "TransformerEncoderLayer: one attention" in said
    assert "self_attn" in said
    assert "÷ 2 = √4 = √head_dim" in said
    assert report.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.usefixtures("_candidates")
def test_explain_says_what_it_could_not_do(capsys):
    qkv = ["--input", "1x2x3x4"] * 3
    for line, status, words in (
        (["some_candidates:wrong", *qkv], 0, "no factor; the book divides by √head_dim = 2"),
        (
            ["torch.nn:Linear", "--kwargs", "in_features=4,out_features=4", *qkv[:2]],
            2,
            "no attention",
        ),
        (["some_candidates:Hidden", *qkv[:2]], 2, "raises RuntimeError"),
        (["some_candidates:dies", *qkv], 2, "its process ended with status 7"),
        (["some_candidates:sleeps", *qkv, "--timeout", "5"], 2, "within 5 s"),
        (["some_candidates:nothing", *qkv], 2, "has no nothing"),
    ):
        assert main(["explain", *line]) == status, line
        assert words in capsys.readouterr().out
    assert main(["explain", "some_candidates:wrong", "--input", "2,3"]) == 2
    assert "must be written 2x5x12" in capsys.readouterr().err
    assert main(["explain", "some_candidates:Hidden", "--call", "3"]) == 2
    assert "must be written name=value" in capsys.readouterr().err
