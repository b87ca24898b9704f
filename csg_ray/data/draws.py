"""Which images an epoch draws, and what the chance of each draw is keyed by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Generator, Tensor

from csg_ray.config.errors import UserError
from csg_ray.config.run import TrainConfig
from csg_ray.data.styled import StyledSplit
from csg_ray.seeding import sub_seed


def draw_images(num_images: int, name: str, config: TrainConfig, generator: Generator) -> Tensor:
    """The images of an epoch in order, (steps * B,) int64.

    Drawn with replacement, an image comes back as its number plus `num_images`, then plus twice as
    much, so that every time it is augmented anew.

    Raises:
        UserError: The images do not fill one batch.
    """
    if config.steps_per_epoch != "auto":
        count = config.steps_per_epoch * config.batch_size
        drawn = torch.randint(num_images, (count,), generator=generator)
        return drawn + num_images * occurrence(drawn)
    if num_images < config.batch_size:
        raise UserError(
            f"train.batch_size {config.batch_size} is larger than the {num_images} images of "
            f"{name}: set it to at most {num_images}"
        )
    order = torch.randperm(num_images, generator=generator)
    return order[: num_images // config.batch_size * config.batch_size]


def occurrence(values: Tensor) -> Tensor:
    """How often each value of (N,) has stood before it."""
    ordered, order = values.sort(stable=True)
    starts = torch.searchsorted(ordered, ordered)
    counts = torch.empty_like(order)
    counts[order] = torch.arange(len(values)) - starts
    return counts


def draw_key(draw: int, num_images: int, view: int) -> str:
    """What the augmentation of a draw is keyed by."""
    again, index = divmod(draw, num_images)
    return f"{index}/{view}/{again}" if again else f"{index}/{view}"


def draw_copies(
    split: StyledSplit, draws: Tensor, sizes: Sequence[tuple[int, int]], seed: int
) -> list[list[Image.Image]]:
    """The copies of each image of a batch, ordered as views: the first of all, the second, ...

    Args:
        split: The images with their copies.
        draws: (B,), as `draw_images` has them.
        sizes: (width, height) of each image, which its copies are brought to.
        seed: What the keys are hashed with.
    """
    generator = Generator()
    copies = []
    for draw, size in zip(draws.tolist(), sizes, strict=True):
        generator.manual_seed(sub_seed(seed, f"styles/{draw_key(draw, len(split), 0)}"))
        copies.append(split.copies(draw % len(split), size, generator))
    return [list(version) for version in zip(*copies, strict=True)]
