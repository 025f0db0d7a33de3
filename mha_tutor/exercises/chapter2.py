"""Exercises of chapter 2, *Reshape into heads*."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from mha_tutor.exercises._exercise import (
    Wrong,
    agree,
    answer,
    draw,
    exercise,
    expect,
    given,
    truth,
)
from mha_tutor.heads import merge_heads, split_heads

__all__ = ["find_element", "heads_test", "merge", "unpack", "view_fits"]

X = torch.arange(48, device="cpu").reshape(2, 4, 6)  # the running example
VIEW_REFUSES = "view size is not compatible"  # as torch says it

Split, Merge = Callable[[Tensor, int], Tensor], Callable[[Tensor], Tensor]
Shape = tuple[int, ...]


@exercise
def find_element(candidate: Any) -> str:
    """Find x[1, 2, 3] in `split_heads(x, 3)` of the running example: four indices, (b, h, t, d)."""
    index = given(candidate, (tuple, list), "(0, 0, 0, 0), an index on each of four axes")
    got = tuple(index)
    mistakes = {
        (1, 2, 1, 1): "this is where it is after view, (B, L, H, D). transpose(1, 2) comes next.",
        (1, 1, 3, 1): "this is where the wrong split, view(B, H, L, D), puts it.",
        (1, 1, 2, 0): "feature 3 is e = h * D + d with D = 2; you divided by H = 3.",
        (1, 0, 2, 1): "feature 3 is e = h * D + d, not d * H + h: neighboring features belong to "
        "one head.",
        (2, 2, 3, 2): "indices count from 0.",
        (4, 2, 1): "this is where it is after B and H are folded into one axis.",
        (1, 2, 3): "this is where it is in x.",
    }
    if got in mistakes:
        raise Wrong(mistakes[got])
    if len(got) != 4:
        raise Wrong(f"this has {len(got)} indices; (B, H, L, D) has four axes.")
    if got != (1, 1, 2, 1):
        try:
            there = split_heads(X, 3)[got].item()
        except (IndexError, TypeError, RuntimeError):
            raise Wrong(f"there is no {got} in a tensor of shape (2, 3, 4, 2).") from None
        if there != 39:
            raise Wrong(f"x[1, 2, 3] is 39; at {got} is {there}.")
    return "Feature 3 is feature 1 of head 1; b and t stay."


@exercise
def merge(candidate: Any) -> str:
    """Put heads back side by side: `merge(x)`, (B, H, L, D) → (B, L, E)."""
    x, other = split_heads(X, 3), draw(1, 5, 7, 2)
    try:
        _compare_merge(candidate, x, other)
    except Wrong as wrong:
        if VIEW_REFUSES not in str(wrong):
            raise
    else:
        return "Your merge agrees with merge_heads."
    try:  # what view makes of it where it need not refuse
        _compare_merge(candidate, x.contiguous(), other)
    except Wrong as wrong:
        if VIEW_REFUSES not in str(wrong):
            raise
        raise Wrong(
            "after the transpose, the heads of a token are not neighbors in memory, so view "
            "refuses. reshape copies."
        ) from None
    raise Wrong(
        "this is right for a contiguous x. What split_heads returns is not contiguous, and view "
        "refuses it. reshape copies."
    )


def _compare_merge(candidate: Any, x: Tensor, other: Tensor) -> None:
    expect(
        answer(candidate, x),
        merge_heads(x),
        "for the running example, cut into 3 heads,",
        {
            "the heads are put one below the other: transpose back to (B, L, H, D) before you "
            "reshape.": x.reshape(2, 4, 6),
            "nothing has been done to the axes yet.": x,
            "the transpose is right; now fold H and D into one axis.": x.transpose(1, 2),
            "this folds D and H in the wrong order: the features of a head must stay "
            "neighbors.": x.permute(0, 2, 3, 1).reshape(2, 4, 6),
            "B and H are folded; H and D are to be.": x.reshape(6, 4, 2),
            "this exchanges H with D, not with L.": x.transpose(1, 3).reshape(2, 4, 6),
        },
    )
    expect(answer(candidate, other), merge_heads(other), "for other sizes, (1, 5, 7, 2),")


@exercise
def unpack(candidate: Any) -> str:
    """Cut a packed projection: `unpack(x, num_heads)`, (B, L, 3E) → q, k, v of (B, H, L, D)."""
    x, other = torch.arange(2 * 4 * 18, device="cpu").reshape(2, 4, 18), draw(2, 7, 45)
    thirds = x.chunk(3, dim=-1)
    right = [split_heads(third, 3) for third in thirds]
    by_head = x.reshape(2, 4, 3, 3, 2).permute(3, 0, 2, 1, 4)  # axes B L H 3 D, for numbers of x
    orders = {
        f"the three are there, in the order {', '.join('qkv'[i] for i in order)}.": torch.stack(
            [right[i] for i in order]
        )
        for order in permutations(range(3))
    }
    expect(
        _three(answer(candidate, x, 3)),
        torch.stack(right),
        "for x = torch.arange(144).reshape(2, 4, 18) and 3 heads",
        orders
        | {
            "this reads the 18 features as heads first, and q, k, v within a head. Some models "
            "store them so; here all of q comes first.": by_head,
            "these are q, k and v, not yet cut into heads.": torch.stack(thirds),
            "the heads are cut; now they must stand before the tokens: transpose.": torch.stack(
                [third.reshape(2, 4, 3, 2) for third in thirds]
            ),
            "each third is reshaped straight to (B, H, L, D), which cuts the sequence, not the "
            "features.": torch.stack([third.reshape(2, 3, 4, 2) for third in thirds]),
            "this takes every third feature for q. The first E features are q.": torch.stack(
                [split_heads(x[..., i::3], 3) for i in range(3)]
            ),
            "this cuts the order of memory into three, tokens with it. Cut the last "
            "axis.": x.reshape(2, 3, 3, 4, 2).transpose(0, 1),
            "this gives feature d * H + h to head h. A head owns D neighboring "
            "features.": torch.stack(
                [third.reshape(2, 4, 2, 3).permute(0, 3, 1, 2) for third in thirds]
            ),
        },
    )
    expect(
        _three(answer(candidate, other, 5)),
        torch.stack([split_heads(third, 5) for third in other.chunk(3, dim=-1)]),
        "for x of shape (2, 7, 45) and 5 heads",
    )
    return "Each of your q, k and v is what split_heads makes of it."


def _three(got: Any) -> Any:
    """Stack q, k and v, or say why they are not three tensors of one shape."""
    if isinstance(got, Tensor):
        return got
    if not isinstance(got, list | tuple) or not all(isinstance(one, Tensor) for one in got):
        raise Wrong(f"it returns {type(got).__name__}; three tensors are asked for: q, k, v.")
    if len(got) != 3:
        raise Wrong(f"it returns {len(got)} tensors; three are asked for: q, k, v.")
    shapes = [tuple(one.shape) for one in got]
    if len(set(shapes)) > 1:
        raise Wrong(f"q, k and v differ in shape: {', '.join(map(str, shapes))}.")
    return torch.stack(list(got))


@exercise
def heads_test(candidate: Any) -> str:
    """Test a split and a merge: `heads_test(split, merge)` → True if both are right."""
    for how, pair in _RIGHT.items():
        if not truth(answer(candidate, *pair), f"for a right pair, written with {how},"):
            raise Wrong(f"your test rejects a right pair, written with {how}.")
    passed = [story for story, pair in _WRONG.items() if _accepts(candidate, *pair)]
    for advice, rule in _POOR_TESTS.items():
        if passed and passed == [story for story, pair in _WRONG.items() if rule(*pair)]:
            raise Wrong(f"it accepts {len(passed)} of {len(_WRONG)} wrong pairs. {advice}")
    if passed:
        others = f" (and {len(passed) - 1} more)" if len(passed) > 1 else ""
        raise Wrong(f"it accepts a pair that is wrong{others}: {passed[0]}")
    return f"It accepts {len(_RIGHT)} right pairs and rejects {len(_WRONG)} wrong ones."


def _accepts(candidate: Any, split: Split, merge: Merge) -> bool:
    try:
        got = answer(candidate, split, merge)
    except Wrong:  # a test that raises rejects, too
        return False
    return truth(got, "for a wrong pair")


def _straight_split(x: Tensor, num_heads: int) -> Tensor:
    batch, length, embed_dim = x.shape
    return x.reshape(batch, num_heads, length, embed_dim // num_heads)


def _straight_merge(x: Tensor) -> Tensor:
    batch, num_heads, length, head_dim = x.shape
    return x.reshape(batch, length, num_heads * head_dim)


def _sliced_split(x: Tensor, num_heads: int) -> Tensor:
    return torch.stack(x.chunk(num_heads, dim=-1), dim=-3)


def _joined_merge(x: Tensor) -> Tensor:
    return torch.cat(x.unbind(-3), dim=-1)


def _strided_split(x: Tensor, num_heads: int) -> Tensor:
    return torch.stack([x[..., h::num_heads] for h in range(num_heads)], dim=1)


def _last_two_exchanged(x: Tensor) -> Tensor:
    return torch.cat([x[:, :-2], x[:, -2:].flip(1)], dim=1)


_RIGHT: dict[str, tuple[Split, Merge]] = {
    "reshape and transpose": (split_heads, merge_heads),
    "slices": (_sliced_split, _joined_merge),
}
_WRONG: dict[str, tuple[Split, Merge]] = {
    "the merge forgets the transpose.": (split_heads, _straight_merge),
    "the split forgets the transpose, view(B, H, L, D).": (_straight_split, merge_heads),
    "split and merge both forget the transpose.": (_straight_split, _straight_merge),
    "the split stops at (B, L, H, D), and the merge begins there.": (
        lambda x, num_heads: x.unflatten(-1, (num_heads, -1)),
        lambda x: x.flatten(-2),
    ),
    "head h owns every H-th feature, in the split and in the merge.": (
        _strided_split,
        lambda x: x.permute(0, 2, 3, 1).flatten(-2),
    ),
    "the split exchanges the last two heads, and the merge exchanges them back.": (
        lambda x, num_heads: _last_two_exchanged(split_heads(x, num_heads)),
        lambda x: merge_heads(_last_two_exchanged(x)),
    ),
    "the split exchanges the sequences of a batch, and the merge exchanges them back.": (
        lambda x, num_heads: split_heads(x, num_heads).flip(0),
        lambda x: merge_heads(x.flip(0)),
    ),
    "the merge turns the tokens around.": (split_heads, lambda x: merge_heads(x).flip(1)),
}


def _round_trip(split: Split, merge: Merge) -> bool:
    try:
        return torch.equal(merge(split(X, 3)), X)
    except RuntimeError:
        return False


def _right_split(split: Split, x: Tensor = X, num_heads: int = 3) -> bool:
    return torch.equal(split(x, num_heads), split_heads(x, num_heads))


def _right_merge(merge: Merge, x: Tensor = X, num_heads: int = 3) -> bool:
    return torch.equal(merge(split_heads(x, num_heads)), x)


_POOR_TESTS: dict[str, Callable[[Split, Merge], bool]] = {
    "It is a round trip, in which two mistakes undo each other. Compare what split returns with "
    "slices of x.": _round_trip,
    "It looks at the split alone. Put something into merge of which you know what must come "
    "out.": lambda split, merge: _right_split(split),
    "It looks at the merge alone. Compare what split returns with slices of x, "
    "too.": lambda split, merge: _right_merge(merge),
    "It tries one sequence. Sequences can be exchanged only where there are two: take a batch of "
    "2.": lambda split, merge: _right_split(split, X[:1]) and _right_merge(merge, X[:1]),
    "It tries one head. Heads can be mixed up only where there are several.": lambda split, merge: (
        _right_split(split, X, 1) and _right_merge(merge, X, 1)
    ),
    "It looks at shapes, or at numbers that are all alike. Wrong numbers have the right shape, "
    "too.": lambda split, merge: (
        split(X, 3).shape == (2, 3, 4, 2) and merge(split(X, 3)).shape == X.shape
    ),
    "Compare numbers, on inputs that are all different, and halfway too.": lambda split, merge: (
        True
    ),
}


@exercise
def view_fits(candidate: Any) -> str:
    """Predict view: `view_fits(shape, strides, new_shape)` → True if `x.view(new_shape)` works."""
    agree(
        candidate,
        {
            f"for shape {shape}, strides {strides} and new shape {new}": (shape, strides, new)
            for shape, strides, new in _VIEWS
        },
        _view_fits,
        truth,
        {
            "this only counts the numbers. view also needs strides that "
            "fit.": lambda shape, strides, new: math.prod(shape) == math.prod(new),
            "this asks whether x is contiguous. view works on many tensors that are not: only "
            "axes that are folded must fit.": lambda shape, strides, new: (
                math.prod(shape) == math.prod(new) and _contiguous(shape, strides)
            ),
            "an axis of size 1 is never stepped along. Drop such axes, with their strides, before "
            "you compare.": lambda shape, strides, new: _fits(shape, strides, new, drop=False),
            "this asks whether strides decrease. They may, and still leave gaps that no fold can "
            "step over.": lambda shape, strides, new: (
                math.prod(shape) == math.prod(new) and sorted(strides, reverse=True) == [*strides]
            ),
            "this asks whether all axes fold into one. view works on many tensors where they do "
            "not: only axes that are folded must fit.": lambda shape, strides, new: (
                math.prod(shape) == math.prod(new) and _fits(shape, strides, (math.prod(new),))
            ),
            "this lets view go where the new shape has as many axes or more. It can still fold two "
            "axes and cut a third.": lambda shape, strides, new: (
                math.prod(shape) == math.prod(new)
                and (len(new) >= len(shape) or _fits(shape, strides, new))
            ),
            "an axis of size 1 in the new shape is free too: it may come anywhere, also "
            "last.": lambda shape, strides, new: _fits(shape, strides, new) and new[-1] != 1,
            "the strides are right, but the sizes are not compared: as many numbers must come out "
            "as go in.": lambda shape, strides, new: (
                math.prod(shape) != math.prod(new) or _fits(shape, strides, new)
            ),
            "some of the new sizes are left over when all axes of x are used up. As many numbers "
            "must come out as go in.": lambda shape, strides, new: _fits(
                shape, strides, new, rest=False
            ),
            "some axes of x are left over when all new sizes are used up. As many numbers must "
            "come out as go in.": lambda shape, strides, new: any(
                _fits(shape[:n], strides[:n], new) for n in range(len(shape) + 1)
            ),
        },
    )
    return f"You predict what view does, in {len(_VIEWS)} cases."


_VIEWS: list[tuple[Shape, Shape, Shape]] = [
    ((2, 4, 6), (24, 6, 1), (2, 4, 3, 2)),  # the split's first stage
    ((2, 3, 4, 2), (24, 2, 6, 1), (6, 4, 2)),  # the fold for bmm
    ((1, 3, 4, 2), (24, 2, 6, 1), (3, 4, 2)),  # with a batch of one
    ((2, 4, 3, 2), (24, 2, 8, 1), (2, 4, 6)),  # the merge of what attention returns
    ((2, 3, 4, 2), (24, 2, 6, 1), (2, 3, 2, 2, 2)),  # cuts an axis of heads
    ((2, 3, 4, 2), (24, 2, 6, 1), (2, 1, 3, 4, 2)),
    ((2, 3, 4, 2), (24, 2, 6, 1), (2, 4, 3, 2)),  # no exchange of axes, ever
    ((4, 6), (6, 1), (3, 8)),
    ((4, 6), (6, 1), (5, 5)),
    ((4, 6), (6, 1), (24, 1)),
    ((4, 6), (8, 1), (24,)),  # rows with a gap after each
    ((4, 6), (8, 1), (8, 3)),
    ((4, 6), (8, 1), (3, 8)),
    ((4, 6), (8, 1), (2, 2, 3, 2)),
    ((4, 6), (8, 1), (2, 3, 2, 2)),
    ((6, 4), (1, 6), (24,)),  # transposed
    ((4, 1, 6), (6, 99, 1), (24,)),
    ((2, 3, 4), (24, 4, 1), (2, 12)),
    ((2, 3, 4), (24, 4, 1), (6, 4)),
    ((3, 4), (1, 0), (12,)),  # expanded
    ((3, 4), (0, 0), (12,)),
    ((2, 3), (3, 1), (2, 3, 5)),  # more numbers than there are, at the end
    ((4, 6), (8, 1), (4,)),  # and fewer
]


def _view_fits(shape: Shape, strides: Shape, new_shape: Shape) -> bool:
    """Ask torch itself."""
    try:
        torch.empty_strided(shape, strides, device="cpu").view(new_shape)
    except RuntimeError:
        return False
    return True


def _contiguous(shape: Shape, strides: Shape) -> bool:
    return torch.empty_strided(shape, strides, device="cpu").is_contiguous()


def _fits(
    shape: Shape, strides: Shape, new_shape: Shape, drop: bool = True, rest: bool = True
) -> bool:
    """Fold neighbors where one stride serves both; the new shape must cut between what is left."""
    runs: list[tuple[int, int]] = []  # numbers, stride of the innermost axis
    for size, stride in zip(shape, strides, strict=True):
        if size == 1 and drop:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = runs[-1][0] * size, stride
        else:
            runs.append((size, stride))
    sizes = [size for size in new_shape if size != 1]
    for numbers, _ in runs:
        made = 1
        while made < numbers and sizes:
            made *= sizes.pop(0)
        if made != numbers:
            return False
    return not sizes or not rest
