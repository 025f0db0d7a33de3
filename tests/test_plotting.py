"""The plots: what is drawn, read back from the artists; no image is compared."""

from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from mha_tutor.plotting import (
    HEAD_COLORS,
    HEAD_MARKERS,
    head_color,
    plot_cells,
    plot_curves,
    plot_equation,
    plot_heads,
    plot_mask,
    plot_memory,
    plot_reach,
    plot_scores,
    plot_weights,
)
from mha_tutor.plotting.heatmaps import MASKED_FACE
from mha_tutor.plotting.palette import INK, SOFT_INK

CAUSAL = np.tri(3, dtype=bool)
WEIGHTS = np.array([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.125, 0.375, 0.5]])
INF = float("inf")


@pytest.fixture(autouse=True)
def _close_figures():
    assert not plt.get_fignums()
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def text_at(ax, i, j):
    """Give the Text in cell (i, j), or None."""
    inside = [
        t for t in ax.texts if j < t.get_position()[0] < j + 1 and i < t.get_position()[1] < i + 1
    ]
    assert len(inside) <= 1
    return inside[0] if inside else None


def boxes(ax):
    return [patch for patch in ax.patches if isinstance(patch, Rectangle)]


def corners(collection):
    """Give the cells (i, j) that a collection of squares covers."""
    lower = [path.get_extents().min for path in collection.get_paths()]
    return {(int(y), int(x)) for x, y in lower}


def hatched(ax):
    found = [c for c in ax.collections if isinstance(c, PatchCollection) and c.get_hatch()]
    return set().union(*map(corners, found)) if found else set()


def cells(where):
    return {tuple(map(int, index)) for index in np.argwhere(where)}


