"""Put the contract itself to the test, in full: `make mutants`. The tests run a sample.

It counts false alarms on right attentions, mutants rejected and named, pairs of mutants, and sets
of bugs written apart from the catalog. All but the time depends on the seeds alone.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mha_tutor.contract.candidates import (
    Bug,
    load_bugs,
    random_pairs,
    right_attentions,
    try_bug,
    try_mutant,
    try_pair,
)
from mha_tutor.contract.door import check
from mha_tutor.contract.mutants import MUTANTS, find_mutant
from mha_tutor.contract.report import Report

__all__ = [
    "Bug",
    "load_bugs",
    "main",
    "random_pairs",
    "right_attentions",
    "try_bug",
    "try_mutant",
    "try_pair",
]

OTHERS = ("timm", "transformers")  # whose layers are tried where they are installed
CHUNK = 20  # seeds that one process takes at a time


# --- one task, in any process --------------------------------------------------------------------


def _right(index: int, seeds: Sequence[int]) -> dict:
    name, make, options = list(right_attentions())[index]
    alarms: dict[str, int] = {}
    seconds = []
    for seed in seeds:
        torch.manual_seed(seed)
        report = check(make(), seed=seed, **options)
        seconds.append(report.seconds)
        for said in [finding.name for finding in report.violated] + [report.reason]:
            if said:
                alarms[said] = alarms.get(said, 0) + 1
    conventions = [finding.name for finding in report.conventions]
    return {
        "name": name,
        "seeds": len(seeds),
        "false alarms": alarms,
        "conventions": conventions,
        "_seconds": seconds,
    }


def _mutant(name: str, form: str) -> dict:
    mutant = find_mutant(name)
    told = {"name": name, "story": mutant.story, "chapter": mutant.chapter, "seen": mutant.seen}
    return told | {"form": form} | _outcome(try_mutant(mutant, form))


def _pair(first: str, second: str, form: str) -> dict:
    report = try_pair(find_mutant(first), find_mutant(second), form)
    return {"pair": [first, second], "form": form} | _outcome(report)


def _unseen(path: str, index: int) -> dict:
    bug = _bugs(path)[index]
    told = {"name": bug.name, "story": bug.story, "form": bug.form}
    told["right names"] = sorted(bug.right_names)
    outcome = _outcome(try_bug(bug))
    given = set(outcome["names"]) - {"unknown"}
    if not outcome["rejected"]:
        verdict = "accepted"
    elif given - bug.right_names:
        verdict = "named wrongly"
    else:
        verdict = "named rightly" if given else "unknown"
    return told | {"verdict": verdict} | outcome


@functools.cache
def _bugs(path: str) -> list[Bug]:
    return load_bugs(path)


def _outcome(report: Report) -> dict:
    return {
        "rejected": not report,
        "names": list(report.names),
        "violated": [finding.name for finding in report.violated],
        "_seconds": [report.seconds],
    }


TASKS = {"right": _right, "mutants": _mutant, "pairs": _pair, "unseen": _unseen}


def _do(task: tuple[str, tuple]) -> tuple[str, tuple, dict]:
    torch.set_num_threads(1)
    kind, arguments = task
    return kind, arguments, TASKS[kind](*arguments)


# --- all of them ---------------------------------------------------------------------------------


def run(
    seeds: int, pairs: int, unseen: Iterable[Path], jobs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Compute every figure; `say` is told how far it is."""
    tasks = list(_tasks(seeds, pairs, unseen))
    figures: dict[str, Any] = {"right": {}, "mutants": [], "pairs": [], "unseen": {}}
    seconds = []
    for kind, arguments, found in _all_done(tasks, jobs):
        seconds += found.pop("_seconds")
        if kind == "right":
            _add_seeds(figures["right"], found)
        elif kind == "unseen":
            figures["unseen"].setdefault(Path(arguments[0]).name, []).append(found)
        else:
            figures[kind].append(found)
        said = found.get("names", found.get("false alarms"))
        say(f"{kind}: {found.get('name') or ' + '.join(found['pair'])}: {said}")
    figures["right"] = list(figures["right"].values())
    named = [m for m in figures["mutants"] if m["form"] != "black box"]
    figures["not named"] = [m for m in named if m["names"] != [m["name"]]]
    figures["seconds per check"] = round(statistics.median(seconds), 2)
    return figures


