"""The ledger itself: it holds what it says, and its own rules can fail."""

import pytest
from hypothesis import strategies as st

from . import ledger, pages
from .count import claims
from .derived import DERIVED
from .editions import SECOND_EDITION


@pytest.mark.parametrize("page", sorted(SECOND_EDITION))
def test_strong_words_are_covered(page):
    """A sentence with a strong word is tried in the ledger, or derived on the page."""
    covered = [claim.sentence for claim in claims() if claim.page == page]
    covered += [sentence for sentence, _ in DERIVED.get(page, [])]
    assert list(pages.strong_hits(pages.prose(pages.find(page)), covered)) == []


@pytest.mark.parametrize(
    ("page", "sentence", "place"),
    [(page, *pair) for page, pairs in DERIVED.items() for pair in pairs],
)
def test_derived_sentences_stand(page, sentence, place):
    assert pages.stands(page, sentence)
    assert pages.stands(page, place)


def test_each_sentence_is_entered_once():
    entered = [(claim.page, pages.squash(claim.sentence)) for claim in claims()]
    assert len(entered) == len(set(entered))


# --- the rules can fail

TITLE = "Split y = Ax into heads"  # a sentence that stands on page 01


@pytest.fixture(autouse=True)
def _keep_ledger(monkeypatch):
    """Claims that are made here count for nothing."""
    claims()
    monkeypatch.setattr(ledger, "CLAIMS", [])


def even(subject, n):
    assert subject(n) % 2 == 0


DRAWS = {"n": st.integers(0, 99)}


def test_a_claim_passes():
    ledger.claim("01", TITLE, right=lambda n: 2 * n, broken=lambda n: n, **DRAWS)(even)()


def test_a_missing_sentence_fails():
    test = ledger.claim("01", "No page says so.", right=lambda n: 2 * n, broken=abs, **DRAWS)(even)
    with pytest.raises(AssertionError, match="no longer says"):
        test()


def test_a_false_sentence_fails():
    test = ledger.claim("01", TITLE, right=lambda n: 3 * n, broken=lambda n: n, **DRAWS)(even)
    with pytest.raises(AssertionError):
        test()


def test_a_check_that_a_wrong_variant_survives_fails():
    variants = [lambda n: n, lambda n: 4 * n]
    test = ledger.claim("01", TITLE, right=lambda n: 2 * n, broken=variants, **DRAWS)(even)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test()


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ("It is so. It always holds. Or not.", 1),
        ("Does it always hold? It does.", 0),
        ("Why is **nothing** lost?", 0),
        ("It depends. Whatever the size, it holds, exactly.", 2),
    ],
)
def test_scan_finds_strong_words(text, hits):
    assert len(list(pages.strong_hits(pages.squash(text), []))) == hits


def test_a_covered_sentence_is_no_hit():
    text = pages.squash("This *always* holds. That never does.")
    assert len(list(pages.strong_hits(text, ["This always holds."]))) == 1


def test_squash_shows_what_a_reader_sees():
    text = "- **Cut** `W` by [rows](x.md),\n  {cite}`a` and $x$ | c |"
    assert pages.squash(text) == "Cut W by rows, a and x c"
