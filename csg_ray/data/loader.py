"""Batches of a split, the same to the bit whatever the number of loader processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from csg_ray.config.data import FilesConfig, TaskConfig
from csg_ray.distributed import own_share

MAX_AUTO_LOADERS = 16


@dataclass
class Batch:
    """B images, each in one or more views.

    Args:
        views: Each (B, 3, S, S) float32. Views that do not differ are one and the same tensor.
        labels: (B,) int64, or (B, S, S) of segmentation, 255 where a pixel does not count.
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
        return self._map(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        distinct = {id(view): view for view in self.views}
        changed = {key: change(view) for key, view in distinct.items()}
        return Batch(
            views=tuple(changed[id(view)] for view in self.views),
            labels=change(self.labels),
            indices=change(self.indices),
        )


def num_loaders(config: TaskConfig, device: torch.device | None) -> int:
    """Loader processes of a training on `device`; None is the CPU.

    `auto` gives loaders the processors of this process but one, where a GPU trains meanwhile and
    images are files: on the CPU loaders take from the training what they add, and images that are
    in memory already need none.
    """
    if config.workers != "auto":
        return config.workers
    if device is None or device.type != "cuda" or not isinstance(config, FilesConfig):
        return 0
    # As many threads as Ray reserved processors, or else as the process may use.
    return min(torch.get_num_threads() - 1, MAX_AUTO_LOADERS)


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


@dataclass(frozen=True)
class _LoadedBatches(Dataset[Batch]):
    batch_indices: tuple[Tensor, ...]
    load: Callable[[Tensor], Batch]

    def __len__(self) -> int:
        return len(self.batch_indices)

    def __getitem__(self, number: int) -> Batch:
        return self.load(self.batch_indices[number])
