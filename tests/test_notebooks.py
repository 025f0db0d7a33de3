"""Guards over the notebooks as files: what is published is what was run, the same on any machine.

Each guard takes a notebook and returns what is wrong with it. Each is shown here to fail on a
notebook broken on purpose.
"""

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbconvert = pytest.importorskip("nbconvert")
from nbformat.v4 import (  # noqa: E402
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)
from traitlets.config import PyFileConfigLoader  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
TAGS = {"hide-input", "hide-cell", "remove-cell", "raises-exception", "nbval-ignore-output"}
MAX_BYTES = 1_000_000
IMAGES = {"image/png", "image/jpeg", "image/svg+xml"}

spec = importlib.util.spec_from_file_location("repository", ROOT / "tools" / "repository.py")
repository = importlib.util.module_from_spec(spec)
spec.loader.exec_module(repository)
COLAB = f"""\
import sys

if "google.colab" in sys.modules:
    %pip install -q "mha-tutor @ git+https://github.com/{repository.configured(ROOT)}\""""

# A path that holds only on the machine that wrote it.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/])/(?:Users|content|etc|home|mnt|opt|private|root|srv|tmp|usr|var|work)/"
    r"|\b[A-Za-z]:\\\\?\w"
    r"|site-packages"
)
# What a second run, or another machine, prints differently.
UNSTABLE = {
    "a device": re.compile(r"\b(?:cuda|mps)\b|NVIDIA|\b(?:A100|H100|H200|L4|T4|V100)\b", re.I),
    "a timing": re.compile(
        r"\d\s*(?:ns|[µμu]s|ms)\b|\d\.\d+\s*s\b|\d\s*(?:sec|seconds?|minutes?)\b|Wall time|per loop"
    ),
    "an address": re.compile(r"\b0x[0-9a-fA-F]{6,}"),
    "grad_fn": re.compile(r"grad_fn="),
    "a warning": re.compile(r"\w*Warning: "),
}


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def texts(output):
    """Yield the texts of an output as the reader, or nbval, would see them."""
    if output.output_type == "stream":
        yield output.text
    elif output.output_type == "error":
        yield "\n".join([output.ename, output.evalue, *output.traceback])
    else:
        for mime, data in output.data.items():
            if mime not in {"image/png", "image/jpeg"}:
                yield data if isinstance(data, str) else json.dumps(data)


def where(nb, cell):
    return f"code cell {code_cells(nb).index(cell) + 1}"


def executed(nb):
    """Every code cell was run, once, from top to bottom."""
    counts = [cell.execution_count for cell in code_cells(nb)]
    found = [] if counts == list(range(1, len(counts) + 1)) else [f"counts are {counts}"]
    for cell in code_cells(nb):
        for output in cell.outputs:
            if output.get("execution_count", cell.execution_count) != cell.execution_count:
                found.append(f"{where(nb, cell)}: an output of another run")
            if output.output_type == "error" and "raises-exception" not in tags(cell):
                found.append(f"{where(nb, cell)}: an error that is not tagged raises-exception")
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"{where(nb, cell)}: writes to stderr")
        if "raises-exception" in tags(cell) and all(
            output.output_type != "error" for output in cell.outputs
        ):
            found.append(f"{where(nb, cell)}: tagged raises-exception, but raises none")
    return found


def allowed_tags(nb):
    """Only tags that do something; a misspelled one silently does nothing."""
    found = [f"tag {tag}" for cell in nb.cells for tag in sorted(tags(cell) - TAGS)]
    for cell in code_cells(nb):
        if "nbval-ignore-output" in tags(cell) and not re.search(r"^\s*#", cell.source, re.M):
            found.append(f"{where(nb, cell)}: nbval-ignore-output without a reason in a comment")
    return found


