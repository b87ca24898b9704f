"""An image and its label map, cut alike: flip, scale, crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator

from csg_ray.config.errors import UserError


@dataclass(frozen=True)
class SceneTransform:
    """One square out of an image and the same one out of its label map (method of CSG, Sec. 4.2).

    Attributes:
        crop_size: S, its side.
        flip: whether every other image is mirrored.
        min_scale: of the image before the crop; drawn uniformly, and the largest is `max_scale`.
    """

    crop_size: int
    flip: bool
    min_scale: float
    max_scale: float

    def crop(
        self, image: Image.Image, label_map: NDArray[np.uint8], generator: Generator
    ) -> tuple[Image.Image, NDArray[np.uint8]]:
        """Cut at random.

        Args:
            image: RGB, of a size that `check_covers` lets pass.
            label_map: (H, W) of the same size.
            generator: The source of every draw.

        Returns:
            The image (bilinear) S x S, and (S, S) class numbers (nearest).
        """
        self.check_covers(image.width, image.height, "an image")
        draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        scale = self.min_scale + draws[0] * (self.max_scale - self.min_scale)
        left, right = self._interval(image.width, scale, draws[1])
        top, bottom = self._interval(image.height, scale, draws[2])
        # Only what the crop shows is scaled; but for rounding it is that of the whole image.
        box, size = (left, top, right, bottom), (self.crop_size, self.crop_size)
        image = image.resize(size, Image.Resampling.BILINEAR, box=box)
        labels = Image.fromarray(label_map).resize(size, Image.Resampling.NEAREST, box=box)
        if self.flip and draws[3] < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            labels = labels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image, np.asarray(labels)

    def check_covers(self, width: int, height: int, where: str) -> None:
        """Refuse an image that is smaller than the crop.

        Raises:
            UserError: names the image by `where`.
        """
        scaled = round(self.min_scale * min(width, height))
        if scaled < self.crop_size:
            raise UserError(
                f"data.image_size is {self.crop_size}, but {where} has {width}x{height} pixels, "
                f"{scaled} on the shorter side at data.min_scale {self.min_scale:g}; lower "
                "image_size, or raise min_scale"
            )

    def _interval(self, side: int, scale: float, draw: float) -> tuple[float, float]:
        """Where the crop begins and ends on one side of the image as it is."""
        scaled = round(side * scale)
        start = int(draw * (scaled - self.crop_size + 1))
        return start * side / scaled, (start + self.crop_size) * side / scaled
