"""Sum up `make test` from the results that pytest left: what ran, what did not, and why.

`python tools/summary.py FOLDER`: one line a part; "Everything passed" only if nothing was left
out that this machine could have run.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

PARTS = ("package", "notebooks", "site")
# A skip for these reasons is no fault of this environment: the machine cannot run the test.
NOT_FOR_THIS_MACHINE = ("needs a CUDA device", "AVX2", "is for Linux", "needs two CUDA devices")


def summarize(folder: Path) -> list[str]:
    """Return the lines to print."""
    lines, left_out = [], []
    for part in PARTS:
        path = folder / f"{part}.xml"
        if not path.exists():
            left_out.append(f"{part} (not run)")
            continue
        cases = list(ElementTree.parse(path).iter("testcase"))
        reasons = Counter(
            skipped.get("message", "no reason")
            for case in cases
            for skipped in case.iter("skipped")
        )
        told = "; ".join(f"{count} skipped: {reason}" for reason, count in reasons.items())
        ran = len(cases) - reasons.total()
        lines.append(f"{part:10} {ran:5} passed" + (f"; {told}" if told else ""))
        left_out += [
            f"{count} of {part} ({reason})"
            for reason, count in reasons.items()
            if not any(known in reason for known in NOT_FOR_THIS_MACHINE)
        ]
    if left_out:
        lines.append(f"What ran has passed. Left out: {'; '.join(left_out)}")
    else:
        lines.append("Everything passed")
    return lines


if __name__ == "__main__":
    print(*(f"== {line}" for line in summarize(Path(sys.argv[1]))), sep="\n")