def no_absolute_path(nb):
    """No path of the machine that ran the notebook, in a source or an output."""
    found = []
    for index, cell in enumerate(nb.cells):
        shown = [cell.source]
        if cell.cell_type == "code":
            shown += [text for output in cell.outputs for text in texts(output)]
        found += [
            f"cell {index}: {match[0]}" for text in shown for match in ABSOLUTE_PATH.finditer(text)
        ]
    return found


def same_everywhere(nb):
    """No timing, device or address in an output that nbval compares."""
    return [
        f"{where(nb, cell)}: {name}: {match[0]}"
        for cell in code_cells(nb)
        if "nbval-ignore-output" not in tags(cell)
        for output in cell.outputs
        for text in texts(output)
        for name, pattern in UNSTABLE.items()
        for match in pattern.finditer(text)
    ]


def figures_described(nb):
    """Every figure has a name, a caption and, for who cannot see it, an alternative text."""
    found = []
    for cell in code_cells(nb):
        if any(IMAGES & set(output.get("data", {})) for output in cell.outputs):
            shown = cell.metadata.get("mystnb", {})
            for kind, key in [("image", "alt"), ("figure", "caption"), ("figure", "name")]:
                if not str(shown.get(kind, {}).get(key, "")).strip():
                    found.append(f"{where(nb, cell)}: no mystnb {kind} {key}")
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            found += [
                f"image without alt: {m[0]}" for m in re.finditer(r"!\[\s*\]\(.*?\)", cell.source)
            ]
            for match in re.finditer(r"<img\b[^>]*>", cell.source):
                if not re.search(r'\balt="[^"]+"', match[0]):
                    found.append(f"image without alt: {match[0]}")
            for match in re.finditer(
                r"[`:]{3,}\{(?:figure|image)\}.*?\n[`:]{3,}", cell.source, re.S
            ):
                if not re.search(r"^:alt: *\S", match[0], re.M):
                    found.append(f"image without alt: {match[0].splitlines()[0]}")
    return found


def installs_on_colab(nb):
    """The first code cell installs the package on Colab, does nothing elsewhere, is not shown."""
    first = code_cells(nb)[0] if code_cells(nb) else None
    if first is None or first.source != COLAB:
        return ["the first code cell is not the one that installs on Colab"]
    found = [] if tags(first) == {"remove-cell"} else [f"its tags are {sorted(tags(first))}"]
    return found + (["it has outputs"] if first.outputs else [])


def normalized(nb):
    """Metadata is what `make notebooks` writes, and so are printed outputs."""
    # deepcopy: the preprocessor works in place.
    config = PyFileConfigLoader("nbconvert_config.py", path=str(ROOT / "tools")).load_config()
    clean = nbconvert.preprocessors.ClearMetadataPreprocessor(config=config)
    clean, _ = clean.preprocess(copy.deepcopy(nb), {})
    found = [] if clean == nb else ["metadata that `make notebooks` would drop"]
    expected = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    if nb.metadata != expected:
        found.append(f"notebook metadata is {dict(nb.metadata)}")
    found += [
        f"cell {index}: {cell.cell_type} cell with metadata"
        for index, cell in enumerate(nb.cells)
        if cell.cell_type != "code" and cell.metadata
    ]
    for cell in code_cells(nb):
        streams = [output.get("name") for output in cell.outputs]
        if any(one and one == two for one, two in pairwise(streams)):
            found.append(f"{where(nb, cell)}: one printed output in pieces")
    if any("id" not in cell for cell in nb.cells):
        found.append("cells without id")
    return found


def small(nb):
    """Small enough to read over a poor line and to keep in git."""
    size = len(nbformat.writes(nb).encode())
    return [f"{size} bytes, more than {MAX_BYTES}"] if size > MAX_BYTES else []


