"""Weights set by hand that solve the tasks: what is possible, whatever training finds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mha_tutor.experiments.model import RoutedAttention
from mha_tutor.experiments.tasks import Filter, Lookup

__all__ = ["fetch_by_hand", "lookup_by_hand"]


@torch.no_grad()
def fetch_by_hand(task: Filter, sharpness: float = 200.0) -> RoutedAttention:
    """Solve "fetch from K places" with K heads.

    Put the L positions on a circle. The key of position s is the point at angle 2πs/L, and the
    query of position t in head h is the point h + 1 steps before it, so their dot product is
    largest where s = t − (h + 1). Each head passes its own slice on unchanged.

    Args:
        task: from `fetch`, with E = K × width and slices of 2 features or more.
        sharpness: what the points' dot products are multiplied by.

    Returns:
        A model with H = K heads.

    Raises:
        ValueError: the slices are too narrow for the circle, or E is more than K × width.

    Example:
        >>> from mha_tutor.experiments import fetch
        >>> fetch_by_hand(fetch(places=3, width=4)).attention.num_heads
        3
    """
    places, width = len(task.taps), task.embed_dim // len(task.taps)
    if width < 2 or task.embed_dim != task.taps.shape[-1]:
        raise ValueError(
            "slices must be 2 features wide or more, and fill embed_dim, got "
            f"{task.taps.shape[-1] // places} × {places} of {task.embed_dim}"
        )
    model = RoutedAttention(task.embed_dim, places, "position", task.length)
    layer = model.attention
    _clear(model)
    angles = torch.arange(task.length) * (2 * math.pi / task.length)
    first = task.embed_dim - task.length  # where the code of the positions begins
    code = task.embed_dim**0.5  # and its length
    for h in range(places):
        here, back = angles, angles - (h + 1) * (2 * math.pi / task.length)
        rows = slice(h * width, h * width + 2)
        layer.k_proj.weight[rows, first:] = torch.stack([here.cos(), here.sin()]) / code
        strength = sharpness * width**0.5 / code  # the layer divides by √D
        layer.q_proj.weight[rows, first:] = torch.stack([back.cos(), back.sin()]) * strength
    layer.v_proj.weight.copy_(torch.eye(task.embed_dim))
    layer.out_proj.weight.copy_(torch.eye(task.embed_dim))
    return model.eval()


@torch.no_grad()
def lookup_by_hand(task: Lookup, num_heads: int, sharpness: float) -> RoutedAttention:
    """Look items up with heads that share the work evenly.

    Head h serves place h mod K. It compares as many features of the keys as it has room for, and
    carries as many features of the values; heads of one place take different ones. Where there is
    room to carry a feature twice, two heads that compare different features share it.

    Args:
        task: what to solve.
        num_heads: H, less than K (the other places go unserved) or a multiple of it.
        sharpness: what the dot products of keys are multiplied by.

    Returns:
        A model; its output projection is scaled to the least error on a sample.

    Raises:
        ValueError: H neither divides evenly over the places nor is less than K, or D and the
            width do not divide each other.

    Example:
        >>> task = Lookup(places=2, items=4, width=8, embed_dim=16)
        >>> lookup_by_hand(task, num_heads=2, sharpness=50.0).attention.head_dim
        8
    """
    if num_heads > task.places and num_heads % task.places:
        raise ValueError(
            f"num_heads ({num_heads}) must be less than places ({task.places}) or a multiple of it"
        )
    model = RoutedAttention(task.embed_dim, num_heads)
    layer = model.attention
    head_dim = layer.head_dim
    size = min(head_dim, task.width)  # features that a head compares, and carries
    if task.width % size:
        raise ValueError(f"a head's {size} features must divide the width ({task.width})")
    slots = task.width // size
    share = max(1, num_heads // task.places // slots)  # heads that carry the same feature
    _clear(model)
    unit = torch.eye(size)
    for h in range(num_heads):
        place, turn = h % task.places, h // task.places
        compared = (turn + turn // slots) % slots * size
        carried = turn % slots * size
        rows = slice(h * head_dim, h * head_dim + size)
        asked = place * task.width + compared
        strength = sharpness * head_dim**0.5  # the layer divides by √D
        layer.q_proj.weight[rows, asked : asked + size] = unit * strength
        layer.k_proj.weight[rows, compared : compared + size] = unit
        layer.v_proj.weight[rows, carried : carried + size] = unit
        answered = place * task.width + carried
        layer.out_proj.weight[answered : answered + size, rows] = unit / share
    batch = task.sample(1024, torch.Generator().manual_seed(0))
    output: Tensor = model(batch)[..., : batch.target.shape[-1]]
    layer.out_proj.weight.mul_((output * batch.target).sum() / output.square().sum())
    return model.eval()


def _clear(model: RoutedAttention) -> None:
    for parameter in model.parameters():
        parameter.zero_()
