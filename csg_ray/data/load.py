"""From `data.name` to the splits of that task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from csg_ray.config.data import DataConfig, FilesConfig
from csg_ray.data.digits.scenes import load_digit_scenes
from csg_ray.data.digits.task import load_digit_splits
from csg_ray.data.file_splits import OnPacking, TaskFiles, open_splits
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
MAX_LOADED = 4
_loaded: dict[DataConfig, DomainSplits] = {}


def load_splits(
    config: DataConfig, on_packing: OnPacking = lambda name, done, total: None
) -> DomainSplits:
    """The splits of the configured task, made once per process and settings.

    Args:
        config: the task.
        on_packing: told how far decoding into the cache is, where files are not there yet.

    Raises:
        UserError: files are missing or wrong; see the task's module.
    """
    if config not in _loaded:
        if len(_loaded) >= MAX_LOADED:
            del _loaded[next(iter(_loaded))]
        _loaded[config] = _load(config, on_packing)
    return _loaded[config]


def list_files(config: FilesConfig) -> TaskFiles:
    """The files of every split of a task whose images are files.

    Raises:
        UserError: files are missing or wrong.
    """
    return LISTED[config.name](config)  # type: ignore[attr-defined]


def _load(config: DataConfig, on_packing: OnPacking) -> DomainSplits:
    if isinstance(config, FilesConfig):
        return open_splits(list_files(config), config, on_packing)
    return MADE_HERE[config.name](config)
