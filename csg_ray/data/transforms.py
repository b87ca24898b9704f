"""Raw image to network input: augment, resize, crop, normalise (ImageNet's mean and deviation)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from csg_ray.config.run import AugmentConfig
from csg_ray.data.rand_augment import Augmentation, build_augmentation

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Transform:
    """Augment the raw image, scale its shorter side to S, crop S x S, normalise.

    `crop` and `normalise` are apart so that a loader normalises a whole batch at once.

    Args:
        image_size: S.
        augmentation: RandAugment at raw size, and then a random crop; None: the centre crop alone.
    """

    def __init__(self, image_size: int, augmentation: Augmentation | None = None) -> None:
        self.image_size = image_size
        self.augmentation = augmentation

    def __call__(self, image: Image.Image, generator: Generator | None = None) -> Tensor:
        """One RGB image -> (3, S, S) float32."""
        return normalise([self.crop(image, generator)])[0]

    def crop(self, image: Image.Image, generator: Generator | None = None) -> Image.Image:
        """Everything but the normalisation.

        Args:
            image: RGB, any size.
            generator: The source of every draw; needed when augmenting.

        Returns:
            RGB, S x S.
        """
        side = self.image_size
        if self.augmentation is None:
            width, height = _scaled_size(image.size, side)
            left, top = round((width - side) / 2), round((height - side) / 2)
        else:
            assert generator is not None
            image = self.augmentation(image, generator)
            width, height = _scaled_size(image.size, side)
            left = _draw_offset(width - side, generator)
            top = _draw_offset(height - side, generator)
        if width > height:
            # Pillow scales a wide image in width first. Cut then, the columns that go are not
            # scaled in height; the rest is the same to the bit.
            image = _resize(image, (width, image.height))
            image = image.crop((left, 0, left + side, image.height))
            return _resize(image, (side, side))
        image = _resize(image, (width, height))
        return image if height == side else image.crop((0, top, side, top + side))


def build_train_transform(augment: AugmentConfig, image_size: int) -> Transform:
    """Training's transform; without augmentation (num_ops 0) it equals evaluation's."""
    return Transform(image_size, build_augmentation(augment) if augment.num_ops > 0 else None)


def build_eval_transform(image_size: int) -> Transform:
    """Evaluation's transform: shorter side to S, centre crop."""
    return Transform(image_size)


def normalise(images: Sequence[Image.Image]) -> Tensor:
    """N RGB images of one size -> (N, 3, S, S) float32, ImageNet's mean 0 and deviation 1."""
    width, height = images[0].size
    batch = torch.empty(len(images), 3, height, width)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    # Image by image: one stays in the processor's cache from step to step, where a batch does not.
    for normalised, image in zip(batch, images, strict=True):
        normalised.copy_(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        normalised.div_(255).sub_(mean).div_(std)
    return batch


def normalise_pixels(pixels: Tensor) -> Tensor:
    """`normalise` of (N, C, H, W) uint8, C 1 or 3, on any device and to the bit."""
    levels, mean, std = _statistics(pixels.device)
    # CUDA would multiply by 1 / 255 where the divisor is a plain number.
    return (pixels.float().div_(levels) - mean).div_(std)


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """255, ImageNet's mean and its deviation; sent to a GPU once, as it is waited for."""
    return (
        torch.tensor(255.0, device=device),
        torch.tensor(IMAGENET_MEAN, device=device).view(3, 1, 1),
        torch.tensor(IMAGENET_STD, device=device).view(3, 1, 1),
    )


def denormalise(image: Tensor) -> NDArray[np.float32]:
    """What a network was given, (3, H, W), as it is seen: (H, W, 3), 0 to 1."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    seen = image.detach().float().cpu() * std + mean
    pixels: NDArray[np.float32] = seen.clamp(0, 1).permute(1, 2, 0).numpy()
    return pixels


def _scaled_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """(width, height) when the shorter of both becomes `shorter_side`."""
    width, height = size
    shorter = min(size)
    return int(shorter_side * width / shorter), int(shorter_side * height / shorter)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _draw_offset(excess: int, generator: Generator) -> int:
    return int(torch.randint(excess + 1, (), generator=generator)) if excess > 0 else 0
