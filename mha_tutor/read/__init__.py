"""Read the attention in anybody's layer from what it computes: record, read, draw."""

from mha_tutor.read.result import Attention, Dropout, Features, Reading, Step

__all__ = ["Attention", "Dropout", "Features", "Reading", "Step"]
