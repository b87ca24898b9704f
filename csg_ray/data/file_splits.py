"""Splits whose images are files: listed by a task, read from the cache or one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from csg_ray.config.data import FilesConfig
from csg_ray.config.errors import UserError
from csg_ray.data.files import FileList, UnreadableImageError, default_cache_folder
from csg_ray.data.packed import pack
from csg_ray.data.packed_images import PackedImages
from csg_ray.data.packing import Progress
from csg_ray.data.splits import IGNORED, UNLABELLED, DomainSplits, SealedSplit, Split

Images = FileList | PackedImages
Value = TypeVar("Value")
SPLIT_NAMES = ("source_train", "source_val", "target_train", "target_val", "target_test")


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split.

    Attributes:
        files: N images, of segmentation with their label maps.
        labels: N class numbers; empty for segmentation.
    """

    files: FileList
    labels: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def without_labels(self) -> SplitFiles:
        """The same images, of which nothing is known."""
        return SplitFiles(self.files, (UNLABELLED,) * len(self))

    def fingerprint(self, class_names: tuple[str, ...]) -> str:
        """SHA-256 of names, sizes and labels of the files, and of the class names.

        Not of their content, which would have to be read whole for it.
        """
        digest = hashlib.sha256(json.dumps([class_names, self.labels]).encode())
        for path in (*self.files.images, *self.files.label_maps):
            digest.update(f"{path}\0{(self.files.root / path).stat().st_size}\0".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class TaskFiles:
    """The files of every split of a task, by the split's name; some tasks lack some splits."""

    class_names: tuple[str, ...]
    splits: Mapping[str, SplitFiles]

    def in_order(self) -> list[tuple[str, SplitFiles]]:
        """The splits as they are listed everywhere, the source's first."""
        return [(name, self.splits[name]) for name in SPLIT_NAMES if name in self.splits]


@dataclass(frozen=True, eq=False)
class SplitOfFiles:
    """Images of files, whatever is known of them.

    Args:
        name: For example `target_val`.
        files: N images.
        images: The same, decoded, or `files` itself.
        positions: Which of them are in the split.
        class_names: One name per class number.
        fingerprint: Of all N files.
        left_out: Name and reason of every image that could not be read.
    """

    name: str
    files: FileList
    images: Images
    positions: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str
    left_out: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.positions)

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        return _read(self.images.image, int(self.positions[index]))


@dataclass(frozen=True, eq=False)
class FileSplit(SplitOfFiles):
    """Images with a class each.

    Args:
        labels: Class numbers of the images in the split, in their order.
    """

    labels: Tensor

    def labelled_classes(self) -> list[int]:
        """The classes that have a label, ascending."""
        return sorted(set(self.labels.tolist()) - {UNLABELLED})


class FileSceneSplit(SplitOfFiles):
    """Images with a class for every pixel; arguments as of `SplitOfFiles`."""

    def label_map(self, index: int) -> NDArray[np.uint8]:
        """Class numbers (H, W) of image number `index`; 255 where a pixel does not count."""
        return _read(self.images.label_map, int(self.positions[index]))

    def labelled_classes(self) -> list[int]:
        """The classes that have a label, ascending; reads every label map, once."""
        return self._labelled_classes

    @cached_property
    def _labelled_classes(self) -> list[int]:
        seen = np.zeros(256, dtype=bool)
        for index in range(len(self)):
            seen[np.unique(self.label_map(index))] = True
        seen[IGNORED] = False
        return [int(number) for number in np.flatnonzero(seen)]


def _read(read: Callable[[int], Value], position: int) -> Value:
    """Read without the cache, which would have left an unreadable file out."""
    try:
        return read(position)
    except UnreadableImageError as error:
        raise UserError(
            f"{error}; repair the file, take it out, or let data.cache leave it out"
        ) from error


def cache_folder(config: FilesConfig) -> Path | None:
    """Where the decoded images are kept; None when they are not."""
    if config.cache == "off":
        return None
    if config.cache != "auto":
        return Path(config.cache).expanduser()
    return default_cache_folder()


def open_splits(task: TaskFiles, config: FilesConfig) -> DomainSplits:
    """The splits of a task, decoded into the cache where they are not there yet.

    The sealed split is decoded when it is opened.

    Raises:
        UserError: too many images are unreadable, a label map is, or there is too little room.
    """
    opened = {
        name: _open(name, split, task.class_names, config)
        for name, split in task.in_order()
        if name != "target_test"
    }
    sealed = None
    if (test := task.splits.get("target_test")) is not None:
        sealed = SealedSplit(
            "target_test",
            test.fingerprint(task.class_names),
            partial(_open, "target_test", test, task.class_names, config),
        )
    return DomainSplits(
        source_train=opened["source_train"],
        source_val=opened.get("source_val"),
        target_val=opened["target_val"],
        target_train=opened.get("target_train"),
        target_test=sealed,
    )


def _open(
    name: str,
    split: SplitFiles,
    class_names: tuple[str, ...],
    config: FilesConfig,
) -> Split:
    images = decode(split, config)
    positions = np.arange(len(split), dtype=np.int64)
    left_out: tuple[str, ...] = ()
    if isinstance(images, PackedImages):
        positions, left_out = images.kept, name_left_out(split, images)
    fingerprint = split.fingerprint(class_names)
    about = (name, split.files, images, positions, class_names, fingerprint, left_out)
    if split.files.label_maps:
        return FileSceneSplit(*about)
    labels = torch.tensor(split.labels, dtype=torch.int64)[torch.from_numpy(positions)]
    return FileSplit(*about, labels)


def name_left_out(split: SplitFiles, images: PackedImages) -> tuple[str, ...]:
    """Name and reason of every image of a split that could not be read."""
    return tuple(f"{split.files.images[place]} {why}" for place, why in images.left_out.items())


def decode(
    split: SplitFiles, config: FilesConfig, on_progress: Progress = lambda done, total: None
) -> Images:
    """The images of a split: in the cache, which is built if need be, or as files."""
    folder = cache_folder(config)
    if folder is None:
        return split.files
    return pack(split.files, folder, config.max_side, config.max_unreadable, on_progress)
