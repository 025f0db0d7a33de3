"""What the candidate and every suspect are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mha_tutor.contract.properties.masking import lengths, random_mask
from mha_tutor.contract.subjects import Inputs, Subject
from mha_tutor.contract.watch import OutOfTime

__all__ = ["REFUSED", "Answer", "Question", "answer", "questions"]

SEED = 7  # other inputs than the properties use
REFUSED = "refused"
Answer = Tensor | str


@dataclass(frozen=True)
class Question:
    """Something to ask of the candidate and of every suspect."""

    name: str
    ask: Callable[[Subject], Tensor]
    training: bool = False


def answer(subject: Subject, question: Question) -> Answer:
    """Ask; whatever a candidate raises is a refusal."""
    try:
        with torch.no_grad():
            return question.ask(subject)
    except OutOfTime:
        raise
    except Exception:  # a candidate's gradient may fail in any way
        return REFUSED


def questions(subject: Subject) -> list[Question]:
    """List the questions that this candidate can be asked."""
    main, square = subject.main, subject.main.square
    found = []

    def add(name: str, sizes, *, training=False, **options) -> None:
        inputs = subject.draw(sizes, SEED)
        if great := options.pop("great", 0.0):
            inputs = inputs.map(lambda x: x * great)
        if options.pop("grouped", False):
            q, k, v = inputs
            q = torch.cat([q, q.flip(-1)], dim=1)
            inputs = Inputs(q, k[:, :2].contiguous(), v[:, :2].contiguous())

        def ask(each: Subject) -> Tensor:
            return each.call(inputs, **options)

        found.append(Question(name, ask, training))

    if subject.form == "function":
        add("equal widths", replace(main, V=main.D))
        if subject.takes_mask:
            turned = [random_mask(subject, main, SEED + h) for h in range(main.H)]
            add("masked by head", main, mask=torch.cat(turned, dim=1))
    shapes = [main] if main == square else [main, square]
    for sizes in shapes:
        add("plain", sizes)
        if subject.takes_mask:
            chosen = random_mask(subject, sizes, SEED, subject.mask_ndim)
            add("masked", sizes, mask=chosen)
            L, S = lengths(subject, sizes)
            nothing = random_mask(subject, sizes, SEED, 2)
            nothing[L - 1] = False
            add("nothing to attend to", sizes, mask=nothing)
            generator = torch.Generator().manual_seed(SEED)
            numbers = torch.randn(L, S, generator=generator, dtype=torch.float64)
            add("additive", sizes, mask=numbers.to(subject.device, subject.dtype))
            if subject.form == "module":
                add("masked in training", sizes, training=True, mask=chosen)
        if subject.takes_causal:
            add("causal", sizes, is_causal=True)
    if subject.takes_causal and not subject.self_attention:
        add("causal, one query", replace(main, L=1), is_causal=True)
    if subject.causal and subject.form == "module":
        add("causal in training", main, training=True)
    add("great scores", main, great=30.0)
    if subject.takes_mask:
        add("masked great scores", main, great=30.0, mask=random_mask(subject, main, SEED, 2))
    if subject.takes_gqa:
        add("grouped", main, grouped=True, enable_gqa=True)
    found.append(Question("gradients", _gradients))
    return found


def _gradients(subject: Subject) -> Tensor:
    """Return the gradients of some sum of the output for all inputs, in one row."""
    with torch.enable_grad():
        inputs = subject.draw(subject.main, SEED).map(lambda x: x.requires_grad_())
        out = subject.call(inputs)
        total = (out * torch.linspace(-1, 1, out.numel()).to(out).view(out.shape)).sum()
        if not total.requires_grad:
            return torch.zeros(sum(x.numel() for x in inputs.present), dtype=out.dtype)
        grads = torch.autograd.grad(total, inputs.present, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])
