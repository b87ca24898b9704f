"""Raw image to network input: augment, resize, crop, normalise (ImageNet's mean and deviation)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
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
        if self.augmentation is None:
            image = _resize_shorter_side(image, self.image_size)
            left = round((image.width - self.image_size) / 2)
            top = round((image.height - self.image_size) / 2)
        else:
            assert generator is not None
            image = _resize_shorter_side(self.augmentation(image, generator), self.image_size)
            left = _draw_offset(image.width - self.image_size, generator)
            top = _draw_offset(image.height - self.image_size, generator)
        if image.size == (self.image_size, self.image_size):
            return image
        return image.crop((left, top, left + self.image_size, top + self.image_size))


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


def _resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    shorter = min(image.size)
    if shorter == size:
        return image
    width, height = (int(size * side / shorter) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _draw_offset(excess: int, generator: Generator) -> int:
    return int(torch.randint(excess + 1, (), generator=generator)) if excess > 0 else 0
