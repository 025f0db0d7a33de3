"""The wiring of a spec: each letter is drawn in its role."""

import matplotlib.pyplot as plt
import pytest

from mha_tutor.plotting import plot_spec


def roles(spec):
    ax = plot_spec(spec)
    words = [text.get_text() for text in ax.texts]
    plt.close(ax.figure)
    return {role: words.count(role) for role in ("batch", "kept", "Σ summed")}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nqhd,nkhd->nhqk", (2, 2, 1)),
        ("nhqk,nkhd->nqhd", (2, 2, 1)),
        ("nqhd,nkhd->nqk", (1, 2, 2)),
        ("i,j->ij", (0, 2, 0)),
        ("i,i->i", (1, 0, 0)),
    ],
)
def test_roles(spec, expected):
    assert tuple(roles(spec).values()) == expected


@pytest.mark.parametrize("spec", ["ij,jk", "ij->ji", "a,b,c->abc"])
def test_not_two_operands(spec):
    with pytest.raises(ValueError, match="spec must have two operands and an arrow"):
        plot_spec(spec)
