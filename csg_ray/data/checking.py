"""What can be told of a task's files before they are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from csg_ray.config.data import FilesConfig, GTA5CityscapesConfig
from csg_ray.config.errors import UserError
from csg_ray.data.epoch import scene_transform
from csg_ray.data.file_splits import SplitFiles, TaskFiles, cache_folder
from csg_ray.data.files import UnreadableImageError, reading
from csg_ray.data.packed import check_folder, check_room, is_packed, packed_bytes
from csg_ray.data.packing import scaled_size

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
        for name, split in task.in_order():
            _check_sizes(split, config, is_cut=name == "source_train")
            _check_some_labels(split)


def cache_need(task: TaskFiles, config: FilesConfig) -> CacheNeed | None:
    """What the cache takes; None when there is none.

    Raises:
        UserError: the folder cannot be written to, or its disk has less room.
    """
    folder = cache_folder(config)
    if folder is None:
        return None
    packed = [
        name for name, split in task.in_order() if is_packed(split.files, folder, config.max_side)
    ]
    needed = sum(
        packed_bytes(split.files, config.max_side)
        for name, split in task.in_order()
        if name not in packed
    )
    if needed:
        check_folder(folder)
        check_room(next(iter(task.splits.values())).files, folder, needed)
    return CacheNeed(folder, needed, tuple(packed))


def _check_sizes(split: SplitFiles, config: GTA5CityscapesConfig, is_cut: bool) -> None:
    """Image and label map agree in size, and cover the crop where training cuts one."""
    files = split.files
    for image, label_map in zip(files.images, files.label_maps, strict=True):
        paths = (files.root / image, files.root / label_map)
        try:
            size = _size(paths[0])
        except UnreadableImageError as error:
            if config.cache == "off":
                raise UserError(f"{error}; unpack it again") from error
            continue  # packing counts it and leaves it out
        try:
            label_size = _size(paths[1])
        except UnreadableImageError as error:
            raise UserError(f"{error}; unpack it again") from error
        if size != label_size:
            raise UserError(
                f"{paths[0]} has {size[0]}x{size[1]} pixels, but its label map {paths[1]} has "
                f"{label_size[0]}x{label_size[1]}; unpack both again"
            )
        if is_cut:
            cut = scaled_size(size, config.max_side)
            scene_transform(config).check_covers(*cut, str(paths[0]))


def _size(path: Path) -> tuple[int, int]:
    with reading(path), Image.open(path) as image:
        return image.size


def _check_some_labels(split: SplitFiles) -> None:
    spaced = np.linspace(0, len(split) - 1, min(len(split), SAMPLED_LABELS)).astype(int)
    for index in spaced.tolist():
        try:
            split.files.label_map(index)
        except UnreadableImageError as error:
            raise UserError(str(error)) from error
