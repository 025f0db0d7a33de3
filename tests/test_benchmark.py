"""The benchmark measures what it says; how fast anything is, is no test."""

import subprocess
import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch

from mha_tutor import benchmark
from mha_tutor.benchmark import layers


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_all_layers_compute_the_same():
    torch.manual_seed(0)
    modules = {name: make().eval() for name, make in benchmark.LAYERS.items()}
    ours = modules["MultiHeadAttention"]
    modules["parts"].load_state_dict(ours.state_dict())
    modules["nn.MultiheadAttention"].layer = ours.to_torch()
    x = torch.randn(2, 17, layers.EMBED_DIM)
    for is_causal in (False, True):
        expected = modules["parts"](x, is_causal)
        for layer in modules.values():
            torch.testing.assert_close(layer(x, is_causal), expected)


class CountingTimer:
    """A timer whose clock is the number of products computed, the same on every machine."""

    products = 0

    def __init__(self, stmt, globals, num_threads):
        assert stmt == "run()"
        self.run = globals["run"]

    def timeit(self, number):
        before = CountingTimer.products
        for _ in range(number):
            self.run()
        return SimpleNamespace(mean=(CountingTimer.products - before) / number)


class Once(torch.nn.Linear):
    times = 1

    def __init__(self):
        super().__init__(layers.EMBED_DIM, layers.EMBED_DIM)

    def forward(self, x, is_causal):
        CountingTimer.products += self.times
        return super().forward(x)


class Thrice(Once):
    times = 3


@pytest.mark.parametrize("backward", [False, True])
def test_a_layer_that_takes_three_times_as_long_has_the_ratio_three(monkeypatch, backward):
    monkeypatch.setattr(layers, "LAYERS", {"parts": Once, "thrice": Thrice})
    monkeypatch.setattr(layers, "Timer", CountingTimer)
    ratios = benchmark.measure_ratios(1, 8, True, backward, rounds=2)
    assert ratios == {"parts": 1, "thrice": 3, "seconds": 1}


def test_peak_memory_counts_what_the_scores_would_take():
    # Four projected tensors and the output are 40 MiB; the scores of all heads would be 512.
    peak = benchmark.measure_peak("MultiHeadAttention", 4096)
    assert 20 < peak < 120


def test_a_script_on_standard_input_is_told_and_does_not_hang():
    script = "from mha_tutor.benchmark import measure_peak; measure_peak('parts', 64)"
    done = subprocess.run(
        [sys.executable, "-"], input=script, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "RuntimeError: the process that measures ended" in done.stderr


def test_bad_input(capsys):
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        benchmark.measure_ratios(1, 8, False, False, rounds=0)
    with pytest.raises(ValueError, match=r"name must be one of parts, .*, got 'flash'"):
        benchmark.measure_peak("flash", 8)
    with pytest.raises(SystemExit):
        benchmark.main(["layers", "--rounds", "0"])
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["layers", "--device", "abacus"])
    assert "--device abacus cannot be used" in capsys.readouterr().err


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr(layers, "SIZES", ((1, 8),))
    monkeypatch.setattr(layers, "LONG", 32)
    benchmark.main(["layers", "--rounds", "1"])
    table = capsys.readouterr().out
    assert table.count("(1, 8)") == 4
    assert "geometric mean" in table
    assert table.count("MiB") == 3
    assert max(map(len, table.splitlines())) <= 100


def tiny(**given):
    options = {"masks": ["causal"], "training": [False], "rounds": 2, "seconds": 0, **given}
    return benchmark.measure_backends([8, 16], num_heads=2, head_dim=16, window=4, **options)


def test_the_backends_are_measured_or_refused_for_a_reason():
    names = ["sdpa", "explicit", "banded", "flex"]
    cells = [
        *tiny(backends=names[:3])["cells"],
        *tiny(backends=names, training=[True])["cells"],  # where flex need not be compiled
    ]
    assert len(cells) == 2 * 3 + 2 * 4
    cells = {(c["backend"], c["L"], c["training"]): c for c in cells}
    assert cells["banded", 8, False]["refused"] == "banded needs a window"
    assert cells["flex", 8, True]["refused"] == "FlexAttention has no backward pass on the CPU"
    for training in (False, True):
        cell = cells["explicit", 16, training]
        assert cell["seconds"] > 0
        # Two heads, 136 pairs, 16 features, four operations; with the backward pass 3.5 times.
        flops = 4 * 2 * 16 * 136 * (3.5 if training else 1)
        assert cell["flops_per_second"] * cell["seconds"] == pytest.approx(flops)
        assert cell["ceilings"]["flops_per_second"] > 1e6
        assert cell["peak_bytes"] >= 2 * 16 * 16 * 4
        assert cells["sdpa", 16, training]["ratio"] == 1


