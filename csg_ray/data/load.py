"""From `data.name` to the splits of that task."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from csg_ray.config.data import DataConfig, FilesConfig
from csg_ray.data.digits.scenes import load_digit_scenes
from csg_ray.data.digits.task import load_digit_splits
from csg_ray.data.file_splits import TaskFiles, open_splits
from csg_ray.data.gta5_cityscapes import list_gta5_cityscapes
from csg_ray.data.image_folder import list_image_folders
from csg_ray.data.splits import DomainSplits
from csg_ray.data.visda17 import list_visda17

MADE_HERE: dict[str, Callable[[Any], DomainSplits]] = {
    "digits": load_digit_splits,
    "digit_scenes": load_digit_scenes,
}
LISTED: dict[str, Callable[[Any], TaskFiles]] = {
    "image_folder": list_image_folders,
    "visda17": list_visda17,
    "gta5_cityscapes": list_gta5_cityscapes,
}


@lru_cache(maxsize=4)
def load_splits(config: DataConfig) -> DomainSplits:
    """The splits of the configured task, made once per process and settings.

    Raises:
        UserError: files are missing or wrong; see the task's module.
    """
    if isinstance(config, FilesConfig):
        return open_splits(list_files(config), config)
    return MADE_HERE[config.name](config)


def list_files(config: FilesConfig) -> TaskFiles:
    """The files of every split of a task whose images are files.

    Raises:
        UserError: files are missing or wrong.
    """
    return LISTED[config.name](config)  # type: ignore[attr-defined]
