"""Settings that name files, made absolute where a study or a run begins.

Its trials, its restores and the runs of its exports may start in other folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Path of a setting -> its values that are no files.
PLACES: dict[str, tuple[str, ...]] = {
    "data.source": (),
    "data.target": (),
    "data.lists": (),
    "data.root": (),
    "data.gta5": (),
    "data.cityscapes": (),
    "data.cache": ("auto", "off"),
    "evaluation.reference_images": (),
    "method.start": (),
    "method.styles": (),
    "model.weights": ("bundled", "imagenet", "none"),
}


def absolute(setting: str, value: Any) -> Any:
    """`value` as an absolute path, if it is a relative one and `setting` names files.

    `~` stays: it is the home folder of whoever reads the files. So does a URI.
    """
    if not isinstance(value, str) or value in PLACES.get(setting, (value,)):
        return value
    if value.startswith("~") or "://" in value:
        return value
    return str(Path(value).absolute())
