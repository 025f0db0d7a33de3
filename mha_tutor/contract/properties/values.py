"""Properties of the numbers: shapes, the oracle, heads one by one, scale, rows."""

from __future__ import annotations

import math

import torch

from mha_tutor.contract.mutants import find_mutant
from mha_tutor.contract.properties.base import (
    NotApplicable,
    NotAsked,
    Problem,
    attends,
    difference,
    same,
)
from mha_tutor.contract.subjects import FunctionSubject, Inputs, first_tensor
from mha_tutor.contract.watch import CandidateError

GOLDEN = (math.sqrt(5) - 1) / 2


@attends("It returns one tensor.", shrinks=False)
def one_tensor(subject, sizes, seed):
    answer = subject.raw(subject.draw(sizes, seed))
    first_tensor(answer)
    if not isinstance(answer, torch.Tensor):
        return Problem(
            f"it returns a {type(answer).__name__} of {len(answer)}; its first item is judged"
        )
    return None


@attends("The output has the shape of the query, also where B, H, L, S and D all differ.")
def shape(subject, sizes, seed):
    inputs = subject.draw(sizes, seed)
    out = first_tensor(subject.raw(inputs))
    wanted = subject.output_shape(inputs)
    if tuple(out.shape) != wanted:
        return Problem(f"the shape is {tuple(out.shape)}, the right one {wanted}")
    return None


@attends("The output equals attention computed by plain loops, number for number.")
def parity(subject, sizes, seed):
    for each in dict.fromkeys([sizes, sizes.square]):
        inputs = subject.draw(each, seed)
        want = subject.expected(inputs)
        if want is None:
            raise NotAsked(subject.unknown)
        detail = difference(subject.call(inputs), want, subject.tol)
        if detail:
            return Problem(detail)
    return None


@attends(
    "Given one tensor for all three it is self-attention, with gradients and without.", "module"
)
def self_attention(subject, sizes, seed):
    if subject.self_attention:
        raise NotApplicable("it is always self-attention")
    a = subject.adapter
    if not a.embed_dim == a.kdim == a.vdim:
        raise NotApplicable("query, key and value differ in width")
    x = subject.draw(sizes, seed).query
    inputs = Inputs(x, x, x)
    want = subject.expected(inputs)
    if want is None:
        want = subject.call(Inputs(x, x.clone(), x.clone()))
    with torch.no_grad():
        detail = difference(subject.call(inputs), want, subject.tol)
    detail = difference(subject.call(inputs), want, subject.tol) or detail
    return Problem(detail) if detail else None


@attends("Each head works alone: what it gives does not depend on the other heads.", "function")
def heads_alone(subject, sizes, seed):
    if sizes.H < 2:
        return None
    inputs = subject.draw(sizes, seed)
    together = subject.call(inputs)
    for h in range(sizes.H):
        alone = subject.call(inputs.map(lambda x, h=h: x[:, h : h + 1].contiguous()))
        if not same(alone, together[:, h : h + 1], subject.tol):
            return Problem(f"head {h} alone gives other numbers than head {h} among {sizes.H}")
    return None


@attends("The layer is the sum of its heads, each with its slice of every weight.", "module")
def sum_over_heads(subject, sizes, seed):
    weights = subject.weights()
    if weights is None:
        raise NotAsked(subject.unknown)
    inputs = subject.draw(sizes, seed)
    got = subject.call(inputs)
    want = _sum_of_heads(subject, weights, inputs)
    detail = difference(got, want, subject.tol)
    return Problem(detail) if detail else None


def _sum_of_heads(subject, weights, inputs: Inputs) -> torch.Tensor:
    """Attend with one head at a time, by slices of the weights, without any reshape."""
    a = subject.adapter
    x = [t.detach().double() for t in inputs.present]
    query, key, value = x if len(x) == 3 else (x[0], x[0], x[0])
    D = weights.q[0].shape[0] // a.num_heads
    V = weights.v[0].shape[0] // a.num_kv_heads
    parts = []
    for h in range(a.num_heads):
        g = h // (a.num_heads // a.num_kv_heads)
        q = _slice(query, weights.q, h, D)
        k = _slice(key, weights.k, g, D)
        v = _slice(value, weights.v, g, V)
        scores = q @ k.mT / math.sqrt(D)
        if subject.causal:
            scores = scores + torch.full_like(scores, float("-inf")).triu(1)
        head = torch.softmax(scores, -1) @ v
        if weights.out is not None:
            head = head @ weights.out[0].detach().double()[:, h * V : (h + 1) * V].T
        parts.append(head)
    if weights.out is None:
        return torch.cat(parts, dim=-1)
    bias = weights.out[1]
    return sum(parts) + (0 if bias is None else bias.detach().double())


def _slice(x, linear, h: int, width: int):
    weight, bias = (None if part is None else part.detach().double() for part in linear)
    rows = slice(h * width, (h + 1) * width)
    return x @ weight[rows].T + (0 if bias is None else bias[rows])


@attends("The scores are divided by √head_dim.", shrinks=False)
def scale(subject, sizes, seed):
    inputs = subject.draw(sizes, seed)
    want = subject.expected(inputs)
    if want is None:
        raise NotAsked(subject.unknown)
    got = subject.call(inputs)
    if same(got, want, subject.tol):
        return None
    D = sizes.D if subject.form == "function" else _head_dim(subject)
    found = _fit_scale(subject, inputs, got, D**-0.5)
    if found is None:
        raise NotApplicable("no scale alone explains the output; see parity")
    return Problem(f"they are multiplied by {found:.4g}; 1/√head_dim is {D**-0.5:.4g}")


