"""What a check found, and how it is shown: text, a table in a notebook, JSON."""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum

__all__ = ["Diagnosis", "Finding", "Report", "Verdict"]

WIDTH = 78


class Verdict(StrEnum):
    """What can be said of one property."""

    HOLDS = "holds"
    VIOLATED = "violated"
    CONVENTION = "documented convention"
    NOT_APPLICABLE = "not applicable"
    NOT_ASKED = "could not be asked"


MARKS = {
    Verdict.HOLDS: "✓",
    Verdict.VIOLATED: "✗",
    Verdict.CONVENTION: "~",
    Verdict.NOT_APPLICABLE: "·",
    Verdict.NOT_ASKED: "?",
}


@dataclass(frozen=True)
class Finding:
    """One property and its verdict.

    Attributes:
        name: of the property.
        promise: the sentence that should be true.
        verdict: whether it is.
        detail: what was seen instead, or why it does not apply; empty where it holds.
        example: the smallest input found on which it fails; empty where there is none.
        clue: the bug of the catalog that this alone proves; empty where it proves none.
    """

    name: str
    promise: str
    verdict: Verdict
    detail: str = ""
    example: str = ""
    clue: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """A bug that explains what was seen.

    Attributes:
        name: of the bug in the catalog; "unknown" where nothing there explains it.
        sentence: what is wrong, in words.
        chapter: of the book, that explains it; None for an unknown bug.
    """

    name: str
    sentence: str
    chapter: int | None = None

    def __str__(self) -> str:
        return self.sentence + (f" (chapter {self.chapter})" if self.chapter else "")


