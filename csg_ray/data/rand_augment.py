"""RandAugment (Cubuk et al. 2020) with the operations and ranges of the CSG experiments.

Every draw comes from the generator that the caller passes, so what happens to an image depends on
its key alone, never on the order of reading or on the number of loader processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps, ImageStat
from torch import Generator
from torchvision import transforms

from csg_ray.config.run import AugmentConfig

MAX_MAGNITUDE = 30

Augmentation = Callable[[Image.Image, Generator], Image.Image]


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Args:
        low: Value at magnitude 0.
        high: Value at magnitude 30.
        apply: (image, value) -> image of the same size.
        chance: What the coin decides: the value's sign, whether to apply at all (the value is
            then the probability), or nothing.
    """

    low: float
    high: float
    apply: Callable[[Image.Image, float], Image.Image]
    chance: Literal["sign", "probability", "nothing"]

    def value(self, magnitude: float) -> float:
        """The value at `magnitude`, linear between both ends."""
        return magnitude / MAX_MAGNITUDE * (self.high - self.low) + self.low

    def __call__(self, image: Image.Image, magnitude: float, coin: float) -> Image.Image:
        """Apply at `magnitude`; `coin` is uniform in [0, 1)."""
        value = self.value(magnitude)
        if self.chance == "probability" and coin >= value:
            return image
        if self.chance == "sign" and coin < 0.5:
            value = -value
        return self.apply(image, value)


def _keep(image: Image.Image, _: float) -> Image.Image:
    return image


def _auto_contrast(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.equalize(image)


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees)


def _posterize(image: Image.Image, lost_bits: float) -> Image.Image:
    return ImageOps.posterize(image, max(1, 8 - int(lost_bits)))


def _solarize(image: Image.Image, depth: float) -> Image.Image:
    # Levels are whole numbers: level >= 204.8 is level >= 205.
    return ImageOps.solarize(image, math.ceil(256 - depth))


def _color(image: Image.Image, change: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 + change)


def _contrast(image: Image.Image, change: float) -> Image.Image:
    mean = int(ImageStat.Stat(image.convert("L")).mean[0] + 0.5)
    return _blend_with_level(mean, image, 1 + change)


def _brightness(image: Image.Image, change: float) -> Image.Image:
    return _blend_with_level(0, image, 1 + change)


def _sharpness(image: Image.Image, change: float) -> Image.Image:
    return Image.blend(_smooth(image), image, 1 + change)


def _blend_with_level(level: int, image: Image.Image, factor: float) -> Image.Image:
    """`Image.blend` of an image that is `level` everywhere with `image`, by a table: faster."""
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    table = Image.blend(Image.new("L", ramp.size, level), ramp, factor)
    return image.point(3 * table.tobytes())


def _smooth(image: Image.Image) -> Image.Image:
    """`image.filter(ImageFilter.SMOOTH)` in whole numbers, to the bit, in a third of the time.

    That is the mean of the 3 x 3 pixels around, where the pixel itself counts 5 times; the border
    stays. No sum of whole numbers divided by 13 lies midway between two, so rounding is safe.
    """
    rows = np.asarray(image).reshape(image.height, -1)
    levels = rows.astype(np.uint16)
    of_three = levels[:-2] + levels[1:-1]
    of_three += levels[2:]
    of_nine = of_three[:, :-6] + of_three[:, 3:-3]
    of_nine += of_three[:, 6:]
    of_nine += 4 * levels[1:-1, 3:-3] + 6
    smooth = rows.copy()
    smooth[1:-1, 3:-3] = of_nine // 13
    return Image.frombuffer("RGB", image.size, smooth, "raw", "RGB", 0, 1)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Nearest pixel, black outside; `matrix` maps a place in the result to one in the image."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _shear_x(image: Image.Image, shear: float) -> Image.Image:
    return _affine(image, 1, shear, 0, 0, 1, 0)


def _shear_y(image: Image.Image, shear: float) -> Image.Image:
    return _affine(image, 1, 0, 0, shear, 1, 0)


def _translate_x(image: Image.Image, pixels: float) -> Image.Image:
    return _affine(image, 1, 0, pixels, 0, 1, 0)


def _translate_y(image: Image.Image, pixels: float) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, pixels)


def _translate_x_fraction(image: Image.Image, fraction: float) -> Image.Image:
    return _translate_x(image, fraction * image.width)


def _translate_y_fraction(image: Image.Image, fraction: float) -> Image.Image:
    return _translate_y(image, fraction * image.height)


