"""Bring what callers hand in to NumPy, or say what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from mha_tutor.plotting.palette import head_color


def to_array(
    name: str, value: Any, *, ndim: tuple[int, ...] | None = None, shape: str = ""
) -> np.ndarray:
    """Bring an array, a tensor on any device or nested lists to NumPy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float().numpy() if "bfloat16" in str(value.dtype) else value.numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array: {error}") from None
    if array.dtype.kind not in "biufU":
        raise TypeError(f"{name} must hold real numbers or strings, got dtype {array.dtype}")
    if ndim is not None and array.ndim not in ndim:
        raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got the shape {array.shape}")
    return array


def to_numbers(name: str, value: Any, ndim: int, shape: str) -> np.ndarray:
    """Bring an array of real numbers to float64."""
    array = to_array(name, value, ndim=(ndim,), shape=shape)
    if array.dtype.kind == "U":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array.astype(float)


def to_boolean(name: str, value: Any) -> np.ndarray:
    """Bring an array of booleans to NumPy; numbers are refused."""
    array = to_array(name, value)
    if array.dtype != bool:
        raise TypeError(f"{name} must be boolean (True = may), got dtype {array.dtype}")
    return array


def to_mask(mask: Any, shape: tuple[int, ...], *, name: str = "mask") -> np.ndarray:
    """Broadcast a mask to `shape`; leading axes of size 1 are dropped."""
    if mask is None:
        return np.ones(shape, dtype=bool)
    array = to_boolean(name, mask)
    given = array.shape
    while array.ndim > len(shape) and array.shape[0] == 1:
        array = array[0]
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to {shape}, got the shape {given}") from None


def to_labels(name: str, labels: Any, count: int, what: str) -> list[str] | None:
    """Turn labels into strings, one for each row or column."""
    if labels is None:
        return None
    if not hasattr(labels, "__len__"):
        raise TypeError(f"{name} must be a sequence, got {type(labels).__name__}")
    if len(labels) != count:
        raise ValueError(f"{name} must have one entry for each {what} ({count}), got {len(labels)}")
    return [str(label) for label in labels]


def to_head_indices(name: str, heads: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Head indices of `shape`, -1 for neutral; each has a color."""
    if heads is None:
        return np.full(shape, -1)

    def neutral(head: Any) -> Any:
        if isinstance(head, list | tuple):
            return [neutral(h) for h in head]
        return -1 if head is None else head

    array = to_array(name, neutral(heads))
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold head indices (whole numbers), got dtype {array.dtype}")
    for head in np.unique(array[array != -1]):
        head_color(head)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to {shape}, got {array.shape}") from None
