"""The checkers of each chapter's *Your turn*.

A checker takes the reader's function and returns `Feedback`: what is right, what is still missing,
or, where the mistake is a known one, which. Nothing is raised and nothing printed, so a checker
works in a notebook's cell, in a script and in a test alike. Answers are checked on the CPU.

Example:
    >>> from mha_tutor import exercises
    >>> exercises.merge(lambda x: ...)
    … <lambda>: returns nothing yet. Put your code where the dots are.
    >>> exercises.merge(lambda x: x.transpose(1, 2).flatten(2))
    ✓ <lambda>: right. Your merge agrees with merge_heads on (2, 3, 4, 2) and (1, 5, 7, 2).
"""

from mha_tutor.exercises._exercise import Feedback
from mha_tutor.exercises.attend import (
    additive,
    four_weights,
    heads_last,
    join_pieces,
    safe_softmax,
)
from mha_tutor.exercises.layer import (
    cross_attention,
    grouped_count,
    silence_head,
    torch_state,
    whole_layer,
)
from mha_tutor.exercises.mask import (
    cached_causal,
    hide_to_bias,
    masked_weights,
    padded_causal,
    two_sided_window,
)
from mha_tutor.exercises.reshape import merge

__all__ = [
    "Feedback",
    "additive",
    "cached_causal",
    "cross_attention",
    "four_weights",
    "grouped_count",
    "heads_last",
    "hide_to_bias",
    "join_pieces",
    "masked_weights",
    "merge",
    "padded_causal",
    "safe_softmax",
    "silence_head",
    "torch_state",
    "two_sided_window",
    "whole_layer",
]
