"""One pass over a split: which images in which order, and how each is augmented."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from csg_ray.config.data import SegmentationConfig
from csg_ray.config.errors import UserError
from csg_ray.config.run import RunConfig, TrainConfig
from csg_ray.data.draws import draw_copies, draw_images, draw_key
from csg_ray.data.loader import Batch, Batches, num_loaders
from csg_ray.data.rand_augment import Augmentation, build_key_augmentation
from csg_ray.data.resident import ResidentEvalLoader, ResidentTrainLoader, find_resident
from csg_ray.data.scene_transforms import SceneTransform
from csg_ray.data.splits import ClassSplit, SceneSplit, Split
from csg_ray.data.styled import StyledSplit
from csg_ray.data.transforms import (
    Transform,
    build_eval_transform,
    build_train_transform,
    normalise,
)
from csg_ray.seeding import sub_seed


def train_batches(
    split: Split,
    config: RunConfig,
    num_views: int,
    epoch: int,
    device: torch.device | None = None,
) -> Batches:
    """One shuffled, augmented epoch; the incomplete last batch is dropped.

    Args:
        split: The images.
        config: Its seed and the epoch fix the order; these, the image and the view fix each draw.
        num_views: Views per image. They are one tensor when `augment.views` is shared or nothing
            is augmented.
        epoch: Any whole number, different for each epoch.
        device: Where the batches go; images that are all in memory go there first, and are
            augmented there. None: the CPU.

    Raises:
        UserError: The split does not fill one batch.
    """
    shuffle = Generator().manual_seed(sub_seed(config.seed, f"shuffle/{epoch}"))
    draws = draw_images(len(split), split.name, config.train, shuffle)
    seed = sub_seed(config.seed, f"augment/{epoch}")
    batches = torch.split(draws, config.train.batch_size)
    if isinstance(config.data, SegmentationConfig):
        assert isinstance(split, SceneSplit)
        scenes = _TrainSceneLoader(
            split=split,
            transform=scene_transform(config.data),
            augment_key=_key_augmentation(split, config, num_views),
            seed=seed,
        )
        return Batches(batches, scenes, num_loaders(config.data, device))
    assert isinstance(split, ClassSplit)
    transform = build_train_transform(config.augment, config.data.image_size)
    workers = num_loaders(config.data, device)
    views = (num_views, config.draws_two_views, seed)
    # Loader processes stay on the CPU.
    images = find_resident(split, transform, None if workers > 0 else device)
    if images is not None:
        return Batches(batches, ResidentTrainLoader(images, split, transform, *views), workers)
    return Batches(batches, _TrainClassLoader(split, transform, *views), workers)


def _key_augmentation(split: Split, config: RunConfig, num_views: int) -> Augmentation | None:
    """What changes the colours of the second view, where that is no copy in another style."""
    if num_views == 1 or isinstance(split, StyledSplit):
        return None
    return build_key_augmentation(config.augment)


def eval_batches(split: Split, config: RunConfig, device: torch.device | None = None) -> Batches:
    """The whole split in order, in one view, the last batch as small as it comes.

    Segmentation gets its images whole, in the size that they have.

    Args:
        split: The images.
        config: Its batch size and its task.
        device: As of `train_batches`.
    """
    if not isinstance(config.data, SegmentationConfig):
        assert isinstance(split, ClassSplit)
        return class_eval_batches(split, config, device)
    assert isinstance(split, SceneSplit)
    return _in_order(split, _EvalSceneLoader(split), config, num_loaders(config.data, device))


def class_eval_batches(
    split: ClassSplit, config: RunConfig, device: torch.device | None = None
) -> Batches:
    """`eval_batches` of images with a class each, whatever the task."""
    transform = build_eval_transform(config.data.image_size)
    workers = num_loaders(config.data, device)
    images = find_resident(split, transform, None if workers > 0 else device)
    if images is not None:
        return _in_order(split, ResidentEvalLoader(images), config, workers)
    return _in_order(split, _EvalClassLoader(split, transform), config, workers)


def _in_order(
    split: Split, load: Callable[[Tensor], Batch], config: RunConfig, workers: int
) -> Batches:
    positions = torch.arange(len(split))
    return Batches(torch.split(positions, config.evaluation.batch_size), load, workers)


def steps_per_epoch(num_images: int, config: TrainConfig) -> int:
    """Batches in an epoch of so many images."""
    if config.steps_per_epoch == "auto":
        return num_images // config.batch_size
    return config.steps_per_epoch


def scene_transform(config: SegmentationConfig) -> SceneTransform:
    """What training does to an image and its label map."""
    size: int = config.image_size  # type: ignore[attr-defined]
    return SceneTransform(size, config.flip, config.min_scale, config.max_scale)


@dataclass(frozen=True)
class _TrainClassLoader:
    split: ClassSplit
    transform: Transform
    num_views: int
    draws_differ: bool
    seed: int

    def __call__(self, draws: Tensor) -> Batch:
        count = len(self.split)
        indices = draws % count
        images = [self.split.image(index) for index in indices.tolist()]
        versions = [images]
        if isinstance(self.split, StyledSplit):
            versions += draw_copies(self.split, draws, [image.size for image in images], self.seed)
        generator = Generator()
        views = []
        for view in range(self.num_views if self.draws_differ else len(versions)):
            version = versions[view] if len(versions) > 1 else images
            crops = []
            for draw, image in zip(draws.tolist(), version, strict=True):
                key = draw_key(draw, count, view if self.draws_differ else 0)
                generator.manual_seed(sub_seed(self.seed, key))
                crops.append(self.transform.crop(image, generator))
            views.append(normalise(crops))
        if len(views) < self.num_views:
            views *= self.num_views
        return Batch(tuple(views), self.split.labels[indices], indices)


@dataclass(frozen=True)
class _EvalClassLoader:
    split: ClassSplit
    transform: Transform

    def __call__(self, indices: Tensor) -> Batch:
        crops = [self.transform.crop(self.split.image(index)) for index in indices.tolist()]
        return Batch((normalise(crops),), self.split.labels[indices], indices)


@dataclass(frozen=True)
class _TrainSceneLoader:
    """The first view is the crop as it is; the others the same crop in other colours or styles."""

    split: SceneSplit
    transform: SceneTransform
    augment_key: Augmentation | None
    seed: int

    def __call__(self, draws: Tensor) -> Batch:
        count = len(self.split)
        indices = draws % count
        scenes = [_read_scene(self.split, index) for index in indices.tolist()]
        images, label_maps = zip(*scenes, strict=True)
        for index, image in zip(indices.tolist(), images, strict=True):
            where = f"image {index} of {self.split.name}"
            self.transform.check_covers(image.width, image.height, where)
        versions = [list(images)]
        if isinstance(self.split, StyledSplit):
            versions += draw_copies(self.split, draws, [image.size for image in images], self.seed)
        crops = [self._crop(draws, version, label_maps) for version in versions]
        queries, labels = crops[0]
        views = [queries, *(copies for copies, _ in crops[1:])]
        if self.augment_key is not None:
            views.append(self._augment(self.augment_key, draws, queries))
        return Batch(tuple(normalise(view) for view in views), _stack(labels), indices)

    def _crop(
        self,
        draws: Tensor,
        images: Sequence[Image.Image],
        label_maps: Sequence[NDArray[np.uint8]],
    ) -> tuple[list[Image.Image], list[NDArray[np.uint8]]]:
        """Every version of an image is cut alike."""
        generator = Generator()
        crops = []
        for draw, image, label_map in zip(draws.tolist(), images, label_maps, strict=True):
            generator.manual_seed(sub_seed(self.seed, draw_key(draw, len(self.split), 0)))
            crops.append(self.transform.crop(image, label_map, generator))
        cut, labels = zip(*crops, strict=True)
        return list(cut), list(labels)

    def _augment(
        self, augment: Augmentation, draws: Tensor, queries: Sequence[Image.Image]
    ) -> list[Image.Image]:
        generator = Generator()
        keys = []
        for draw, query in zip(draws.tolist(), queries, strict=True):
            generator.manual_seed(sub_seed(self.seed, draw_key(draw, len(self.split), 1)))
            keys.append(augment(query, generator))
        return keys


@dataclass(frozen=True)
class _EvalSceneLoader:
    split: SceneSplit

    def __call__(self, indices: Tensor) -> Batch:
        scenes = [_read_scene(self.split, index) for index in indices.tolist()]
        images, label_maps = zip(*scenes, strict=True)
        if len({image.size for image in images}) > 1:
            raise UserError(
                f"evaluation.batch_size puts images of {self.split.name} that differ in size "
                "together; set it to 1"
            )
        return Batch((normalise(images),), _stack(label_maps), indices)


def _read_scene(split: SceneSplit, index: int) -> tuple[Image.Image, NDArray[np.uint8]]:
    """An image and its label map, which without the cache nobody has compared yet."""
    image, label_map = split.image(index), split.label_map(index)
    height, width = label_map.shape
    if image.size != (width, height):
        raise UserError(
            f"image {index} of {split.name} has {image.width}x{image.height} pixels, but its label "
            f"map has {width}x{height}; give each image its own label map"
        )
    return image, label_map


def _stack(label_maps: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(label_maps)).long()
