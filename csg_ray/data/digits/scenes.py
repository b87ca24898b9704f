"""The embedded segmentation task: several digits on a canvas, a class for every pixel."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from csg_ray.config.data import DigitScenesConfig
from csg_ray.data.digits.glyphs import NUM_CLASSES, TRAIN_FAMILIES, VAL_FAMILIES
from csg_ray.data.digits.rendered import rendered_glyphs
from csg_ray.data.digits.sensor import BITMAP_SIDE
from csg_ray.data.digits.task import handwritten_images
from csg_ray.data.splits import IGNORED, ArraySceneSplit, DomainSplits, SealedSplit
from csg_ray.seeding import sub_seed

CLASS_NAMES = ("background", *(str(digit) for digit in range(NUM_CLASSES)))
CELLS = 2  # per side; a cell holds one digit or none, so that digits never overlap
CANVAS_SIDE = CELLS * BITMAP_SIDE
MIN_SIDE = 20
FILLED_SHARE = 0.75
INK_THRESHOLD = 64


def load_digit_scenes(config: DigitScenesConfig) -> DomainSplits:
    """Compose the scenes of every split; no digit image is in two of them.

    Args:
        config: `seed` fixes scenes and splits, `num_train` and `num_val` their numbers.

    Returns:
        The five splits of 64x64 images; class 0 is the background, digit d is class d + 1.
    """
    seed = config.seed
    return DomainSplits(
        source_train=_source("source_train", TRAIN_FAMILIES, seed, config.num_train),
        source_val=_source("source_val", VAL_FAMILIES, seed, config.num_val),
        target_val=_target("target_val", seed, config.num_val),
        target_train=_target("target_train", seed, config.num_val),
        target_test=SealedSplit(
            "target_test",
            _target("target_test", seed, config.num_val).fingerprint,
            partial(_target, "target_test", seed, config.num_val),
        ),
    )


def _source(name: str, families: tuple[str, ...], seed: int, num_scenes: int) -> ArraySceneSplit:
    glyphs, digits = rendered_glyphs(f"scenes/{name}", families, seed, max(200, num_scenes))
    return _compose(name, glyphs, digits, seed, num_scenes)


def _target(name: str, seed: int, num_scenes: int) -> ArraySceneSplit:
    images, digits = handwritten_images(name, seed)
    split = _compose(name, images, digits, seed, num_scenes)
    if name == "target_train":
        hidden = np.full_like(split.label_maps, IGNORED)
        return ArraySceneSplit(name, split.images, hidden, CLASS_NAMES)
    return split


def _compose(
    name: str, pool: NDArray[np.uint8], digits: NDArray[np.int64], seed: int, num_scenes: int
) -> ArraySceneSplit:
    """Scenes of digits drawn from a pool of (N, 32, 32) images."""
    shape = (num_scenes, CANVAS_SIDE, CANVAS_SIDE)
    images, label_maps = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for number in range(num_scenes):
        rng = np.random.default_rng(sub_seed(seed, f"digit_scenes/{name}/{number}"))
        filled = rng.random(CELLS**2) < FILLED_SHARE
        filled[rng.integers(CELLS**2)] = True  # an empty scene would teach nothing
        for cell in np.flatnonzero(filled):
            chosen = rng.integers(len(pool))
            side = int(rng.integers(MIN_SIDE, BITMAP_SIDE + 1))
            row, column = np.array(divmod(int(cell), CELLS)) * BITMAP_SIDE
            row, column = (start + rng.integers(BITMAP_SIDE - side + 1) for start in (row, column))
            digit = Image.fromarray(pool[chosen]).resize((side, side), Image.Resampling.BILINEAR)
            place = (number, slice(row, row + side), slice(column, column + side))
            images[place] = np.asarray(digit)
            label_maps[place] = np.where(images[place] >= INK_THRESHOLD, digits[chosen] + 1, 0)
    return ArraySceneSplit(name, images, label_maps, CLASS_NAMES)
