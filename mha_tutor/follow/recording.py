"""Follow every element of a tensor through reshape, transpose and split, in index and in memory.

The door is `follow`. It returns a `Recording` that has the tensor's own methods and remembers
every stage. torch itself takes each step, on a tensor that holds the number of each element, laid
out as yours is; so views, copies, strides and refusals are torch's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from mha_tutor.follow.drawing import recording_figure
from mha_tutor.follow.stages import Names, Stage, stages_text
from mha_tutor.heads import merge_heads, split_heads

__all__ = ["Recording", "Stage", "follow"]


@dataclass(frozen=True, eq=False, repr=False)
class Recording:
    """A tensor and all that was done to it; made by `follow`.

    Its methods are the tensor's own, as in torch. Each returns a new recording with one more
    stage. A method that makes new axes takes `names=` for them: one for each axis of the result.

    Attributes:
        stages: a `Stage` for each step, the first being what was given to `follow`.
        chosen: the number of the element that `point_at` chose, or None.
    """

    stages: tuple[Stage, ...]
    chosen: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the last stage."""
        return self.stages[-1].shape

    @property
    def ndim(self) -> int:
        """The number of axes of the last stage."""
        return len(self.shape)

    def stride(self) -> tuple[int, ...]:
        """Return the strides of the last stage, in elements."""
        return self.stages[-1].strides

    def is_contiguous(self) -> bool:
        """Tell whether the last stage is contiguous."""
        return self.stages[-1].is_contiguous

    def reshape(self, *shape: int, names: str | Sequence[str] | None = None) -> Recording:
        """Give the elements another shape: a view where the layout allows one, else a copy."""
        return self._step("reshape", shape, names=names)

    def view(self, *shape: int, names: str | Sequence[str] | None = None) -> Recording:
        """Give the elements another shape without moving them, or refuse."""
        return self._step("view", shape, names=names)

    def unflatten(
        self, dim: int, sizes: Sequence[int], names: str | Sequence[str] | None = None
    ) -> Recording:
        """Cut one axis into several."""
        return self._step("unflatten", (dim, tuple(sizes)), names=names)

    def flatten(
        self, start_dim: int = 0, end_dim: int = -1, names: str | Sequence[str] | None = None
    ) -> Recording:
        """Fold neighboring axes into one."""
        return self._step("flatten", (start_dim, end_dim), names=names)

    def transpose(self, *dims: int) -> Recording:
        """Exchange two axes."""
        return self._step("transpose", dims, moves=True)

    def swapaxes(self, *axes: int) -> Recording:
        """Exchange two axes; another name for `transpose`."""
        return self._step("swapaxes", axes, moves=True)

    def permute(self, *dims: int) -> Recording:
        """Put all axes in another order."""
        return self._step("permute", dims, moves=True)

    def movedim(self, source: int | Sequence[int], destination: int | Sequence[int]) -> Recording:
        """Move axes elsewhere; the others keep their order."""
        return self._step("movedim", (source, destination), moves=True)

    def contiguous(self) -> Recording:
        """Copy the elements in the order of the index, unless they lie so already."""
        return self._step("contiguous", (), moves=True)

    def __getitem__(self, key) -> Recording:
        keys = key if isinstance(key, tuple) else (key,)
        code = f"[{', '.join(map(_slice_code, keys))}]"
        return self._take(code, lambda t: t[_slices(keys)], lambda names, _: _kept(names, keys))

    def split_heads(self, num_heads: int) -> Recording:
        """Give each head its own slice of the features, as `mha_tutor.split_heads` does."""
        names = (*self.stages[-1].names[:-2], "H", *self.stages[-1].names[-2:-1], "D")
        code = f".split_heads({num_heads})"
        return self._take(code, lambda t: split_heads(t, num_heads), lambda *_: names)

    def merge_heads(self) -> Recording:
        """Put the heads side by side again, as `mha_tutor.merge_heads` does."""
        names = (*self.stages[-1].names[:-3], *self.stages[-1].names[-2:-1], "E")
        return self._take(".merge_heads()", merge_heads, lambda *_: names)

    def point_at(self, *index: int) -> Recording:
        """Choose the element that is lit when the figure appears, by its index in the first stage.

        Raises:
            ValueError: there is no such index.
        """
        numbers = self.stages[0].elements
        fits = len(index) == numbers.ndim and all(
            -n <= i < n for i, n in zip(index, numbers.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"there is no index {index} in the first stage, {numbers.shape}")
        return replace(self, chosen=int(numbers[index]))

    def _step(self, method: str, args: tuple, *, names=None, moves: bool = False) -> Recording:
        act = operator.methodcaller(method, *map(_number, args))
        if len(args) == 1 and isinstance(args[0], tuple | list):
            args = tuple(args[0])
        code = f".{method}({', '.join(map(str, args))})"

        def rename(old: Names, after: torch.Tensor) -> Names:
            if names is not None:
                return _checked_names(names, after.ndim)
            if moves:  # of axes of sizes that all differ, the result tells where each went
                probe = act(torch.empty(tuple(range(2, len(old) + 2)), device="meta"))
                return tuple(old[size - 2] for size in probe.shape)
            return _inferred(self.shape, old, tuple(after.shape))

        return self._take(code, act, rename, lambda before: _what_works(method, args, before))

    def _take(
        self,
        code: str,
        act: Callable[[torch.Tensor], torch.Tensor],
        rename: Callable[[Names, torch.Tensor], Names],
        hint: Callable[[torch.Tensor], str] = lambda _: "",
    ) -> Recording:
        """Take one step, or say which step cannot be taken, why, and what can."""
        last = self.stages[-1]
        before = last._numbers
        try:
            after = act(before)
            if not after.numel():
                raise ValueError("no element is left to follow")
            names = rename(last.names, after)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            reason = str(error).strip().split("\n")[0].rstrip(".")
            where = f"step {len(self.stages)}, {code}, on shape {self.shape}"
            raise kind(f"{where}: {reason}.{hint(before)}") from error
        is_view = after.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
        stage = Stage(code, names, is_view, after, last.all_values)
        return replace(self, stages=(*self.stages, stage))

    def __repr__(self) -> str:
        return stages_text(self.stages, self.chosen)

    def _repr_html_(self) -> str:
        return recording_figure(self.stages, self.chosen).html()


def follow(
    x: torch.Tensor | np.ndarray | tuple[int, ...], names: str | Sequence[str] | None = None
) -> Recording:
    """Start a recording: each method called on it is a step, and every element is followed.

    Args:
        x: a torch tensor, a NumPy array, or a shape; a shape is filled with 0, 1, 2, …
        names: of the axes: a letter each, as in "BLE", or a sequence of words. An axis called
            H is the head axis: elements have the color of their head.

    Returns:
        A `Recording`. Show it in a notebook, print it, or use its `stages`.

    Raises:
        TypeError: x is none of these, or its dtype has no torch counterpart.
        ValueError: x is empty, or its layout is not one that torch knows; the names do not fit.

    Example:
        >>> x = follow((2, 4, 6), "BLE")
        >>> heads = x.view(2, 4, 3, 2, names="BLHD").transpose(1, 2)
        >>> [(stage.strides, stage.is_view) for stage in heads.stages]
        [((24, 6, 1), True), ((24, 6, 2, 1), True), ((24, 2, 6, 1), True)]
        >>> [stage.index_of(44) for stage in heads.stages]
        [(1, 3, 2), (1, 3, 1, 0), (1, 1, 3, 0)]
        >>> heads.stages[-1].names
        ('B', 'H', 'L', 'D')
        >>> heads.view(6, 4, 2)
        Traceback (most recent call last):
        ...
        ValueError: step 3, .view(6, 4, 2), on shape (2, 3, 4, 2): view size is not compatible \
with input tensor's size and stride (at least one dimension spans across two contiguous \
subspaces). Use .reshape(...) instead. Axes 0 and 1 cannot be folded: stride 24 is not 3 × 2, \
size and stride of axis 1. This works: .reshape(6, 4, 2), a copy.
    """
    values, shape, strides, offset = _layout(x)
    if not math.prod(shape):
        raise ValueError(f"x has no elements to follow, its shape is {shape}")
    size = offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    memory = torch.full((size,), -1)
    places = torch.arange(size).as_strided(shape, strides, offset).unique()
    if len(places) != math.prod(shape):
        raise ValueError(
            f"elements of x share a place in memory (shape {shape}, strides {strides}), so they "
            "cannot be told apart; follow a copy: .contiguous() or .copy()"
        )
    numbers = memory.as_strided(shape, strides, offset)
    numbers.copy_(torch.arange(math.prod(shape)).reshape(shape))
    given = (None,) * len(shape) if names is None else _checked_names(names, len(shape))
    return Recording((Stage("x", given, True, numbers, values),))


def _layout(x) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...], int]:
    """Return the values in order of the index, the shape, the strides and the first offset."""
    if isinstance(x, torch.Tensor) and not x.is_meta:
        values = x.detach().cpu().reshape(-1)
        values = values.float() if values.dtype == torch.bfloat16 else values
        return values.numpy(force=True), tuple(x.shape), x.stride(), x.storage_offset()
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "biufc":
            raise TypeError(f"x must hold numbers or booleans, got the dtype {x.dtype}")
        if any(s < 0 or s % x.itemsize for s in x.strides):
            raise ValueError(
                f"x has the strides {x.strides} in bytes, and torch knows no negative strides "
                f"and none between elements of {x.itemsize} bytes; follow x.copy()"
            )
        return x.ravel(), x.shape, tuple(s // x.itemsize for s in x.strides), 0
    if isinstance(x, tuple) and all(type(n) is int and n >= 0 for n in x):
        shape = tuple(x)
        strides = torch.empty(shape, device="meta").stride()
        return np.arange(math.prod(shape)), shape, strides, 0
    raise TypeError(f"x must be a torch tensor with values, a NumPy array or a shape, got {x!r}")


# --- Names of axes ------------------------------------------------------------------------


def _checked_names(names: str | Sequence[str], ndim: int) -> Names:
    result = tuple(names)
    if len(result) != ndim or len(set(result)) != ndim:
        raise ValueError(f"names must be {ndim} different ones, one for each axis, got {names!r}")
    return result


def _inferred(old_shape: tuple[int, ...], names: Names, new_shape: tuple[int, ...]) -> Names:
    """Keep the names of the axes that a reshape leaves as they are."""
    result: list[str | None] = []
    i = 0
    while i < len(old_shape) and old_shape[: i + 1] == new_shape[: i + 1]:
        i += 1
    j = 0
    rest = min(len(old_shape), len(new_shape)) - i
    while j < rest and old_shape[-1 - j] == new_shape[-1 - j]:
        j += 1
    result = [*names[:i], *[None] * (len(new_shape) - i - j), *names[len(names) - j :]]
    return tuple(result)


def _kept(names: Names, keys: tuple) -> Names:
    """Drop the names of the axes that are indexed; None makes an axis without a name."""
    used = sum(key is not None and key is not Ellipsis for key in keys)
    result: list[str | None] = []
    left = list(names)
    for key in [*keys] if Ellipsis in keys else [*keys, Ellipsis]:
        if key is Ellipsis:
            rest = len(names) - used
            result += left[:rest]
            del left[:rest]
        elif key is None:
            result.append(None)
        else:
            name = left.pop(0)
            result += [name] if isinstance(key, slice) else []
    return tuple(result)


def _number(arg):
    if isinstance(arg, torch.dtype):
        raise TypeError(f"a view as {arg} would cut or join elements, so none can be followed")
    return arg


# --- Slices and refusals ------------------------------------------------------------------


def _slices(keys: tuple) -> tuple:
    for key in keys:
        plain = key is None or key is Ellipsis or isinstance(key, slice | int | np.integer)
        if not plain or isinstance(key, bool):
            raise TypeError(
                f"an index must be an integer, a slice, None or ..., got {type(key).__name__}"
            )
    return keys


def _slice_code(key) -> str:
    if key is Ellipsis:
        return "..."
    if not isinstance(key, slice):
        return str(key)
    ends = ["" if end is None else str(end) for end in (key.start, key.stop)]
    return ":".join(ends if key.step is None else [*ends, str(key.step)])


def _what_works(method: str, args: tuple, x: torch.Tensor) -> str:
    """Say what can be done where torch refuses."""
    if method in ("view", "reshape"):
        try:
            wanted = x.reshape(args).shape
        except (RuntimeError, TypeError):
            return f" The sizes must multiply to {x.numel()}; one of them may be -1."
        cuts = {math.prod(wanted[:i]) for i in range(len(wanted))}
        stuck = [
            f" Axes {i} and {j} cannot be folded: stride {x.stride(i)} is not {x.shape[j]} × "
            f"{x.stride(j)}, size and stride of axis {j}."
            for i, j in pairwise(axis for axis, size in enumerate(x.shape) if size > 1)
            if math.prod(x.shape[:j]) not in cuts and x.stride(i) != x.shape[j] * x.stride(j)
        ]
        return f"{''.join(stuck)} This works: .reshape({', '.join(map(str, args))}), a copy."
    if method in ("transpose", "swapaxes"):
        return f" It takes two axes out of {x.ndim}; .permute takes all of them."
    if method == "permute":
        return f" It takes each of the {x.ndim} axes once."
    if method == "unflatten":
        return " The sizes must multiply to the size of the axis."
    return ""
