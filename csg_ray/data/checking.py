"""What can be told of a task's files before they are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from csg_ray.config.data import FilesConfig, GTA5CityscapesConfig, SegmentationConfig
from csg_ray.config.errors import UserError
from csg_ray.data.epoch import scene_transform
from csg_ray.data.file_splits import SplitFiles, TaskFiles, cache_folder
from csg_ray.data.files import UnreadableImageError, reading
from csg_ray.data.packed import check_room, is_packed, packed_bytes

SAMPLED_LABELS = 32


@dataclass(frozen=True)
class CacheNeed:
    """What decoding a task takes.

    Attributes:
        folder: of the cache.
        needed: about how many bytes are still to be written.
        packed: the splits that are there already.
    """

    folder: Path
    needed: int
    packed: tuple[str, ...]


def check_files(task: TaskFiles, config: FilesConfig) -> None:
    """Refuse label maps that cannot be right; every header is read, and some files whole.

    Raises:
        UserError: names the file.
    """
    if isinstance(config, GTA5CityscapesConfig):
        for name, split in task.splits.items():
            _check_sizes(split, config if name == "source_train" else None)
            _check_some_labels(split)


def cache_need(task: TaskFiles, config: FilesConfig) -> CacheNeed | None:
    """What the cache takes; None when there is none.

    Raises:
        UserError: the disk has less room.
    """
    folder = cache_folder(config)
    if folder is None:
        return None
    packed = [
        name
        for name, split in task.splits.items()
        if is_packed(split.files, folder, config.max_side)
    ]
    needed = sum(
        packed_bytes(split.files, config.max_side)
        for name, split in task.splits.items()
        if name not in packed
    )
    if needed:
        check_room(next(iter(task.splits.values())).files, folder, needed)
    return CacheNeed(folder, needed, tuple(packed))


def _check_sizes(split: SplitFiles, crop: SegmentationConfig | None) -> None:
    """Image and label map agree in size, and cover the crop where training cuts one."""
    for image, label_map in zip(_sizes(split, "images"), _sizes(split, "label_maps"), strict=True):
        if image[1] != label_map[1]:
            raise UserError(
                f"{image[0]} has {image[1][0]}x{image[1][1]} pixels, but its label map "
                f"{label_map[0]} has {label_map[1][0]}x{label_map[1][1]}; unpack both again"
            )
        if crop is not None:
            scene_transform(crop).check_covers(*image[1], str(image[0]))


def _sizes(split: SplitFiles, which: str) -> Iterator[tuple[Path, tuple[int, int]]]:
    for name in getattr(split.files, which):
        path = split.files.root / name
        try:
            with reading(path), Image.open(path) as image:
                yield path, image.size
        except UnreadableImageError as error:
            raise UserError(f"{error}; unpack it again") from error


def _check_some_labels(split: SplitFiles) -> None:
    spaced = np.linspace(0, len(split) - 1, min(len(split), SAMPLED_LABELS)).astype(int)
    for index in spaced.tolist():
        try:
            split.files.label_map(index)
        except UnreadableImageError as error:
            raise UserError(str(error)) from error
