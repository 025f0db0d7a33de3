"""Exercises of chapter 3, *Write it as einsum*."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mha_tutor.einsum import explain_einsum
from mha_tutor.exercises._exercise import (
    Case,
    Exercise,
    Wrong,
    answer,
    draw,
    exercise,
    expect,
    given,
    whole,
)
from mha_tutor.heads import merge_heads

__all__ = ["einsum_by_matmul", "flops", "layer_by_einsum", "output_spec", "scores_spec"]

MANY = 100  # calls of torch: an answer that permutes and multiplies needs some twenty


def _by_spec(candidate: Any) -> Any:
    """Make a function of a spec; a rule may be a function already."""
    if callable(candidate):
        return candidate
    spec = _spec(candidate)
    left = spec.partition("->")[0]
    terms = left.split(",")
    if "->" in spec and [len(t) for t in terms] == [4, 4] and terms[0] == terms[1]:
        raise Wrong(
            f"both operands are {terms[0]!r}. Each query meets each key, so their positions need "
            "letters of their own."
        )
    return lambda *operands: _run(spec, *operands)


def _as_it_is(function: Any, *operands: Tensor) -> Any:
    """Run a spec here: what is wrong with it says so in its own words."""
    return function.args[0](*operands)


scores_spec = Exercise(
    task="Write the spec of the scores: (B, H, L, D) with (B, H, S, D) → (B, H, L, S).",
    cases=[
        Case(
            "with L = 5 queries and S = 7 keys",
            (draw(2, 3, 5, 11), draw(2, 3, 7, 11, seed=1)),
            _as_it_is,
        )
    ],
    right="bhld,bhsd->bhls",
    mistakes={
        "a row of this is a key. Queries come first in (B, H, L, S).": "bhld,bhsd->bhsl",
        "this sums over the heads: h must stand right of the arrow.": "bhld,bhsd->bls",
        "this sums over the batch: its letter must stand right of the arrow.": "bhld,bhsd->hls",
        "this sums over the batch and the heads. Both letters must stand right of the arrow; "
        "without an arrow, torch drops every letter that stands twice.": "bhld,bhsd->ls",
        "D has a letter for the query and another for the key, so each is summed alone. Give "
        "both one letter.": "bhld,bhse->bhls",
        "the heads have two letters, so each head meets every head. Give them one.": (
            "bhld,bgsd->bhls"
        ),
        "the sequences have two letters, so each meets every other. Give them one.": (
            "bhld,chsd->bhls"
        ),
        "the sequences have two letters, and all are kept: each meets every other. Give them "
        "one.": "bhld,chsd->bchls",
        "the heads have two letters, and all are kept: each head meets every head. Give them "
        "one.": "bhld,bgsd->bhgls",
        "D is kept: a score is a sum over D. Leave its letter out on the right.": (
            "bhld,bhsd->bhlsd"
        ),
        "the heads stand after the queries; (B, H, L, S) is asked for.": "bhld,bhsd->blhs",
    },
    praise="Your spec gives query @ key.mT.",
    parse=_by_spec,
)

output_spec = Exercise(
    task="Write the spec of the output: heads (B, H, L, D) with W (H, O, D) → (B, L, O).",
    cases=[
        Case(
            "with 3 heads of 7 features and 11 outputs",
            (draw(2, 3, 5, 7), draw(3, 11, 7, seed=1)),
            _as_it_is,
        )
    ],
    right="bhld,hod->blo",
    mistakes={
        "h is kept: these are the shares of the heads. Leave h out on the right, and they are "
        "added.": "bhld,hod->bhlo",
        "h is kept: these are the shares of the heads, before they are added.": "bhld,hod->blho",
        "tokens and outputs are exchanged: (B, L, O) is asked for.": "bhld,hod->bol",
        "the heads have two letters, so each head meets the matrix of every head. Give them one.": (
            "bhld,god->blo"
        ),
        "D has two letters, so each operand is summed over it alone. Give both one.": (
            "bhld,hoe->blo"
        ),
        "this sums over the batch: its letter must stand right of the arrow.": "bhld,hod->lo",
        "this sums over the tokens: their letter must stand right of the arrow.": "bhld,hod->bo",
        "this sums over the outputs: their letter must stand right of the arrow.": "bhld,hod->bl",
    },
    praise="Your spec gives merge_heads(heads) @ W.T.",
    parse=_by_spec,
)

_COUNTED = [
    ("ij,jk->ik", (2, 3), (3, 5)),
    ("i,j->ij", (3,), (5,)),
    ("i,i->", (7,), (7,)),
    ("nqhd,nkhd->nhqk", (2, 5, 3, 11), (2, 7, 3, 11)),
    ("nhqk,nkhd->nqhd", (2, 3, 5, 7), (2, 7, 3, 11)),
    ("nqhd,ohd->nqo", (2, 5, 3, 7), (11, 3, 7)),
]


def _sizes(spec: str, a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, int]:
    left, right = spec.partition("->")[0].split(",")
    return dict(zip(left + right, a + b, strict=True))


def _size_of(letters: str, spec: str, a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return math.prod(_sizes(spec, a, b)[letter] for letter in letters)


def _summed(spec: str) -> str:
    left, _, right = spec.partition("->")
    return "".join(sorted(set(left) - {","} - set(right)))


flops = Exercise(
    task="Count: `flops(spec, shape_a, shape_b)` → the FLOPs of a spec of two operands, a number.",
    cases=[Case(f"for {spec!r} with {a} and {b}", (spec, a, b)) for spec, a, b in _COUNTED],
    right=lambda spec, a, b: explain_einsum(spec, a, b).flops,
    mistakes={
        "this is half of it: a step is a multiplication and an addition.": lambda spec, a, b: (
            math.prod(_sizes(spec, a, b).values())
        ),
        "this multiplies all numbers of a with all of b. A letter that both have is one loop, "
        "not two.": lambda spec, a, b: 2 * math.prod(a) * math.prod(b),
        "this counts one product for each entry of the result. The summed letters are loops "
        "too.": lambda spec, a, b: 2 * _size_of(spec.partition("->")[2], spec, a, b),
        "this multiplies the summed letters alone. Kept and batch letters are loops "
        "too.": lambda spec, a, b: 2 * _size_of(_summed(spec), spec, a, b),
        "this adds the sizes; nested loops multiply.": lambda spec, a, b: (
            2 * sum(_sizes(spec, a, b).values())
        ),
        "these are the numbers read and written, not the FLOPs.": lambda spec, a, b: (
            math.prod(a) + math.prod(b) + _size_of(spec.partition("->")[2], spec, a, b)
        ),
        "this is the exact count of chapter 1, one addition less for each entry. Here a step "
        "is a multiplication and an addition.": lambda spec, a, b: (
            (2 * _size_of(_summed(spec), spec, a, b) - 1)
            * _size_of(spec.partition("->")[2], spec, a, b)
        ),
    },
    praise=f"Your count is that of explain_einsum, on {len(_COUNTED)} specs.",
    read=whole,
)


def _layer(
    dim: int = -1,
    divide: Callable[[int, int], float] = lambda E, D: D**0.5,
    scores: Callable[[Tensor], Tensor] = lambda scores: scores,
    weights: Callable[[Tensor], Tensor] = lambda weights: weights,
    mixed: int = 2,
    softmax: bool = True,
) -> Callable[..., Tensor]:
    """Make a layer; each option breaks it in one place."""

    def layer(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
        qkv = [x[:, None] @ w.mT for w in (w_q, w_k, w_v)]  # (B, H, L, D)
        a = scores(qkv[0] @ qkv[1].mT / divide(*w_q.shape[:0:-1]))
        a = weights(a.softmax(dim) if softmax else a)
        return merge_heads(a @ qkv[mixed]) @ w_o.flatten(1).T

    return layer


layer_by_einsum = Exercise(
    task="""Write self-attention: `layer_by_einsum(x, w_q, w_k, w_v, w_o)`, (B, L, E) → (B, L, O).

    The matrices are cut into heads: `w_q`, `w_k` and `w_v` are (H, D, E), `w_o` is (O, H, D).
    """,
    cases=[
        Case(
            "for B, L, H, D = 2, 7, 3, 5 and E, O = 15, 11",
            (
                draw(2, 7, 15),
                *(draw(3, 5, 15, seed=i) / 4 for i in (1, 2, 3)),
                draw(11, 3, 5, seed=4),
            ),
        )
    ],
    right=_layer(),
    mistakes={
        "the scores are not divided by √D.": _layer(divide=lambda E, D: 1),
        "the scores are divided by √E; each head has D features, so √D.": _layer(
            divide=lambda E, D: E**0.5
        ),
        "the scores are divided by D, not by √D.": _layer(divide=lambda E, D: D),
        "the scores are multiplied by √D; divide.": _layer(divide=lambda E, D: D**-0.5),
        "the softmax runs over the queries. The keys are to sum to 1 for each query: dim=-1 if "
        "the scores end in qk.": _layer(dim=-2),
        "the softmax runs over the heads; it must run over the keys.": _layer(dim=1),
        "the scores are mixed with no softmax.": _layer(softmax=False),
        "the weights have their queries and keys exchanged.": _layer(weights=lambda a: a.mT),
        "queries and keys have traded places: the scores' letters are in the wrong order, or "
        "w_q and w_k are exchanged.": _layer(scores=lambda a: a.mT),
        "nothing is mixed: the values have the letter of the queries. They stand at the keys' "
        "positions.": _layer(weights=lambda a: torch.eye(a.shape[-1]).to(a)),
        "keys are mixed; the values are to be.": _layer(mixed=1),
        "one table of weights serves all heads: h was summed in the scores.": _layer(
            scores=lambda a: a.sum(dim=1, keepdim=True)
        ),
    },
    praise="It agrees with project, split, attend, merge, project.",
)


@exercise
def einsum_by_matmul(candidate: Any) -> str:
    """Do what torch.einsum does: `einsum_by_matmul(spec, a, b)`, by permute, reshape and one @."""
    calls = _Calls()
    for spec, a, b, remark in _SPECS:
        want = torch.einsum(spec, a, b)
        try:
            with calls:
                got = answer(candidate, spec, a, b)
            expect(got, want, f"for {spec!r}", _other_orders(spec, want))
        except Wrong as wrong:
            raise Wrong(f"{str(wrong).rstrip('.')}. {remark}".rstrip()) from None
        if calls.einsum:
            raise Wrong("this calls an einsum. Use permute, reshape and @ alone.")
        if calls.count > MANY:
            raise Wrong(
                f"the numbers are right, and for {spec!r} took {calls.count} calls of torch: a "
                "loop over entries. Merge axes until one @ does it."
            )
        calls.count = 0
    return f"One matrix product each does {len(_SPECS)} specs."


class _Calls(TorchFunctionMode):
    """Count the calls of torch's functions, and see whether one of them is an einsum."""

    count = 0
    einsum = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        self.einsum |= getattr(func, "__name__", "") == "einsum"
        return func(*args, **(kwargs or {}))


