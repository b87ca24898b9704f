"""Augmenting a whole batch against the same images one by one with Pillow: equal to the bit."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from csg_ray.config.data import DigitsConfig, ImageFolderConfig
from csg_ray.config.run import AugmentConfig, RunConfig, TrainConfig
from csg_ray.data.batched_augment import BatchedRandAugment, is_batchable
from csg_ray.data.draws import draw_key
from csg_ray.data.epoch import eval_batches, train_batches
from csg_ray.data.loader import Batch, Batches
from csg_ray.data.mixture import ClassMixture
from csg_ray.data.rand_augment import (
    ColorJitter,
    Operation,
    PhotometricRandAugment,
    RandAugment,
    TorchvisionRandAugment,
)
from csg_ray.data.resident import ResidentEvalLoader, ResidentTrainLoader
from csg_ray.data.splits import ArraySplit, ClassSplit
from csg_ray.data.styled import open_styles
from csg_ray.data.transforms import normalise, normalise_pixels

MAGNITUDES = (0, 1, 6, 9.3, 12, 17.77, 25, 30)
COUNT = 22


class OneByOne:
    """A split that hides that its images are in memory."""

    def __init__(self, split: ClassSplit) -> None:
        self.split = split
        self.name, self.fingerprint = split.name, split.fingerprint
        self.class_names, self.labels = split.class_names, split.labels

    def __len__(self) -> int:
        return len(self.split)

    def image(self, index: int) -> Image.Image:
        return self.split.image(index)

    def labelled_classes(self) -> list[int]:
        return self.split.labelled_classes()


def _images(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """(count, height, width, 3): noise, dark noise, grey noise, and images of one level a row."""
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    images[1::4] = images[1::4] // 4 + 10
    images[2::4] = images[2::4, ..., :1]
    images[3::8] = images[3::8, :, :1]
    images[7::8] = images[7::8, :1, :1]
    return images


def _split(name: str = "source_train", seed: int = 0) -> ArraySplit:
    images = np.random.default_rng(seed).integers(0, 256, (COUNT, 32, 32), dtype=np.uint8)
    images[::3] //= 5
    return ArraySplit(name, images, torch.arange(COUNT) % 5, tuple("abcde"))


def _config(workers: int = 0, train: dict[str, Any] | None = None, **augment: Any) -> RunConfig:
    return RunConfig(
        data=DigitsConfig(workers=workers),
        augment=AugmentConfig(**{"translate": "fraction", **augment}),
        train=TrainConfig(**{"batch_size": 5, **(train or {})}),
    )


def _assert_equal(batches: Batches, others: Batches) -> None:
    assert len(batches) == len(others) > 0
    for one, other in zip(batches, others, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.labels, other.labels)
        assert len(one.views) == len(other.views)
        assert len({id(view) for view in one.views}) == len({id(view) for view in other.views})
        assert all(map(torch.equal, one.views, other.views))


def _augmentation(kind: str, num_ops: int, magnitude: float) -> RandAugment:
    if kind == "photometric":
        return PhotometricRandAugment(num_ops, magnitude)
    return RandAugment(num_ops, magnitude, kind)  # type: ignore[arg-type]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pixels", "fraction", "photometric"])
@pytest.mark.parametrize("size", [(32, 32), (33, 33), (64, 64), (20, 31), (2, 3), (1, 1)])
def test_every_image_is_pillows_to_the_bit(kind: str, size: tuple[int, int]) -> None:
    images = _images(32, *size)
    batch = torch.from_numpy(images).movedim(3, 1).contiguous()
    before = batch.clone()
    for seed, (magnitude, num_ops) in enumerate(product(MAGNITUDES, (1, 2, 3))):
        augment = _augmentation(kind, num_ops, magnitude)
        assert is_batchable(augment)
        shape = (len(images), num_ops, 2)
        draws = torch.rand(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)
        found = BatchedRandAugment(augment, size, "cpu")(batch, draws).movedim(1, 3).numpy()
        generator = Generator().manual_seed(seed)
        expected = [np.asarray(augment(Image.fromarray(image), generator)) for image in images]
        np.testing.assert_array_equal(found, np.stack(expected))
    assert torch.equal(batch, before)


@pytest.mark.parametrize("magnitude", [6, 23.4])
def test_one_channel_stands_for_three_equal_ones(magnitude: float) -> None:
    grey = torch.from_numpy(_images(300, 16, 16)[..., 0])[:, None].contiguous()
    augment = BatchedRandAugment(RandAugment(2, magnitude, "fraction"), (16, 16), "cpu")
    generator = Generator().manual_seed(0)
    draws = torch.rand(len(grey), 2, 2, generator=generator, dtype=torch.float64)
    found = augment(grey.expand(-1, 3, -1, -1), draws)
    assert torch.equal(found, augment(grey, draws).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_normalised_as_images_are(channels: int) -> None:
    images = _images(8, 9, 13)
    images[..., 1:] = images[..., :1] if channels == 1 else images[..., 1:]
    pixels = torch.from_numpy(images).movedim(3, 1)[:, :channels]
    assert torch.equal(
        normalise_pixels(pixels), normalise([Image.fromarray(image) for image in images])
    )


@pytest.mark.parametrize("num_views", [1, 2, 3])
@pytest.mark.parametrize(
    "augment",
    [
        {"num_ops": 1, "magnitude": 6},
        {"num_ops": 3, "magnitude": 21.5, "translate": "pixels"},
        {"num_ops": 2, "magnitude": 12, "views": "shared"},
        {"num_ops": 0},
    ],
)
def test_an_epoch_is_that_of_images_one_by_one(num_views: int, augment: dict[str, Any]) -> None:
    split, config = _split(), _config(**augment)
    batches = train_batches(split, config, num_views, 3)
    assert isinstance(batches.load, ResidentTrainLoader)
    _assert_equal(batches, train_batches(OneByOne(split), config, num_views, 3))


def test_so_are_draws_with_replacement_in_parts_and_in_loader_processes() -> None:
    split, train = _split(), {"steps_per_epoch": 11}
    expected = train_batches(OneByOne(split), _config(train=train), 2, 1)
    _assert_equal(train_batches(split, _config(2, train), 2, 1), expected)
    batches = train_batches(split, _config(train=train), 2, 1)
    _assert_equal(batches.share_of_each(), expected.share_of_each())
    views = [view[2:] for view in expected.load(expected.batch_indices[0]).views]
    assert all(map(torch.equal, batches.load(batches.batch_indices[0][2:]).views, views))


def test_evaluation_is_that_of_images_one_by_one() -> None:
    split, config = _split(), _config()
    batches = eval_batches(split, config)
    assert isinstance(batches.load, ResidentEvalLoader)
    _assert_equal(batches, eval_batches(OneByOne(split), config))


@pytest.mark.parametrize("views", ["shared", "independent"])
def test_copies_in_other_styles_are_augmented_with_their_images(views: str, tmp_path: Path) -> None:
    split = _split()
    for style, number in product(("ink", "chalk", "oil"), range(COUNT)):
        (tmp_path / style).mkdir(exist_ok=True)
        # Of another size than the image, and coloured.
        levels = np.random.default_rng([number, len(style)]).integers(0, 256, (40, 36, 3))
        Image.fromarray(levels.astype(np.uint8)).save(tmp_path / style / f"{number:06}.png")
    config = _config(views=views, magnitude=20, num_ops=2)
    batches = train_batches(open_styles(split, str(tmp_path), 2), config, 3, 0)
    assert isinstance(batches.load, ResidentTrainLoader)
    hidden = open_styles(OneByOne(split), str(tmp_path), 2)
    _assert_equal(batches, train_batches(hidden, config, 3, 0))


def test_a_mixture_of_resident_images_is_resident() -> None:
    positions = np.array([3, 1, 21]), np.array([5, 0, 7, 2])
    mixture = ClassMixture(_split(), _split("target_train", 1), *positions)
    batches = train_batches(mixture, _config(), 2, 0)
    assert isinstance(batches.load, ResidentTrainLoader)
    _assert_equal(batches, train_batches(OneByOne(mixture), _config(), 2, 0))
    half = ClassMixture(_split(), OneByOne(_split()), *positions)
    others = train_batches(half, _config(), 2, 0)
    assert not isinstance(others.load, ResidentTrainLoader)


def test_what_has_no_kernel_is_left_to_pillow() -> None:
    assert not is_batchable(TorchvisionRandAugment(2, 9))
    assert not is_batchable(ColorJitter(0.4))
    augment = RandAugment(1, 6, "pixels")
    augment.operations = (Operation(0, 1, lambda image, _: image, "nothing"),)
    assert not is_batchable(augment)
    batches = train_batches(_split(), _config(implementation="torchvision"), 2, 0)
    assert not isinstance(batches.load, ResidentTrainLoader)


def test_images_of_another_size_are_resized_one_by_one() -> None:
    data = ImageFolderConfig(source="-", target="-", image_size=40)
    config = _config().model_copy(update={"data": data})
    batches = train_batches(_split(), config, 2, 0)
    assert not isinstance(batches.load, ResidentTrainLoader)
    assert next(iter(batches)).views[0].shape == (5, 3, 40, 40)


def test_keys_of_draws_are_those_of_the_augmentation() -> None:
    """An image is what its key makes of it, whoever else is in the batch."""
    split, config = _split(), _config(magnitude=20)
    load = train_batches(split, config, 2, 0).load
    whole = load(torch.arange(COUNT))
    for index in range(COUNT):
        alone: Batch = load(torch.tensor([index]))
        assert torch.equal(alone.views[1][0], whole.views[1][index])
    assert draw_key(3, COUNT, 1) == "3/1"


@pytest.mark.gpu
def test_the_device_makes_the_same_bits() -> None:
    split, device = _split(), torch.device("cuda")
    for augment in ({"num_ops": 3, "magnitude": 21.5}, {"num_ops": 0}):
        config = _config(**augment)
        found = list(train_batches(split, config, 2, 0, device))
        for batch, expected in zip(found, train_batches(split, config, 2, 0), strict=True):
            held: tuple[Tensor, ...] = (*batch.views, batch.labels, batch.indices)
            assert all(tensor.is_cuda for tensor in held)
            assert all(
                torch.equal(view.cpu(), other)
                for view, other in zip(batch.views, expected.views, strict=True)
            )
    (first, *_) = eval_batches(split, config, device)
    (expected, *_) = eval_batches(split, config)
    assert torch.equal(first.views[0].cpu(), expected.views[0])