@dataclass(frozen=True, repr=False)
class Report:
    """What `mha_tutor.check` found; falsy when something is wrong or could not be checked.

    Attributes:
        candidate: what was checked, in words.
        form: how it was understood: function, module, split and merge, or mask.
        findings: one for each property.
        diagnoses: the bugs that explain the violations, as far as they are known.
        notes: how the candidate was called, where that is a choice.
        reason: why it could not be checked, or not to the end; empty if it was.
        seconds: how long it took.
        missing: what could not be found out about the candidate, and how to say it.
    """

    candidate: str
    form: str
    findings: tuple[Finding, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""
    seconds: float = 0.0
    missing: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.reason and not self.violated

    def with_verdict(self, verdict: Verdict) -> tuple[Finding, ...]:
        """List the findings of one verdict."""
        return tuple(finding for finding in self.findings if finding.verdict == verdict)

    @property
    def violated(self) -> tuple[Finding, ...]:
        """The findings that say something is wrong."""
        return self.with_verdict(Verdict.VIOLATED)

    @property
    def conventions(self) -> tuple[Finding, ...]:
        """The findings where the candidate differs from this package, and is meant to."""
        return self.with_verdict(Verdict.CONVENTION)

    @property
    def not_asked(self) -> tuple[Finding, ...]:
        """The findings that say nothing, because too little is known of the candidate."""
        return self.with_verdict(Verdict.NOT_ASKED)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the bugs found."""
        return tuple(diagnosis.name for diagnosis in self.diagnoses)

    @property
    def exit_status(self) -> int:
        """0: everything holds; 1: something is violated; 2: it could not be checked."""
        if self.violated:
            return 1
        return 2 if self.reason else 0

    @property
    def headline(self) -> str:
        """The outcome in one line."""
        if self.reason and not self.findings:
            return f"{self.candidate}: could not be checked"
        holds = len(self.with_verdict(Verdict.HOLDS))
        asked = " that could be asked" if self.not_asked else ""
        parts = [f"{holds} of {holds + len(self.violated)} properties{asked} hold"]
        if self.conventions:
            number = len(self.conventions)
            parts.append(f"{number} documented convention{'s' * (number > 1)}")
        said = f"{self.candidate}: " + ", ".join(parts)
        if self.not_asked:
            reasons = "; ".join(dict.fromkeys(finding.detail for finding in self.not_asked))
            said += f"; {len(self.not_asked)} could not ({reasons})"
        return said

    def __repr__(self) -> str:
        return "\n".join(_text(self))

    def _repr_html_(self) -> str:
        return "".join(_html(self))

    def to_json(self) -> str:
        """Write everything down; `from_json` reads it."""
        content = asdict(self) | {"holds": bool(self), "exit_status": self.exit_status}
        return json.dumps(content, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote."""
        content = json.loads(text)
        del content["holds"], content["exit_status"]
        findings = (item | {"verdict": Verdict(item["verdict"])} for item in content["findings"])
        content["findings"] = tuple(Finding(**item) for item in findings)
        content["diagnoses"] = tuple(Diagnosis(**item) for item in content["diagnoses"])
        content["notes"] = tuple(content["notes"])
        content["missing"] = tuple(content.get("missing", ()))
        return cls(**content)


def _shown(report: Report) -> Iterator[Finding]:
    """Order the findings by what a reader wants to know first."""
    for verdict in (
        Verdict.VIOLATED,
        Verdict.CONVENTION,
        Verdict.NOT_ASKED,
        Verdict.HOLDS,
        Verdict.NOT_APPLICABLE,
    ):
        yield from report.with_verdict(verdict)


def _text(report: Report) -> Iterator[str]:
    yield from _wrapped("", report.headline)
    for missing in report.missing:
        yield from _wrapped("? ", missing)
    if report.reason:
        yield from _wrapped("! ", report.reason)
    for diagnosis in report.diagnoses:
        yield from _wrapped("→ ", str(diagnosis))
    if report.findings:
        yield ""
    width = max((len(finding.name) for finding in report.findings), default=0) + 1
    width = max(width, len(Verdict.NOT_ASKED) + 1)
    for finding in (*report.violated, *report.conventions):
        head = f"{MARKS[finding.verdict]} {finding.name:<{width}}"
        yield from _wrapped(head, finding.promise)
        indent = " " * (width + 2)
        if finding.detail:
            yield from _wrapped(indent, finding.detail)
        if finding.example:
            yield from _wrapped(indent, f"smallest case found: {finding.example}")
    for verdict in (Verdict.HOLDS, Verdict.NOT_ASKED, Verdict.NOT_APPLICABLE):
        names = ", ".join(finding.name for finding in report.with_verdict(verdict))
        if names:
            yield from _wrapped(f"{MARKS[verdict]} {verdict:<{width}}", names)
    if report.notes:
        yield ""
        for note in report.notes:
            yield from _wrapped("  ", note)


def _wrapped(head: str, text: str) -> Iterable[str]:
    """Break lines, and keep those that come broken."""
    rest = " " * len(head)
    lines = []
    for line in text.splitlines() or [""]:
        lines += textwrap.wrap(
            line, WIDTH, initial_indent=rest, subsequent_indent=rest, drop_whitespace=True
        ) or [""]
    return [head + lines[0][len(head) :], *lines[1:]]


def _html(report: Report) -> Iterator[str]:
    yield f"<p><strong>{_marked_up(report.headline)}</strong></p>"
    yield from (f"<p>{_marked_up(missing)}</p>" for missing in report.missing)
    if report.reason:
        yield f"<p>{_marked_up(report.reason)}</p>"
    if report.diagnoses:
        items = "".join(f"<li>{_marked_up(str(item))}</li>" for item in report.diagnoses)
        yield f"<ul>{items}</ul>"
    rows = []
    for finding in _shown(report):
        said = [finding.promise, finding.detail]
        if finding.example:
            said.append(f"smallest case found: {finding.example}")
        words = "<br>".join(_marked_up(text) for text in said if text)
        rows.append(
            f'<tr><td style="{CELL}">{MARKS[finding.verdict]} {finding.verdict}<br>'
            f"<strong>{_marked_up(finding.name)}</strong></td>"
            f'<td style="{CELL}">{words}</td></tr>'
        )
    if rows:
        head = "<tr><th>verdict</th><th>what it says</th></tr>"
        table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
        yield f'<div style="overflow-x: auto; max-width: 100%">{table}</div>'
    yield from (f"<p>{_marked_up(note)}</p>" for note in report.notes)


CELL = "text-align: left; vertical-align: top; white-space: normal; overflow-wrap: break-word"


def _marked_up(text: str) -> str:
    """Escape a text for HTML; what stands in backticks is code."""
    text = html.escape(text).replace("\n", "<br>")
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
