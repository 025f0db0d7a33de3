"""`claim`: quote a sentence of the book, and try it where its example did not."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from .pages import stands

# Few examples, the same in every run: a claim is tried at some dozens of sizes, in a second.
EXAMPLES = 12
TRY = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
FIND = settings(TRY, max_examples=5 * EXAMPLES, phases=[Phase.generate])  # no need to shrink

CLAIMS = []


@dataclass(frozen=True)
class Claim:
    """One line of the ledger."""

    page: str
    sentence: str
    test: str


def claim(page: str, sentence: str, *, right: Any, broken: Any, examples: int = EXAMPLES, **draws):
    """Turn `check(subject, …)` into a test of a sentence of the book.

    The test fails if the sentence no longer stands on its page, if `check(right, …)` fails at
    one of the sizes drawn, or if `check(broken, …)` passes at all of them: a check that a wrong
    variant survives says nothing.

    Args:
        page: how the file name begins, such as "01".
        sentence: as a reader sees it; markup is ignored. A part of a sentence will do.
        right: what the sentence speaks of, handed to the check as `subject`.
        broken: a variant of which it is false, or a list of them; each must fail the check with
            an AssertionError.
        examples: how many draws to try.
        draws: a hypothesis strategy for each further argument of the check.
    """

    def decorate(check):
        CLAIMS.append(Claim(page, sentence, check.__qualname__))

        def run(subject, how):
            if draws:
                how(given(**draws)(lambda **drawn: check(subject, **drawn)))()
            else:
                check(subject)

        def test():
            assert stands(page, sentence), f"page {page} no longer says: {sentence}"
            run(right, settings(TRY, max_examples=examples))
            for variant in broken if isinstance(broken, list) else [broken]:
                with pytest.raises(AssertionError):
                    run(variant, settings(FIND, max_examples=5 * examples))

        test.__name__, test.__doc__ = check.__name__, sentence
        test.__module__, test.__qualname__ = check.__module__, check.__qualname__
        return test

    return decorate
