"""Batches of images that are all in memory, and as large as the network wants them.

They are augmented and normalised batch by batch, where they are: on the device, if it was told.
To the bit they are what `epoch` makes of the same images one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from csg_ray.data.batched_augment import BatchedRandAugment, is_batchable, send
from csg_ray.data.draws import draw_copies, draw_key
from csg_ray.data.loader import Batch
from csg_ray.data.mixture import Mixture
from csg_ray.data.rand_augment import RandAugment
from csg_ray.data.splits import ArraySplit, ClassSplit, Split
from csg_ray.data.styled import StyledSplit
from csg_ray.data.transforms import Transform, normalise_pixels
from csg_ray.seeding import sub_seed


@dataclass(frozen=True, eq=False)
class ResidentImages:
    """The images of a split with their labels, on a device.

    Args:
        pixels: (N, 1, S, S) uint8, grey.
        labels: (N,) int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.pixels.device


def find_resident(
    split: ClassSplit, transform: Transform, device: torch.device | None
) -> ResidentImages | None:
    """The images of a split on `device` (None: the CPU); None where they are read one by one."""
    pixels = _pixels(split)
    augmentation = transform.augmentation
    if pixels is None or pixels.shape[1:] != (transform.image_size, transform.image_size):
        return None
    if augmentation is not None and not is_batchable(augmentation):
        return None
    return ResidentImages(
        torch.from_numpy(pixels)[:, None].to(device), split.labels.to(device=device)
    )


def _pixels(split: Split) -> NDArray[np.uint8] | None:
    """(N, H, W) of a split that is in memory; not the copies in other styles."""
    if isinstance(split, StyledSplit):
        return _pixels(split.split)
    if isinstance(split, Mixture):
        source, target = _pixels(split.source), _pixels(split.target)
        if source is None or target is None:
            return None
        return np.concatenate([source[split.source_positions], target[split.target_positions]])
    return split.images if isinstance(split, ArraySplit) else None


class ResidentTrainLoader:
    """The training batches of resident images.

    Args:
        images: The images.
        split: Where they are from; of a `StyledSplit` the copies are read.
        transform: What happens to each image.
        num_views: Views per image.
        draws_differ: Whether each view has draws of its own.
        seed: What the draws' keys are hashed with.
    """

    def __init__(
        self,
        images: ResidentImages,
        split: ClassSplit,
        transform: Transform,
        num_views: int,
        draws_differ: bool,
        seed: int,
    ) -> None:
        self.images = images
        self.styled = split if isinstance(split, StyledSplit) else None
        self.augment = None
        if transform.augmentation is not None:
            assert isinstance(transform.augmentation, RandAugment)
            size = (transform.image_size, transform.image_size)
            self.augment = BatchedRandAugment(transform.augmentation, size, images.device)
        self.num_views = num_views
        self.draws_differ = draws_differ
        self.seed = seed

    def __call__(self, draws: Tensor) -> Batch:
        """The batch of these draws."""
        indices = send(draws % len(self.images), self.images.device)
        versions = self._versions(draws, indices)
        # All views are one batch, which takes one call of everything.
        if len(versions) == 1 and self.draws_differ:
            versions *= self.num_views
        stacked = torch.cat(versions)
        if self.augment is not None:
            chances = self._chances(draws, len(versions), self.augment.num_ops)
            stacked = self.augment(stacked, chances)
        views = normalise_pixels(stacked).chunk(len(versions))
        if len(views) < self.num_views:
            views *= self.num_views
        return Batch(views, self.images.labels[indices], indices)

    def _versions(self, draws: Tensor, indices: Tensor) -> list[Tensor]:
        """The images, and in front of none or more copies of them, each (B, C, S, S)."""
        pixels = self.images.pixels.index_select(0, indices)
        if self.styled is None:
            return [pixels]
        sizes = [(pixels.shape[3], pixels.shape[2])] * len(draws)
        copies = draw_copies(self.styled, draws, sizes, self.seed)
        levels = [
            torch.from_numpy(np.stack([np.asarray(copy) for copy in each])).movedim(3, 1)
            for each in copies
        ]
        # The images are grey, but their copies are not.
        coloured = pixels.expand(-1, 3, -1, -1)
        return [coloured, *(send(each, self.images.device) for each in levels)]

    def _chances(self, draws: Tensor, num_versions: int, num_ops: int) -> Tensor:
        """What `RandAugment` would draw for each image, (num_versions * B, num_ops, 2)."""
        count, numbers = len(self.images), draws.tolist()
        views = range(num_versions) if self.draws_differ else [0] * num_versions
        keys = [draw_key(draw, count, view) for view in views for draw in numbers]
        chances = torch.empty(len(keys), num_ops, 2, dtype=torch.float64)
        generator = Generator()
        for row, key in zip(chances.unbind(), keys, strict=True):
            generator.manual_seed(sub_seed(self.seed, key))
            row.uniform_(generator=generator)
        return chances


@dataclass(frozen=True)
class ResidentEvalLoader:
    """The evaluation batches of resident images."""

    images: ResidentImages

    def __call__(self, indices: Tensor) -> Batch:
        """The batch of these images."""
        indices = send(indices, self.images.device)
        pixels = self.images.pixels.index_select(0, indices)
        return Batch((normalise_pixels(pixels),), self.images.labels[indices], indices)
