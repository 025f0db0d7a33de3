"""What is installed from the wheel, apart from the source tree, does what README.md shows."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mha_tutor

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel from a copy, which keeps the tree clean, and install it beside torch."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mha_tutor", source / "mha_tutor", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *options, "-w", source / "dist", source], check=True)
    (wheel,) = (source / "dist").glob("*.whl")
    subprocess.run([*pip, "install", *options[:2], "--target", site, wheel], check=True)
    return site


def run(site, code):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_the_readme_runs_on_it(installed):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    told = run(installed, f"{example}\nimport mha_tutor; print(mha_tutor.__file__)")
    assert told.splitlines()[-1] == str(installed / "mha_tutor" / "__init__.py")


def test_it_says_the_version_of_the_package(installed):
    code = "from importlib.metadata import version; print(version('mha-tutor'))"
    assert run(installed, code).strip() == mha_tutor.__version__


def test_it_holds_every_file_of_the_package(installed):
    def files(root):
        found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return {str(path) for path in found if "__pycache__" not in path.parts}

    assert files(installed / "mha_tutor") == files(ROOT / "mha_tutor")
