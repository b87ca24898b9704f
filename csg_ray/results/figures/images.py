"""The images that every model is shown: a few of target_val, the same for all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from csg_ray.config.run import RunConfig
from csg_ray.data.epoch import eval_batches
from csg_ray.data.splits import ClassSplit, Split
from csg_ray.data.transforms import denormalise
from csg_ray.seeding import sub_seed

Pixels: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class ShownImage:
    """One image to draw.

    Attributes:
        pixels: (H, W, 3), 0 to 1.
        label: the class number, () of int64, or (H, W) of segmentation, 255 where none counts.
    """

    pixels: Pixels
    label: NDArray[Any]


def choose_images(split: Split, count: int) -> list[int]:
    """Positions of `count` images of a split, or of all, the same at every call.

    Of images with a class each, every class has one before any has two; they are ordered by class.
    """
    generator = torch.Generator().manual_seed(sub_seed(0, "figures"))
    order: list[int] = torch.randperm(len(split), generator=generator).tolist()
    if not isinstance(split, ClassSplit):
        return sorted(order[:count])
    labels: list[int] = split.labels.tolist()
    met = Counter[int]()
    turns = {}
    for index in order:
        turns[index] = met[labels[index]]
        met[labels[index]] += 1
    chosen = sorted(order, key=lambda index: turns[index])[:count]
    return sorted(chosen, key=lambda index: (labels[index], index))


def read_images(split: Split, indices: list[int], config: RunConfig) -> list[ShownImage]:
    """The images as the evaluation of `config` cuts them, and their labels."""
    load = eval_batches(split, config).load
    batches = [load(torch.tensor([index])) for index in indices]
    return [
        ShownImage(denormalise(batch.views[0][0]), batch.labels[0].numpy()) for batch in batches
    ]
