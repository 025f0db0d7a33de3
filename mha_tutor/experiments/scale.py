"""What a divisor of the scores does to learning: steps until a layer, or a stack, knows a task.

Sixteen tokens, each with a key (eight signs), a payload (four numbers) and a request: the key of
one of the sixteen. Wanted at every token is the payload of the one that it requests, which nothing
but attention can fetch. `python -m mha_tutor.experiments.scale` writes `scale.csv` anew.
"""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mha_tutor.experiments.training import one_thread, progress_bar

__all__ = ["Run", "draw_requests", "load_runs", "steps_to_learn"]

EMBED_DIM, LENGTH, STEPS, WINDOW, KNOWN = 64, 16, 400, 20, 0.3
FILE = Path(__file__).with_name("scale.csv")


class Run(NamedTuple):
    """One trained model: what it was, and after how many steps it knew the task."""

    start: str  # "usual": of nn.Linear; "unit": queries and keys of variance 1
    num_heads: int
    depth: int
    divisor: str  # "none", "√D" or "√E"
    seed: int
    steps: int


class Layer(nn.Module):
    """Self-attention with a chosen divisor."""

    def __init__(self, num_heads: int, divisor: str, start: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_dim = EMBED_DIM // num_heads
        self.scale = {"none": 1.0, "√D": head_dim**-0.5, "√E": EMBED_DIM**-0.5}[divisor]
        self.qkv = nn.Linear(EMBED_DIM, 3 * EMBED_DIM)
        self.out = nn.Linear(EMBED_DIM, EMBED_DIM)
        if start == "unit":  # nn.Linear gives unit inputs the variance 1/3
            with torch.no_grad():
                self.qkv.weight[: 2 * EMBED_DIM] *= 3**0.5

    def forward(self, x: Tensor) -> Tensor:
        """Attend: (B, L, E) to (B, L, E)."""
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, L, D)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        heads = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out(heads.transpose(1, 2).flatten(2))


class Stack(nn.Module):
    """A number of layers, each behind a normalization and beside a residual connection."""

    def __init__(self, num_heads: int, depth: int, divisor: str, start: str) -> None:
        super().__init__()
        self.read = nn.Linear(20, EMBED_DIM)
        self.norms = nn.ModuleList(nn.LayerNorm(EMBED_DIM) for _ in range(depth))
        self.layers = nn.ModuleList(Layer(num_heads, divisor, start) for _ in range(depth))
        self.write = nn.Sequential(nn.LayerNorm(EMBED_DIM), nn.Linear(EMBED_DIM, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Answer: (B, L, 20) to (B, L, 4)."""
        x = self.read(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.write(x)


def draw_requests(size: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw sequences and what is wanted of them: (size, 16, 20) and (size, 16, 4)."""
    keys = torch.randn(size, LENGTH, 8, generator=gen).sign()
    payloads = torch.randn(size, LENGTH, 4, generator=gen)
    wanted = torch.stack([torch.randperm(LENGTH, generator=gen) for _ in range(size)])[..., None]
    requests = keys.gather(1, wanted.expand(-1, -1, 8))
    tokens = torch.cat([keys, requests, payloads], dim=-1)
    return tokens, payloads.gather(1, wanted.expand(-1, -1, 4))


def steps_to_learn(start: str, num_heads: int, depth: int, divisor: str, seed: int) -> Run:
    """Train until the loss, averaged over 20 steps, is below 0.3; payloads have variance 1.

    Args:
        start: "usual" or "unit", see `Run`.
        num_heads: H, for E = 64.
        depth: how many layers.
        divisor: "none", "√D" or "√E".
        seed: of the start and of the data.

    Returns:
        The run, its `steps` at most 400 (not learned by then).
    """
    with one_thread(), torch.device("cpu"):
        torch.manual_seed(seed)
        model = Stack(num_heads, depth, divisor, start)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        gen, losses = torch.Generator().manual_seed(1000 + seed), []
        while len(losses) < STEPS:
            tokens, wanted = draw_requests(32, gen)
            loss = (model(tokens) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) >= WINDOW and sum(losses[-WINDOW:]) / WINDOW < KNOWN:
                break
    return Run(start, num_heads, depth, divisor, seed, len(losses))


def load_runs() -> list[Run]:
    """Load the recorded sweep: two starts, 8 heads or 1, depth 1 to 3, three divisors, 5 seeds."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return [
            Run(start, int(heads), int(depth), divisor, int(seed), int(steps))
            for start, heads, depth, divisor, seed, steps in list(csv.reader(file))[1:]
        ]


def main() -> None:
    """Train everything and write the table; some minutes on one core."""
    cells = [
        cell
        for cell in product(("usual", "unit"), (8, 1), (1, 2, 3), ("none", "√D", "√E"), range(5))
        if not (cell[1] == 1 and cell[3] == "√E")  # with one head E = D
    ]
    runs = [steps_to_learn(*cell) for cell in progress_bar(cells, "runs")]
    with FILE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([Run._fields, *runs])


if __name__ == "__main__":
    main()