def test_a_backend_that_takes_three_times_as_long_has_the_ratio_three(monkeypatch):
    from mha_tutor.backends import BACKENDS
    from mha_tutor.backends.call import Backend
    from mha_tutor.benchmark import backends as measuring

    work = [0.0]

    def clock():  # moves with the work, and a little with each look at it
        work[0] += 1e-9
        return work[0]

    def taking(duration):
        def run(query, key, value, **options):
            work[0] += duration
            return query

        return Backend(run, lambda call: None)

    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setitem(BACKENDS, "sdpa", taking(1.0))
    monkeypatch.setitem(BACKENDS, "explicit", taking(3.0))
    run = tiny(backends=["explicit"])
    assert [cell["backend"] for cell in run["cells"]] == 2 * ["sdpa", "explicit"]
    for cell in run["cells"]:
        expected = 1 if cell["backend"] == "sdpa" else 3
        assert cell["ratio"] == pytest.approx(expected)
        assert cell["seconds"] == pytest.approx(expected)
        assert cell["spread"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("mask", ["none", "causal", "window"])
@pytest.mark.parametrize("length", [3, 4, 9])
def test_the_pairs_are_counted_as_the_masks_show_them(mask, length):
    from mha_tutor import causal_mask, sliding_window_mask

    allowed = {
        "none": torch.ones(length, length),
        "causal": causal_mask(length),
        "window": sliding_window_mask(length, 4),
    }[mask]
    flops = benchmark.attention_flops(2, 3, length, 5, mask, 4)
    assert flops == 4 * 2 * 3 * 5 * allowed.sum().item()


def test_growth_is_fitted_from_1024_on():
    cell = {"backend": "sdpa", "dtype": "float32", "mask": "none", "training": False}
    cells = [
        {**cell, "L": L, "seconds": 3.0 * L**1.5 if L >= 1024 else 1.0, "peak_bytes": 8 * L}
        for L in (256, 1024, 2048, 4096)
    ]
    (fit,) = benchmark.fit_growth([*cells, {**cell, "L": 8192, "refused": "too large"}])
    assert fit["time"] == pytest.approx(1.5)
    assert fit["memory"] == pytest.approx(1)
    assert benchmark.fit_growth(cells[:2]) == []


def test_the_backend_table_the_file_and_the_figure(tmp_path, capsys):
    arguments = ["--lengths", "8", "1024", "--rounds", "2", "--seconds", "0", "--heads", "1"]
    arguments += ["--backends", "explicit", "flash", "triton", "--masks", "causal"]
    file, figure = tmp_path / "run.json", tmp_path / "run.png"
    benchmark.main(["backends", *arguments, "--json", str(file), "--plot", str(figure)])
    table = capsys.readouterr().out
    assert table.count("explicit") == 4
    assert "not run: triton" in table
    assert max(map(len, table.splitlines())) <= 100
    assert figure.read_bytes().startswith(b"\x89PNG")
    (run,) = benchmark.load_machines(tmp_path).values()
    assert run["command"].startswith("python -m mha_tutor.benchmark backends --lengths 8 1024")
    assert set(run["machine"]["versions"]) == {"python", "torch"}
    assert list(benchmark.backend_table(run))[4:] != []


def test_the_figure_says_what_was_measured_and_draws_each_backend_once():
    run = benchmark.load_machines()["cpu"]
    wanted = ("window", False)
    time, memory = benchmark.plot_backends(run, *wanted)
    assert time.get_title() == ("AMD EPYC, 1 thread\nB=1, H=4, D=64, float32\nwindow 256, forward")
    for ax, of, unit in ((time, "seconds", 1e-3), (memory, "peak_bytes", 2**20)):
        lines = {line.get_label(): line for line in ax.lines if line.get_label()[0] != "_"}
        assert set(lines) == {"explicit", "online", "sdpa", "flex", "banded"}
        looks = {(line.get_color(), line.get_marker()) for line in lines.values()}
        assert len(looks) == len(lines)
        for name, line in lines.items():
            cells = [c for c in run["cells"] if c["backend"] == name and "seconds" in c]
            drawn = {c["L"]: c[of] / unit for c in cells if (c["mask"], c["training"]) == wanted}
            assert dict(zip(*line.get_data(), strict=True)) == pytest.approx(drawn)
        slopes = [line.get_ydata() for line in ax.lines if line.get_label()[0] == "_"]
        # From 512 to 8192 the length grows 16 times.
        assert [end / start for start, end in slopes] == pytest.approx([16, 256])


def test_the_figure_names_a_gpu_without_threads():
    run = benchmark.load_machines()["cpu"]
    run = {**run, "machine": {**run["machine"], "device": "cuda", "name": "a card"}}
    time, _ = benchmark.plot_backends(run, "none", training=True)
    assert time.get_title() == "a card\nB=1, H=4, D=64, float32\nmask none, forward and backward"


def test_the_runs_that_are_kept_say_where_they_come_from():
    runs = benchmark.load_machines()
    assert "cpu" in runs  # chapter 9 reads numbers from it
    for name, run in runs.items():
        assert run["command"].startswith("python -m mha_tutor.benchmark backends"), name
        assert run["machine"]["name"], name
        assert run["machine"]["date"] >= "2026-11", name
        fits = benchmark.fit_growth(run["cells"])
        for kept, fit in zip(run["growth"], fits, strict=True):
            assert kept["time"] == pytest.approx(fit["time"], abs=0.01), name


def test_bad_input_of_the_backends(capsys):
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        tiny(rounds=0)
    with pytest.raises(ValueError, match=r"backend must be one of explicit, .*, got 'fast'"):
        tiny(backends=["fast"])
    with pytest.raises(ValueError, match="mask must be one of none, causal, window, got 'all'"):
        tiny(masks=["all"])
    with pytest.raises(ValueError, match="clock must be one of wall, cpu, got 'sun'"):
        tiny(clock="sun")
    for arguments, told in (
        (["backends", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["backends", "--backends", "fast"], "invalid choice: 'fast'"),
        ([], "required: what"),
    ):
        with pytest.raises(SystemExit):
            benchmark.main(arguments)
        assert told in capsys.readouterr().err
