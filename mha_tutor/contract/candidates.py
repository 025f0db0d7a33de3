"""What the contract itself is tried on: right attentions, mutants, pairs of them, unseen bugs."""

from __future__ import annotations

import contextlib
import importlib.util
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mha_tutor import heads, masks
from mha_tutor.attention import scaled_dot_product_attention
from mha_tutor.contract.door import check
from mha_tutor.contract.mutants import MUTANTS, Mutant, combine
from mha_tutor.contract.report import Report
from mha_tutor.multihead import MultiHeadAttention

__all__ = [
    "Bug",
    "load_bugs",
    "random_pairs",
    "right_attentions",
    "try_bug",
    "try_mutant",
    "try_pair",
]

# Two mutants that make a third: the name of that one is the right one.
TOGETHER_ONE = {"split-without-transpose", "merge-without-transpose"}
MASK_STEPS = ("causal", "padding", "window")


@dataclass(frozen=True)
class Bug:
    """A wrong attention written by somebody who has not read the diagnosis.

    Attributes:
        name: short.
        story: what is wrong, in a sentence.
        make: returns a fresh candidate.
        form: as for `check`: "function", "module", "split", "merge", "split and merge", "causal",
            "padding" or "window".
        options: more for `check`.
        right_names: names of the catalog (`MUTANTS`) that would describe it rightly; "unknown" is
            right always.
    """

    name: str
    story: str
    make: Callable[[], Any]
    form: str
    options: dict[str, Any] = field(default_factory=dict)
    right_names: frozenset[str] = frozenset()


def load_bugs(path: str | Path) -> list[Bug]:
    """Read the list `BUGS` of a Python file."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.BUGS)


def right_attentions(others: bool = True) -> Iterator[tuple[str, Callable[[], Any], dict]]:
    """Yield the name of each right attention, how to make one, and the options for `check`.

    Args:
        others: whether to go on to timm and transformers, where they are installed.
    """
    functional = nn.functional.scaled_dot_product_attention
    yield "mha_tutor.scaled_dot_product_attention", lambda: scaled_dot_product_attention, {}
    yield "torch scaled_dot_product_attention", lambda: functional, {}
    yield "mha_tutor.MultiHeadAttention", lambda: MultiHeadAttention(12, 3, dropout=0.1), {}
    yield (
        "mha_tutor.MultiHeadAttention, three widths",
        lambda: MultiHeadAttention(12, 3, kdim=5, vdim=7, bias=False),
        {},
    )
    yield "torch MultiheadAttention", lambda: nn.MultiheadAttention(12, 3, dropout=0.1), {}
    yield (
        "torch MultiheadAttention, batch first, three widths",
        lambda: nn.MultiheadAttention(12, 3, kdim=5, vdim=7, batch_first=True),
        {},
    )
    black_box = {"black_box": True, "embed_dim": 12}
    yield "mha_tutor.MultiHeadAttention, black box", lambda: MultiHeadAttention(12, 3), black_box
    pair = (heads.split_heads, heads.merge_heads)
    yield "mha_tutor.split_heads and merge_heads", lambda: pair, {}
    yield "mha_tutor.causal_mask", lambda: masks.causal_mask, {"form": "causal"}
    yield "mha_tutor.padding_mask", lambda: masks.padding_mask, {"form": "padding"}
    yield "mha_tutor.sliding_window_mask", lambda: masks.sliding_window_mask, {"form": "window"}
    if others:
        yield from _other_libraries()


def _other_libraries() -> Iterator[tuple[str, Callable[[], Any], dict]]:
    with contextlib.suppress(ImportError):
        from timm.layers import Attention

        yield "timm Attention", lambda: Attention(12, num_heads=3, qkv_bias=True), {}
        yield (
            "timm Attention, not fused",
            lambda: _changed(Attention(12, num_heads=3, qkv_bias=True), fused_attn=False),
            {},
        )
    with contextlib.suppress(ImportError):
        from transformers import BertConfig, GPT2Config, LlamaConfig
        from transformers.models.bert.modeling_bert import BertSelfAttention
        from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
        from transformers.models.llama.modeling_llama import LlamaAttention

        for kind in ("eager", "sdpa"):
            same = {"attn_implementation": kind}
            bert = BertConfig(hidden_size=12, num_attention_heads=3, **same)
            gpt2 = GPT2Config(n_embd=12, n_head=3, **same)
            llama = LlamaConfig(
                hidden_size=24, num_attention_heads=4, num_key_value_heads=2, **same
            )
            yield f"transformers BERT, {kind}", lambda c=bert: BertSelfAttention(c), {}
            yield f"transformers GPT-2, {kind}", lambda c=gpt2: GPT2Attention(c, layer_idx=0), {}
            yield f"transformers Llama, {kind}", lambda c=llama: LlamaAttention(c, layer_idx=0), {}


def _changed(module: nn.Module, **attributes) -> nn.Module:
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def try_mutant(mutant: Mutant, form: str, seed: int = 0) -> Report:
    """Check a mutant in one of its forms."""
    if form == "function":
        return check(mutant.function(), seed=seed)
    if form in ("split", "merge"):
        return check(getattr(mutant, form), form)
    if form == "mask":
        kind = next(step for step in MASK_STEPS if step in mutant.sites)
        return check(getattr(mutant, kind), kind)
    grouped = "gqa-order" in mutant.name
    sizes = {"embed_dim": 16, "num_heads": 4, "num_kv_heads": 2}
    sizes = sizes if grouped else {"embed_dim": 12, "num_heads": 3}
    torch.manual_seed(seed)
    layer = mutant.layer(**sizes, dropout=0.1)
    return check(layer, black_box=form == "black box", seed=seed)


def random_pairs(number: int, seed: int = 0) -> list[tuple[Mutant, Mutant, str]]:
    """Draw pairs of mutants that replace different steps, and a form in which both can be seen."""
    rng = random.Random(seed)
    pairs: dict[tuple[str, str], tuple[Mutant, Mutant, str]] = {}
    while len(pairs) < number:
        first, second = rng.sample(MUTANTS, 2)
        common = sorted(first.forms & second.forms & {"function", "module"})
        if {first.name, second.name} == TOGETHER_ONE:
            continue
        if common and not first.sites & second.sites:
            pairs[first.name, second.name] = first, second, rng.choice(common)
    return list(pairs.values())


def try_pair(first: Mutant, second: Mutant, form: str, seed: int = 0) -> Report:
    """Check an attention with two bugs."""
    return try_mutant(combine(first, second), form, seed)


def try_bug(bug: Bug, seed: int = 0) -> Report:
    """Check an unseen bug."""
    torch.manual_seed(seed)
    return check(bug.make(), bug.form, seed=seed, **bug.options)
