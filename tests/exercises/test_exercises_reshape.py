"""The checkers of chapter 2: right answers pass, known mistakes are told by name."""

import math
from itertools import pairwise, permutations, product

import pytest
import torch

from mha_tutor import exercises
from mha_tutor.exercises import chapter2 as reshape
from mha_tutor.heads import merge_heads, split_heads


def says(feedback, sentence):
    """The answer is refused, in these words."""
    assert not feedback
    assert sentence in repr(feedback), feedback
    return True


# --- find_element


def test_find_element():
    x = torch.arange(48).reshape(2, 4, 6)
    place = (split_heads(x, 3) == 39).nonzero()[0]
    assert exercises.find_element(tuple(place.tolist()))
    assert exercises.find_element(place.tolist())
    assert exercises.find_element(tuple(place))
    assert exercises.find_element(torch.Size(place))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ((1, 2, 1, 1), "after view"),
        ((1, 1, 3, 1), "the wrong split"),
        ((1, 1, 2, 0), "divided by H"),
        ((1, 0, 2, 1), "neighboring features"),
        ((2, 2, 3, 2), "count from 0"),
        ((4, 2, 1), "folded into one axis"),
        ((1, 2, 3), "where it is in x"),
        ((1, 1), "2 indices"),
        ((0, 0, 0, 0), "at (0, 0, 0, 0) is 0"),
        ((0, 0, 4, 0), "there is no (0, 0, 4, 0)"),
        (39, "this is an int"),
    ],
)
def test_find_element_wrong(wrong, sentence):
    assert says(exercises.find_element(wrong), sentence)


def test_find_element_knows_what_its_mistakes_hold():
    """The named places are the ones that the named mistakes lead to."""
    x = torch.arange(48).reshape(2, 4, 6)
    places = {
        "after view": x.view(2, 4, 3, 2),
        "the wrong split": x.view(2, 3, 4, 2),
        "neighboring": x.view(2, 4, 2, 3).permute(0, 3, 1, 2),
        "folded": split_heads(x, 3).reshape(6, 4, 2),
        "in x": x,
    }
    for sentence, tensor in places.items():
        place = tuple((tensor == 39).nonzero()[0].tolist())
        assert says(exercises.find_element(place), sentence)


# --- merge


def merge(x):
    return x.transpose(1, 2).flatten(2)


MERGE = {
    "flatten": merge,
    "package": merge_heads,
    "cat": lambda x: torch.cat(x.unbind(1), dim=-1),
    "contiguous": lambda x: x.transpose(1, 2).contiguous().view(x.shape[0], x.shape[2], -1),
    "einsum": lambda x: torch.einsum("bhld->blhd", x).reshape(x.shape[0], x.shape[2], -1),
}


@pytest.mark.parametrize("name", MERGE)
def test_merge(name):
    assert exercises.merge(MERGE[name])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda x: x.reshape(x.shape[0], x.shape[2], -1), "one below the other"),
        (lambda x: x, "nothing has been done"),
        (lambda x: x.transpose(1, 2), "now fold H and D"),
        (lambda x: x.permute(0, 2, 3, 1).flatten(2), "wrong order"),
        (lambda x: x.flatten(0, 1), "B and H are folded"),
        (lambda x: x.transpose(1, 3).reshape(x.shape[0], x.shape[2], -1), "exchanges H with D"),
        (lambda x: x.transpose(1, 2).view(x.shape[0], x.shape[2], -1), "after the transpose"),
        (lambda x: x.view(x.shape[0], x.shape[2], -1), "one below the other"),
        (lambda x: x.view(-1, *x.shape[2:]), "B and H are folded"),
        (
            lambda x: merge(x.view(-1, *x.shape[2:]).reshape(x.shape)),
            "right for a contiguous x",
        ),
        (lambda x: merge(x).double(), "torch.float64"),
        (lambda x: merge(x).numpy(), "an ndarray, not a tensor"),
        (lambda x: torch.arange(48).reshape(2, 4, 6), "for other sizes"),
        (lambda x: x.transpose(1, 2).reshape(2, 4, 6), "raises RuntimeError"),
        (lambda x: merge(x.zero_()), "in place"),
    ],
)
def test_merge_wrong(wrong, sentence):
    assert says(exercises.merge(wrong), sentence)


# --- unpack


def unpack(x, num_heads):
    return [split_heads(part, num_heads) for part in x.chunk(3, dim=-1)]


def unpack_at_once(x, num_heads):
    B, L, _ = x.shape
    return x.reshape(B, L, 3, num_heads, -1).permute(2, 0, 3, 1, 4)  # one tensor of three


