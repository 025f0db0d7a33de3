"""One seeded training loop for all tasks, on one thread, with fresh data at every step.

Data is drawn anew for every step, so there is nothing to overfit: what the test on fresh
data shows is what the model computes.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mha_tutor.checks import check_integer
from mha_tutor.experiments.model import RoutedAttention
from mha_tutor.experiments.tasks import Batch, Task

__all__ = [
    "Record",
    "Trained",
    "check_parameters",
    "measure_error",
    "median_error",
    "one_thread",
    "progress_bar",
    "summarize",
    "sweep",
    "train",
]

TEST_SEED = 1_000_003  # apart from every training seed in use


@dataclass(frozen=True)
class Record:
    """One trained model as one row of a table.

    Attributes:
        task: its name.
        routing: what queries and keys read.
        num_heads: H.
        head_dim: D.
        parameters: how many numbers were trained.
        seed: of the initial weights and of the data.
        steps: of training.
        error: mean squared error on fresh data, the share of the target's variance that is missed.
        best_error: the smallest one that H heads can reach by the task's theorem.
    """

    task: str
    routing: str
    num_heads: int
    head_dim: int
    parameters: int
    seed: int
    steps: int
    error: float
    best_error: float

    @property
    def r2(self) -> float:
        """The share of the target's variance that is explained."""
        return 1 - self.error

    def row(self) -> dict[str, str | int | float]:
        """Return the record as a dictionary, R² included."""
        return {**asdict(self), "r2": self.r2}


@dataclass(frozen=True, eq=False)
class Trained:
    """A model, its record, and how its training error fell.

    Attributes:
        model: in evaluation mode.
        record: the outcome.
        curve: pairs (step, error on fresh data).
    """

    model: RoutedAttention
    record: Record
    curve: tuple[tuple[int, float], ...]


def train(
    task: Task,
    num_heads: int,
    *,
    seed: int = 0,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
    routing: str | None = None,
    points: int = 20,
    test_size: int = 4096,
) -> Trained:
    """Train one attention layer on a task, on the CPU.

    Adam; the learning rate falls to zero along a cosine. The same seed gives the same initial
    weights and the same data for every H.

    Args:
        task: what to learn.
        num_heads: H; must divide the task's embed_dim.
        seed: of everything random.
        steps: of training.
        batch_size: sequences for each step.
        learning_rate: at the start.
        routing: what queries and keys read; what the task says if None.
        points: of the curve.
        test_size: sequences in the final test.

    Raises:
        ValueError: a count is less than 1, learning_rate is not positive, or H does not divide E.

    Example:
        >>> from mha_tutor.experiments import fetch
        >>> train(fetch(), num_heads=3, steps=2, batch_size=4, points=1).record.parameters
        576
    """
    counts = {"steps": steps, "batch_size": batch_size, "points": points, "test_size": test_size}
    for name, count in counts.items():
        check_integer(name, count, least=1)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    routing = task.routing if routing is None else routing
    test = task.sample(test_size, torch.Generator().manual_seed(TEST_SEED))
    glance = Batch(*(part[:512] for part in vars(test).values()))  # enough for a curve
    generator = torch.Generator().manual_seed(seed)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RoutedAttention(task.embed_dim, num_heads, routing, task.length)
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        marks = {round(i * steps / points) for i in range(1, points + 1)}
        curve = [(0, measure_error(model, glance))]
        for step in progress_bar(range(1, steps + 1), f"{task.name}, H={num_heads}, seed {seed}"):
            batch = task.sample(batch_size, generator)
            output = model(batch)[..., : batch.target.shape[-1]]
            loss = (output - batch.target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step in marks:
                curve.append((step, measure_error(model, glance)))
        error = measure_error(model.eval(), test)
    record = Record(
        task=task.name,
        routing=routing,
        num_heads=num_heads,
        head_dim=task.embed_dim // num_heads,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seed=seed,
        steps=steps,
        error=error,
        best_error=task.best_error(num_heads),
    )
    return Trained(model, record, tuple(curve))


def sweep(
    task: Task, heads: Sequence[int], seeds: Sequence[int] = (0,), **options: object
) -> list[Trained]:
    """Train for every H and every seed, at the same number of parameters.

    Args:
        task: what to learn.
        heads: the values of H.
        seeds: the seeds for each H.
        **options: for `train`.

    Returns:
        One result for each pair, all seeds of an H together.

    Raises:
        ValueError: the models differ in their number of parameters.

    Example:
        >>> from mha_tutor.experiments import fetch
        >>> results = sweep(fetch(), (1, 3), (0, 1), steps=1, batch_size=4)
        >>> [(result.record.num_heads, result.record.seed) for result in results]
        [(1, 0), (1, 1), (3, 0), (3, 1)]
    """
    results = [train(task, h, seed=seed, **options) for h in heads for seed in seeds]
    check_parameters(result.record for result in results)
    return results


def median_error(results: Iterable[Trained], num_heads: int) -> float:
    """Return the median over seeds of the error with H heads.

    Raises:
        ValueError: there is no result with that many heads.
    """
    errors = [r.record.error for r in results if r.record.num_heads == num_heads]
    if not errors:
        raise ValueError(f"no result has num_heads={num_heads}")
    return statistics.median(errors)


def summarize(results: Iterable[Trained]) -> str:
    """Lay results out as a table: for each H what is possible, and what all its seeds reached.

    Example:
        >>> from mha_tutor.experiments import fetch
        >>> print(summarize(sweep(fetch(), (3,), steps=1, batch_size=4)).splitlines()[0])
        H   D  parameters   possible   trained, each seed
    """
    lines = [f"{'H':<4}{'D':<3}{'parameters':<13}{'possible':<11}trained, each seed"]
    groups: dict[int, list[Record]] = {}
    for result in results:
        groups.setdefault(result.record.num_heads, []).append(result.record)
    for num_heads, records in groups.items():
        one = records[0]
        errors = "  ".join(f"{record.error:.3f}" for record in records)
        lines.append(
            f"{num_heads:<4}{one.head_dim:<3}{one.parameters:<13}{one.best_error:<11.3f}{errors}"
        )
    return "\n".join(lines)


def check_parameters(records: Iterable[Record]) -> None:
    """Refuse to compare models of different size."""
    counts = {record.num_heads: record.parameters for record in records}
    if len(set(counts.values())) > 1:
        raise ValueError(f"parameters must be equal for every H, got {counts}")


@torch.no_grad()
def measure_error(model: RoutedAttention, batch: Batch) -> float:
    """Return the mean squared error of a model on a batch."""
    output = model(batch)[..., : batch.target.shape[-1]]
    return (output - batch.target).square().mean().item()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: small models are faster so, and their times steadier."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def progress_bar(steps: Sequence[Any], label: str) -> Iterable[Any]:
    """Show a bar while iterating, in a terminal only, so that no notebook stores one."""
    if not sys.stderr.isatty():
        return steps
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # part of the extra `experiments`; a bar is not worth an error
        return steps
    return tqdm(steps, desc=label, leave=False)