def contrast(color, other):
    """WCAG contrast ratio."""

    def luminance(c):
        c = np.array(to_rgb(c))
        c = np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return c @ [0.2126, 0.7152, 0.0722]

    high, low = sorted([luminance(color), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


# Heads


def test_a_head_has_the_color_of_the_book():
    assert [head_color(h) for h in range(4)] == ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
    assert len(set(HEAD_MARKERS)) == len(HEAD_COLORS)


@pytest.mark.parametrize("h", [4, -1])
def test_a_fifth_head_has_no_color(h):
    with pytest.raises(ValueError, match=rf"head must be 0 to 3 .*small multiples.*got {h}"):
        head_color(h)


# Cells


def test_cells_show_every_number_where_it_stands():
    matrix = np.arange(6).reshape(2, 3)
    ax = plot_cells(matrix)
    assert len(boxes(ax)) == 6
    for i, j in np.ndindex(2, 3):
        assert text_at(ax, i, j).get_text() == str(matrix[i, j])
    assert ax.yaxis_inverted()  # row 0 on top
    assert ax.get_aspect() == 1


def test_a_vector_is_a_column():
    ax = plot_cells([7, 8])
    assert [text_at(ax, i, 0).get_text() for i in range(2)] == ["7", "8"]


@pytest.mark.parametrize(
    ("values", "fmt", "shown"),
    [
        ([1.0, 0.12345], None, ["1", "0.123"]),
        ([1, 2], ".1f", ["1.0", "2.0"]),
        ([-0.01, 0.0], ".1f", ["0.0", "0.0"]),
        ([True, False], None, ["True", "False"]),
        (["x0", "-"], None, ["x0", "-"]),
        ([float("nan"), -INF], None, ["NaN", "-inf"]),
    ],
)
def test_numbers_are_written_short(values, fmt, shown):
    assert texts(plot_cells(values, fmt=fmt)) == shown


@pytest.mark.parametrize("way", ["row_heads", "column_heads", "cell_heads"])
def test_cells_are_tinted_by_head(way):
    heads = [0, None, 2]
    want = np.array([[0, -1, 2]] * 3)
    want = want.T if way == "row_heads" else want
    ax = plot_cells(np.zeros((3, 3), int), **{way: [heads] * 3 if way == "cell_heads" else heads})
    for patch, head in zip(boxes(ax), want.ravel(), strict=True):
        face, edge = patch.get_facecolor(), to_hex(patch.get_edgecolor()).upper()
        assert contrast(face, INK) > 7  # light enough for dark text
        if head < 0:
            assert edge not in HEAD_COLORS
        else:
            assert edge == HEAD_COLORS[head]
            tint = np.array(to_rgb(face))
            assert np.allclose(tint, 1 - 0.22 * (1 - np.array(to_rgb(edge))))


def test_heads_are_named_and_not_told_by_color_alone():
    assert {"head 0", "head 2"} <= set(texts(plot_cells([[1], [2]], row_heads=[0, 2])))
    assert {"W1", "W2"} <= set(
        texts(plot_cells([[1, 2]], column_heads=[0, 1], head_labels=["W1", "W2"]))
    )
    ax = plot_cells([[1, 2]], cell_heads=[[0, 1]])
    assert [line.get_marker() for line in ax.lines] == ["o", "s"] * 2  # in the cells, then below
    assert sorted(texts(ax)) == ["1", "2", "head 0", "head 1"]


def test_head_names_can_be_left_out():
    ax = plot_cells([[1, 2]], column_heads=[0, 1], head_labels=["", ""])
    assert texts(ax) == ["1", "2"]
    assert not ax.lines
    assert set(texts(plot_cells([[1, 2]], cell_heads=[[0, 1]], legend=False))) == {"1", "2"}


def test_a_split_head_is_named_at_each_of_its_runs():
    ax = plot_cells([1, 2, 3], row_heads=[0, 1, 0])
    assert texts(ax)[3:] == ["head 0", "head 1", "head 0"]


def test_labels_stand_outside_the_cells():
    ax = plot_cells([[1, 2]], row_labels=["r"], column_labels=["a", "b"], title="T")
    assert ax.get_title() == "T"
    place = {t.get_text(): t.get_position() for t in ax.texts}
    assert place["r"][0] < 0 < place["r"][1] < 1
    assert place["a"][1] < 0 < place["a"][0] < 1 < place["b"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_heads": [0, 1, 2]}, r"row_heads must have one entry for each row \(2\), got 3"),
        ({"column_heads": [0]}, r"column_heads must have one entry for each column \(3\), got 1"),
        ({"column_heads": [0, 1, 4]}, "head must be 0 to 3"),
        ({"cell_heads": [[0, 1]]}, r"cell_heads must broadcast to \(2, 3\), got \(1, 2\)"),
        ({"row_labels": ["a"]}, r"row_labels must have one entry for each row \(2\), got 1"),
        (
            {"row_heads": [0, 1], "cell_heads": [[0]]},
            "at most one of .* got row_heads and cell_heads",
        ),
        ({"row_heads": [0, 2], "head_labels": ["a"]}, "head_labels must name head 2 too, got 1"),
    ],
)
def test_cells_refuse_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        plot_cells(np.zeros((2, 3)), **options)
    assert not plt.get_fignums()  # no empty figure is left behind


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (np.zeros((2, 2, 2)), ValueError, r"matrix must have the shape .* got \(2, 2, 2\)"),
        (np.zeros((0, 2)), ValueError, r"matrix must not be empty, got the shape \(0, 2\)"),
        ([[1, 2], [3]], ValueError, "matrix must be a rectangular array"),
        ([1j], TypeError, "matrix must hold real numbers or strings, got dtype complex128"),
    ],
)
def test_cells_refuse_what_is_no_matrix(matrix, error, message):
    with pytest.raises(error, match=message):
        plot_cells(matrix)


def test_head_indices_are_whole_numbers():
    with pytest.raises(TypeError, match=r"row_heads must hold head indices .* float64"):
        plot_cells([1, 2], row_heads=[0.0, 1.0])


# Equations


def test_an_equation_stands_in_a_row_without_overlap():
    W, x = np.array([[1, 2], [3, 4], [5, 6]]), np.array([10, 1])
    ax = plot_equation(
        {"matrix": W @ x, "title": "y"}, "=", {"matrix": W, "column_heads": [0, 1]}, x, title="T"
    )
    assert ax.get_title() == "T"
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in boxes(ax)]
    (y_right, w_left, w_right, x_left) = (
        max(right for _, right in spans[:3]),
        min(left for left, _ in spans[3:9]),
        max(right for _, right in spans[3:9]),
        min(left for left, _ in spans[9:]),
    )
    equals = next(t for t in ax.texts if t.get_text() == "=")
    assert y_right < equals.get_position()[0] < w_left < w_right < x_left
    middle = [
        np.mean([b.get_y() + 0.45 for b in group]) for group in (boxes(ax)[:3], boxes(ax)[9:])
    ]
    assert middle == pytest.approx([1.5, 1.5])  # all terms centered on one line
    assert {"y", "head 0", "head 1"} <= set(texts(ax))