@pytest.mark.parametrize("right", [unpack, unpack_at_once, lambda x, H: tuple(unpack(x, H))])
def test_unpack(right):
    assert exercises.unpack(right)


@pytest.mark.parametrize("order", list(permutations("qkv"))[1:], ids="".join)
def test_unpack_in_another_order(order):
    def wrong(x, num_heads):
        parts = dict(zip("qkv", unpack(x, num_heads), strict=True))
        return [parts[name] for name in order]

    assert says(exercises.unpack(wrong), f"in the order {', '.join(order)}")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            lambda x, H: [t.transpose(1, 2) for t in x.unflatten(-1, (H, 3, -1)).unbind(3)],
            "heads first, and q, k, v within",
        ),
        (lambda x, H: x.chunk(3, dim=-1), "not yet cut into heads"),
        (
            lambda x, H: [t.unflatten(-1, (H, -1)) for t in x.chunk(3, dim=-1)],
            "before the tokens: transpose",
        ),
        (
            lambda x, H: [t.reshape(len(t), H, t.shape[1], -1) for t in x.chunk(3, dim=-1)],
            "straight to (B, H, L, D)",
        ),
        (lambda x, H: [split_heads(x[..., i::3], H) for i in range(3)], "every third feature"),
        (
            lambda x, H: x.reshape(len(x), 3, H, x.shape[1], -1).transpose(0, 1),
            "the order of memory into three",
        ),
        (
            lambda x, H: [t.unflatten(-1, (-1, H)).permute(0, 3, 1, 2) for t in x.chunk(3, dim=-1)],
            "feature d * H + h",
        ),
        (lambda x, H: unpack(x, H)[:2], "2 tensors"),
        (lambda x, H: split_heads(x, H), "the shape is (2, 3, 4, 6)"),
        (lambda x, H: dict(zip("qkv", unpack(x, H), strict=True)), "returns dict"),
        (lambda x, H: [t.numpy() for t in unpack(x, H)], "returns list"),
        (
            lambda x, H: [unpack(x, H)[0], *x.chunk(3, dim=-1)[1:]],
            "differ in shape",
        ),
        (lambda x, H: [split_heads(t, 3) for t in x.chunk(3, dim=-1)], "(2, 7, 45)"),
    ],
)
def test_unpack_wrong(wrong, sentence):
    assert says(exercises.unpack(wrong), sentence)


# --- heads_test

X = torch.arange(2 * 5 * 12).reshape(2, 5, 12)


def heads_test(split, merge):
    halves = split(X, 3)
    slices = torch.stack([X[..., 4 * h : 4 * h + 4] for h in range(3)], dim=1)
    return torch.equal(halves, slices) and torch.equal(merge(slices), X)


def by_assertions(split, merge):
    torch.testing.assert_close(split(X, 3), split_heads(X, 3))
    torch.testing.assert_close(merge(split_heads(X, 3)), X)
    return True


@pytest.mark.parametrize("right", [heads_test, by_assertions])
def test_heads_test(right):
    assert exercises.heads_test(right)


def same(x, y):
    return torch.equal(x, y)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda split, merge: same(merge(split(X, 3)), X), "It is a round trip"),
        (lambda split, merge: same(split(X, 3), split_heads(X, 3)), "the split alone"),
        (lambda split, merge: same(merge(split_heads(X, 3)), X), "the merge alone"),
        (
            lambda split, merge: (
                same(split(X[:1], 3), split_heads(X[:1], 3))
                and same(merge(split_heads(X[:1], 3)), X[:1])
            ),
            "one sequence",
        ),
        (
            lambda split, merge: (
                same(split(X, 1), split_heads(X, 1)) and same(merge(split_heads(X, 1)), X)
            ),
            "one head",
        ),
        (
            lambda split, merge: (
                split(X, 3).shape == (2, 3, 5, 4) and merge(split(X, 3)).shape == X.shape
            ),
            "looks at shapes",
        ),
        (
            lambda split, merge: same(split(torch.ones(2, 5, 12), 3), torch.ones(2, 3, 5, 4)),
            "looks at shapes",
        ),
        (lambda split, merge: merge(split(X, 3)).shape == X.shape, "8 of 8 wrong pairs"),
        (lambda split, merge: True, "8 of 8 wrong pairs"),
        (lambda split, merge: False, "rejects a right pair"),
        (lambda split, merge: split(X, 3).is_contiguous(), "written with reshape"),
        (lambda split, merge: not split(X, 3).is_contiguous(), "written with slices"),
        (lambda split, merge: split(X, 5), "raises ValueError"),
        (lambda split, merge: split(X, 3), "a Tensor; True or False"),
        (
            lambda split, merge: (
                same(split(X, 3)[:, 0], X[..., :4]) and same(merge(split(X, 3)), X)
            ),
            "it accepts a pair that is wrong: the split exchanges the last two",
        ),
    ],
    ids=range(15),
)
def test_heads_test_wrong(wrong, sentence):
    assert says(exercises.heads_test(wrong), sentence)


