"""VisDA-17 classification (Peng et al. 2017), in its own layout and with its own lists."""

from __future__ import annotations

from pathlib import Path

from csg_ray.config.data import VisDA17Config
from csg_ray.config.errors import UserError
from csg_ray.data.class_folders import LabelledFiles, split_by_share
from csg_ray.data.file_splits import SplitFiles, TaskFiles
from csg_ray.data.list_files import check_listed, parse_labelled

CLASS_NAMES = (
    "aeroplane",
    "bicycle",
    "bus",
    "car",
    "horse",
    "knife",
    "motorcycle",
    "person",
    "plant",
    "skateboard",
    "train",
    "truck",
)
# What the lists of the data set hold.
NUM_IMAGES = {"train": 152_397, "validation": 55_388}


def list_visda17(config: VisDA17Config) -> TaskFiles:
    """The files of the splits.

    Raises:
        UserError: a missing folder, list or file, or lists that are not those of the data set.
    """
    root = Path(config.root).expanduser()
    train, validation = (_list_domain(root, name) for name in ("train", "validation"))
    if config.protocol == "published":
        everything = {"source_train": _whole(train), "target_val": _whole(validation)}
        if config.target_train_share > 0:
            everything["target_train"] = _whole(validation).without_labels()
        return TaskFiles(CLASS_NAMES, everything)
    seed = config.seed
    source = {"source_val": config.source_val_share}
    target = {"target_val": config.target_val_share}
    if config.target_train_share > 0:
        target["target_train"] = config.target_train_share
    splits = split_by_share(train, CLASS_NAMES, source, "source_train", seed)
    splits |= split_by_share(validation, CLASS_NAMES, target, "target_test", seed)
    if "target_train" in splits:
        splits["target_train"] = splits["target_train"].without_labels()
    return TaskFiles(CLASS_NAMES, splits)


def _list_domain(root: Path, name: str) -> LabelledFiles:
    folder = root / name
    if not folder.is_dir():
        raise UserError(
            f"data.root: {folder} does not exist; give the folder that holds train and validation "
            "of VisDA-17"
        )
    path = folder / "image_list.txt"
    entries = parse_labelled(path, len(CLASS_NAMES))
    if len(entries) != NUM_IMAGES[name]:
        raise UserError(
            f"{path} lists {len(entries)} images, but {name} of VisDA-17 has {NUM_IMAGES[name]}; "
            "unpack it again, or use data.name image_folder for a part of it"
        )
    images, labels = zip(*entries, strict=True)
    _check_classes(path, images, labels)
    check_listed(folder, images, path)
    return LabelledFiles(folder, images, labels)


def _check_classes(path: Path, images: tuple[str, ...], labels: tuple[int, ...]) -> None:
    """The class folders say what the numbers mean."""
    for image, label in zip(images, labels, strict=True):
        folder = image.partition("/")[0]
        if folder != CLASS_NAMES[label]:
            raise UserError(
                f"{path} gives {image} the class {label}, which is {CLASS_NAMES[label]} in "
                "VisDA-17; unpack the list again"
            )


def _whole(files: LabelledFiles) -> SplitFiles:
    return files.pick(list(range(len(files.images))))
