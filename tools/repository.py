"""Make a URL the project's home, in `_config.yml` and in every file that repeats it.

Usage: python tools/repository.py https://github.com/OWNER/NAME
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SLUG = r"[A-Za-z0-9](?:[A-Za-z0-9-]*)/[A-Za-z0-9._-]*[A-Za-z0-9_-]"


def parse(url: str) -> str:
    """Return OWNER/NAME of a GitHub repository's address.

    Raises:
        ValueError: the address is none that Colab and GitHub Pages could serve.
    """
    match = re.fullmatch(
        rf"https://github\.com/({SLUG})", url.strip().removesuffix("/").removesuffix(".git")
    )
    if not match:
        raise ValueError(f"URL must read https://github.com/OWNER/NAME, got {url!r}")
    return match[1]


def pages(slug: str) -> str:
    """Return where GitHub Pages serves a repository."""
    owner, name = slug.lower().split("/")[0], slug.split("/")[1]
    return f"https://{owner}.github.io/" + (
        "" if name.lower() == f"{owner}.github.io" else f"{name}/"
    )


def configured(root: Path) -> str:
    """Return the OWNER/NAME that `_config.yml` states."""
    text = (root / "_config.yml").read_text(encoding="utf-8")
    return parse(re.search(r"^repository:\n  url: *(\S+)$", text, re.MULTILINE)[1])


def files(root: Path) -> list[Path]:
    """Return the text files of the repository that may repeat the URL, new ones included."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    suffixes = {".bib", ".cff", ".ipynb", ".md", ".py", ".toml", ".txt", ".yml"}
    return [
        root / name
        for name in sorted(set(listed))
        if Path(name).suffix in suffixes
        and not name.startswith("book/_static/")
        and (root / name).is_file()
    ]


def rewrite(text: str, old: str, new: str) -> str:
    """Replace one repository by another in a text: its address, Colab's, and its pages."""
    end = r"(?![A-Za-z0-9_-]|\.(?!git\b)[A-Za-z0-9])"
    text = re.sub(
        rf"(github(?:\.com|usercontent\.com)?/){re.escape(old)}{end}", rf"\g<1>{new}", text
    )
    home, new_home = pages(old).rstrip("/"), pages(new).rstrip("/")
    return re.sub(rf"{re.escape(home)}(?![A-Za-z0-9_-])", new_home, text)


def main(url: str) -> int:
    """Rewrite the files of this repository; say which."""
    try:
        new = parse(url)
    except ValueError as error:
        print(f"{error}\nUsage: make repository URL=https://github.com/OWNER/NAME", file=sys.stderr)
        return 2
    old = configured(ROOT)
    for path in files(ROOT):
        before = path.read_text(encoding="utf-8")
        after = rewrite(before, old, new)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(ROOT))
    print(f"{old} -> {new}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