def test_an_equation_needs_terms():
    with pytest.raises(ValueError, match="at least one term"):
        plot_equation()
    with pytest.raises(ValueError, match=r"must have the key \"matrix\", got \['title'\]"):
        plot_equation({"title": "W"})


# Memory


def test_memory_is_drawn_in_storage_order():
    x = torch.arange(24).reshape(2, 3, 4)
    straight, view = texts(plot_memory(x)), texts(plot_memory(x.transpose(0, 2)))
    assert straight == view
    assert straight[:12] == [str(i) for i in range(12)]
    copied = texts(plot_memory(x.transpose(0, 2).contiguous(), offsets=False))
    assert copied == [str(int(value)) for value in x.transpose(0, 2).flatten()]


def test_memory_takes_heads_in_the_shape_of_the_view():
    view = np.arange(8).reshape(2, 2, 2).swapaxes(0, 1)  # (tokens, heads, D) → (heads, tokens, D)
    ax = plot_memory(view, heads=np.arange(2)[:, None, None])
    edges = [to_hex(patch.get_edgecolor()).upper() for patch in boxes(ax)]
    assert edges == [HEAD_COLORS[h] for h in (0, 0, 1, 1, 0, 0, 1, 1)]
    assert {"head 0", "head 1"} <= set(texts(ax))


def test_memory_writes_real_offsets():
    def offsets(values):
        ax = plot_memory(values)
        return [t.get_text() for t in ax.texts if to_hex(t.get_color()) == SOFT_INK]

    assert offsets(torch.arange(12)[6::2]) == ["6", "8", "10"]
    assert offsets(torch.arange(3).expand(2, 3)) == ["0", "1", "2"]  # shared places once
    assert offsets(np.arange(3)[::-1]) == ["0", "1", "2"]
    assert texts(plot_memory(np.arange(3)[::-1], offsets=False)) == ["0", "1", "2"]


def test_memory_wraps():
    ax = plot_memory(np.arange(10), per_row=4)
    assert len({round(patch.get_y(), 6) for patch in boxes(ax)}) == 3
    with pytest.raises(ValueError, match="per_row must be at least 1, got 0"):
        plot_memory([1], per_row=0)


# Scores and weights


def test_scores_are_symmetric_about_zero():
    ax = plot_scores([[1.0, -3.0], [0.5, 2.0]])
    mesh = ax.collections[0]
    assert mesh.get_clim() == (-3, 3)
    assert mesh.get_cmap().name == "PuOr_r"
    assert text_at(ax, 0, 1).get_text() == "-3.0"
    assert plot_scores([[1.0]], limit=5).collections[0].get_clim() == (-5, 5)
    assert plot_scores([[0.0]]).collections[0].get_clim() == (-1, 1)
    with pytest.raises(ValueError, match="limit must be positive, got 0"):
        plot_scores([[1.0]], limit=0)


