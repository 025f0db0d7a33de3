"""The project's URL is said in `_config.yml`.

Whatever repeats it must agree, and `make repository` must rewrite it.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


repository = load("repository")
pytestmark = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(),
    reason="needs git and a checkout: the files are those that git lists",
)


def disagreements(root):
    """Say where the repository at `root` contradicts the URL in its `_config.yml`."""
    slug = repository.configured(root)
    url, pages = f"https://github.com/{slug}", repository.pages(slug)
    found = []

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if project["urls"] != {"Repository": url, "Book": pages}:
        found.append(f"pyproject.toml: project.urls are {project['urls']}")
    for name in ["CITATION.cff", "README.md"]:
        if not re.search(rf"{re.escape(url)}(?![\w.-])", (root / name).read_text(encoding="utf-8")):
            found.append(f"{name}: {url} is missing")
    for notebook in sorted((root / "book").glob("*.ipynb")):
        if f'\\"mha-tutor @ git+{url}\\"' not in notebook.read_text(encoding="utf-8"):
            found.append(f"{notebook.name}: does not install from {url}")

    # Any other mention of a repository, or of pages, by this project's name.
    name = re.escape(slug.split("/")[1])
    repo = rf"github(?:usercontent)?(?:\.com)?/([\w.-]+/{name})(?![\w-])"
    mention = rf"{repo}|([\w-]+\.github\.io/{name})(?![\w-])"
    for path in repository.files(root):
        lines = path.read_text(encoding="utf-8").splitlines()
        about = "\n".join(line for line in lines if "github" in line)
        for match in re.finditer(mention, about):
            if (match[1] and match[1] != slug) or (match[2] and match[2] not in pages):
                found.append(f"{path.relative_to(root)}: {match[0]}")
    return found


@pytest.fixture
def copy(tmp_path):
    """A copy of the files that git lists, as a repository of its own."""
    target = tmp_path / "copy"
    for path in repository.files(ROOT):
        there = target / path.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)
    subprocess.run(["git", "init", "-q", str(target)], check=True)
    return target


def move(root, url):
    return subprocess.run(
        [sys.executable, "tools/repository.py", url], cwd=root, capture_output=True, text=True
    )


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in repository.files(root)}


def test_every_file_agrees_with_the_config():
    assert disagreements(ROOT) == []


@pytest.mark.parametrize("name", ["_config.yml", "pyproject.toml", "CITATION.cff", "README.md"])
def test_one_file_that_differs_is_found(copy, name):
    path = copy / name
    text = path.read_text(encoding="utf-8")
    slug = repository.configured(copy)
    assert slug in text
    path.write_text(text.replace(slug, "someone/else"), encoding="utf-8")
    assert disagreements(copy) != []


def test_one_notebook_that_differs_is_found(copy):
    path = sorted((copy / "book").glob("*.ipynb"))[-1]
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("git+https://github.com/", "git+https://github.com/not-"))
    assert [path.name in problem for problem in disagreements(copy)][:1] == [True]


def test_a_stray_mention_is_found(copy):
    name = repository.configured(copy).split("/")[1]
    (copy / "book" / "stray.md").write_text(f"[old home](https://github.com/old-owner/{name}).\n")
    assert [problem.split(":")[0] for problem in disagreements(copy)] == ["book/stray.md"]


@pytest.mark.parametrize("slug", ["Some-One/else.book", "someone/someone.github.io", "a/mha-tutor"])
def test_make_repository_rewrites_all_and_can_go_back(copy, slug):
    before, home = contents(copy), f"https://github.com/{repository.configured(copy)}"
    url = f"https://github.com/{slug}"
    assert move(copy, url).returncode == 0
    assert f"https://github.com/{repository.configured(copy)}" == url
    assert disagreements(copy) == []
    changed = {path for path, text in contents(copy).items() if text != before[path]}
    assert {Path("_config.yml"), Path("pyproject.toml"), Path("CITATION.cff")} <= changed
    assert not any(home.encode() in (copy / path).read_bytes() for path in before)
    assert move(copy, home).returncode == 0
    assert contents(copy) == before


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mha-tutor/mha-tutor",
        "http://github.com/a/b",
        "https://gitlab.com/a/b",
        "https://github.com/a",
        "https://github.com/a/b/tree/main",
        "https://github.com/a/b c",
    ],
)
def test_make_repository_refuses_what_is_no_repository(copy, url):
    before = contents(copy)
    done = move(copy, url)
    assert done.returncode == 2
    assert f"URL must read https://github.com/OWNER/NAME, got {url!r}" in done.stderr
    assert contents(copy) == before


def test_the_address_may_end_in_git_or_a_slash():
    assert repository.parse("https://github.com/a/b.git") == "a/b"
    assert repository.parse("https://github.com/a/b/") == "a/b"
