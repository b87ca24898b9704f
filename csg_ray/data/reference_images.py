"""Photographs of the classes that the encoder was pre-trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from csg_ray.config.errors import UserError
from csg_ray.config.run import ModelConfig
from csg_ray.data.class_folders import list_folders, list_images
from csg_ray.data.file_splits import FileSplit

SETTING = "evaluation.reference_images"


def load_reference_images(folder: str) -> FileSplit:
    """The images below the class folders of `folder`, read when they are needed.

    The folders in their order by name are the classes in theirs, as torchvision's ImageFolder has
    it, and with it the published weights.

    Raises:
        UserError: there is no such folder, no class in it, or a class without an image.
    """
    root = Path(folder).expanduser()
    class_names = tuple(list_folders(root, SETTING))
    files = list_images(root, class_names)
    split = files.pick(list(range(len(files.images))))
    return FileSplit(
        name="reference_task",
        files=split.files,
        images=split.files,
        positions=np.arange(len(split), dtype=np.int64),
        class_names=class_names,
        fingerprint=split.fingerprint(class_names),
        left_out=(),
        labels=torch.tensor(split.labels, dtype=torch.int64),
    )


def check_reference_classes(split: FileSplit, num_classes: int, model: ModelConfig) -> None:
    """Refuse images of another number of classes than the encoder was pre-trained on.

    Raises:
        UserError: names both numbers.
    """
    found = len(split.class_names)
    if found != num_classes:
        raise UserError(
            f"{SETTING} holds {found} class folders, but the weights of model.name {model.name} "
            f"({model.weights}) were pre-trained on {num_classes} classes; give a folder for each"
        )
