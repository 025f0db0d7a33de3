"""What the package as a whole promises: its public names, its arrows, its import time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mha_tutor

PACKAGE = Path(mha_tutor.__file__).parent

# Who may import whom inside the package: arrows point down only.
ARROWS = {
    "__main__": {"cli"},
    "attention": {"checks", "masks"},
    "backends": {"attention", "checks", "masks"},
    "benchmark": {"backends", "multihead"},
    "checks": set(),
    "cli": {"benchmark", "contract"},
    "contract": {"attention", "heads", "masks", "multihead", "reference"},
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
    "reference": set(),
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
    for name in mha_tutor.__all__:
        assert getattr(mha_tutor, name).__doc__, name


def test_import_brings_in_nothing_heavy_but_torch():
    code = (
        "import sys, torch; before = set(sys.modules); import mha_tutor; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"matplotlib", "triton", "sklearn", "tqdm", "IPython", "pandas", "scipy"}
    assert "mha_tutor" in result.stdout.split()
    assert not heavy & set(result.stdout.split())
