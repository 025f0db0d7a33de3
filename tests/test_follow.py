"""The recording against torch itself; the figures as text. `tests/site` reads them in a browser."""

import html.parser
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mha_tutor
from mha_tutor import compare, follow, follow_mask
from mha_tutor.figures.boxes import corner, memory_strip, nested_boxes, shelves
from mha_tutor.follow import Recording

B, L, H, D = 2, 4, 3, 2
E = H * D


# --- Random chains, against torch ---------------------------------------------------------


def factors(n):
    """Return the ways to write n as an ordered product of up to four sizes, 1 included."""
    found = [(n,)]
    for a in range(1, n + 1):
        if n % a == 0:
            found.append((a, n // a))
            found += [(a, b, n // a // b) for b in range(1, n + 1) if n // a % b == 0]
    return found


AXES = st.integers(-5, 4)
SLICE = st.one_of(
    st.integers(-2, 2),
    st.slices(4).filter(lambda s: s.step is None or s.step > 0),
    st.none(),
    st.just(Ellipsis),
)


def draw_step(draw, x):
    """Draw one step: the name of a method and its arguments. It may well be a bad one."""
    name = draw(
        st.sampled_from(
            [
                "reshape",
                "view",
                "view",
                "transpose",
                "swapaxes",
                "permute",
                "permute",
                "unflatten",
                "flatten",
                "movedim",
                "contiguous",
                "__getitem__",
            ]
        )
    )
    good = draw(st.integers(0, 9)) > 0  # one step in ten is drawn without care
    axes = st.integers(-x.ndim, x.ndim - 1) if good and x.ndim else AXES
    if name in ("reshape", "view"):
        n = x.numel() if good else x.numel() + 1
        return name, draw(st.sampled_from(factors(n)))
    if name in ("transpose", "swapaxes"):
        return name, (draw(axes), draw(axes))
    if name == "movedim":
        return name, (draw(axes), draw(axes))
    if name == "permute":
        return name, tuple(draw(st.permutations(range(x.ndim if good else x.ndim + 1))))
    if name == "unflatten":
        dim = draw(axes)
        size = x.shape[dim] if -x.ndim <= dim < x.ndim and good else 7
        return name, (dim, draw(st.sampled_from(factors(size))))
    if name == "flatten":
        first, last = draw(axes), draw(axes)
        return name, (first, last)
    if name == "__getitem__":
        key = tuple(draw(st.lists(SLICE, max_size=x.ndim if good else 5)))
        return name, (key,)
    return name, ()


@st.composite
def tensors(draw):
    """Draw a tensor that may be transposed, sliced or offset from the start of its storage."""
    shape = draw(st.sampled_from([(2, 4, 6), (4, 6), (2, 3, 2, 2), (12,), (5, 7), (1, 6, 1), ()]))
    start = draw(st.integers(0, 3))
    x = torch.arange(start, start + math.prod(shape) + 3)[start : start + math.prod(shape)]
    x = x.mul_(3).reshape(shape)
    if x.ndim > 1 and draw(st.booleans()):
        x = x.transpose(0, -1)
    if x.ndim > 1 and draw(st.booleans()):
        x = x[:, 1:] if x.shape[1] > 1 else x
    return x


def same_storage(a, b):
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def check_stage(stage, x, before, original):
    """Compare a stage with the tensor that torch made by the same step."""
    assert stage.shape == tuple(x.shape)
    assert stage.strides == x.stride()
    assert stage.storage_offset == x.storage_offset()
    assert stage.is_contiguous == x.is_contiguous()
    assert stage.is_view == same_storage(x, before)
    assert np.array_equal(stage.values, x.numpy())
    memory = x.as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
    flat = original.reshape(-1)
    for index in np.ndindex(*stage.shape):
        element = int(stage.elements[index])
        assert stage.index_of(element) == index
        assert flat[element] == x[index]
        assert memory[stage.offset_of(element)] == x[index]
        assert stage.memory[stage.offset_of(element)] == element
    gone = set(range(original.numel())) - set(stage.elements.ravel().tolist())
    assert all(stage.index_of(element) is None for element in gone)
    assert len(stage.names) == x.ndim


def attempt(x, name, args):
    """Return what torch returns or raises."""
    try:
        return getattr(x, name)(*args)
    except (RuntimeError, IndexError, TypeError) as error:
        return error


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_random_chains_are_as_torch_takes_them(data):
    x = original = data.draw(tensors())
    recording = follow(x)
    check_stage(recording.stages[0], x, x, original)
    for _ in range(data.draw(st.integers(1, 6))):
        name, args = draw_step(data.draw, x)
        after = attempt(x, name, args)
        if isinstance(after, Exception):
            kind = TypeError if isinstance(after, TypeError) else ValueError
            with pytest.raises(kind) as caught:
                getattr(recording, name)(*args)
            assert str(caught.value).startswith(f"step {len(recording.stages)}, ")
            assert str(after).split("\n")[0].rstrip(".") in str(caught.value)
            continue
        if not after.numel():
            with pytest.raises(ValueError, match="no element is left to follow"):
                getattr(recording, name)(*args)
            continue
        recording = getattr(recording, name)(*args)
        check_stage(recording.stages[-1], after, x, original)
        x = after
    assert recording.shape == tuple(x.shape)
    assert recording.stride() == x.stride()
    assert recording.is_contiguous() == x.is_contiguous()
    assert recording._repr_html_() == recording._repr_html_()
    assert repr(recording) == repr(recording)


def test_random_chains_can_fail():
    """The check above notices a wrong stride, and a copy that is called a view."""
    x = torch.arange(24).reshape(4, 6)
    stage = follow(x).transpose(0, 1).stages[-1]
    check_stage(stage, x.mT, x, x)
    for wrong in (x.mT.contiguous(), x.reshape(6, 4)):
        with pytest.raises(AssertionError):
            check_stage(stage, wrong, x, x)


# --- What can be followed -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.bool_, np.complex64])
def test_numpy_and_torch_are_followed_alike(dtype):
    array = np.arange(24).astype(dtype).reshape(4, 6).T
    ours, theirs = follow(array), follow(torch.from_numpy(array))
    for a, b in zip(ours.split_heads(2).stages, theirs.split_heads(2).stages, strict=True):
        assert (a.shape, a.strides, a.is_view) == (b.shape, b.strides, b.is_view)
        assert np.array_equal(a.values, b.values)
    assert ours.stages[0].strides == (1, 6)
    assert ours.split_heads(2)._repr_html_() == theirs.split_heads(2)._repr_html_()


def test_a_shape_is_filled_with_its_count():
    assert np.array_equal(follow((2, 3)).stages[0].values, [[0, 1, 2], [3, 4, 5]])
    assert np.array_equal(follow(torch.Size([2, 1])).stages[0].values, [[0], [1]])


def test_gradients_and_low_precision_are_no_obstacle():
    x = torch.tensor([0.5, -1.25], dtype=torch.bfloat16, requires_grad=True)
    assert follow(x).stages[0].values.tolist() == [0.5, -1.25]
    assert ">-1.25</i>" in follow(x)._repr_html_()


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        ([1, 2], TypeError, "a torch tensor with values, a NumPy array or a shape, got [1, 2]"),
        ((2, -1), TypeError, "got (2, -1)"),
        (torch.empty(2, device="meta"), TypeError, "a torch tensor with values"),
        (np.array(["a"]), TypeError, "x must hold numbers or booleans, got the dtype <U1"),
        (np.arange(3)[::-1], ValueError, "torch knows no negative strides"),
        (np.zeros(4, [("a", "i1"), ("b", "i2")])["b"], ValueError, "follow x.copy()"),
        ((2, 0), ValueError, "no elements to follow, its shape is (2, 0)"),
        (torch.arange(3).expand(2, 3), ValueError, "share a place in memory (shape (2, 3)"),
    ],
)
def test_what_cannot_be_followed_is_refused(x, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        follow(x)


def test_a_tensor_in_the_middle_of_its_storage_keeps_its_offsets():
    heads = torch.arange(48).reshape(2, 4, 3, 2).transpose(1, 2)[1, 2]
    stage = follow(heads).stages[0]
    assert stage.storage_offset == heads.storage_offset() == 28
    assert stage.offsets.tolist() == [[28, 29], [34, 35], [40, 41], [46, 47]]


# --- Steps, names and refusals ------------------------------------------------------------


def test_heads_are_the_package_s():
    x = torch.arange(48).reshape(B, L, E)
    split = follow(x, "BLE").split_heads(H)
    assert np.array_equal(split.stages[-1].values, mha_tutor.split_heads(x, H))
    assert np.array_equal(split.merge_heads().stages[-1].values, x)
    assert [s.step for s in split.merge_heads().stages] == [
        "x",
        ".split_heads(3)",
        ".merge_heads()",
    ]
    assert split.stages[-1].names == ("B", "H", "L", "D")
    assert split.merge_heads().stages[-1].names == ("B", "L", "E")
    # the package's own functions take a recording as they take a tensor: two steps each
    there = mha_tutor.split_heads(follow(x), H)
    assert isinstance(there, Recording)
    assert [s.step for s in there.stages] == ["x", ".reshape(2, 4, 3, 2)", ".swapaxes(-2, -3)"]
    assert there.stages[-1].strides == split.stages[-1].strides
    assert np.array_equal(mha_tutor.merge_heads(there).stages[-1].values, x)


def test_view_is_refused_with_the_reason_and_what_works():
    heads = follow((B, L, E)).view(B, L, H, D).transpose(1, 2)
    with pytest.raises(ValueError, match="step 3, ") as caught:
        heads.view(B * H, L, D)
    text = str(caught.value)
    assert "view size is not compatible with input tensor's size and stride" in text
    assert "Axes 0 and 1 cannot be folded: stride 24 is not 3 × 2" in text
    assert "This works: .reshape(6, 4, 2), a copy." in text
    assert "Axes 1 and 2" not in text  # these need not be folded
    assert not heads.reshape(B * H, L, D).stages[-1].is_view
    assert heads.contiguous().view(B * H, L, D).stages[-1].is_view


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda x: x.view(5, 5), "The sizes must multiply to 48; one of them may be -1."),
        (lambda x: x.reshape(5, -1), "The sizes must multiply to 48; one of them may be -1."),
        (lambda x: x.transpose(0, 1, 2), "It takes two axes out of 3; .permute takes all of them."),
        (lambda x: x.permute(0, 1), "It takes each of the 3 axes once."),
        (lambda x: x.unflatten(2, (4, 2)), "multiply to the size of the axis"),
        (lambda x: x.transpose(0, 3), "Dimension out of range"),
        (lambda x: x[2], "index 2 is out of bounds"),
        (lambda x: x[torch.tensor([0, 1])], "an index must be an integer, a slice, None or ..."),
        (lambda x: x[True], "an index must be an integer, a slice, None or ..., got bool"),
        (lambda x: x[:, ::-1], "step must be greater than zero"),
        (lambda x: x.split_heads(4), "embed_dim (6) must be divisible by num_heads (4)"),
        (lambda x: x[0, 0].merge_heads(), "x must have the shape (..., H, L, D)"),
        (lambda x: x.view(8, 6, names="TT"), "names must be 2 different ones, one for each axis"),
        (lambda x: x[2:], "no element is left to follow"),
    ],
)
def test_a_bad_step_is_named(act, message):
    with pytest.raises((TypeError, ValueError), match=r"^step \d, ") as caught:
        act(follow((B, L, E)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("act", "names"),
    [
        (lambda x: x.transpose(0, 2), ("E", "L", "B")),
        (lambda x: x.permute(2, 0, 1), ("E", "B", "L")),
        (lambda x: x.movedim(0, -1), ("L", "E", "B")),
        (lambda x: x.swapaxes(-1, -2).contiguous(), ("B", "E", "L")),
        (lambda x: x.view(B, L, H, D), ("B", "L", None, None)),
        (lambda x: x.unflatten(-1, (H, D), names="BLHD"), ("B", "L", "H", "D")),
        (lambda x: x.flatten(0, 1), (None, "E")),
        (lambda x: x.view(B, H, L, D), ("B", None, None, None)),
        (lambda x: x[0], ("L", "E")),
        (lambda x: x[..., 0], ("B", "L")),
        (lambda x: x[:, None, 1:], ("B", None, "L", "E")),
    ],
)
def test_names_go_with_their_axes(act, names):
    assert act(follow((B, L, E), "BLE")).stages[-1].names == names


def test_a_view_as_another_dtype_is_refused():
    with pytest.raises(TypeError, match=r"a view as torch.float32 would cut or join elements"):
        follow((B, L, E)).view(torch.float32)


def test_names_must_fit():
    with pytest.raises(ValueError, match="names must be 2 different ones"):
        follow((2, 3), "ABC")
    assert follow((2, 3), ["token", "feature"]).stages[0].names == ("token", "feature")


# --- As text ------------------------------------------------------------------------------


def test_the_print_tells_all():
    heads = follow((L, E), "LE").view(L, H, D, names="LHD").transpose(0, 1)
    text = repr(heads.reshape(E, L).point_at(3, 2))
    for line in [
        ".transpose(0, 1)    a view, not contiguous",
        "    axes     H  L  D",
        "    shape    3  4  2",
        "    strides  2  6  1",
        ".reshape(6, 4)    a copy, contiguous",
        "    memory, offset 0 to 23: 0 1 6 7 12 13 18 19 2 3 8 9 14 15 20 21 4 5 10 11 16 17 22 23",
        "20 is at",
        "    .transpose(0, 1)    index (1, 3, 0), offset 2+18+0 = 20",
        "    .reshape(6, 4)      index (3, 2), offset 12+2 = 14",
    ]:
        assert line in text.split("\n"), line
    assert "no place: it was sliced away" in repr(heads[0].point_at(3, 2))


@pytest.mark.parametrize("index", [(4, 0), (0,), (0, 0, 0)])
def test_a_place_to_point_at_must_be_there(index):
    with pytest.raises(ValueError, match=re.escape(f"there is no index {index}")):
        follow((4, 6)).point_at(*index)


# --- As a figure --------------------------------------------------------------------------

VOID = {"input"}


class Figure(html.parser.HTMLParser):
    """The parts of a figure's markup; tags must match and need no id, script or address."""

    def __init__(self, markup):
        super().__init__()
        self.open, self.elements, self.styles, self.text = [], [], "", ""
        self.feed(markup)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in {"script", "a", "img", "link", "iframe"}
        assert not {"id", "for", "onclick", "href", "src"} & set(attrs)
        if "k" in (attrs.get("class") or "").split():
            self.elements.append({"class": attrs["class"], "readings": [], "cells": []})
        if tag == "input":
            assert (attrs["type"], attrs["name"]) == ("radio", "e")
            self.elements[-1]["chosen"] = "checked" in attrs or self.elements[-1].get("chosen")
        if tag not in VOID:
            self.open.append((tag, attrs))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attrs = self.open[-1] if self.open else ("", {})
        if tag == "style":
            self.styles += data
        elif tag == "u" and "class" in attrs:
            self.elements[-1]["readings"].append(data.split("\n"))
        elif tag in ("i", "s") and self.elements and attrs.get("class"):
            self.elements[-1]["cells"].append((tag, attrs["class"], data))
        self.text += "" if tag == "style" else data


def running_example(stages=3):
    x = follow((B, L, E), "BLE").view(B, L, H, D, names="BLHD").transpose(1, 2)
    if stages == 5:
        x = x.reshape(B * H, L, D).view(B, H, L, D, names="BHLD")
    return x


def test_every_element_says_where_it_is():
    recording = running_example(5)
    figure = Figure(recording._repr_html_())
    assert len(figure.elements) == 48
    for n, element in enumerate(figure.elements):
        for stage, (index, offset) in zip(recording.stages, element["readings"], strict=True):
            index = tuple(map(int, index.split()))
            assert stage.values[index] == n
            assert int(offset.split("=")[-1]) == stage.offset_of(n)
        assert [cell for cell in element["cells"] if cell[0] == "i"] == [
            ("i", letter, str(n)) for letter in "abcde"
        ]
        assert element["class"].split()[1] == f"q{n % 6 // 2}"


def test_figures_are_small():
    sizes = {
        "24 elements, 2 stages": len(follow((L, E), "LE").split_heads(H)._repr_html_().encode()),
        "48 elements, 3 stages": len(running_example()._repr_html_().encode()),
        "48 elements, 5 stages": len(running_example(5)._repr_html_().encode()),
    }
    assert sizes["24 elements, 2 stages"] < 15_000, sizes
    assert sizes["48 elements, 3 stages"] < 33_000, sizes
    assert sizes["48 elements, 5 stages"] < 48_000, sizes


def test_figures_are_the_same_bytes_and_share_no_names():
    one, same = running_example(), running_example()
    assert one._repr_html_() == same._repr_html_()
    assert repr(one) == repr(same)
    other = running_example(5)._repr_html_()
    names = [re.search(r'class="mha (f\w+)"', m).group(1) for m in (one._repr_html_(), other)]
    assert names[0] != names[1]
    # what is not scoped by that name must be the same in all figures
    for markup, name in zip((one._repr_html_(), other), names, strict=True):
        rules = Figure(markup).styles.replace(f".{name} ", "§")
        common, _, own = rules.partition("§")
        assert own
        assert f".{name}" not in common
    common = [Figure(m).styles.partition(".f")[0][:2000] for m in (one._repr_html_(), other)]
    assert common[0] == common[1]


def test_an_element_can_be_chosen_beforehand():
    chosen = [
        e["chosen"] for e in Figure(running_example().point_at(1, 3, 2)._repr_html_()).elements
    ]
    assert chosen.index(True) == 44
    assert chosen.count(True) == 1
    assert not any(e["chosen"] for e in Figure(running_example()._repr_html_()).elements)


def test_more_heads_than_colors_have_none():
    markup = follow((2, 10), "LE").split_heads(5)._repr_html_()
    assert {e["class"] for e in Figure(markup).elements} == {"k"}


def test_what_is_sliced_away_says_so_and_stays_in_memory():
    figure = Figure(follow((L, E))[0]._repr_html_())
    assert figure.elements[0]["readings"][1] == ["0", "0"]
    assert figure.elements[20]["readings"][1] == ["sliced away"]
    assert [letter for _, letter, _ in figure.elements[20]["cells"]] == ["a"]
    assert '<b class="b f"' in follow((L, E))[0]._repr_html_()


def test_a_large_array_is_drawn_in_part_and_says_so():
    x = follow((1, 60, 512), "BLE").split_heads(8)
    markup = x._repr_html_()
    figure = Figure(markup)
    assert "Too large to draw: this is a part, 48 of 30,720 elements." in figure.text
    assert "drawn: B 0; L 0–3; E 0–3, 64–67, 128–131" in figure.text
    assert len(figure.elements) == 48
    assert len(markup) < 60_000
    for element in figure.elements:
        n = int(element["cells"][0][2])
        for stage, (index, _) in zip(x.stages, element["readings"], strict=True):
            assert stage.values[tuple(map(int, index.split()))] == n
    long = follow((2, 3))
    for _ in range(20):
        long = long.transpose(0, 1)
    assert "The 11 stages after the first are not drawn." in Figure(long._repr_html_()).text


def test_scattered_elements_are_drawn_in_a_line():
    markup = follow((1, 60, 512)).transpose(1, 2).reshape(1, 60, 512)._repr_html_()
    assert "in the order of the index" in markup
    assert len(markup) < 60_000


SHAPES = st.lists(st.integers(1, 3), max_size=5).map(tuple)


@given(SHAPES, st.integers(1, 5))
def test_cells_do_not_overlap_and_lie_in_their_boxes(shape, characters):
    width = max(1.9, 0.62 * characters)
    block = nested_boxes([range(n) for n in shape], [None] * len(shape), width)
    assert sorted(block.cells) == sorted(np.ndindex(*shape))
    places = list(block.cells.values())
    for i, (x, y) in enumerate(places):
        assert -0.01 <= x <= block.width - width + 0.11
        assert -0.01 <= y <= block.height - 1.9 + 0.11
        for a, b in places[:i]:
            assert abs(a - x) > width - 0.11 or abs(b - y) > 1.9 - 0.11
    for index, (x, y) in block.cells.items():
        around = [
            f.label
            for f in block.frames
            if f.x <= x + 0.11 and x + width <= f.x + f.width + 0.11
            if f.y <= y and y + 1.9 <= f.y + f.height + 0.11
        ]
        assert around == [str(list(index[: k + 1])) for k in range(len(shape) - 2)]


def test_a_strip_is_in_storage_order():
    strip = memory_strip([5, 0, 1, 9], ["12"] * 4)
    order = sorted(strip.cells, key=lambda offset: strip.cells[offset][::-1])
    assert order == [0, 1, 5, 9]
    gaps = [strip.cells[b][0] - strip.cells[a][0] for a, b in [(0, 1), (1, 5), (5, 9)]]
    assert gaps[0] < gaps[1] == pytest.approx(gaps[2])


def test_panels_fill_a_page_row_by_row():
    assert list(shelves([10]).values()) == [[[0]]]
    wide = shelves([16.4, 17.5, 16.4])
    assert list(wide.values())[-1] == [[0, 1, 2]]
    assert list(wide)[-1] <= 52.4  # em of 13 pixels: a page of the book is 682 wide


@given(SHAPES, st.integers(1, 60))
def test_a_corner_is_as_large_as_it_may_be(shape, most):
    sizes = corner(shape, most)
    assert math.prod(sizes) <= most
    for axis, size in enumerate(sizes):
        assert size == shape[axis] or math.prod(sizes) // size * (size + 1) > most


# --- Two recordings -----------------------------------------------------------------------


def two_ways():
    x = follow((B, L, E), "BLE")
    right = x.view(B, L, H, D, names="BLHD").transpose(1, 2)
    return right, x.view(B, H, L, D, names="BHLD")


def test_compare_finds_what_is_misplaced():
    right, wrong = two_ways()
    both = compare(right, wrong)
    x = torch.arange(48).reshape(B, L, E)
    good, bad = x.view(B, L, H, D).transpose(1, 2), x.view(B, H, L, D)
    for n in range(48):
        (a,), (b,) = (good == n).nonzero().tolist(), (bad == n).nonzero().tolist()
        where = np.unravel_index(n, (B, L, E))
        assert both.misplaced[where] == (a[:3] != b[:3])
        for axis, name in enumerate("BHLD"):
            assert both.moved[name][where] == (a[axis] != b[axis])
    marked = [e["class"].endswith(" m") for e in Figure(both._repr_html_()).elements]
    assert marked == both.misplaced.ravel().tolist()
    # the tokens of each wrong head, straight from torch: token = number // 6
    words = both.found()[1]
    for h in range(H):
        tokens = sorted(set((bad[0, h] // E).ravel().tolist()))
        assert f"H {h} holds L {', '.join(map(str, tokens))}" in words
    assert words in Figure(both._repr_html_()).text
    assert words in repr(both)


def test_compare_tells_of_the_merge_too():
    heads = follow(torch.arange(48).reshape(B, L, H, D).transpose(1, 2), "BHLD")
    right = heads.merge_heads()
    found = compare(right, heads.reshape(B, L, E, names="BLE")).found()
    assert found[1].startswith("In each B. Right: L 0 holds L 0; L 1 holds L 1;")
    assert "Wrong: L 0 holds L 0, 1, 2; " in found[1]


def test_compare_of_equals():
    right, _ = two_ways()
    both = compare(right, right)
    assert both.found() == ["All 48 elements end in the same row in both."]
    assert not both.misplaced.any()


def test_what_cannot_be_compared_is_refused():
    right, wrong = two_ways()
    with pytest.raises(ValueError, match="must start from the same tensor"):
        compare(right, follow((B, L, H * D + 1)))
    with pytest.raises(ValueError, match=r"end in one shape, got \(2, 3, 4, 2\) and \(2, 4, 3"):
        compare(right, wrong.transpose(1, 2))
    with pytest.raises(ValueError, match="slicing drops some"):
        compare(right[0], wrong[0])
    with pytest.raises(TypeError, match="right must be a recording, as `follow` makes one, got"):
        compare(1, right)
    with pytest.raises(TypeError, match=r"wrong must be a recording.*got Tensor"):
        compare(right, torch.ones(2))


# --- Masks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 4), (4, 4), (1, 4), (4,), (1, 1), (), (2, 3, 4, 4), (3, 4, 1)]
)
def test_the_governor_is_what_broadcasting_picks(shape):
    scores = (2, 3, 4, 4)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    followed = follow_mask(mask, scores)
    numbers = np.broadcast_to(np.arange(mask.numel()).reshape(shape), scores)
    figure = Figure(followed._repr_html_())
    for element, index in zip(figure.elements, np.ndindex(*scores), strict=True):
        source = followed.governor(*index)
        assert np.ravel_multi_index(source, shape) == numbers[index] if shape else source == ()
        letter = "T" if mask[source] else "F"
        assert element["cells"] == [("i", "a", letter), ("s", "b", letter)]
        ((here,), (there,)) = element["readings"]
        assert tuple(map(int, here.split())) == index
        assert tuple(map(int, there.replace("-", "").split())) == source
        assert element["class"] == ("k" if mask[source] else "k m")


def test_a_score_can_be_chosen_and_the_print_tells_it():
    mask = mha_tutor.padding_mask(torch.tensor([3, 2]), 4)
    followed = follow_mask(mask, (2, 3, 4, 4)).point_at(1, 2, 0, 3)
    assert "score [1, 2, 0, 3] is governed by mask [1, 0, 0, 3]" in repr(followed)
    assert "mask      2          1          1    4" in repr(followed)
    chosen = [e["chosen"] for e in Figure(followed._repr_html_()).elements]
    assert chosen.index(True) == np.ravel_multi_index((1, 2, 0, 3), (2, 3, 4, 4))


def test_a_large_mask_is_drawn_in_part():
    markup = follow_mask(mha_tutor.causal_mask(64), (2, 8, 64, 64))._repr_html_()
    assert "this is a part, 48 of 65,536 scores" in markup
    assert len(markup) < 30_000


@pytest.mark.parametrize(
    ("mask", "shape", "kind", "message"),
    [
        (torch.zeros(4, 4), (4, 4), TypeError, "mask must be a boolean tensor or array"),
        ([[True]], (1, 1), TypeError, "got list"),
        (torch.ones(3).bool(), (4, 4), ValueError, "(3,) does not broadcast to scores of (4, 4)"),
        (torch.ones(2, 4).bool(), (4,), ValueError, "(2, 4) does not broadcast to scores of (4,)"),
        (torch.ones(2, 1).bool(), (1, 4), ValueError, "does not broadcast"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, shape, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        follow_mask(mask, shape)


@pytest.mark.parametrize("index", [(0, 0), (2, 0, 0, 0), (0, 0, 0, -1)])
def test_a_score_must_be_there(index):
    with pytest.raises(ValueError, match=re.escape(f"there is no score {index}")):
        follow_mask(torch.ones(4, 4).bool(), (2, 3, 4, 4)).governor(*index)


# --- The figure of an einsum --------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("nqhd,nkhd->nhqk", [(1, 4, 3, 2), (1, 4, 3, 2)]),
        ("nhqk,nkhd->nqhd", [(1, 3, 2, 4), (1, 4, 3, 2)]),
        ("ii->i", [(3, 3)]),
        ("ij->", [(2, 3)]),
        ("ij->ji", [(2, 3)]),
        ("bij,bjk->bik", [(2, 2, 3), (1, 3, 2)]),
        ("...i,i->...", [(2, 2, 3), (3,)]),
        ("i,j,k->ijk", [(2,), (3,), (2,)]),
    ],
)
def test_an_entry_lights_what_it_is_summed_from(spec, shapes):
    # an entry depends on exactly those that it is computed from: ask autograd
    operands = [torch.randint(1, 9, s).double() + i for i, s in enumerate(shapes)]
    operands = [x.requires_grad_() for x in operands]
    out = torch.einsum(spec, *operands)
    explained = mha_tutor.explain_einsum(spec, *operands)
    markup = explained._repr_html_()
    figure = Figure(markup[markup.index('<div class="mha') :].removesuffix("\n</div>"))
    assert len(figure.elements) == out.numel()
    for element, index in zip(figure.elements, np.ndindex(*out.shape), strict=True):
        grads = torch.autograd.grad(out[index], operands, retain_graph=True)
        for i, (x, grad) in enumerate(zip(operands, grads, strict=True)):
            letter = "abcde"[i + 1]
            lit = sorted(
                text for tag, panel, text in element["cells"] if (tag, panel) == ("s", letter)
            )
            assert lit == sorted(f"{v:g}" for v in x[grad != 0].tolist())
        assert element["cells"][0] == ("i", "a", f"{out[index].item():g}")
        here = element["readings"][0][0]
        assert tuple(map(int, here.split())) == index
