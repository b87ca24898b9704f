"""Batches of a split, the same to the bit whatever the number of loader processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from csg_ray.config.errors import UserError
from csg_ray.config.run import AugmentConfig, DataConfig
from csg_ray.data.digits.sensor import BITMAP_SIDE
from csg_ray.data.splits import Split
from csg_ray.data.transforms import (
    Transform,
    build_eval_transform,
    build_train_transform,
    normalise,
)
from csg_ray.distributed import own_share
from csg_ray.seeding import sub_seed


@dataclass
class Batch:
    """B images, each in one or more views.

    Args:
        views: Each (B, 3, S, S) float32. Views that do not differ are one and the same tensor.
        labels: (B,) int64.
        indices: (B,) int64, positions in the split.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    indices: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`; views that are one tensor stay one tensor."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where `to` copies without waiting."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        distinct = {id(view): view for view in self.views}
        changed = {key: change(view) for key, view in distinct.items()}
        return Batch(
            views=tuple(changed[id(view)] for view in self.views),
            labels=change(self.labels),
            indices=change(self.indices),
        )


class Batches:
    """One pass over a split, batch by batch; `len` is the number of batches.

    Args:
        batch_indices: The positions of each batch's images.
        load: Makes the batch of these positions.
        workers: Loader processes; 0 loads in the process that iterates.
    """

    def __init__(
        self, batch_indices: tuple[Tensor, ...], load: Callable[[Tensor], Batch], workers: int
    ) -> None:
        self.batch_indices = batch_indices
        self.load = load
        self.workers = workers

    def __len__(self) -> int:
        return len(self.batch_indices)

    def share_of_each(self) -> Batches:
        """As many batches, of each this rank's part: the ranks' parts add up to the batch."""
        parts = tuple(indices[own_share(len(indices))] for indices in self.batch_indices)
        return Batches(parts, self.load, self.workers)

    def share_of_all(self) -> Batches:
        """This rank's part of the batches, each as it is, so that sums over it stay the same."""
        return Batches(self.batch_indices[own_share(len(self))], self.load, self.workers)

    def __iter__(self) -> Iterator[Batch]:
        pin_memory = torch.cuda.is_available()
        if self.workers == 0 or not self.batch_indices:
            batches = map(self.load, self.batch_indices)
            return map(Batch.pin_memory, batches) if pin_memory else batches
        # Its own generator, as a DataLoader draws from the global one otherwise.
        return iter(
            DataLoader(
                _LoadedBatches(self.batch_indices, self.load),
                batch_size=None,
                num_workers=min(self.workers, len(self)),
                generator=Generator(),
                pin_memory=pin_memory,
            )
        )


def train_batches(
    split: Split,
    augment: AugmentConfig,
    num_views: int,
    image_size: int,
    batch_size: int,
    seed: int,
    epoch: int,
    workers: int,
) -> Batches:
    """One shuffled, augmented epoch; the incomplete last batch is dropped.

    Args:
        split: The images.
        augment: RandAugment's settings, and whether the views are independent draws.
        num_views: Views per image. They are one tensor when `augment.views` is shared or nothing
            is augmented.
        image_size: S.
        batch_size: B.
        seed: With the epoch it fixes the order; with epoch, position and view each image's draws.
        epoch: Any whole number, different for each epoch.
        workers: Loader processes; changes nothing but the speed.

    Raises:
        UserError: The split does not fill one batch.
    """
    if len(split) < batch_size:
        raise UserError(
            f"train.batch_size {batch_size} is larger than the {len(split)} images of "
            f"{split.name}: set it to at most {len(split)}"
        )
    shuffle = Generator().manual_seed(sub_seed(seed, f"shuffle/{epoch}"))
    order = torch.randperm(len(split), generator=shuffle)
    independent = augment.views == "independent" and augment.num_ops > 0
    load = _TrainBatchLoader(
        split=split,
        transform=build_train_transform(augment, image_size),
        num_views=num_views,
        num_draws=num_views if independent else 1,
        seed=sub_seed(seed, f"augment/{epoch}"),
    )
    whole = len(split) // batch_size * batch_size
    return Batches(torch.split(order[:whole], batch_size), load, workers)


def eval_batches(split: Split, image_size: int, batch_size: int, workers: int) -> Batches:
    """The whole split in order, in one view, the last batch as small as it comes."""
    load = _EvalBatchLoader(split, build_eval_transform(image_size))
    return Batches(torch.split(torch.arange(len(split)), batch_size), load, workers)


def image_size(config: DataConfig) -> int:
    """S, the side of the network's input for this task."""
    return {"digits": BITMAP_SIDE}[config.name]


@dataclass(frozen=True)
class _TrainBatchLoader:
    split: Split
    transform: Transform
    num_views: int
    num_draws: int
    seed: int

    def __call__(self, indices: Tensor) -> Batch:
        images = [(index, self.split.image(index)) for index in indices.tolist()]
        generator = Generator()
        views = []
        for view in range(self.num_draws):
            crops = []
            for index, image in images:
                generator.manual_seed(sub_seed(self.seed, f"{index}/{view}"))
                crops.append(self.transform.crop(image, generator))
            views.append(normalise(crops))
        if self.num_draws < self.num_views:
            views *= self.num_views
        return Batch(tuple(views), self.split.labels[indices], indices)


@dataclass(frozen=True)
class _EvalBatchLoader:
    split: Split
    transform: Transform

    def __call__(self, indices: Tensor) -> Batch:
        crops = [self.transform.crop(self.split.image(index)) for index in indices.tolist()]
        return Batch((normalise(crops),), self.split.labels[indices], indices)


@dataclass(frozen=True)
class _LoadedBatches(Dataset[Batch]):
    batch_indices: tuple[Tensor, ...]
    load: Callable[[Tensor], Batch]

    def __len__(self) -> int:
        return len(self.batch_indices)

    def __getitem__(self, number: int) -> Batch:
        return self.load(self.batch_indices[number])
