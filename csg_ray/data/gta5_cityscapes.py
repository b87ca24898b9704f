"""From GTA5 (Richter et al. 2016) to Cityscapes (Cordts et al. 2016), in their own layouts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from csg_ray.config.data import GTA5CityscapesConfig
from csg_ray.config.errors import UserError
from csg_ray.data.file_splits import SplitFiles, TaskFiles
from csg_ray.data.files import FileList, ReadLabels, UnreadableImageError, reading
from csg_ray.data.list_files import check_listed
from csg_ray.data.splits import IGNORED
from csg_ray.seeding import sub_seed

# Raw id in the label files of both data sets -> class; all other ids do not count.
CLASSES: dict[int, str] = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
CLASS_NAMES = tuple(CLASSES.values())
MAX_RAW_ID = 34
TRAIN_IDS = np.full(256, IGNORED, dtype=np.uint8)
TRAIN_IDS[list(CLASSES)] = np.arange(len(CLASSES))
IS_RAW_ID = np.zeros(256, dtype=bool)
IS_RAW_ID[[*range(MAX_RAW_ID + 1), IGNORED]] = True  # -1, the licence plate, is stored as 255

NUM_GTA5 = 24_966
NUM_GTA5_TRAIN = 12_403
# Images that were published with label maps of another size; some downloads have them mended.
GTA5_SUSPECTS = (15188, *range(20803, 20835), *range(20858, 20861))
# Of the train set, 375 images; the official val is target_test.
VAL_CITIES = ("bochum", "darmstadt", "krefeld", "ulm")


def list_gta5_cityscapes(config: GTA5CityscapesConfig) -> TaskFiles:
    """The files of the splits.

    Raises:
        UserError: a missing folder, list or file.
    """
    source = _list_gta5(config)
    train, val = (_list_cityscapes(config, name) for name in ("train", "val"))
    if config.protocol == "published":
        return TaskFiles(CLASS_NAMES, source | {"target_val": SplitFiles(val)})
    held_out = [place for place, path in enumerate(train.images) if _city(path) in VAL_CITIES]
    others = [place for place, path in enumerate(train.images) if _city(path) not in VAL_CITIES]
    if not held_out or not others:
        raise UserError(
            f"data.cityscapes: {train.root} has no images of {', '.join(VAL_CITIES)}, which are "
            "target_val, or of no other city; unpack leftImg8bit_trainvaltest.zip again"
        )
    return TaskFiles(
        CLASS_NAMES,
        source
        | {
            "target_train": SplitFiles(_part(train, others, read_no_labels)),
            "target_val": SplitFiles(_part(train, held_out, read_raw_ids)),
            "target_test": SplitFiles(val),
        },
    )


def read_raw_ids(path: Path) -> NDArray[np.uint8]:
    """Class numbers (H, W) of a label file that holds raw ids, be it palettised or grey.

    A palettised file read as grey would give the brightness of its colours, which are ids of
    nothing.

    Raises:
        UnreadableImageError: the file is missing, damaged, in colour, or holds what is no id.
    """
    with reading(path), Image.open(path) as image:
        if image.mode not in ("P", "L"):
            raise UnreadableImageError(
                path, f"is an image of mode {image.mode}; a label file is palettised or grey"
            )
        ids = np.asarray(image)
    found = np.unique(ids)
    strangers = found[~IS_RAW_ID[found]]
    if len(strangers) > 0:
        raise UnreadableImageError(
            path,
            f"holds {strangers[0]}, which is no label id (0 to {MAX_RAW_ID}, 255); it may hold the "
            "brightness of colours in the place of ids: unpack the official labels",
        )
    labels: NDArray[np.uint8] = TRAIN_IDS[ids]
    return labels


def read_no_labels(path: Path) -> NDArray[np.uint8]:
    """A label map in which no pixel counts, of the size of the label file."""
    with reading(path), Image.open(path) as image:
        return np.full((image.height, image.width), IGNORED, dtype=np.uint8)


def _list_gta5(config: GTA5CityscapesConfig) -> dict[str, SplitFiles]:
    root = Path(config.gta5).expanduser()
    for folder in (root / "images", root / "labels"):
        if not folder.is_dir():
            raise UserError(
                f"data.gta5: the folder {folder} does not exist; give the folder that holds images "
                "and labels of GTA5"
            )
    train, val = (_read_split(root / "split.mat", name) for name in ("trainIds", "valIds"))
    if config.source_list == "full":
        train = sorted(set(range(1, NUM_GTA5 + 1)) - set(val))
    elif len(train) != NUM_GTA5_TRAIN:
        raise UserError(
            f"{root / 'split.mat'} lists {len(train)} training images, but GTA5 has "
            f"{NUM_GTA5_TRAIN}; download it again, or set data.source_list to full"
        )
    order = torch.randperm(
        len(val), generator=torch.Generator().manual_seed(sub_seed(config.seed, "gta5/val"))
    )
    chosen = sorted(val[place] for place in order[: config.num_source_val].tolist())
    return {
        "source_train": SplitFiles(_gta5_files(root, train)),
        "source_val": SplitFiles(_gta5_files(root, chosen)),
    }


def _read_split(path: Path, name: str) -> list[int]:
    """The image numbers of one part in GTA5's own list of parts, a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise UserError(
            f"data.gta5: {path} does not exist; it is in read_mapping.zip of GTA5's own page"
        )
    try:
        numbers = loadmat(path)[name]
    except (MatReadError, KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is not GTA5's list of parts ({name} cannot be read: {error}); it is in "
            "read_mapping.zip of GTA5's own page"
        ) from error
    return sorted(int(number) for number in np.asarray(numbers).ravel())