_SPECS = [
    ("ij,jk->ik", draw(2, 3), draw(3, 5, seed=1), ""),
    ("ij,jk->ki", draw(2, 3), draw(3, 5, seed=1), ""),
    ("ij,kj->ik", draw(2, 3), draw(5, 3, seed=1), "Here the second operand ends in the summed j."),
    ("i,i->", draw(7), draw(7, seed=1), "Here nothing is kept: rows and columns are of size 1."),
    ("i,j->ij", draw(3), draw(5, seed=1), "Here nothing is summed: the inner axis is of size 1."),
    ("ij,ij->ji", draw(3, 5), draw(3, 5, seed=1), "Here all letters are batch."),
    ("bij,bjk->bik", draw(2, 3, 5), draw(2, 5, 7, seed=1), ""),
    ("nqhd,nkhd->nhqk", draw(2, 5, 3, 11), draw(2, 7, 3, 11, seed=1), ""),
    ("nhqk,nkhd->nqhd", draw(2, 3, 5, 7), draw(2, 7, 3, 11, seed=1), ""),
    ("nqhd,ohd->nqo", draw(2, 5, 3, 7), draw(11, 3, 7, seed=1), "Here two letters are summed."),
    (
        "ijk,kjl->il",
        draw(2, 3, 5),
        draw(5, 3, 7, seed=1),
        "Here two letters are summed, and the operands have them in different orders: permute both "
        "to one order before you merge.",
    ),
    (
        "ijk,jil->ijkl",
        draw(2, 3, 5),
        draw(3, 2, 7, seed=1),
        "Here two letters are batch, and the operands have them in different orders: permute both "
        "to one order before you merge.",
    ),
    (
        "ij,jk->i",
        draw(2, 3),
        draw(3, 5, seed=1),
        "Here k is summed and stands in one operand only: sum it away before the product.",
    ),
    (
        "ij,k->k",
        draw(2, 3),
        draw(5, seed=1),
        "Here i and j are summed and stand in one operand only: sum them away before the product.",
    ),
]


