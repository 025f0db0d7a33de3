"""`explain_layer` and `heads_of`: call, record, read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import nn

from mha_tutor.read.reading import find, read
from mha_tutor.read.record import fresh, preserved, record, tensors_of
from mha_tutor.read.result import Reading

__all__ = ["explain_layer"]


def explain_layer(
    layer: Callable[..., Any],
    *inputs: Any,
    modes: tuple[str, ...] = ("eval", "train"),
    limit: int = 2**24,
    **options: Any,
) -> Reading:
    """Show."""
    began = time.perf_counter()
    module = layer if isinstance(layer, nn.Module) else None
    reading = Reading(_title(layer))
    with preserved(module, False if module else None):
        args, kwargs = fresh(inputs), fresh(options)
        named = {f"input {i}": t for i, t in enumerate(tensors_of((args, kwargs)))}
        tape = record(lambda: layer(*args, **kwargs), named, module, limit)
    for found in find(tape):
        reading.attentions.append(read(tape, found)[0])
    reading.seconds = time.perf_counter() - began
    return reading


def _title(layer: Callable[..., Any]) -> str:
    if isinstance(layer, nn.Module):
        return type(layer).__name__
    return getattr(layer, "__name__", type(layer).__name__)
