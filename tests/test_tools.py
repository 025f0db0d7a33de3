"""The tools that the Makefile calls: what they promise to whoever reads their last line."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CASE = '<testcase classname="a" name="b">{}</testcase>'


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(folder, **skips):
    """Leave what pytest would: each part with two tests, one skipped where there is a reason."""
    for part in ("package", "notebooks", "site"):
        reason = skips.get(part)
        skipped = f'<skipped message="{reason}"/>' if reason else ""
        cases = CASE.format("") + CASE.format(skipped)
        (folder / f"{part}.xml").write_text(
            f"<testsuites><testsuite>{cases}</testsuite></testsuites>"
        )
    return folder


def test_everything_passed_only_if_nothing_was_left_out(tmp_path):
    summarize = load("summary").summarize
    assert summarize(results(tmp_path))[-1] == "Everything passed"


def test_a_machine_without_cuda_is_not_to_blame(tmp_path):
    lines = load("summary").summarize(results(tmp_path, package="needs a CUDA device"))
    assert "1 skipped: needs a CUDA device" in lines[0]
    assert lines[-1] == "Everything passed"


@pytest.mark.parametrize("reason", ["no Chromium found", "torch.compile needs a C++ compiler"])
def test_what_could_be_installed_is_left_out(tmp_path, reason):
    lines = load("summary").summarize(results(tmp_path, site=reason))
    assert lines[-1] == f"What ran has passed. Left out: 1 of site ({reason})"


def test_a_part_that_did_not_run_is_left_out(tmp_path):
    (results(tmp_path) / "site.xml").unlink()
    assert "site (not run)" in load("summary").summarize(tmp_path)[-1]


def test_an_unknown_configuration_is_refused():
    command = [sys.executable, str(ROOT / "tools" / "elsewhere.py"), "avx3"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert "NAME must be one of here, avx2" in run.stderr


def test_every_cell_stands_twice():
    elsewhere = load("elsewhere")
    import nbformat

    once = [nbformat.read(path, as_version=4).cells for path in elsewhere.notebooks(twice=False)]
    twice = [nbformat.read(path, as_version=4).cells for path in elsewhere.notebooks(twice=True)]
    for before, after in zip(once, twice, strict=True):
        sources = [cell.source for cell in before if cell.cell_type == "code"]
        assert [cell.source for cell in after] == [text for text in sources for _ in range(2)]
        assert len({cell.id for cell in after}) == len(after)


def test_actions_are_pinned_by_commit():
    used = [
        line
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for line in re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))
    ]
    assert len(used) > 5
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action) for action in used), used
