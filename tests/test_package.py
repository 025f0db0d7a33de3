"""What the package as a whole promises: its public names, its arrows, its import time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mha_tutor
from mha_tutor.testing import assert_attention

PACKAGE = Path(mha_tutor.__file__).parent

# Who may import whom inside the package: arrows point down only.
ARROWS = {
    "__main__": {"cli"},
    "attention": {"checks", "masks"},
    "backends": {"attention", "checks", "masks"},
    "benchmark": {"backends", "multihead"},
    "checks": set(),
    "cli": {"benchmark", "contract"},
    "contract": {"attention", "heads", "masks", "multihead", "read", "reference"},
    "devices": set(),
    "einsum": {"figures"},
    "examples": set(),
    "exercises": {"attention", "contract", "einsum", "heads", "masks", "multihead"},
    "experiments": {"checks", "multihead"},
    "figures": {"palette"},
    "follow": {"figures", "heads", "palette"},
    "heads": {"checks"},
    "masks": {"checks"},
    "multihead": {"attention", "backends", "checks", "heads"},
    "palette": set(),
    "plotting": {"palette"},
    "read": {"reference"},
    "reference": set(),
    "testing": {"contract"},
}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, which this reader does not follow"
            yield node.module
            # `from mha_tutor import heads` names the module second.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _rooms(names):
    """Name the rooms of this package among what is imported; a name of its front door is `.`."""
    rooms = {name.split(".")[1] for name in names if name.startswith("mha_tutor.")}
    return {
        room if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file() else "."
        for room in rooms
    }


@pytest.mark.parametrize(
    ("line", "rooms"),
    [
        ("import mha_tutor.heads as h", {"heads"}),
        ("from mha_tutor import heads", {"heads"}),
        ("from mha_tutor import masks as m, heads", {"heads", "masks"}),
        ("from mha_tutor import split_heads", {"."}),
        ("from mha_tutor.heads import split_heads", {"heads"}),
        ("from torch import nn", set()),
    ],
)
def test_every_way_to_import_is_seen(tmp_path, line, rooms):
    (tmp_path / "module.py").write_text(line)
    assert _rooms(_imports(tmp_path / "module.py")) == rooms


def test_arrows_point_down():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.setdefault(room, set()).update(_rooms(_imports(path)) - {room})
    del found["__init__"]  # the door of the package knows all
    assert found == ARROWS


def test_public_names_are_there_and_documented():
    for name in set(mha_tutor.__all__) - {"__version__"}:
        assert getattr(mha_tutor, name).__doc__, name


def _run(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.split()


def test_import_brings_in_nothing_heavy_but_torch():
    loaded = _run(
        "import sys, torch; before = set(sys.modules); import mha_tutor; "
        "print(*sorted(set(sys.modules) - before))"
    )
    assert "mha_tutor.attention" in loaded
    heavy = {"matplotlib", "triton", "sklearn", "tqdm", "IPython", "pandas", "scipy"}
    assert not heavy & {name.split(".")[0] for name in loaded}
    late = {"contract", "exercises", "experiments", "plotting", "examples", "benchmark", "read"}
    late |= {"testing"}
    assert not late & {name.split(".")[1] for name in loaded if name.startswith("mha_tutor.")}


def test_public_names_stay_what_they_are_whatever_is_imported():
    code = """
import importlib, pkgutil, mha_tutor
assert "check" in dir(mha_tutor)
assert mha_tutor.check is mha_tutor.check
first = {name: getattr(mha_tutor, name) for name in mha_tutor.__all__}
for module in pkgutil.iter_modules(mha_tutor.__path__):
    if module.name == "__main__":
        continue
    importlib.import_module(f"mha_tutor.{module.name}")
    for name, value in first.items():
        assert getattr(mha_tutor, name) is value, (module.name, name)
    print(module.name)
"""
    assert {"contract", "follow", "plotting", "testing"} <= set(_run(code))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mha_tutor' has no attribute 'attention_is'"):
        _ = mha_tutor.attention_is


def test_assert_attention_fails_with_the_report():
    assert_attention(nn.MultiheadAttention(12, 3, batch_first=True))
    with pytest.raises(AssertionError, match="The scores are not divided by"):
        assert_attention(lambda q, k, v: torch.softmax(q @ k.mT, dim=-1) @ v)


def test_assert_attention_does_not_take_what_it_cannot_compare():
    with pytest.raises(AssertionError):
        assert_attention(nn.Linear(12, 12))