def exercises_whole(nb):
    """Each exercise has a stub that says what is missing, a hint and a solution that is right.

    The stub's answer begins with "…", the solution's with "✓"; the solution is folded in the book
    by its `dropdown`, in Colab and JupyterLab by its metadata.
    """
    found, inside, seen = [], None, {}
    for index, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            if inside and inside[0] == "exercise" and "<details>" in cell.source:
                inside[1].add("a hint")
            for kind, edge, rest in re.findall(
                r"^:::\{(exercise|solution)-(start|end)\}(.*(?:\n:(?!::).*)*)", cell.source, re.M
            ):
                if (edge == "start") != (inside is None):
                    found.append(f"cell {index}: {kind}-{edge} out of order")
                inside = (
                    (kind, seen.setdefault(_label(kind, rest), set())) if "start" in edge else None
                )
                if (kind, edge) == ("solution", "start") and ":class: dropdown" not in rest:
                    found.append(f"cell {index}: a solution that is not folded")
        elif inside:
            answer = "".join(text for output in cell.outputs for text in texts(output))
            if inside[0] == "exercise" and answer.startswith("…"):
                inside[1].add("a stub")
            folded = cell.metadata.get("cellView") and cell.metadata.get("jupyter")
            if inside[0] == "solution" and answer.startswith("✓") and folded:
                inside[1].add("a solution")
    parts = {"a hint", "a stub", "a solution"}
    found += [
        f"{name}: lacks {', '.join(sorted(parts - has))}"
        for name, has in seen.items()
        if parts - has
    ]
    headings = [cell for cell in nb.cells if re.search(r"^## Your turn$", cell.source, re.M)]
    if headings and not 3 <= len(seen) <= 5:
        found.append(f"{len(seen)} exercises")
    return found


def _label(kind, rest):
    if kind == "solution":
        return rest.split()[0]
    match = re.search(r"^:label: (\S+)", rest, re.M)
    return match[1] if match else "an exercise without label"