def _tasks(seeds: int, pairs: int, unseen: Iterable[Path]) -> Iterator[tuple[str, tuple]]:
    for index, _ in enumerate(right_attentions()):
        for start in range(0, seeds, CHUNK):
            yield "right", (index, range(start, min(start + CHUNK, seeds)))
    for mutant in MUTANTS:
        yield from (("mutants", (mutant.name, form)) for form in sorted(mutant.forms))
    for first, second, form in random_pairs(pairs):
        yield "pairs", (first.name, second.name, form)
    for path in unseen:
        yield from (("unseen", (str(path), i)) for i, _ in enumerate(_bugs(str(path))))


def _all_done(tasks: list, jobs: int) -> Iterator[tuple[str, tuple, dict]]:
    if jobs == 1:
        yield from map(_do, tasks)
        return
    with multiprocessing.Pool(jobs) as pool:
        yield from pool.imap(_do, tasks)


def _add_seeds(known: dict[str, dict], found: dict) -> None:
    """Add the seeds of one chunk to those before."""
    entry = known.setdefault(found["name"], found | {"seeds": 0, "false alarms": {}})
    entry["seeds"] += found["seeds"]
    for said, times in found["false alarms"].items():
        entry["false alarms"][said] = entry["false alarms"].get(said, 0) + times


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """Count what matters."""
    mutants, pairs = figures["mutants"], figures["pairs"]
    can_be_named = sum(m["form"] != "black box" for m in mutants)
    counts = {
        "right attentions": len(figures["right"]),
        "checks of right attentions": sum(r["seeds"] for r in figures["right"]),
        "false alarms": sum(sum(r["false alarms"].values()) for r in figures["right"]),
        "mutants": len({m["name"] for m in mutants}),
        "mutants in all their forms": len(mutants),
        "mutants rejected": sum(m["rejected"] for m in mutants),
        "mutants that can be named": can_be_named,
        "mutants named rightly": can_be_named - len(figures["not named"]),
        "pairs": len(pairs),
        "pairs rejected": sum(p["rejected"] for p in pairs),
        "pairs with one named rightly": sum(bool({*p["names"]} & {*p["pair"]}) for p in pairs),
        "pairs with both named rightly": sum({*p["pair"]} <= {*p["names"]} for p in pairs),
        "pairs given a wrong name": sum(
            bool({*p["names"]} - {*p["pair"], "unknown"}) for p in pairs
        ),
    }
    for name, bugs in figures["unseen"].items():
        verdicts = [bug["verdict"] for bug in bugs]
        counts[name] = {
            "bugs": len(bugs),
            "rejected": sum(bug["rejected"] for bug in bugs),
            **{said: verdicts.count(said) for said in ("named rightly", "unknown")},
            "named wrongly": verdicts.count("named wrongly"),
        }
    return counts


def made(options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Say how the figures were made."""
    unseen = "".join(f" --unseen {path}" for path in options.unseen)
    versions = {"torch": torch.__version__}
    for name in OTHERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": f"python -m mha_tutor.contract.trial {options.output} --seeds {options.seeds} "
        f"--pairs {options.pairs}{unseen}",
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds),
        **versions,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trial, write the figures, and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m mha_tutor.contract.trial", description=__doc__)
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--seeds", type=int, default=200, help="for each right attention; 200")
    parser.add_argument("--pairs", type=int, default=200, help="of two mutants; 200")
    parser.add_argument(
        "--unseen",
        type=Path,
        action="append",
        default=[],
        help="Python file with a list BUGS; may be given several times",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes; 1")
    parser.add_argument("--quiet", action="store_true", help="print the counts only")
    options = parser.parse_args(arguments)
    for path in options.unseen:
        if not path.is_file():
            parser.error(f"there is no file {path}")
    start = time.monotonic()
    say = (lambda line: None) if options.quiet else functools.partial(print, flush=True)
    figures = run(options.seeds, options.pairs, options.unseen, options.jobs, say)
    counts = summary(figures)
    how = made(options, time.monotonic() - start)
    how["seconds per check"] = figures.pop("seconds per check")
    content = {"summary": counts, "made": how, **figures}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    options.output.write_text(text + "\n", encoding="utf-8")
    for name, count in counts.items():
        said = ", ".join(f"{v} {k}" for k, v in count.items()) if isinstance(count, dict) else count
        print(f"{name}: {said}")


if __name__ == "__main__":
    main()
