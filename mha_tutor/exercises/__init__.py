"""The checkers of each chapter's *Your turn*.

A checker takes the reader's function and returns `Feedback`: what is right, what is still missing,
or, where the mistake is a known one, which. Nothing is raised and nothing printed, so a checker
works in a notebook's cell, in a script and in a test alike. Answers are checked on the CPU.

Example:
    >>> from mha_tutor import exercises
    >>> exercises.merge(lambda x: ...)
    … <lambda>: returns nothing yet. Put your code where the dots are.
    >>> exercises.merge(lambda x: x.transpose(1, 2).flatten(2))
    ✓ <lambda>: right. Your merge agrees with merge_heads.
"""

from mha_tutor.exercises._exercise import Feedback
from mha_tutor.exercises.chapter1 import head_shares, one_head, one_suffices, recover_tables
from mha_tutor.exercises.chapter2 import find_element, heads_test, merge, unpack, view_fits
from mha_tutor.exercises.chapter3 import (
    einsum_by_matmul,
    flops,
    layer_by_einsum,
    output_spec,
    scores_spec,
)
from mha_tutor.exercises.chapter4 import (
    additive,
    four_weights,
    heads_last,
    join_pieces,
    safe_softmax,
)
from mha_tutor.exercises.chapter5 import (
    cached_causal,
    hide_to_bias,
    masked_weights,
    padded_causal,
    two_sided_window,
)
from mha_tutor.exercises.chapter6 import (
    cross_attention,
    grouped_count,
    silence_head,
    torch_state,
    whole_layer,
)
from mha_tutor.exercises.chapter7 import continue_repeat, least_loss
from mha_tutor.exercises.chapter9 import blocks_to_compute, online_attention, table_bytes

__all__ = [
    "Feedback",
    "additive",
    "blocks_to_compute",
    "cached_causal",
    "continue_repeat",
    "cross_attention",
    "einsum_by_matmul",
    "find_element",
    "flops",
    "four_weights",
    "grouped_count",
    "head_shares",
    "heads_last",
    "heads_test",
    "hide_to_bias",
    "join_pieces",
    "layer_by_einsum",
    "least_loss",
    "masked_weights",
    "merge",
    "one_head",
    "one_suffices",
    "online_attention",
    "output_spec",
    "padded_causal",
    "recover_tables",
    "safe_softmax",
    "scores_spec",
    "silence_head",
    "table_bytes",
    "torch_state",
    "two_sided_window",
    "unpack",
    "view_fits",
    "whole_layer",
]