def _other_orders(spec: str, want: Tensor) -> dict[str, Tensor]:
    """Return what the product is, in the orders in which it may come out."""
    left, _, output = spec.partition("->")
    a, b = left.split(",")
    batch = [letter for letter in output if letter in a and letter in b]
    only_a = [letter for letter in output if letter not in b]
    only_b = [letter for letter in output if letter not in a]
    made = {
        "".join(order)
        for order in (batch + only_a + only_b, sorted(batch) + sorted(only_a) + sorted(only_b))
    }
    in_order_of_a = [letter for letter in a if letter in batch]
    made.add("".join(in_order_of_a + [x for x in a if x in only_a] + [x for x in b if x in only_b]))
    return {
        f"for {spec!r} the numbers are right, their axes are in the order {order!r}: permute the "
        f"result to {output!r}.": want.permute([output.index(letter) for letter in order])
        for order in sorted(made - {output})
    }


def _spec(candidate: Any) -> str:
    return given(candidate, str, "'ij,jk->ik'").replace(" ", "")


def _run(candidate: Any, *operands: Tensor) -> Tensor:
    """Run a spec, or say what is wrong with it, in words of the axes."""
    spec = _spec(candidate)
    left = spec.partition("->")[0]
    if "," not in left and len(left) == sum(x.ndim for x in operands):
        first = operands[0].ndim
        raise Wrong(
            f"{left!r} is read as one operand. Put a comma between the two: "
            f"'{left[:first]},{left[first:]}'."
        )
    try:
        explain_einsum(spec, *operands)
    except ValueError as error:
        raise Wrong(f"{error}. Write one letter for each axis, in order.") from None
    return torch.einsum(spec, *operands)