def _gta5_files(root: Path, numbers: Iterable[int]) -> FileList:
    names = [f"{number:05d}.png" for number in numbers if not _is_mismatched(root, number)]
    files = FileList(
        root,
        tuple(f"images/{name}" for name in names),
        tuple(f"labels/{name}" for name in names),
        read_raw_ids,
    )
    check_listed(root, (*files.images, *files.label_maps), root / "split.mat")
    return files


def _is_mismatched(root: Path, number: int) -> bool:
    """Whether an image is one of those whose label map has another size."""
    if number not in GTA5_SUSPECTS:
        return False
    paths = [root / folder / f"{number:05d}.png" for folder in ("images", "labels")]
    try:
        return _size(paths[0]) != _size(paths[1])
    except UnreadableImageError:
        return False  # told with all others that are missing or damaged


def _size(path: Path) -> tuple[int, int]:
    with reading(path), Image.open(path) as image:
        return image.size


def _list_cityscapes(config: GTA5CityscapesConfig, part: str) -> FileList:
    root = Path(config.cityscapes).expanduser()
    for folder, archive in (
        ("leftImg8bit", "leftImg8bit_trainvaltest.zip"),
        ("gtFine", "gtFine_trainvaltest.zip"),
    ):
        if not (root / folder / part).is_dir():
            raise UserError(
                f"data.cityscapes: the folder {root / folder / part} does not exist; unpack "
                f"{archive} of Cityscapes into {root}"
            )
    images = sorted(
        f"leftImg8bit/{part}/{city.name}/{entry}"
        for city in (root / "leftImg8bit" / part).iterdir()
        if city.is_dir()
        for entry in sorted(file.name for file in city.iterdir())
        if entry.endswith("_leftImg8bit.png")
    )
    if not images:
        raise UserError(f"data.cityscapes: {root / 'leftImg8bit' / part} holds no image")
    labels = tuple(
        image.replace("leftImg8bit/", "gtFine/", 1).replace(
            "_leftImg8bit.png", "_gtFine_labelIds.png"
        )
        for image in images
    )
    check_listed(root, labels, root / "leftImg8bit" / part)
    return FileList(root, tuple(images), labels, read_raw_ids)


def _part(files: FileList, places: list[int], read_labels: ReadLabels) -> FileList:
    return FileList(
        files.root,
        tuple(files.images[place] for place in places),
        tuple(files.label_maps[place] for place in places),
        read_labels,
    )


def _city(path: str) -> str:
    return path.split("/")[2]
