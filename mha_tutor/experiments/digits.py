"""Heads in real data: a tiny vision transformer on scikit-learn's digits, for several H.

`python -m mha_tutor.experiments.digits` (or `make experiments`) trains every pair of H and seed
and writes what it measured to `digits.csv` next to this file, which the book reads.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mha_tutor.checks import check_integer
from mha_tutor.experiments.ablation import ablate_each, attention_distance, prune_greedily
from mha_tutor.experiments.training import one_thread, progress_bar
from mha_tutor.multihead import MultiHeadAttention

__all__ = [
    "HEADS",
    "SEEDS",
    "Measurement",
    "Split",
    "TinyViT",
    "count_correct",
    "load_digits",
    "measure_run",
    "patch_places",
    "recorded_sweep",
    "train_digits",
]

HEADS = (1, 2, 4, 8, 16)
SEEDS = (0, 1, 2, 3, 4)
EMBED_DIM, LAYERS, PATCH = 32, 2, 2
EPOCHS, BATCH_SIZE, LEARNING_RATE = 25, 50, 3e-3
TRAINING, VALIDATION = 1000, 297  # images; the other 500 are for the test
RECORDED = Path(__file__).with_name("digits.csv")


@dataclass(frozen=True)
class Measurement:
    """One number of the sweep.

    Attributes:
        num_heads: H of the model.
        seed: of the split, the initial weights and the order of the images.
        measure: "parameters"; "accuracy" on the test images; "accuracy without", with one head
            taken out; "accuracy pruned", after `removed` heads were taken out greedily, chosen
            on the validation images; "distance", how far a head looks, in patches.
        removed: how many heads are out.
        layer: of the head that was taken out last, or is measured; -1 for the whole model.
        head: that head; -1 for the whole model.
        value: what was measured.
    """

    num_heads: int
    seed: int
    measure: str
    removed: int
    layer: int
    head: int
    value: float


@dataclass(frozen=True)
class Split:
    """Images (N, 8, 8) from 0 to 1 and their labels (N,), apart for three uses."""

    training: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Block(nn.Module):
    """Attention and a small network, each around a normalization and beside a residual."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(EMBED_DIM), nn.LayerNorm(EMBED_DIM)
        self.attention = MultiHeadAttention(EMBED_DIM, num_heads)
        self.network = nn.Sequential(
            nn.Linear(EMBED_DIM, 2 * EMBED_DIM), nn.GELU(), nn.Linear(2 * EMBED_DIM, EMBED_DIM)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, E) to (B, L, E)."""
        x = x + self.attention(self.norm1(x))
        return x + self.network(self.norm2(x))


class TinyViT(nn.Module):
    """A vision transformer for 8 × 8 images: 16 patches, E = 32, two layers, ten classes.

    The number of parameters does not depend on H.

    Args:
        num_heads: H; must divide 32.

    Source:
        Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021), at a small scale.

    Example:
        >>> TinyViT(num_heads=4)(torch.zeros(5, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, EMBED_DIM)
        self.positions = nn.Parameter(torch.randn(len(patch_places()), EMBED_DIM) * 0.5)
        self.blocks = nn.ModuleList(Block(num_heads) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(EMBED_DIM)
        self.classify = nn.Linear(EMBED_DIM, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 8, 8) to logits (B, 10)."""
        x = self.tokens(images)
        for block in self.blocks:
            x = block(x)
        return self.classify(self.norm(x.mean(dim=1)))

    def tokens(self, images: Tensor) -> Tensor:
        """Cut images (B, 8, 8) into patches, row by row, and embed them: (B, 16, E)."""
        patches = images.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # (B, 4, 4, 2, 2)
        return self.embed(patches.flatten(3).flatten(1, 2)) + self.positions

    @property
    def layers(self) -> list[MultiHeadAttention]:
        """The attention layers, first to last."""
        return [block.attention for block in self.blocks]

    @torch.no_grad()
    def weights(self, images: Tensor) -> list[Tensor]:
        """Return the weights of each layer, (B, H, 16, 16)."""
        x, found = self.tokens(images), []
        for block in self.blocks:
            normed = block.norm1(x)
            found.append(block.attention(normed, need_weights=True)[1])
            x = block(x)
        return found


def patch_places() -> Tensor:
    """Return where each patch stands, (16, 2), in patches.

    Example:
        >>> patch_places()[:5].tolist()
        [[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [1.0, 0.0]]
    """
    side = torch.arange(8 // PATCH, dtype=torch.float32)
    return torch.cartesian_prod(side, side)


def load_digits(seed: int) -> Split:
    """Load the 1797 digits that ship with scikit-learn, in an order that the seed decides.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed; `mha-tutor[experiments]` brings it.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the digits come with scikit-learn: pip install "mha-tutor[experiments]"'
        ) from error
    digits = datasets.load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(digits.images, dtype=torch.float32)[order] / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)[order]
    cuts = (TRAINING, VALIDATION, len(labels) - TRAINING - VALIDATION)
    return Split(*zip(images.split(cuts), labels.split(cuts), strict=True))


def train_digits(num_heads: int, seed: int, split: Split, *, epochs: int = EPOCHS) -> TinyViT:
    """Train a model on the training images, on the CPU.

    The same seed gives the same initial weights and the same order of images for every H.

    Args:
        num_heads: H; must divide 32.
        seed: of the initial weights and the order of the images.
        split: from `load_digits`.
        epochs: how often each image is seen.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: epochs is less than 1, or H does not divide 32.
    """
    check_integer("epochs", epochs, least=1)
    images, labels = split.training
    generator = torch.Generator().manual_seed(seed)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyViT(num_heads)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
        per_epoch = -(-len(labels) // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
        for _ in progress_bar(range(epochs), f"digits, H={num_heads}, seed {seed}"):
            for batch in torch.randperm(len(labels), generator=generator).split(BATCH_SIZE):
                loss = F.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


@torch.no_grad()
def count_correct(model: TinyViT, part: tuple[Tensor, Tensor]) -> int:
    """Return how many images a model names rightly."""
    images, labels = part
    return int((model(images).argmax(dim=-1) == labels).sum())


def accuracy(model: TinyViT, part: tuple[Tensor, Tensor]) -> float:
    """Return the share of the images that a model names rightly."""
    return count_correct(model, part) / len(part[1])


def measure_run(num_heads: int, seed: int) -> list[Measurement]:
    """Train one model and measure it: one cell of the sweep."""
    split = load_digits(seed)
    model = train_digits(num_heads, seed, split)
    row = partial(Measurement, num_heads, seed)
    on_validation = partial(accuracy, model, split.validation)
    on_test = partial(accuracy, model, split.test)
    with one_thread():
        found = [
            row("parameters", 0, -1, -1, sum(p.numel() for p in model.parameters())),
            row("accuracy", 0, -1, -1, on_test()),
        ]
        for out in ablate_each(model.layers, on_test):
            found.append(row("accuracy without", 1, out.layer, out.head, out.score))
        pruned = prune_greedily(model.layers, on_validation, on_test)
        for removed, out in enumerate(pruned, start=1):
            found.append(row("accuracy pruned", removed, out.layer, out.head, out.score))
        for layer, weights in enumerate(model.weights(split.test[0])):
            far = attention_distance(weights, patch_places()).tolist()
            found += [row("distance", 0, layer, head, value) for head, value in enumerate(far)]
    return found


def recorded_sweep() -> list[Measurement]:
    """Read the recorded sweep.

    Example:
        >>> sorted({measurement.num_heads for measurement in recorded_sweep()})
        [1, 2, 4, 8, 16]
    """
    with RECORDED.open(encoding="utf-8", newline="") as file:
        return [
            Measurement(
                num_heads=int(row["num_heads"]),
                seed=int(row["seed"]),
                measure=row["measure"],
                removed=int(row["removed"]),
                layer=int(row["layer"]),
                head=int(row["head"]),
                value=float(row["value"]),
            )
            for row in csv.DictReader(file)
        ]


def write_sweep(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write measurements as comma-separated values, one a line."""
    with path.open("w", encoding="utf-8", newline="") as file:
        names = [field.name for field in fields(Measurement)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for measurement in measurements:
            writer.writerow({**asdict(measurement), "value": f"{measurement.value:.6g}"})


def run_sweep(heads: Sequence[int], seeds: Sequence[int]) -> Iterator[Measurement]:
    """Measure every pair of H and seed, and say how it goes."""
    for num_heads in heads:
        for seed in seeds:
            found = measure_run(num_heads, seed)
            score = next(one.value for one in found if one.measure == "accuracy")
            print(f"H={num_heads:2d}  seed {seed}  accuracy {score:.3f}", flush=True)
            yield from found


def main(arguments: list[str] | None = None) -> None:
    """Run the sweep and write it; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m mha_tutor.experiments.digits", description=__doc__
    )
    parser.add_argument("--heads", type=int, nargs="+", default=HEADS, help="values of H")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds for each H")
    parser.add_argument("--output", type=Path, default=RECORDED, help="default: %(default)s")
    options = parser.parse_args(arguments)
    for num_heads in options.heads:
        if num_heads < 1 or EMBED_DIM % num_heads:
            parser.error(f"--heads must divide {EMBED_DIM}, got {num_heads}")
    write_sweep(options.output, list(run_sweep(options.heads, options.seeds)))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