def _head_dim(subject) -> int:
    return subject.weights().q[0].shape[0] // subject.adapter.num_heads


def _fit_scale(subject, inputs, got, right: float) -> float | None:
    """Find the scale with which right attention gives this output, if there is one."""

    def error(factor: float) -> float:
        out = subject.simulation((_scaled(factor * right),)).call(inputs)
        return (out - got).abs().max().item()

    grid = [2 ** (n / 2) for n in range(-10, 11)]
    best = min(grid, key=error)
    low, high = best / 2**0.5, best * 2**0.5
    a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    error_a, error_b = error(a), error(b)
    for _ in range(45):
        if error_a < error_b:
            high, b, error_b = b, a, error_a
            a = high - GOLDEN * (high - low)
            error_a = error(a)
        else:
            low, a, error_a = a, b, error_b
            b = low + GOLDEN * (high - low)
            error_b = error(b)
        if high - low < 0.1 * best and min(error_a, error_b) > 0.5 * error(best) > 0:
            return None  # it does not get better: another scale is not the reason
    limit = 100 * subject.tol * max(1.0, got.abs().max().item())
    return (low + high) / 2 * right if error((low + high) / 2) <= limit else None


def _scaled(factor: float) -> type:
    class Scaled:
        def scale(self, q, k):
            return factor

    return Scaled


@attends("The weights of a query sum to 1: equal values come out unchanged, whatever the keys.")
def rows_sum_to_1(subject, sizes, seed):
    inputs = equal_values(subject, subject.draw(sizes, seed))
    got = subject.call(inputs)
    want = what_one_gives(subject, inputs).expand_as(got)
    if same(got, want, subject.tol):
        return None
    return Problem(difference(got, want, subject.tol).replace("the right one", "the value"))


def equal_values(subject, inputs: Inputs) -> Inputs:
    """Give all keys the value of the first; in self-attention the tokens are equal then."""
    if subject.self_attention:
        x = inputs.query
        return Inputs(x[:, :1].expand_as(x).contiguous())
    value = inputs.value
    return inputs._replace(value=value[..., :1, :].expand_as(value).contiguous())


def what_one_gives(subject, inputs: Inputs) -> torch.Tensor:
    """Return the output where the first key is the only one: its value, seen by the layer."""
    if isinstance(subject, FunctionSubject):
        return inputs.value[..., :1, :]
    return subject.call(inputs.map(lambda x: x[:, :1].contiguous()))


@attends("Large scores are neither cut off nor overflow: the softmax holds for every size.")
def large_scores(subject, sizes, seed):
    inputs = subject.draw(sizes, seed)
    for factor in (3.0, 8.0):  # the scores grow with its square
        great = inputs.map(lambda x, factor=factor: x * factor)
        want = subject.expected(great)
        if want is None:
            break
        # Where the softmax is taken in float32 the rounding of a score grows with the score.
        detail = difference(subject.call(great), want, subject.tol * factor**2)
        if detail:
            return Problem(f"with queries and keys {factor:g} times as long {detail}")
    got = subject.call(inputs.map(lambda x: x * 100))
    if got.isfinite().all():
        return None
    clue = "softmax-overflows" if _overflows_as_exponentials(subject, inputs) else ""
    return Problem("with scores in the thousands the output is not finite", clue)


def _overflows_as_exponentials(subject, inputs: Inputs) -> bool:
    """Tell whether the numbers are lost just where exponentials are, and only there."""
    suspect = subject.simulation((find_mutant("softmax-overflows").steps,))
    if suspect is None:
        return False
    some = False  # whether there are inputs with which some numbers are lost, and some are not
    for factor in (1, 10, 14, 20, 28, 40):
        great = inputs.map(lambda x, factor=factor: x * factor)
        lost = ~subject.call(great).isfinite()
        if not torch.equal(lost, ~suspect.call(great).isfinite()):
            return False
        some = some or bool(lost.any() and not lost.all())
    return some


@attends("`scale=` replaces 1/√head_dim.", "function")
def scale_argument(subject, sizes, seed):
    if not subject.takes_scale:
        raise NotApplicable("it has no such argument")
    inputs = subject.draw(sizes, seed)
    detail = difference(
        subject.call(inputs, scale=0.3),
        subject.simulation((_scaled(0.3),)).call(inputs),
        subject.tol,
    )
    return Problem(detail) if detail else None


@attends("With `enable_gqa` each key head serves a run of query heads: 0 0 1 1.", "function")
def grouped_heads(subject, sizes, seed):
    if not subject.takes_gqa:
        raise NotApplicable("it has no such argument")
    inputs = _grouped(subject, sizes, seed)
    if inputs is None:
        return None
    try:
        got = subject.call(inputs, enable_gqa=True)
    except CandidateError as error:
        return Problem(str(error))
    detail = difference(got, subject.expected(inputs), subject.tol)
    return Problem(detail) if detail else None


def _grouped(subject, sizes, seed) -> Inputs | None:
    """Draw two key heads for 2 H query heads, all different."""
    if sizes.H < 2:
        return None
    q, k, v = subject.draw(sizes, seed)
    q = torch.cat([q, q.flip(-1)], dim=1)
    return Inputs(q, k[:, :2].contiguous(), v[:, :2].contiguous())
