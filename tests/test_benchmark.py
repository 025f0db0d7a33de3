"""The benchmark measures what it says; how fast anything is, is no test."""

from types import SimpleNamespace

import pytest
import torch

from mha_tutor import benchmark


def test_all_layers_compute_the_same():
    torch.manual_seed(0)
    layers = {name: make().eval() for name, make in benchmark.LAYERS.items()}
    ours = layers["MultiHeadAttention"]
    layers["parts"].load_state_dict(ours.state_dict())
    layers["nn.MultiheadAttention"].layer = ours.to_torch()
    x = torch.randn(2, 17, benchmark.EMBED_DIM)
    for is_causal in (False, True):
        expected = layers["parts"](x, is_causal)
        for layer in layers.values():
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
        super().__init__(benchmark.EMBED_DIM, benchmark.EMBED_DIM)

    def forward(self, x, is_causal):
        CountingTimer.products += self.times
        return super().forward(x)


class Thrice(Once):
    times = 3


@pytest.mark.parametrize("backward", [False, True])
def test_a_layer_that_takes_three_times_as_long_has_the_ratio_three(monkeypatch, backward):
    monkeypatch.setattr(benchmark, "LAYERS", {"parts": Once, "thrice": Thrice})
    monkeypatch.setattr(benchmark, "Timer", CountingTimer)
    ratios = benchmark.measure_ratios(1, 8, True, backward, rounds=2)
    assert ratios == {"parts": 1, "thrice": 3, "seconds": 1}


def test_peak_memory_counts_what_the_scores_would_take():
    # Four projected tensors and the output are 40 MiB; the scores of all heads would be 512.
    peak = benchmark.measure_peak("MultiHeadAttention", 4096)
    assert 20 < peak < 120


def test_bad_input(capsys):
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        benchmark.measure_ratios(1, 8, False, False, rounds=0)
    with pytest.raises(ValueError, match=r"name must be one of parts, .*, got 'flash'"):
        benchmark.measure_peak("flash", 8)
    with pytest.raises(SystemExit):
        benchmark.main(["--rounds", "0"])
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main(["--device", "abacus"])
    assert "--device abacus cannot be used" in capsys.readouterr().err


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SIZES", ((1, 8),))
    monkeypatch.setattr(benchmark, "LONG", 32)
    benchmark.main(["--rounds", "1"])
    table = capsys.readouterr().out
    assert table.count("(1, 8)") == 4
    assert "geometric mean" in table
    assert table.count("MiB") == 3
    assert max(map(len, table.splitlines())) <= 100
