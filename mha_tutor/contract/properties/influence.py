"""Properties of who influences whom: batch, masked keys, the future, order."""

from __future__ import annotations

import torch
from torch import Tensor

from mha_tutor.contract.properties.base import (
    NotApplicable,
    Problem,
    attends,
    difference,
    needs_causal,
    needs_mask,
    same,
)
from mha_tutor.contract.subjects import Inputs


@attends("No sequence of the batch sees another.")
def batch(subject, sizes, seed):
    if sizes.B < 2:
        return None
    inputs = subject.draw(sizes, seed)
    before = subject.call(inputs)
    other = subject.draw(sizes, seed + 1)
    mixed = Inputs(
        *(
            None if x is None else torch.cat([x[:1], y[1:]])
            for x, y in zip(inputs, other, strict=True)
        )
    )
    if not same(subject.call(mixed)[:1], before[:1], subject.tol):
        return Problem("the output of sequence 0 changes when the other sequences change")
    return None


@attends("A masked key has no influence, and gets no gradient.")
def masked_key(subject, sizes, seed):
    needs_mask(subject)
    L, S = sizes.L, sizes.S if not subject.self_attention else sizes.L
    if S < 2 or (subject.self_attention and L < 2):
        return None
    hidden = 0 if subject.causal else S - 1
    mask = torch.ones(L, S, dtype=torch.bool, device=subject.device)
    mask[:, hidden] = False
    if subject.self_attention:
        mask[hidden, hidden] = True  # a token may look at itself
    seen = _influence(subject, sizes, seed, hidden, mask=mask)
    return None if seen is None else Problem(f"key {hidden} is masked, yet {seen}")


@attends("With `is_causal` no query sees the future, and no gradient comes from there.")
def future(subject, sizes, seed):
    options = {"is_causal": True}
    if subject.causal and not subject.takes_causal:
        options = {}
    else:
        needs_causal(subject)
    L, S = sizes.L, sizes.S if not subject.self_attention else sizes.L
    if L < 2 or S < 2:
        return None
    for j in range(1, S):
        seen = _influence(subject, sizes, seed, j, rows=min(j, L), **options)
        if seen is not None:
            return Problem(f"token {j} is the future of the queries before it, yet {seen}")
    return None


def _influence(subject, sizes, seed, j: int, rows: int | None = None, **options) -> str | None:
    """Say how the key at j reaches the first `rows` queries (all but j itself), if it does."""
    inputs = subject.draw(sizes, seed)
    own = subject.self_attention

    def outputs(of: Inputs) -> Tensor:
        out = subject.call(of, **options)
        axis = out.ndim - 2
        keep = [i for i in range(out.shape[axis]) if not (own and i == j)]
        keep = keep if rows is None else [i for i in keep if i < rows]
        return out.index_select(axis, torch.tensor(keep, device=out.device))

    before = outputs(inputs)

    def changed(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., j, :] += 1.0
        return x

    after = outputs(inputs.keys_mapped(changed))
    if not same(after, before, subject.tol):
        return f"the output changes by {(after - before).abs().max().item():.2g} when it changes"
    watched = inputs.map(lambda x: x.clone().requires_grad_())
    out = outputs(watched)
    if out.requires_grad:
        of = watched.present[:1] if own else watched.present[1:]
        grads = torch.autograd.grad(out.sum(), of, allow_unused=True)
        for grad in grads:
            if grad is not None and not grad[..., j, :].abs().max().item() <= subject.tol:
                return f"it gets a gradient of {grad[..., j, :].abs().max().item():.2g}"
    return None


@attends("The order of the keys does not matter, if the values come along.")
def permutation(subject, sizes, seed):
    if subject.causal or subject.positions:
        raise NotApplicable("it is causal, or knows positions")
    inputs = subject.draw(sizes, seed)
    S = inputs.present[-1].shape[-2]
    order = torch.randperm(S, generator=torch.Generator().manual_seed(seed)).to(subject.device)
    got = subject.call(inputs.keys_mapped(lambda x: x[..., order, :].contiguous()))
    want = subject.call(inputs)
    if subject.self_attention:
        want = want[..., order, :]
    if same(got, want, subject.tol):
        return None
    what = "tokens" if subject.self_attention else "keys and values"
    return Problem(f"with the {what} in another order the result is another one")


@attends("Keys of other lengths than the queries are attended to: what lies there matters.")
def cross(subject, sizes, seed):
    if subject.self_attention:
        raise NotApplicable("it is self-attention")
    for each in dict.fromkeys([sizes, sizes.square]):
        inputs = subject.draw(each, seed)
        other = subject.draw(each, seed + 1)
        out = subject.call(inputs)
        for name, changed in (
            ("value", Inputs(inputs.query, inputs.key, other.value)),
            ("key", Inputs(inputs.query, other.key, inputs.value)),
            ("query", Inputs(other.query, inputs.key, inputs.value)),
        ):
            if each.S < 2 and name != "value":
                continue
            if same(subject.call(changed), out, subject.tol):
                return Problem(f"the {name} has no influence on the output", kind=name)
        if (
            subject.form == "module"
            and subject.adapter.kdim == subject.adapter.embed_dim
            and each.L == each.S > 1
        ):
            mixed = subject.call(Inputs(inputs.query, inputs.key, inputs.key.clone()))
            want = subject.call(Inputs(inputs.query, inputs.key, inputs.key))
            detail = difference(mixed, want, subject.tol)
            if detail:
                return Problem(f"an equal copy of the key as value gives another result: {detail}")
    return None
