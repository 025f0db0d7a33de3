"""A pytest plugin that records how close each passing comparison came to its bound.

`python -m pytest -p tools.margins -o enable_assertion_pass_hook=true …` prints the twenty closest:
the share of what is allowed that was used, for `assert_close` and for asserted `a < b`, `a <= b`
of two numbers. In a notebook's kernel, `assert_close` is recorded by the line that
`python -m tools.margins` prints, kept in the file that MHA_TUTOR_MARGINS names.
"""

import json
import os
import re
from pathlib import Path

import torch

NUMBER = r"(-?\d+(?:\.\d*)?(?:e[-+]?\d+)?)"
ORDER = re.compile(rf"^{NUMBER} (<=?|>=?) (?:\({NUMBER} \* {NUMBER}\)|{NUMBER})(?:$|\n)")
FILE = Path(os.environ.get("MHA_TUTOR_MARGINS", "_build/margins.jsonl"))
_where = ["?"]


def _record(where: str, used: float) -> None:
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("a", encoding="utf-8") as file:
        file.write(json.dumps([where, used]) + "\n")


def watch() -> None:
    """Let `torch.testing.assert_close` record the largest share of its tolerance in use."""
    original = torch.testing.assert_close

    def assert_close(actual, expected, *args, rtol=None, atol=None, **options):
        original(actual, expected, *args, rtol=rtol, atol=atol, **options)
        pair = actual, expected
        if not all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in pair):
            return
        if rtol is None:
            low = min((x.dtype for x in pair), key=lambda t: -torch.finfo(t).eps)
            rtol = {torch.float64: 1e-7, torch.float32: 1.3e-6, torch.float16: 1e-3}.get(
                low, 1.6e-2
            )
            atol = {torch.float64: 1e-7}.get(low, 1e-5)
        a, b = (x.detach().double().cpu() for x in pair)
        used = (a - b).abs() / (atol + rtol * b.abs())
        used = used[used.isfinite()]
        if used.numel():
            _record(_where[0], used.max().item())

    torch.testing.assert_close = assert_close


def pytest_configure(config):
    """Watch from the start."""
    watch()


def pytest_runtest_setup(item):
    """Know which test is running."""
    _where[0] = item.nodeid


def pytest_assertion_pass(item, lineno, orig, expl):
    """Read the two numbers of a passing comparison."""
    found = ORDER.match(expl)
    if found is None:
        return
    left, order, factor, times, right = found.groups()
    small, large = float(left), float(right) if right else float(factor) * float(times)
    if order.startswith(">"):
        small, large = large, small
    if large > 0 and small > 0 and not (small.is_integer() and large.is_integer()):
        _record(f"{item.nodeid}:{lineno}", small / large)


def closest(path: Path, count: int = 20) -> list[tuple[float, str]]:
    """Return the comparisons that used most of what they allow."""
    most: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        where, used = json.loads(line)
        most[where] = max(most.get(where, 0.0), used)
    return sorted(((used, where) for where, used in most.items()), reverse=True)[:count]


if __name__ == "__main__":
    for used, where in closest(FILE):
        print(f"{used:6.3f}  {where}")
