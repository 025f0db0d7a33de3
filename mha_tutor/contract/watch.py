"""Call code that may do anything: raise, print, change seeds and settings, take forever."""

from __future__ import annotations

import contextlib
import io
import random
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["CandidateError", "Clock", "OutOfTime", "quiet_call", "seeded", "what_changed"]


class CandidateError(Exception):
    """The candidate did not answer with a tensor; the text says what it did, in a sentence."""

    def __init__(self, sentence: str, cause: BaseException | None = None) -> None:
        super().__init__(sentence)
        self.cause = cause


class OutOfTime(Exception):
    """The time for this check is over."""


class Clock:
    """How long the calls took, and when to stop.

    Args:
        limit: seconds from now; None for no limit.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.started = time.monotonic()
        self.limit = limit
        self.slowest = 0.0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def check(self) -> None:
        """Raise `OutOfTime` when the time is over."""
        if self.limit is not None and self.seconds > self.limit:
            raise OutOfTime(
                f"the time limit of {self.limit:g} s was reached; "
                f"the slowest call took {self.slowest:.2g} s"
            )


class _Capped(io.StringIO):
    """Keep the first characters of what is printed, forget the others."""

    def write(self, text: str) -> int:
        if self.tell() < 1000:
            super().write(text[:1000])
        return len(text)


def quiet_call(function: Callable[..., Any], *args, clock: Clock, **kwargs) -> tuple[Any, str]:
    """Call, keep what is printed off the screen, and put back the settings that were changed.

    Returns:
        What the function returned, and what it printed.

    Raises:
        CandidateError: it raised.
        OutOfTime: there is no time left.
    """
    clock.check()
    printed = _Capped()
    start = time.monotonic()
    settings = _settings()
    try:
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            result = function(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a candidate must not end the check
        message = str(error).strip().splitlines() or [""]
        text = message[0] if len(message[0]) <= 160 else message[0][:157] + "…"
        raise CandidateError(f"it raises {type(error).__name__}: {text}", error) from None
    finally:
        _restore(settings)
        clock.slowest = max(clock.slowest, time.monotonic() - start)
    return result, printed.getvalue()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start all global generators of random numbers anew, and put back their states after."""
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])
        random.setstate(saved[2])


def what_changed(function: Callable[..., Any], *args, clock: Clock, **kwargs) -> list[tuple]:
    """Call twice, from two random states, and list what a caller would notice afterwards.

    Returns:
        Pairs of a sentence and a clue (which may be empty).
    """
    changes: list[tuple[str, str]] = []
    ends = []
    seen: dict[str, Any] = {}

    def observed(*args, **kwargs):
        before = _settings()
        result = function(*args, **kwargs)
        seen.update({name: value for name, value in _settings().items() if value != before[name]})
        return result

    for seed in (12345, 54321):
        with seeded(seed):
            _, printed = quiet_call(observed, *args, clock=clock, **kwargs)
            ends.append((torch.rand(()).item(), np.random.rand(), random.random()))
    for name, first, second in zip(("torch", "NumPy", "Python"), *ends, strict=True):
        if first == second:
            changes.append((f"it sets the global random seed of {name}", "seed-changed"))
    for name, value in seen.items():
        changes.append((f"it changes {name} to {value}", ""))
    if printed.strip():
        line = printed.strip().splitlines()[0]
        changes.append((f"it prints: {line[:60]}", ""))
    return changes


def _settings() -> dict[str, Any]:
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


def _restore(settings: dict[str, Any]) -> None:
    dtype, grad, threads, deterministic = settings.values()
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)
