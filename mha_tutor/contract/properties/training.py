"""Properties of training: gradients, modes, dropout."""

from __future__ import annotations

import torch

from mha_tutor.contract.properties.base import NotApplicable, Problem, attends, difference, same
from mha_tutor.contract.properties.masking import random_mask
from mha_tutor.contract.sizes import Sizes
from mha_tutor.contract.subjects import Inputs
from mha_tutor.contract.watch import CandidateError

STEP = 1e-3


@attends("The gradients are those of the output: they agree with small steps.")
def gradients(subject, sizes, seed):
    inputs = subject.draw(sizes, seed)
    directions = subject.draw(sizes, seed + 1)
    if subject.dtype != torch.float64:
        raise NotApplicable("it cannot compute in float64")
    probe = torch.randn(
        subject.output_shape(inputs), generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    ).to(subject.device)  # fmt: skip
    names = ("query", "key", "value") if not subject.self_attention else ("input",)
    for i, name in enumerate(names):
        x = [t.clone() for t in inputs.present]
        x[i].requires_grad_()
        out = subject.call(Inputs(*x))
        u = directions.present[i]

        def moved(step, i=i, u=u):
            y = [t.clone() for t in inputs.present]
            y[i] += step * u
            with torch.no_grad():
                return (subject.call(Inputs(*y)) * probe).sum().item()

        slope = (moved(STEP) - moved(-STEP)) / (2 * STEP)
        claimed = 0.0
        if out.requires_grad:
            (grad,) = torch.autograd.grad((out * probe).sum(), x[i], allow_unused=True)
            claimed = 0.0 if grad is None else (grad * u).sum().item()
        size = probe.norm().item() * u.norm().item()
        if not abs(slope - claimed) <= 1e-3 * max(1.0, abs(slope)) + 1e-6 * size:
            return Problem(
                f"along one direction of the {name} the gradient says {claimed:.4g}, "
                f"small steps say {slope:.4g}",
                kind=name,
            )
    return None


@attends("Training and evaluation agree where there is no dropout.", "module")
def train_and_eval(subject, sizes, seed):
    training = subject.in_training()
    inputs = subject.draw(sizes, seed)
    detail = difference(training.call(inputs), subject.call(inputs), subject.tol)
    if detail:
        return Problem(detail.replace("the right one", "in evaluation it"))
    if not subject.takes_mask:
        return None
    for each in dict.fromkeys([sizes, sizes.square]):
        inputs = subject.draw(each, seed)
        mask = random_mask(subject, each, seed, 2)
        detail = difference(training.call(inputs, mask), subject.call(inputs, mask), subject.tol)
        if detail:
            detail = detail.replace("the right one", "in evaluation it")
            return Problem(f"with a mask: {detail}")
    return None


@attends("Without training there is no dropout.", "module", shrinks=False)
def no_dropout_in_eval(subject, sizes, seed):
    quiet = subject.with_dropout(0.5, training=False)
    if quiet is None:
        raise NotApplicable("it has no dropout")
    inputs = subject.draw(sizes, seed)
    calm, again = subject.call(inputs), subject.call(inputs)
    first, second = quiet.call(inputs), quiet.call(inputs)
    if not same(calm, again, subject.tol):
        raise NotApplicable("it is not deterministic, with or without dropout")
    if same(first, second, subject.tol) and same(first, calm, subject.tol):
        return None
    if same(first, second, subject.tol):
        return Problem("its dropout changes the output in evaluation")
    return Problem("dropout is active in evaluation", clue="dropout-in-eval")


@attends(
    "Dropout drops weights, and scales the others up: on average nothing changes.", shrinks=False
)
def dropout(subject, sizes, seed):
    p = 0.4
    dropping = subject.with_dropout(p)
    if dropping is None:
        raise NotApplicable("it has no dropout")
    torch.manual_seed(seed)
    one = Sizes(B=1, H=sizes.H, L=1, S=1, D=sizes.D, V=sizes.V)
    single = _many(subject.draw(one, seed), 400)
    calm, drawn = subject.call(single), dropping.call(single)
    varies = not same(drawn, calm, subject.tol)
    few = Sizes(B=1, H=sizes.H, L=3, S=3, D=sizes.D, V=sizes.V)
    inputs = _many(subject.draw(few, seed), 1500)
    calm, drawn = subject.call(inputs), dropping.call(inputs)
    if not varies:
        if same(drawn, calm, subject.tol):
            return Problem("dropout changes nothing in training", clue="dropout-ignored")
        return Problem(
            "with a single key, whose weight is 1, dropout has no effect: it acts before the "
            "softmax",
            clue="dropout-before-softmax",
        )
    mean, spread = drawn.mean(0), drawn.std(0) / len(drawn) ** 0.5
    if ((mean - calm[0]).abs() <= 7 * spread + 1e-6).all():
        return None
    clue = "dropout-unscaled" if _is_shrunk(subject, mean, calm[0], spread, p) else ""
    return Problem("over many draws the mean of the output is not the output without dropout", clue)


def _many(inputs: Inputs, times: int) -> Inputs:
    return inputs.map(lambda x: x.repeat(times, *[1] * (x.ndim - 1)))


def _is_shrunk(subject, mean, calm, spread, p: float) -> bool:
    """Tell whether the mean is (1 - p) of the right one, the bias of the output aside."""
    bias = 0.0
    if subject.form == "module":
        weights = subject.weights()
        if weights is None:
            return False
        if weights.out is not None and weights.out[1] is not None:
            bias = weights.out[1].detach()
    right = (calm - bias) * (1 - p) + bias
    return bool(((mean - right).abs() <= 7 * spread + 1e-6).all())


@attends("With dropout the mask still holds.", shrinks=False)
def mask_with_dropout(subject, sizes, seed):
    if not subject.takes_mask:
        raise NotApplicable("it takes no mask")
    dropping = subject.with_dropout(0.3)
    if dropping is None:
        raise NotApplicable("it has no dropout")
    L, S = sizes.L, sizes.L if subject.self_attention else sizes.S
    hidden = 0 if subject.causal else S - 1
    mask = torch.ones(L, S, dtype=torch.bool, device=subject.device)
    mask[:, hidden] = False
    if subject.self_attention:
        mask[hidden, hidden] = True
    inputs = subject.draw(sizes, seed)

    def moved(x):
        x = x.clone()
        x[..., hidden, :] += 1.0
        return x

    rows = [i for i in range(L) if not (subject.self_attention and i == hidden)]
    outs = []
    try:
        for each in (inputs, inputs.keys_mapped(moved)):
            torch.manual_seed(seed)
            outs.append(dropping.call(each, mask)[..., rows, :])
    except CandidateError as error:
        return Problem(str(error))
    if same(*outs, subject.tol):
        return None
    still = subject.in_training() or subject
    calm = [still.call(each, mask)[..., rows, :] for each in (inputs, inputs.keys_mapped(moved))]
    clue = "mask-ignored-with-dropout" if same(*calm, subject.tol) else ""
    return Problem(f"key {hidden} is masked, and has influence in training with dropout", clue)
