"""`explain_layer` and `heads_of`: make the calls, record, read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mha_tutor.read.find import dropouts, find
from mha_tutor.read.reading import combine, read
from mha_tutor.read.record import (
    CallError,
    Tape,
    TooLargeError,
    fresh,
    preserved,
    record,
    tensors_of,
)
from mha_tutor.read.result import HeadMaps, Reading

__all__ = ["explain_layer", "heads_of"]


def explain_layer(
    layer: Callable[..., Any],
    *inputs: Any,
    modes: tuple[str, ...] = ("eval", "train"),
    limit: int = 2**24,
    **options: Any,
) -> Reading:
    """Show the attention in anybody's layer, function or whole model, and change nothing of it.

    One call is recorded, and what it computed is read: which products, by what they are divided,
    over which axis the softmax runs, what is hidden, which features make which head. No name of
    a parameter is looked at. Each attention's output is then computed again in float64, partly by
    `attention_loop`, from what was read alone; only if it agrees is the attention explained.

    Args:
        layer: a module, or a function of tensors.
        inputs: what it is called with.
        modes: "eval" is read; in "train", what dropout does is read besides. A function has one.
        limit: entries that a table of scores may have, B · H · L · S.
        options: keyword arguments of the call.

    Returns:
        The reading: print it, show it in a notebook, or save it.

    Raises:
        CallError: the call fails by itself (a ValueError).
        TooLargeError: a table of scores has more entries than `limit` (a ValueError).
        TypeError: `layer` cannot be called.

    Example:
        >>> layer = torch.nn.MultiheadAttention(12, 3, batch_first=True)
        >>> x = torch.randn(2, 5, 12)
        >>> reading = explain_layer(layer, x, x, x)
        >>> reading[0].scale, reading[0].num_heads, reading[0].axis, reading[0].explained
        (0.5, 3, 'keys', True)
    """
    if not callable(layer):
        raise TypeError(f"layer must be a module or a function, got {type(layer).__name__}")
    if not modes or set(modes) - {"eval", "train"}:
        raise ValueError(f"modes must be some of 'eval' and 'train', got {modes!r}")
    if any(map(is_lazy, layer.parameters() if isinstance(layer, nn.Module) else ())):
        raise ValueError("the layer has lazy parameters, which its first call makes: call it once")
    began = time.perf_counter()
    reading = Reading(_title(layer))
    module = layer if isinstance(layer, nn.Module) else None
    plain = getattr(layer, "_orig_mod", layer)
    if plain is not layer:
        reading.notes.append("It is compiled; the module that was compiled is read.")
    for mode in modes if module is not None else modes[:1]:
        training = None if module is None else mode == "train"
        try:
            tape = _recorded(layer, plain, inputs, options, training, limit, reading)
        except CallError as error:
            if mode == modes[0]:
                raise
            reading.notes.append(f"In training mode it was not read: {error}")
            continue
        if mode == modes[0]:
            attentions = [read(tape, found) for found in find(tape)]
            used = {v.name for v in tape.leaves if v.kind == "parameter" and v.users}
            names = [] if module is None else [name for name, _ in plain.named_parameters()]
            reading.parameters_used = [name for name in names if name in used]
            reading.parameters_unused = [name for name in names if name not in used]
        for i, dropout in dropouts(tape, mode):
            known = i is not None and i < len(attentions)
            (attentions[i] if known else reading).dropouts.append(dropout)
    reading.attentions = combine(attentions)
    for a in reading.attentions:
        if a.dropouts and all(d.mode == "train" for d in a.dropouts):
            a.without_influence.append("the rate of dropout, in evaluation,")
    reading.seconds = time.perf_counter() - began
    return reading


def heads_of(
    layer: Callable[..., Any], *inputs: Any, tokens: Any = None, limit: int = 2**24, **options: Any
) -> list[HeadMaps]:
    """Return what each head looks at, in anybody's layer or model, fused kernels included.

    Neither hooks nor `output_attentions` are needed.

    Args:
        layer: a module, or a function of tensors.
        inputs: what it is called with.
        tokens: words to draw the weights on: a sequence of strings, one for each position.
        limit: as for `explain_layer`.
        options: keyword arguments of the call.

    Returns:
        For each attention, in the order of computing, its weights (B, H, L, S) in float64. An
        attention that is not explained has none, and its reason instead.

    Raises:
        ValueError: as for `explain_layer`; or no attention was found.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 5, 6).unbind()
        >>> maps = heads_of(torch.nn.functional.scaled_dot_product_attention, q, k, v)
        >>> maps[0].weights.shape
        torch.Size([2, 4, 5, 5])
    """
    reading = explain_layer(layer, *inputs, modes=("eval",), limit=limit, **options)
    if not reading.attentions:
        raise ValueError(f"no attention was found in {reading.title}")
    words = None if tokens is None else [str(token) for token in tokens]
    return [
        HeadMaps(a.module, a.weights if a.explained else None, words, a.reason)
        for a in reading.attentions
    ]


def _recorded(layer, plain, inputs, options, training, limit, reading) -> Tape:
    """Make a call twice, once recorded, and say what that changed."""
    module = plain if isinstance(plain, nn.Module) else None
    named = {f"input {i}": t for i, t in enumerate(tensors_of((inputs, options)))}
    error = None
    with preserved(module, training):
        args, kwargs = fresh(inputs), fresh(options)
        try:
            tape = record(lambda: plain(*args, **kwargs), named, module, limit)
        except TooLargeError:
            raise
        except Exception as caught:
            error = caught
    changed = [] if error else tape.changed
    with preserved(module, training), torch.no_grad():
        args, kwargs = fresh(inputs), fresh(options)
        try:
            output = layer(*args, **kwargs)
        except Exception as caught:
            said = ", ".join(
                [*map(_said, inputs), *(f"{k}={_said(v)}" for k, v in options.items())]
            )
            raise CallError(
                f"{_title(layer)}({said}) raises {type(caught).__name__}: {caught}"
            ) from caught
        finally:
            for tensor, old in changed:
                tensor.copy_(old)
    if error is not None:
        raise CallError(
            f"the call succeeds, but cannot be recorded: {type(error).__name__}: {error}"
        ) from error
    reading.notes += _compared(tape.output, output, "training" if training else "")
    return tape


def _compared(recorded: Any, plain: Any, mode: str) -> list[str]:
    """Say whether recording changed what came out."""
    when = f" in {mode} mode" if mode else ""
    one, two = tensors_of(recorded), tensors_of(plain)
    if [t.shape for t in one] != [t.shape for t in two]:
        return [f"Recorded{when}, the call returns other tensors than undisturbed."]
    notes = []
    for a, b in zip(one, two, strict=True):
        if not a.is_floating_point():
            if not torch.equal(a, b):
                notes.append(f"Recorded{when}, the call returns other integers than undisturbed.")
            continue
        if not torch.equal(a.isnan(), b.isnan()):
            notes.append(
                f"Undisturbed{when} the output has {int(b.isnan().sum())} NaN, recorded "
                f"{int(a.isnan().sum())}: recording takes another path (torch's fast path of "
                "nn.MultiheadAttention and nn.TransformerEncoder is one opaque operation)."
            )
        a, b = a.double().nan_to_num(), b.double().nan_to_num()
        off = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if b.numel() else 0.0
        if (
            off
            > 32 * torch.finfo(one[0].dtype if one[0].is_floating_point() else torch.float32).eps
        ):
            notes.append(
                f"Recorded{when}, the output differs by {off:.1e} from the undisturbed one."
            )
    return list(dict.fromkeys(notes))


def _said(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
    text = repr(x)
    return text if len(text) < 40 else type(x).__name__


def _title(layer: Callable[..., Any]) -> str:
    if isinstance(layer, nn.Module):
        return type(getattr(layer, "_orig_mod", layer)).__name__
    return getattr(layer, "__name__", type(layer).__name__)
