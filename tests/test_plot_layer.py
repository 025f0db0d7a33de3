"""The map of the book: all of it is there, and what is lit stands out."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from mha_tutor.palette import HEAD_COLORS
from mha_tutor.plotting import LAYER_PARTS, describe_layer, plot_layer
from mha_tutor.plotting.palette import INK


@pytest.fixture
def draw():
    """Draw on a figure that is closed at the end."""
    yield plot_layer
    plt.close("all")


def lit_texts(ax):
    return {text.get_text() for text in ax.texts if text.get_color() == INK}


@pytest.mark.parametrize("part", LAYER_PARTS)
def test_each_part_is_lit_alone(draw, part):
    everything, alone = lit_texts(draw()), lit_texts(draw(part))
    assert alone
    assert alone < everything


def test_the_parts_together_are_the_whole(draw):
    texts = [lit_texts(draw(part)) for part in LAYER_PARTS]
    assert set().union(*texts) == lit_texts(draw())
    assert sum(map(len, texts)) == len(lit_texts(draw()))


@pytest.mark.parametrize("part", ["heads", "scores", "weights", "mix", "sum"])
def test_each_head_has_a_sheet_in_its_color(draw, part):
    frames = [
        to_hex(patch.get_edgecolor()).upper()
        for patch in draw(part).patches
        if isinstance(patch, Rectangle) and not patch.get_fill()
    ]
    stacks = 3 if part == "heads" else 1
    assert [frames.count(color) for color in HEAD_COLORS[:3]] == [stacks] * 3


def test_everything_is_inside_and_no_two_words_overlap(draw):
    ax = draw()
    ax.figure.canvas.draw()
    frame = ax.get_window_extent()
    boxes = [text.get_window_extent() for text in ax.texts]
    for i, box in enumerate(boxes):
        assert frame.x0 - 1 <= box.x0, ax.texts[i]
        assert box.x1 <= frame.x1 + 1, ax.texts[i]
        assert not any(box.overlaps(other) for other in boxes[:i]), ax.texts[i]


def test_described_in_words():
    assert "In full color" not in describe_layer()
    assert describe_layer(["scores", "weights"]).count(";") == describe_layer().count(";") + 1


@pytest.mark.parametrize("function", [plot_layer, describe_layer])
def test_unknown_part(function):
    with pytest.raises(ValueError, match=r"lit must name parts among tokens, .*, got 'tokes'"):
        function("tokes")