def test_masked_scores_count_for_nothing():
    scores = np.array([[1.0, 90.0], [-2.0, -INF]])
    ax = plot_scores(scores, mask=[[True, False], [True, True]])
    assert ax.collections[0].get_clim() == (-2, 2)
    assert hatched(ax) == {(0, 1), (1, 1)}
    assert texts(ax) == ["1.0", "-2.0"]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_weights_have_one_scale(as_tensor):
    weights = torch.tensor(WEIGHTS, requires_grad=True) if as_tensor else WEIGHTS
    ax = plot_weights(weights, queries=["q0", "q1", "q2"], keys=["k0", "k1", "k2"], title="T")
    mesh = ax.collections[0]
    assert mesh.get_clim() == (0, 1)
    assert to_hex(mesh.get_cmap()(0.0)) == "#ffffff"  # no weight, no ink
    assert np.array_equal(mesh.get_array(), WEIGHTS)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["q0", "q1", "q2"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["k0", "k1", "k2"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("key", "query", "T")
    assert ax.yaxis_inverted()
    assert text_at(ax, 2, 1).get_text() == "0.38"
    assert not hatched(ax)


@pytest.mark.parametrize("head", range(4))
def test_weights_of_a_head_run_from_white_to_its_color(head):
    ramp = plot_weights(WEIGHTS, head=head, annotate=False).collections[0].get_cmap()
    assert to_hex(ramp(0.0)) == "#ffffff"
    assert to_hex(ramp(1.0)).upper() == head_color(head)


def test_bfloat16_is_drawn_too():
    weights = torch.tensor(WEIGHTS, dtype=torch.bfloat16)
    assert np.array_equal(plot_weights(weights).collections[0].get_array(), WEIGHTS)


def test_masked_weights_are_hatched_and_not_zero():
    ax = plot_weights(WEIGHTS, mask=CAUSAL)
    assert hatched(ax) == cells(~CAUSAL)
    assert np.array_equal(ax.collections[0].get_array().mask, ~CAUSAL)
    assert len(ax.texts) == 6
    grays = [c for c in ax.collections if c.get_hatch()]
    assert [to_hex(c.get_facecolor()[0]) for c in grays] == [MASKED_FACE]


def test_a_leaked_weight_stays_visible():
    weights = np.full((2, 2), 0.5)
    ax = plot_weights(weights, mask=np.tri(2, dtype=bool))
    assert hatched(ax) == {(0, 1)}
    assert text_at(ax, 0, 1).get_text() == "0.50"
    assert not np.ma.getmaskarray(ax.collections[0].get_array()).any()


def test_nan_is_shown_as_nan():
    ax = plot_weights([[float("nan")]])
    assert texts(ax) == ["NaN"]
    assert not hatched(ax)


def test_numbers_are_legible_on_their_cells():
    values = np.linspace(0, 1, 21)[None]
    for ax in (plot_weights(values), plot_scores(2 * values - 1)):
        mesh = ax.collections[0]
        for value, text in zip(mesh.get_array().ravel(), ax.texts, strict=True):
            assert contrast(mesh.cmap(mesh.norm(value)), text.get_color()) >= 4, value


def test_masks_broadcast():
    padding = torch.tensor([[[[True, True, False]]]])
    assert hatched(plot_weights(WEIGHTS * [1, 1, 0], mask=padding)) == {(0, 2), (1, 2), (2, 2)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot_weights([[1.5]]), ValueError, r"in \[0, 1\] .*1.5 to 1.5"),
        (lambda: plot_weights([[2.0, -1.0]]), ValueError, r"in \[0, 1\] .*plot_scores.*-1 to 2"),
        (
            lambda: plot_weights([0.5]),
            ValueError,
            r"weights must have the shape \(L, S\), got \(1,\)",
        ),
        (lambda: plot_weights([["a"]]), TypeError, "weights must hold real numbers, got dtype <U1"),
        (
            lambda: plot_weights(WEIGHTS, mask=CAUSAL * 1.0),
            TypeError,
            "mask must be boolean .*float64",
        ),
        (
            lambda: plot_weights(WEIGHTS, mask=CAUSAL[:2]),
            ValueError,
            r"mask must broadcast to \(3, 3\)",
        ),
        (lambda: plot_weights(WEIGHTS, keys=["a"]), ValueError, r"keys .* column \(3\), got 1"),
        (
            lambda: plot_weights(WEIGHTS, queries=3),
            TypeError,
            "queries must be a sequence, got int",
        ),
        (
            lambda: plot_weights(WEIGHTS, [None]),
            TypeError,
            "ax must be one matplotlib Axes, got list",
        ),
        (lambda: plot_heads(WEIGHTS), ValueError, r"weights must have the shape \(H, L, S\)"),
        (
            lambda: plot_heads(WEIGHTS[None], titles=["a", "b"]),
            ValueError,
            r"titles .* \(1\), got 2",
        ),
        (lambda: plot_mask(np.tri(3)), TypeError, "mask must be boolean .*float64"),
        (
            lambda: plot_mask(np.ones((2, 3, 3), bool)),
            ValueError,
            r"mask must have the shape \(L, S\)",
        ),
        (lambda: plot_reach(np.tri(3)), TypeError, "reach must be boolean"),
        (
            lambda: plot_reach(CAUSAL, allowed=CAUSAL[:2]),
            ValueError,
            r"allowed must broadcast to \(3, 3\)",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert not plt.get_fignums()


def test_a_panel_is_drawn_on_the_axes_given():
    _, axes = plt.subplots(1, 6)
    drawn = [
        plot_cells([1], axes[0]),
        plot_memory([1], axes[1]),
        plot_scores([[1.0]], axes[2]),
        plot_weights([[1.0]], axes[3]),
        plot_mask([[True]], axes[4]),
        plot_reach([[True]], axes[5]),
    ]
    assert drawn == list(axes)
    assert len(plt.get_fignums()) == 1


def test_many_tokens_have_few_ticks_inside_the_picture():
    ax = plot_weights(np.full((60, 60), 1 / 60), annotate=False)
    labels = [tick.get_text() for tick in ax.get_xticklabels()]
    assert labels == ["0", "15", "30", "45"]
    assert ax.get_xticks().tolist() == [0.5, 15.5, 30.5, 45.5]
    assert not ax.texts


# All heads


def test_heads_share_scale_and_color_bar():
    weights = np.stack([WEIGHTS, WEIGHTS[::-1] @ np.eye(3), np.full((3, 3), 1 / 3)])
    axes = plot_heads(torch.tensor(weights), keys=["a", "b", "c"])
    assert axes.shape == (3,)
    assert [ax.get_title() for ax in axes] == ["head 0", "head 1", "head 2"]
    assert {ax.collections[0].get_clim() for ax in axes} == {(0, 1)}
    for h, ax in enumerate(axes):
        assert np.array_equal(ax.collections[0].get_array(), weights[h])
        (glyph,) = ax.texts
        assert glyph.get_color() == head_color(h)
        assert to_hex(ax.spines["left"].get_edgecolor()).upper() == head_color(h)
    assert len({ax.texts[0].get_text() for ax in axes}) == 3  # a marker of its own each
    assert len(axes[0].figure.axes) == 4  # three panels, one color bar
    assert axes[0].get_ylabel() == "query"
    assert axes[1].get_ylabel() == ""


def test_heads_have_a_mask_each_or_one_for_all():
    weights = np.stack([WEIGHTS, np.eye(3)])
    assert [hatched(ax) for ax in plot_heads(weights, mask=CAUSAL)] == [cells(~CAUSAL)] * 2
    each = np.stack([CAUSAL, np.eye(3, dtype=bool)])
    assert [hatched(ax) for ax in plot_heads(weights, mask=each)] == [cells(~m) for m in each]


def test_more_than_four_heads_wrap_without_color():
    axes = plot_heads(np.full((6, 3, 3), 1 / 3))
    assert len(axes) == 6
    assert len({ax.get_subplotspec().rowspan.start for ax in axes}) == 2
    assert not any(ax.texts for ax in axes)
    assert len(axes[0].figure.axes) == 7
    # every column has its key labels under its last panel
    assert [ax.get_xlabel() for ax in axes] == ["", "", "key", "key", "key", "key"]


# Masks and reach


def test_mask_says_allowed_and_masked_in_two_ways():
    ax = plot_mask(CAUSAL, queries=list("abc"), keys=list("def"))
    assert hatched(ax) == cells(~CAUSAL)
    assert all(text.get_text() == "✓" for text in ax.texts)
    assert all((text_at(ax, i, j) is not None) == CAUSAL[i, j] for i, j in np.ndindex(3, 3))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 1, 4)])
