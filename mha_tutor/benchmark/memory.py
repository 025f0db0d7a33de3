"""How many bytes of tensors a call holds at once."""

import os
from collections.abc import Callable

import torch

__all__ = ["peak_bytes"]


def peak_bytes(run: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Count the most bytes of tensors that a call holds at once, above what was there before.

    On the CPU this adds up what torch's allocator reports to the profiler, so that other
    processes, threads and libraries do not enter; on CUDA it is what the allocator counts itself.

    Args:
        run: the call.
        device: where its tensors are.

    Returns:
        Bytes.

    Example:
        >>> peak_bytes(lambda: torch.ones(1000) + torch.ones(1000))
        12000
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would report each start and stop
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
