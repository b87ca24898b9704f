"""What `check` finds in a task's files before they are decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csg_ray.config.data import GTA5CityscapesConfig, ImageFolderConfig
from csg_ray.data.checking import cache_need, check_files
from csg_ray.data.file_splits import decode
from csg_ray.data.load import list_files
from made_data import (
    PACS_LIKE,
    SCENE_SIZE,
    make_cityscapes,
    make_gta5,
    make_image_folder,
    random_ids,
    refusal,
    save_image,
    save_palettised,
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_gta5(tmp_path / "gta5", monkeypatch)
    make_cityscapes(tmp_path / "cityscapes")
    return tmp_path


def _config(root: Path, **settings: Any) -> GTA5CityscapesConfig:
    folders = {"gta5": str(root / "gta5"), "cityscapes": str(root / "cityscapes")}
    defaults = {**folders, "cache": str(root / "cache"), "image_size": 16, "min_scale": 1.0}
    return GTA5CityscapesConfig(**{**defaults, **settings})


def _check(config: GTA5CityscapesConfig) -> None:
    check_files(list_files(config), config)


def test_good_files_pass_and_nothing_is_decoded(root: Path) -> None:
    _check(_config(root))
    _check(_config(root, cache="off", protocol="published"))
    assert not (root / "cache").exists()


@pytest.mark.parametrize(
    "label_map",
    [
        "gta5/labels/00003.png",
        "cityscapes/gtFine/train/zurich/zurich_000001_000019_gtFine_labelIds.png",
        "cityscapes/gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png",
    ],
)
def test_a_label_map_of_another_size_is_named_with_its_image(root: Path, label_map: str) -> None:
    save_palettised(root / label_map, random_ids(3, (20, 16)))
    said = refusal(lambda: _check(_config(root)))
    assert f"{root / label_map} has 20x16" in said
    assert "has 24x16 pixels, but its label map" in said


def test_brightness_in_the_place_of_ids_is_named(root: Path) -> None:
    for folder in ("images", "labels"):
        assert (root / "gta5" / folder / "00001.png").is_file()
    path = root / "gta5/labels/00001.png"
    with Image.open(path) as image:
        grey = image.convert("L")
    grey.save(path)
    said = refusal(lambda: _check(_config(root)))
    assert said.startswith(f"{path}: holds ")


def test_a_crop_larger_than_an_image_is_named(root: Path) -> None:
    small = root / "gta5/images/00005.png"
    save_image(small, 5, 24, 15)
    save_palettised(root / "gta5/labels/00005.png", random_ids(5, (24, 15)))
    said = refusal(lambda: _check(_config(root)))
    assert said.startswith(f"data.image_size is 16, but {small} has 24x15 pixels, 15 on the")
    # Images that are measured are not cut.
    _check(_config(root, image_size=16, min_scale=1.1, max_scale=1.2))


def test_only_the_images_that_are_cut_must_cover_the_crop(root: Path) -> None:
    val = root / "cityscapes/leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png"
    save_image(val, 5, 10, 9)
    save_palettised(
        Path(
            str(val)
            .replace("leftImg8bit", "gtFine", 1)
            .replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        ),
        random_ids(5, (10, 9)),
    )
    _check(_config(root))


def test_the_crop_must_fit_into_the_images_as_the_cache_limits_them(root: Path) -> None:
    _check(_config(root, max_side=16))
    said = refusal(lambda: _check(_config(root, max_side=12)))
    assert "data.image_size is 16" in said
    assert "18x12 pixels" in said


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_damaged_image_is_left_to_the_cache_which_leaves_it_out(
    root: Path, content: bytes
) -> None:
    path = root / "gta5/images/00003.png"
    path.write_bytes(content)
    _check(_config(root, max_unreadable=0.2))
    assert refusal(lambda: _check(_config(root, cache="off"))).startswith(f"{path}: ")


@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_damaged_label_map_is_named(root: Path, cache: str) -> None:
    path = root / "gta5/labels/00003.png"
    path.write_bytes(b"no image")
    settings = {"cache": "off"} if cache == "off" else {"max_unreadable": 0.2}
    said = refusal(lambda: _check(_config(root, **settings)))
    assert said.startswith(f"{path}: is no image")


def test_what_the_cache_takes_is_told_and_what_is_there_is_not_counted(root: Path) -> None:
    config = _config(root)
    task = list_files(config)
    width, height = SCENE_SIZE
    need = cache_need(task, config)
    assert need is not None
    # 8 + 5 of GTA5, 5 + 3 + 3 of Cityscapes, three colours and a label a pixel.
    assert (need.folder, need.needed, need.packed) == (root / "cache", 24 * 4 * width * height, ())
    decode(task.splits["source_train"], config)
    later = cache_need(task, config)
    assert later is not None
    assert later.needed == 16 * 4 * width * height
    assert later.packed == ("source_train",)
    assert cache_need(task, _config(root, cache="off")) is None


def test_a_disk_without_the_room_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    config = _config(root)
    said = refusal(lambda: cache_need(list_files(config), config))
    assert "data.cache" in said
    assert str(root / "cache") in said


def test_the_cache_of_images_is_three_bytes_a_pixel(tmp_path: Path) -> None:
    roots = [make_image_folder(tmp_path / name, PACS_LIKE) for name in ("a", "b")]
    config = ImageFolderConfig(
        source=str(roots[0]), target=str(roots[1]), cache=str(tmp_path / "c")
    )
    task = list_files(config)
    check_files(task, config)
    need = cache_need(task, config)
    assert need is not None
    sizes = []
    for root in roots:
        for path in root.rglob("*_*"):
            with Image.open(path) as image:
                sizes.append(image.width * image.height)
    # Of each split it is the whole number of bytes below the mean times its length.
    assert abs(need.needed - 3 * sum(sizes)) < 10