def test_a_broadcast_mask_keeps_its_size(shape):
    ax = plot_mask(torch.tensor([True, True, False, False]).reshape(shape))
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 4), (1, 0))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["all"]


def test_reach_tells_four_cases_apart():
    reach = np.array([[True, True], [False, True]])
    ax = plot_reach(reach, allowed=np.array([[True, False], [True, True]]))
    assert [text_at(ax, i, j).get_text() for i, j in np.ndindex(2, 2)] == ["●", "✗", "○", "●"]
    faces = [to_hex(c.get_facecolor()[0]) for c in ax.collections]
    assert len(set(faces)) == len(faces) == 3
    assert not set(faces) & {color.lower() for color in HEAD_COLORS}
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "● reached: 2 of 3",
        "✗ leak: 1 of 1",
        "○ missed: 1 of 3",
        "· rightly not reached: 0 of 1",
    ]
    assert [corners(c) for c in ax.collections] == [{(0, 0), (1, 1)}, {(0, 1)}, {(1, 0)}]


def test_reach_alone_has_two_cases():
    ax = plot_reach(torch.eye(2, dtype=torch.bool))
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend == ["● reached: 2 of 4", "· not reached: 2 of 4"]
    assert plot_reach(CAUSAL, legend=False).get_legend() is None


