"""Properties of number formats."""

from __future__ import annotations

import torch

from mha_tutor.contract.properties.base import NotAsked, Problem, attends, needs_mask, same
from mha_tutor.contract.sizes import Sizes
from mha_tutor.contract.watch import CandidateError

HALVES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
BOUND = 4.0


@attends("The output has the dtype of the input.", shrinks=False)
def dtype_kept(subject, sizes, seed):
    found = {}
    for dtype in dict.fromkeys((subject.dtype, torch.float32, *HALVES)):
        cast = subject.cast(dtype)
        try:
            found[dtype] = cast.call(cast.draw(sizes, seed)).dtype
        except CandidateError as error:
            return Problem(f"in {_short(dtype)} {error}")
    for dtype, got in found.items():
        if got != dtype:
            clue = "dtype-lost" if set(found.values()) == {torch.float32} else ""
            return Problem(f"{_short(dtype)} comes out as {_short(got)}", clue)
    return None


@attends(
    "In half precision the error is at most a few times that of torch's own function.",
    shrinks=False,
)
def low_precision(subject, sizes, seed):
    big = Sizes(B=1, H=3, L=11, S=11 if subject.self_attention else 13, D=16, V=16)
    try:
        subject.call(subject.draw(big, seed))
    except CandidateError:  # it may be made for short sequences
        big = sizes
    for dtype, name in HALVES.items():
        cast = subject.cast(dtype)
        inputs = cast.draw(big, seed)
        want = cast.expected(inputs)
        if want is None:
            raise NotAsked(subject.unknown)
        got = cast.call(inputs)
        error = _rms(got - want)
        theirs = _rms(cast.torch_answer(inputs) - want)
        if not error <= BOUND * theirs:
            return Problem(
                f"with {big.text(_letters(subject))} the error in {name} is {error:.2g}, that of "
                f"torch's own function {theirs:.2g}"
            )
    return None


@attends("A mask works in half precision too.", shrinks=False)
def mask_in_half_precision(subject, sizes, seed):
    needs_mask(subject)
    L, S = sizes.L, sizes.L if subject.self_attention else sizes.S
    mask = torch.ones(L, S, dtype=torch.bool, device=subject.device).tril()
    for dtype, name in HALVES.items():
        cast = subject.cast(dtype)
        try:
            out = cast.call(cast.draw(sizes, seed), mask)
        except CandidateError as error:
            proved = "without overflow" in str(error) and _hides(subject, sizes, seed, mask)
            return Problem(f"in {name} {error}", clue="fill-finite" if proved else "")
        if not out.isfinite().all():
            return Problem(f"in {name} the output is not finite")
    return None


def _hides(subject, sizes, seed, mask) -> bool:
    """Tell whether the last key, which only the last query may see, is hidden from the others."""
    inputs = subject.draw(sizes, seed)

    def moved(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[..., -1, :] += 1.0
        return x

    before, after = (subject.call(each, mask) for each in (inputs, inputs.keys_mapped(moved)))
    return same(before[..., :-1, :], after[..., :-1, :], subject.tol)


def _letters(subject) -> str:
    return subject.letters.replace("V", "")


def _rms(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
