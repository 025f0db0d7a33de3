"""Read the attention in anybody's layer from what it computes: record, read, draw.

This package knows nothing of `check`, which stands on it.
"""

from mha_tutor.read.door import explain_layer, heads_of
from mha_tutor.read.record import CallError, TooLargeError
from mha_tutor.read.result import Attention, Dropout, Features, HeadMaps, Reading, Step

__all__ = [
    "Attention",
    "CallError",
    "Dropout",
    "Features",
    "HeadMaps",
    "Reading",
    "Step",
    "TooLargeError",
    "explain_layer",
    "heads_of",
]
