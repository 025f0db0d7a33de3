"""How fast is `MultiHeadAttention`? Measured against its own parts, in one interleaved run.

All layers take turns in every round, so that a busy machine slows all of them alike; what is
reported is the ratio to the parts alone.
"""

import multiprocessing
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from mha_tutor.multihead import MultiHeadAttention

__all__ = ["LAYERS", "layer_table", "measure_peak", "measure_ratios"]

EMBED_DIM, NUM_HEADS = 512, 8
SIZES = ((1, 128), (8, 512), (1, 2048))  # (B, L)
LONG = 8192


class Parts(nn.Module):
    """The floor: four projections around torch's fused attention, with no check and no choice."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(EMBED_DIM, EMBED_DIM) for _ in range(4)
        )

    def forward(self, x: Tensor, is_causal: bool) -> Tensor:
        """Attend within x, (B, L, E)."""
        q, k, v = (
            projection(x).unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        return self.out_proj(heads.transpose(1, 2).flatten(-2))


class Torch(nn.Module):
    """`nn.MultiheadAttention`, which wants a mask even where `is_causal` says the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(EMBED_DIM, NUM_HEADS, batch_first=True)

    def forward(self, x: Tensor, is_causal: bool) -> Tensor:
        """Attend within x, (B, L, E)."""
        mask = None
        if is_causal:
            mask = nn.Transformer.generate_square_subsequent_mask(
                x.shape[1], device=x.device, dtype=x.dtype
            )
        return self.layer(x, x, x, need_weights=False, attn_mask=mask, is_causal=is_causal)[0]


class Ours(MultiHeadAttention):
    """`MultiHeadAttention`, called as the other two are."""

    def __init__(self) -> None:
        super().__init__(EMBED_DIM, NUM_HEADS)

    def forward(self, x: Tensor, is_causal: bool) -> Tensor:
        """Attend within x, (B, L, E)."""
        return super().forward(x, is_causal=is_causal)


LAYERS: dict[str, type[nn.Module]] = {
    "parts": Parts,
    "MultiHeadAttention": Ours,
    "nn.MultiheadAttention": Torch,
}


def measure_ratios(
    batch: int,
    length: int,
    is_causal: bool,
    backward: bool,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    rounds: int = 15,
    seconds: float = 0.05,
) -> dict[str, float]:
    """Time every layer in turn, round after round.

    Args:
        batch: B.
        length: L.
        is_causal: whether each query sees only the keys up to its own position.
        backward: whether to time forward and backward, or forward alone without gradients.
        device: where to run.
        dtype: of parameters and input.
        rounds: how often each layer has its turn; at least 1.
        seconds: how long a turn should last at least.

    Returns:
        For each name in `LAYERS` the median over the rounds of its time divided by that of
        `parts` in the same round; and under `"seconds"` the median time of `parts` for one call.

    Raises:
        ValueError: rounds is less than 1.

    Example:
        >>> measure_ratios(1, 8, False, False, rounds=1, seconds=0)["parts"]
        1.0
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    runs = {
        name: _prepare(make, batch, length, is_causal, backward, device, dtype)
        for name, make in LAYERS.items()
    }
    timers = {
        name: Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
        for name, run in runs.items()
    }
    once = timers["parts"].timeit(2).mean  # after the warm-up call that `timeit` makes itself
    calls = max(1, round(seconds / once))
    times = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer.timeit(calls).mean)
    ratios = {
        name: statistics.median(
            own / floor for own, floor in zip(times[name], times["parts"], strict=True)
        )
        for name in timers
    }
    return {**ratios, "seconds": statistics.median(times["parts"])}


def measure_peak(name: str, length: int, device: torch.device | str = "cpu") -> float:
    """Measure the memory that one causal forward pass takes at its peak, in a process of its own.

    Args:
        name: one of `LAYERS`.
        length: L; the batch is 1.
        device: where to run. On the CPU the peak is that of the process above what it held
            before the call, on CUDA what torch's allocator counts.

    Returns:
        MiB.

    Raises:
        ValueError: there is no such layer.
        RuntimeError: the process could not start, or ran out of memory.
    """
    if name not in LAYERS:
        raise ValueError(f"name must be one of {', '.join(LAYERS)}, got {name!r}")
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(_peak, name, length, str(device)).result()
    except BrokenProcessPool:
        raise RuntimeError(
            "the process that measures ended before it answered; it runs your main module first, "
            "which must be a file (no script on standard input) and guard what it starts by "
            "`if __name__ == '__main__'`"
        ) from None


def _prepare(
    make: type[nn.Module],
    batch: int,
    length: int,
    is_causal: bool,
    backward: bool,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Callable[[], None]:
    """Build a layer and its input, and return one call of it."""
    layer = make().to(device, dtype).train(backward)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, EMBED_DIM, generator=generator).to(device, dtype)
    x.requires_grad_(backward)

    def run() -> None:
        if backward:
            layer(x, is_causal).sum().backward()
        else:
            with torch.no_grad():
                layer(x, is_causal)

    return run


def _peak(name: str, length: int, device: str) -> float:
    # Threads and buffers that the first call sets up are not the layer's own.
    _prepare(LAYERS[name], 1, 16, True, False, device, torch.float32)()
    run = _prepare(LAYERS[name], 1, length, True, False, device, torch.float32)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = _resident_peak()
    run()
    return (_resident_peak() - before) / 2**20


def _resident_peak() -> int:
    """Return the most memory this process has held so far, in bytes."""
    if sys.platform == "linux":
        # Not `getrusage`: on Linux a child starts out with the peak of its parent.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
    import resource  # not on Windows, where the rest of this module works

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def layer_table(device: str, dtype: torch.dtype, rounds: int) -> Iterator[str]:
    """Yield the lines of a table of all sizes, masks and passes, as they are measured."""
    yield f"E={EMBED_DIM}, H={NUM_HEADS}, {dtype}, {device}, torch {torch.__version__}"
    yield f"time of one call over that of its parts, median of {rounds} interleaved rounds"
    yield ""
    names = [name for name in LAYERS if name != "parts"]
    yield f"{'(B, L)':>12}  {'mask':6}  {'pass':16}  {'parts, ms':>9}  " + "  ".join(names)
    ratios = {name: [] for name in names}
    for (batch, length), is_causal, backward in product(SIZES, (False, True), (False, True)):
        cell = measure_ratios(
            batch, length, is_causal, backward, device=device, dtype=dtype, rounds=rounds
        )
        for name in names:
            ratios[name].append(cell[name])
        yield (
            f"{f'({batch}, {length})':>12}  {'causal' if is_causal else 'none':6}  "
            f"{'forward+backward' if backward else 'forward':16}  {cell['seconds'] * 1e3:9.2f}  "
            + "  ".join(f"{cell[name]:{len(name)}.3f}" for name in names)
        )
    means = {name: statistics.geometric_mean(ratios[name]) for name in names}
    yield f"{'geometric mean':>49}  " + "  ".join(f"{means[n]:{len(n)}.3f}" for n in names)
    yield ""
    yield f"peak memory of a causal forward pass at B=1, L={LONG}, float32"
    for name in LAYERS:
        yield f"{name:>22}  {measure_peak(name, LONG, device):8.1f} MiB"