GUARDS = [
    executed,
    allowed_tags,
    no_absolute_path,
    same_everywhere,
    figures_described,
    installs_on_colab,
    normalized,
    exercises_whole,
    small,
]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_notebook(path, guard):
    assert guard(nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_file_is_as_nbformat_writes_it(path):
    """So that a re-run without a change is no diff."""
    text = path.read_text(encoding="utf-8")
    assert text == nbformat.writes(nbformat.reads(text, as_version=nbformat.NO_CONVERT)) + "\n"


def test_there_are_notebooks():
    assert NOTEBOOKS, "no notebook in book/"


# --- each guard against a notebook that is right but for one thing


@pytest.fixture
def good():
    """A notebook that every guard accepts."""
    return new_notebook(
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        cells=[
            new_markdown_cell(
                "# Title\n\n![a square](square.png) and 1/2, https://a.example/tmp/b."
            ),
            new_code_cell(COLAB, metadata={"tags": ["remove-cell"]}, execution_count=1),
            new_code_cell(
                "print(3, 's')",
                execution_count=2,
                outputs=[new_output("stream", name="stdout", text="3 s, 12 heads, 2.5\n")],
            ),
            new_code_cell(
                "plot()",
                execution_count=3,
                metadata={
                    "tags": ["hide-input"],
                    "mystnb": {
                        "figure": {"caption": "A square.", "name": "fig-square"},
                        "image": {"alt": "A square."},
                    },
                },
                outputs=[new_output("display_data", data={"image/png": "iVBO"})],
            ),
            new_code_cell(
                "1 / 0",
                execution_count=4,
                metadata={"tags": ["raises-exception"]},
                outputs=[new_output("error", ename="E", evalue="no", traceback=["E: no"])],
            ),
            new_code_cell(
                "# How long it takes depends on the machine.\ntimed()",
                execution_count=5,
                metadata={"tags": ["nbval-ignore-output"]},
                outputs=[new_output("stream", name="stdout", text="12 ms on cuda:0\n")],
            ),
            *exercise("ex-a", 6),
            *exercise("ex-b", 8),
            *exercise("ex-c", 10),
        ],
    )


def exercise(label, count):
    """The cells of an exercise: seven of them."""

    def asks(text, function, count, **metadata):
        result = new_output("execute_result", data={"text/plain": text}, execution_count=count)
        return new_code_cell(function, execution_count=count, metadata=metadata, outputs=[result])

    return [
        new_markdown_cell(
            f"## Your turn\n\n:::{{exercise-start}} Add\n:label: {label}\n:::\n\nAdd."
        ),
        asks("… add: returns nothing yet.", "exercises.add(add)", count),
        new_markdown_cell("<details>\n<summary>Hint</summary>\n\nUse +.\n\n</details>"),
        new_markdown_cell(":::{exercise-end}\n:::"),
        new_markdown_cell(f":::{{solution-start}} {label}\n:class: dropdown\n:::"),
        asks(
            "✓ add: right.",
            "# @title Solution\nexercises.add(sum)",
            count + 1,
            cellView="form",
            jupyter={"source_hidden": True},
        ),
        new_markdown_cell(":::{solution-end}\n:::"),
    ]


def prints(text):
    def edit(nb):
        nb.cells[2].outputs[0].text = text

    return edit


def source(index, text):
    def edit(nb):
        nb.cells[index].source = text

    return edit


def metadata(index, **values):
    def edit(nb):
        nb.cells[index].metadata.update(values)

    return edit


def never_run(nb):
    nb.cells[2].execution_count = None


def run_out_of_order(nb):
    nb.cells[2].execution_count, nb.cells[3].execution_count = 3, 2


def stderr(nb):
    nb.cells[2].outputs[0].name = "stderr"


def unexpected_error(nb):
    nb.cells[4].metadata.tags = []


def no_error(nb):
    nb.cells[4].outputs = []


def path_in_traceback(nb):
    nb.cells[4].outputs[0].traceback = ["File /home/me/x.py:1"]


def no_alt(nb):
    del nb.cells[3].metadata.mystnb["image"]


def no_caption(nb):
    nb.cells[3].metadata.mystnb.figure.caption = " "


def in_pieces(nb):
    nb.cells[2].outputs.append(new_output("stream", name="stdout", text="\n"))


def other_kernel(nb):
    nb.metadata.kernelspec.name = "my-env"


def python_version(nb):
    nb.metadata.language_info.version = "3.11.7"


def colab_second(nb):
    nb.cells[1], nb.cells[2] = nb.cells[2], nb.cells[1]


def big(nb):
    nb.cells[3].outputs[0].data["image/png"] = "A" * MAX_BYTES


def without(index):
    def edit(nb):
        del nb.cells[index]

    return edit


def stub_is_right(nb):
    nb.cells[7].outputs[0].data["text/plain"] = "✓ add: right."


def solution_is_wrong(nb):
    nb.cells[11].outputs[0].data["text/plain"] = "✗ add: wrong."


def solution_open(nb):
    del nb.cells[11].metadata["cellView"]


BROKEN = [
    (executed, "never_run", never_run),
    (executed, "out_of_order", run_out_of_order),
    (executed, "stderr", stderr),
    (executed, "unexpected_error", unexpected_error),
    (executed, "no_error", no_error),
    (allowed_tags, "misspelled", metadata(2, tags=["hide_input"])),
    (allowed_tags, "skips_nbval", metadata(2, tags=["nbval-skip"])),
    (allowed_tags, "no_reason", source(5, "timed()")),
    (no_absolute_path, "source", source(2, "open('/home/me/data.txt')")),
    (no_absolute_path, "output", prints("saved in /tmp/x\n")),
    (no_absolute_path, "windows", prints("C:\\Users\\me\n")),
    (no_absolute_path, "traceback", path_in_traceback),
    (same_everywhere, "device", prints("tensor([1], device='cuda:0')\n")),
    (same_everywhere, "gpu_name", prints("NVIDIA A100\n")),
    (same_everywhere, "milliseconds", prints("took 12 ms\n")),
    (same_everywhere, "seconds", prints("took 1.25 s\n")),
    (same_everywhere, "timeit", prints("12.3 µs ± 1 µs per loop\n")),
    (same_everywhere, "address", prints("<object at 0x7f3a2b4c5d6e>\n")),
    (same_everywhere, "grad_fn", prints("tensor(1., grad_fn=<SumBackward0>)\n")),
    (figures_described, "no_alt", no_alt),
    (figures_described, "no_caption", no_caption),
    (figures_described, "markdown", source(0, "![](square.png)")),
    (figures_described, "html", source(0, '<img src="square.png" alt="">')),
    (figures_described, "directive", source(0, "```{figure} square.png\n:name: a\n\nA.\n```")),
    (installs_on_colab, "missing", source(1, "import sys")),
    (installs_on_colab, "other_url", source(1, COLAB.replace("github.com/", "github.com/a"))),
    (installs_on_colab, "shown", metadata(1, tags=[])),
    (installs_on_colab, "second", colab_second),
    (normalized, "timing", metadata(2, execution={"iopub.status.idle": "2026"})),
    (normalized, "collapsed", metadata(2, collapsed=True)),
    (normalized, "markdown", metadata(0, editable=True)),
    (normalized, "pieces", in_pieces),
    (normalized, "kernel", other_kernel),
    (normalized, "version", python_version),
    (exercises_whole, "stub_is_right", stub_is_right),
    (exercises_whole, "solution_is_wrong", solution_is_wrong),
    (exercises_whole, "solution_open_on_colab", solution_open),
    (exercises_whole, "solution_open", source(10, ":::{solution-start} ex-a\n:::")),
    (exercises_whole, "no_hint", source(8, "Use +.")),
    (exercises_whole, "never_ends", without(9)),
    (
        exercises_whole,
        "another_label",
        source(10, ":::{solution-start} ex-b\n:class: dropdown\n:::"),
    ),
    (exercises_whole, "too_few", lambda nb: nb.cells.__delitem__(slice(6, 13))),
    (small, "big", big),
]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_guard_accepts_a_good_notebook(good, guard):
    assert guard(good) == []


@pytest.mark.parametrize(
    ("guard", "edit"),
    [pytest.param(guard, edit, id=f"{guard.__name__}-{name}") for guard, name, edit in BROKEN],
)
def test_guard_rejects_a_broken_notebook(good, guard, edit):
    edit(good)
    assert guard(good) != []


def test_every_guard_is_tested():
    assert {guard for guard, _, _ in BROKEN} == set(GUARDS)


# --- nbval itself


def change_one_number(nb):
    """Change one digit of one stored output that nbval compares."""
    for cell in code_cells(nb):
        if "nbval-ignore-output" in tags(cell):
            continue
        for output in cell.outputs:
            holder, key = (
                (output, "text") if "text" in output else (output.get("data", {}), "text/plain")
            )
            if output.output_type != "error" and "image/png" not in holder:
                match = re.search(r"\d", holder.get(key, ""))
                if match:
                    digit = str((int(match[0]) + 1) % 10)
                    text = holder[key]
                    holder[key] = text[: match.start()] + digit + text[match.end() :]
                    return cell.execution_count
    raise AssertionError("no number in any compared output")


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebook in book/")
def test_nbval_notices_one_changed_number(tmp_path):
    """The check of the notebooks is only worth what it would catch."""
    pytest.importorskip("nbval")
    nb = nbformat.read(NOTEBOOKS[0], as_version=4)
    changed = change_one_number(nb)
    nbformat.write(nb, tmp_path / "changed.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "changed.ipynb"]
    # None of this project's settings.
    command += ["-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-p", "no:xdist"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout
    assert f"FAILED changed.ipynb::Cell {changed - 1}" in done.stdout
    # The same notebook is right but for this cell.
    assert f"1 failed, {len(code_cells(nb)) - 1} passed" in done.stdout.splitlines()[-1]