# Curves


def test_curves_are_named_at_their_ends():
    x = [1, 2, 4]
    curves = {"up": [0.0, 1.0, 2.0], "flat": [1.0, 1.0, float("nan")]}
    ax = plot_curves(x, curves, xlabel="H", ylabel="error", xscale="log2", title="T")
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("H", "error", "T")
    assert {t.get_text(): t.xy for t in ax.texts} == {"up": (4, 2), "flat": (2, 1)}
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "4"]
    assert ax.get_xscale() == "log"
    lines = {line.get_label(): line for line in ax.lines}
    assert np.array_equal(lines["up"].get_ydata(), curves["up"])
    for kind in ("get_color", "get_marker", "get_linestyle"):
        assert len({getattr(line, kind)() for line in lines.values()}) == 2


def test_names_of_curves_do_not_overlap():
    curves = {name: [0, 1 + 0.01 * i] for i, name in enumerate("abcd")} | {"low": [0, 0]}
    ax = plot_curves([0, 1], curves, xlabel="x", ylabel="y")
    ax.figure.draw_without_rendering()
    spans = sorted((t.get_window_extent().y0, t.get_window_extent().y1) for t in ax.texts)
    assert all(below[1] <= above[0] for below, above in pairwise(spans))


@pytest.mark.parametrize(
    ("x", "curves", "options", "message"),
    [
        ([1, 2], {"a": [1]}, {}, r"curves\['a'\] must have one value for each x \(2\), got 1"),
        ([1, 2], {}, {}, "curves must hold 1 to 6 curves, got 0"),
        ([1], {"a": [1]}, {"xscale": "ln"}, 'xscale must be "linear", "log" or "log2", got \'ln\''),
        ([1], {"a": [1]}, {"colors": ["r", "b"]}, r"colors .* each curve \(1\), got 2"),
    ],
)
def test_curves_refuse_what_does_not_fit(x, curves, options, message):
    with pytest.raises(ValueError, match=message):
        plot_curves(x, curves, xlabel="x", ylabel="y", **options)
    assert not plt.get_fignums()


# Figures


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_cells(np.arange(48).reshape(2, 24), column_heads=[0] * 24),
        lambda: plot_memory(np.arange(48), heads=np.arange(48) % 3),
        lambda: plot_equation(*[np.ones((4, 4), int)] * 6),
        lambda: plot_weights(np.full((60, 60), 1 / 60), annotate=False, colorbar=True),
        lambda: plot_heads(np.full((8, 60, 60), 1 / 60))[0],
        lambda: plot_reach(np.tri(8, dtype=bool), allowed=np.tri(8, dtype=bool)),
        lambda: plot_curves([1, 2], {"a": [1, 2]}, xlabel="x", ylabel="y"),
    ],
)
def test_figures_fit_a_phone_and_dark_mode(draw):
    figure = draw().figure
    figure.draw_without_rendering()
    assert figure.get_size_inches()[0] <= 7.001
    assert to_hex(figure.get_facecolor()) == "#ffffff"
    sizes = [t.get_fontsize() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]
    assert min(sizes) >= 9


def test_no_glyph_is_missing():
    """Fail when a symbol is not in matplotlib's own font: drawing it warns, warnings are errors."""
    plot_reach(np.array([[True, True], [False, False]]), allowed=np.tri(2, dtype=bool))
    plot_mask(CAUSAL)
    plot_heads(np.full((4, 2, 2), 0.5))
    for number in plt.get_fignums():
        plt.figure(number).draw_without_rendering()