def test_wrong_pairs_are_wrong():
    for split, merge in reshape._WRONG.values():
        assert not heads_test(split, merge)


# --- view_fits


def view_fits(shape, strides, new_shape):
    """Walk from the right: every new axis must lie within a run of the old ones."""
    if math.prod(shape) != math.prod(new_shape):
        return False
    new = [n for n in new_shape if n != 1][::-1]
    axes = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1][::-1]
    i = 0
    while i < len(axes):
        size, stride = axes[i]
        i += 1
        while i < len(axes) and axes[i][1] == size * stride:
            size *= axes[i][0]
            i += 1
        while size > 1:
            n = new.pop(0)
            if size % n:
                return False
            size //= n
    return True


def view_tries(shape, strides, new_shape):
    try:
        torch.empty_strided(shape, strides).view(new_shape)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("right", [view_fits, view_tries, reshape._fits])
def test_view_fits(right):
    assert exercises.view_fits(right)


def test_our_rule_is_that_of_torch_everywhere():
    """On all shapes and strides of a small grid."""
    news = [(12,), (2, 6), (6, 2), (3, 4), (4, 3), (2, 2, 3), (2, 3, 2), (3, 2, 2), (1, 12, 1)]
    for shape in [(3, 4), (2, 3, 2), (2, 1, 6)]:
        for strides in product([0, 1, 2, 3, 4, 6], repeat=len(shape)):
            for new in news:
                case = shape, strides, new
                assert reshape._fits(*case) == view_fits(*case) == view_tries(*case), case


def count(shape, new):
    return math.prod(shape) == math.prod(new)


def contiguous(shape, strides):
    return torch.empty_strided(shape, strides).is_contiguous()


def without_ones(shape, strides, new):
    return reshape._fits(shape, strides, new, drop=False)


def ends_with_the_axes(shape, strides, new):
    """Leave out the sizes that the walk does not come to."""
    return any(view_fits(shape, strides, new[:n]) for n in range(len(new) + 1))


def ends_with_the_new_sizes(shape, strides, new):
    """Leave out the axes that the walk does not come to."""
    return any(view_fits(shape[:n], strides[:n], new) for n in range(len(shape) + 1))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda shape, strides, new: count(shape, new), "only counts the numbers"),
        (
            lambda shape, strides, new: count(shape, new) and contiguous(shape, strides),
            "whether x is contiguous",
        ),
        (without_ones, "an axis of size 1 is never stepped along"),
        (
            lambda shape, strides, new: (
                count(shape, new) and all(a >= b for a, b in pairwise(strides))
            ),
            "whether strides decrease",
        ),
        (
            lambda shape, strides, new: (
                count(shape, new) and view_tries(shape, strides, (math.prod(shape),))
            ),
            "all axes fold into one",
        ),
        (
            lambda shape, strides, new: (
                count(shape, new) and (len(new) >= len(shape) or view_tries(shape, strides, new))
            ),
            "as many axes or more",
        ),
        (
            lambda shape, strides, new: new[-1] != 1 and view_tries(shape, strides, new),
            "may come anywhere",
        ),
        (
            lambda shape, strides, new: not count(shape, new) or view_tries(shape, strides, new),
            "the sizes are not compared",
        ),
        (ends_with_the_axes, "some of the new sizes are left over"),
        (ends_with_the_new_sizes, "some axes of x are left over"),
        (lambda *args: True, "it returns True, whatever the input"),
        (lambda *args: False, "it returns False, whatever the input"),
        (lambda *args: 1, "an int; True or False"),
        (
            lambda shape, strides, new: not view_tries(shape, strides, new),
            "(2, 4, 3, 2) it returns",
        ),
        (
            lambda shape, strides, new: bool(torch.zeros(shape).view(new).any()),
            "raises RuntimeError",
        ),
    ],
    ids=range(15),
)
def test_view_fits_wrong(wrong, sentence):
    assert says(exercises.view_fits(wrong), sentence)
