"""Properties of training: gradients and modes."""

from __future__ import annotations

import torch

from mha_tutor.contract.properties.base import NotApplicable, Problem, attends, difference
from mha_tutor.contract.properties.masking import random_mask
from mha_tutor.contract.subjects import Inputs

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
