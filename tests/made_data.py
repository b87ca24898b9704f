"""The data sets of the paper, made small in their own layouts, on pixels that are random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from csg_ray.config.errors import UserError
from csg_ray.data import gta5_cityscapes, visda17

PACS_LIKE = {"dog": 12, "guitar": 20, "horse": 9}
SCENE_SIZE = (24, 16)  # (width, height)
RAW_IDS = (*range(35), 255)
# Raw id -> colour, of the ids that are classes; all others get a grey of their own.
PALETTE = {
    7: (128, 64, 128),
    8: (244, 35, 232),
    11: (70, 70, 70),
    12: (102, 102, 156),
    13: (190, 153, 153),
    17: (153, 153, 153),
    19: (250, 170, 30),
    20: (220, 220, 0),
    21: (107, 142, 35),
    22: (152, 251, 152),
    23: (70, 130, 180),
    24: (220, 20, 60),
    25: (255, 0, 0),
    26: (0, 0, 142),
    27: (0, 0, 70),
    28: (0, 60, 100),
    31: (0, 80, 100),
    32: (0, 0, 230),
    33: (119, 11, 32),
}
CITIES = {
    "train": {"aachen": 3, "bochum": 2, "ulm": 1, "zurich": 2},
    "val": {"frankfurt": 2, "lindau": 1},
}


def refusal(call: Callable[[], object]) -> str:
    """The sentence that `call` is refused with."""
    with pytest.raises(UserError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def random_image(seed: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save_image(path: Path, seed: int, width: int = 12, height: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random_image(seed, width, height).save(path)


def make_image_folder(root: Path, counts: Mapping[str, int], seed: int = 0) -> Path:
    """A folder for each class with so many images; every third is a JPEG."""
    for place, (name, count) in enumerate(counts.items()):
        for number in range(count):
            ending = "jpg" if number % 3 == 0 else "png"
            path = root / name / f"{name}_{number:03d}.{ending}"
            save_image(path, seed + 1000 * place + number, 10 + number % 4, 9)
    return root


def make_visda17(root: Path, monkeypatch: pytest.MonkeyPatch, per_class: int = 5) -> Path:
    """Train and validation with so many images of every class, and with their lists."""
    counts = {"train": per_class, "validation": per_class + 1}
    for domain, count in counts.items():
        lines: list[str] = []
        for label, name in enumerate(visda17.CLASS_NAMES):
            for number in range(count):
                image = f"{name}/{domain}_{number:04d}.png"
                save_image(root / domain / image, len(lines))
                lines.append(f"{image} {label}")
        (root / domain / "image_list.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(
        visda17, "NUM_IMAGES", {domain: 12 * count for domain, count in counts.items()}
    )
    return root


def random_ids(seed: int, size: tuple[int, int] = SCENE_SIZE) -> NDArray[np.uint8]:
    """Raw label ids (H, W), of every kind that the data sets have."""
    width, height = size
    picked = np.random.default_rng(seed).choice(RAW_IDS, (height, width))
    return picked.astype(np.uint8)


def save_palettised(path: Path, ids: NDArray[np.uint8]) -> None:
    """As GTA5 comes: the ids are the places of colours in a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = [PALETTE.get(raw, (raw, raw, raw)) for raw in range(256)]
    image = Image.fromarray(ids)
    image.putpalette([level for colour in colours for level in colour])
    assert image.mode == "P"
    image.save(path)


def make_gta5(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: Sequence[int] = range(1, 9),
    val: Sequence[int] = range(9, 14),
    test: Sequence[int] = range(14, 17),
    num_all: int = 16,
) -> Path:
    """GTA5 of `num_all` images, number n with the label ids `random_ids(n)`."""
    for number in {*range(1, num_all + 1), *train, *val}:
        save_image(root / "images" / f"{number:05d}.png", number, *SCENE_SIZE)
        save_palettised(root / "labels" / f"{number:05d}.png", random_ids(number))
    parts = {"trainIds": train, "valIds": val, "testIds": test}
    savemat(root / "split.mat", {name: np.array([[n] for n in ids]) for name, ids in parts.items()})
    monkeypatch.setattr(gta5_cityscapes, "NUM_GTA5", num_all)
    monkeypatch.setattr(gta5_cityscapes, "NUM_GTA5_TRAIN", len(train))
    return root


def make_cityscapes(root: Path) -> Path:
    """Cityscapes with the cities of `CITIES`, labels grey as they come there."""
    seed = 500
    for part, cities in CITIES.items():
        for city, count in cities.items():
            for number in range(count):
                seed += 1
                stem = f"{part}/{city}/{city}_{number:06d}_000019"
                save_image(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", seed, *SCENE_SIZE)
                labels = root / "gtFine" / f"{stem}_gtFine_labelIds.png"
                labels.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random_ids(seed)).save(labels)
    return root