OPERATIONS: dict[str, Operation] = {
    "identity": Operation(0, 1, _keep, "nothing"),
    "auto_contrast": Operation(0, 1, _auto_contrast, "probability"),
    "equalize": Operation(0, 1, _equalize, "probability"),
    "rotate": Operation(0, 30, _rotate, "sign"),
    "posterize": Operation(0, 7, _posterize, "nothing"),
    "solarize": Operation(0, 256, _solarize, "nothing"),
    "color": Operation(0, 0.9, _color, "sign"),
    "contrast": Operation(0, 0.9, _contrast, "sign"),
    "brightness": Operation(0, 0.9, _brightness, "sign"),
    "sharpness": Operation(0, 0.9, _sharpness, "sign"),
    "shear_x": Operation(0, 0.3, _shear_x, "sign"),
    "shear_y": Operation(0, 0.3, _shear_y, "sign"),
    "translate_x": Operation(0, 100, _translate_x, "sign"),
    "translate_y": Operation(0, 100, _translate_y, "sign"),
}
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
MAX_FRACTION = 100 / 320
FRACTION_OPERATIONS: dict[str, Operation] = OPERATIONS | {
    "translate_x": Operation(0, MAX_FRACTION, _translate_x_fraction, "sign"),
    "translate_y": Operation(0, MAX_FRACTION, _translate_y_fraction, "sign"),
}


class RandAugment:
    """N operations drawn with replacement out of 14, all at magnitude M.

    With `translate="pixels"` the two translations move by 100 M / 30 pixels of the raw image, as
    published. With `"fraction"` they move by M / 30 of 100 / 320 of the side: both agree on an
    image of 320 pixels, near the 331 that AutoAugment's pixel ranges were made for, and M keeps
    its relative meaning on small images (2 of 32 pixels at M = 6).

    Args:
        num_ops: N.
        magnitude: M in [0, 30].
        translate: The unit of the translations.
    """

    def __init__(
        self, num_ops: int, magnitude: float, translate: Literal["pixels", "fraction"]
    ) -> None:
        self.num_ops = num_ops
        self.magnitude = magnitude
        table = OPERATIONS if translate == "pixels" else FRACTION_OPERATIONS
        self.operations = tuple(table.values())

    def __call__(self, image: Image.Image, generator: Generator) -> Image.Image:
        """Augment an RGB image; the size stays."""
        draws = torch.rand(self.num_ops, 2, generator=generator, dtype=torch.float64)
        for choice, coin in draws.tolist():
            operation = self.operations[int(choice * len(self.operations))]
            image = operation(image, self.magnitude, coin)
        return image


class PhotometricRandAugment(RandAugment):
    """The operations that move no pixel, for keys that must stay aligned with their queries.

    Args:
        num_ops: N.
        magnitude: M in [0, 30].
    """

    def __init__(self, num_ops: int, magnitude: float) -> None:
        super().__init__(num_ops, magnitude, "pixels")
        self.operations = tuple(
            operation for name, operation in OPERATIONS.items() if name not in GEOMETRIC
        )


class ColorJitter:
    """`torchvision.transforms.ColorJitter` with draws keyed by a generator.

    The published augmentation of segmentation's key view: brightness, contrast and saturation by
    factors in [1 - s, 1 + s], the hue by up to s of its circle, in random order.

    Args:
        strength: s.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, image: Image.Image, generator: Generator) -> Image.Image:
        """Augment an RGB image; the size stays."""
        order = torch.randperm(len(_JITTERS), generator=generator).tolist()
        draws = torch.rand(len(_JITTERS), generator=generator, dtype=torch.float64).tolist()
        for number in order:
            adjust, centre = _JITTERS[number]
            image = adjust(image, centre + self.strength * (2 * draws[number] - 1))
        return image


_JITTERS: tuple[tuple[Callable[[Image.Image, float], Image.Image], float], ...] = (
    (transforms.functional.adjust_brightness, 1.0),
    (transforms.functional.adjust_contrast, 1.0),
    (transforms.functional.adjust_saturation, 1.0),
    (transforms.functional.adjust_hue, 0.0),
)


class TorchvisionRandAugment:
    """`torchvision.transforms.RandAugment`: another table, for comparison.

    Args:
        num_ops: N.
        magnitude: A whole number in [0, 30], one of 31 bins.
    """

    def __init__(self, num_ops: int, magnitude: int) -> None:
        self.augment = transforms.RandAugment(num_ops, magnitude, MAX_MAGNITUDE + 1)

    def __call__(self, image: Image.Image, generator: Generator) -> Image.Image:
        """Augment an RGB image; torchvision's draws are keyed by `generator` too."""
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        # torchvision draws from the global generator: lend it a seeded state for one image. Not
        # torch.manual_seed, which would seed the CUDA generators as well.
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            augmented: Image.Image = self.augment(image)
        finally:
            torch.set_rng_state(before)
        return augmented


def build_augmentation(config: AugmentConfig) -> Augmentation:
    """The configured RandAugment."""
    if config.implementation == "torchvision":
        return TorchvisionRandAugment(config.num_ops, int(config.magnitude))
    return RandAugment(config.num_ops, config.magnitude, config.translate)


def build_key_augmentation(config: AugmentConfig) -> Augmentation:
    """What the key view of segmentation gets: colours only."""
    if config.implementation == "color_jitter":
        return ColorJitter(config.jitter)
    return PhotometricRandAugment(config.num_ops, config.magnitude)
