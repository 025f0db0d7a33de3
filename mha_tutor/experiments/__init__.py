"""Why more than one head: tasks with a known best, a model, a training loop, ablation, digits."""

from mha_tutor.experiments.ablation import (
    Removal,
    ablate_each,
    attention_distance,
    heads_removed,
    prune_greedily,
)
from mha_tutor.experiments.byhand import fetch_by_hand, lookup_by_hand
from mha_tutor.experiments.model import RoutedAttention
from mha_tutor.experiments.tasks import (
    Batch,
    Filter,
    Lookup,
    MaxMin,
    equal_taps,
    fetch,
    orthogonal_taps,
)
from mha_tutor.experiments.training import (
    Record,
    Trained,
    measure_error,
    median_error,
    summarize,
    sweep,
    train,
)

__all__ = [
    "Batch",
    "Filter",
    "Lookup",
    "MaxMin",
    "Record",
    "Removal",
    "RoutedAttention",
    "Trained",
    "ablate_each",
    "attention_distance",
    "equal_taps",
    "fetch",
    "fetch_by_hand",
    "heads_removed",
    "lookup_by_hand",
    "measure_error",
    "median_error",
    "orthogonal_taps",
    "prune_greedily",
    "summarize",
    "sweep",
    "train",
]
