"""The embedded task: from digits rendered with fonts to 1,797 real handwritten ones."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from csg_ray.config.data import DigitsConfig
from csg_ray.data.digits.glyphs import NUM_CLASSES, TRAIN_FAMILIES, VAL_FAMILIES
from csg_ray.data.digits.rendered import rendered_glyphs
from csg_ray.data.digits.sensor import to_images
from csg_ray.data.splits import UNLABELLED, ArraySplit, DomainSplits, SealedSplit
from csg_ray.seeding import sub_seed

CLASS_NAMES = tuple(str(digit) for digit in range(NUM_CLASSES))
NUM_TARGET_TRAIN = 200


class TargetIndices(NamedTuple):
    """Which handwritten digits belong to which target split: three disjoint index arrays."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


def load_digit_splits(config: DigitsConfig) -> DomainSplits:
    """Render the source and split the target.

    Args:
        config: `seed` fixes the glyphs and the target's split; `num_train` and `num_val` say how
            many glyphs there are.

    Returns:
        The five splits of 32x32 images, bright ink on black in both domains.
    """
    return DomainSplits(
        source_train=_source_split("source_train", TRAIN_FAMILIES, config.seed, config.num_train),
        source_val=_source_split("source_val", VAL_FAMILIES, config.seed, config.num_val),
        target_val=_target_split("target_val", config.seed),
        target_train=_target_split("target_train", config.seed),
        target_test=SealedSplit(
            "target_test",
            _target_split("target_test", config.seed).fingerprint,
            partial(_target_split, "target_test", config.seed),
        ),
    )


def split_target(labels: NDArray[np.int64], seed: int) -> TargetIndices:
    """A stratified split: 200 for target_train, and halves of the rest for val and test.

    Each part is in random order, so that the place of an unlabelled image says nothing of its
    class.
    """
    everything = np.arange(len(labels), dtype=np.int64)
    random_state = sub_seed(seed, "digits/target") % 2**32
    train, rest = train_test_split(
        everything, train_size=NUM_TARGET_TRAIN, stratify=labels, random_state=random_state
    )
    val, test = train_test_split(
        rest, train_size=0.5, stratify=labels[rest], random_state=random_state
    )
    return TargetIndices(train, val, test)


def _source_split(name: str, families: tuple[str, ...], seed: int, num_glyphs: int) -> ArraySplit:
    images, labels = rendered_glyphs(name, families, seed, num_glyphs)
    return ArraySplit(name, images, torch.from_numpy(labels), CLASS_NAMES)


def handwritten_images(name: str, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The handwritten digits of a target split: images (N, 32, 32) and labels (N,)."""
    counts, labels = _handwritten()
    chosen = getattr(split_target(labels, seed), name.removeprefix("target_"))
    return to_images(counts[chosen]), labels[chosen]


def _target_split(name: str, seed: int) -> ArraySplit:
    images, labels = handwritten_images(name, seed)
    kept = torch.from_numpy(labels)
    if name == "target_train":
        kept = torch.full_like(kept, UNLABELLED)
    return ArraySplit(name, images, kept, CLASS_NAMES)


@lru_cache(maxsize=1)
def _handwritten() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Block counts (1797, 8, 8) and labels (1797,) of scikit-learn's handwritten digits."""
    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)
