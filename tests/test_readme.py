"""What README.md shows is what the project does."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {}
    exec(example, names)
    shown = re.search(r"weights\.shape  # (torch\.Size\(.*?\)):", example)[1]
    assert str(names["weights"].shape) == shown
    assert "nqhd,nkhd->nhqk" in capsys.readouterr().out


def test_the_picture_is_the_figure_of_the_notebook():
    tool = runpy.run_path(str(ROOT / "tools" / "readme_picture.py"))
    assert tool["PICTURE"].read_bytes() == tool["stored_figure"]()
    assert str(tool["PICTURE"].relative_to(ROOT)) in README


def test_every_file_it_links_is_there():
    links = re.findall(r'\]\(([^)#]+)\)|src="([^"]+)"', README)
    paths = [path for pair in links for path in pair if path and "://" not in path]
    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path).exists()] == []
