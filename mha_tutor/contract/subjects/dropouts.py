"""Where a layer keeps its probabilities of dropout."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["set_dropout"]

DROPOUT_NAMES = ("dropout", "dropout_p", "attn_dropout", "attention_dropout", "attn_drop", "p")


def set_dropout(module: nn.Module, p: float, only: int | None = None) -> bool:
    """Set every dropout of the module, or one of them; tell whether it is there."""
    places = list(_dropouts(module))
    chosen = places if only is None else places[only : only + 1]
    for part, name in chosen:
        setattr(part, name, p)
    return bool(chosen)


def _dropouts(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """List where the module keeps a probability of dropout: the part and its attribute."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            yield part, "p"
            continue
        yield from ((part, n) for n in DROPOUT_NAMES if isinstance(vars(part).get(n), float))
