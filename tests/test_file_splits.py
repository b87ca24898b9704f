"""Splits of files, with the cache and without: the same images, labels and order."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from csg_ray.config.data import FilesConfig, GTA5CityscapesConfig, ImageFolderConfig
from csg_ray.config.run import ModelConfig, RunConfig, TrainConfig
from csg_ray.data.epoch import train_batches
from csg_ray.data.file_splits import cache_folder, open_splits
from csg_ray.data.files import UnreadableImageError, read_image
from csg_ray.data.load import list_files, load_splits
from csg_ray.data.splits import ClassSplit, DomainSplits, SceneSplit, Split
from made_data import (
    PACS_LIKE,
    make_cityscapes,
    make_gta5,
    make_image_folder,
    random_ids,
    random_image,
    refusal,
    save_palettised,
)

Make = Callable[..., ImageFolderConfig | GTA5CityscapesConfig]


def _open(config: FilesConfig) -> DomainSplits:
    """As `load_splits`, which would remember what the files were before a test changed them."""
    return open_splits(list_files(config), config)


@pytest.fixture
def folders(tmp_path: Path) -> Make:
    make_image_folder(tmp_path / "source", PACS_LIKE)
    make_image_folder(tmp_path / "target", PACS_LIKE, seed=5000)

    def config(**settings: Any) -> ImageFolderConfig:
        roots = {"source": str(tmp_path / "source"), "target": str(tmp_path / "target")}
        defaults = {**roots, "cache": str(tmp_path / "cache"), "target_train_share": 0.2}
        return ImageFolderConfig(**{**defaults, **settings})

    return config


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    make_gta5(tmp_path / "gta5", monkeypatch)
    make_cityscapes(tmp_path / "cityscapes")

    def config(**settings: Any) -> GTA5CityscapesConfig:
        roots = {"gta5": str(tmp_path / "gta5"), "cityscapes": str(tmp_path / "cityscapes")}
        defaults = {**roots, "cache": str(tmp_path / "cache"), "image_size": 16, "min_scale": 1.0}
        return GTA5CityscapesConfig(**{**defaults, **settings})

    return config


def _splits_of(splits: DomainSplits, ledger: Path) -> list[Split]:
    assert splits.source_val is not None
    assert splits.target_train is not None
    assert splits.target_test is not None
    test, _ = splits.target_test.open(ledger, "test")
    return [splits.source_train, splits.source_val, splits.target_train, splits.target_val, test]


def _assert_equal(one: Split, other: Split) -> None:
    assert (one.name, one.class_names) == (other.name, other.class_names)
    assert one.fingerprint == other.fingerprint
    assert len(one) == len(other)
    assert one.labelled_classes() == other.labelled_classes()
    for index in range(len(one)):
        left, right = one.image(index), other.image(index)
        assert (left.mode, left.size, left.tobytes()) == ("RGB", right.size, right.tobytes())
        if isinstance(one, SceneSplit):
            assert isinstance(other, SceneSplit)
            assert one.label_map(index).tolist() == other.label_map(index).tolist()
    if isinstance(one, ClassSplit):
        assert isinstance(other, ClassSplit)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("task", ["folders", "scenes"])
def test_the_cache_changes_nothing(
    task: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    make: Make = request.getfixturevalue(task)
    cached, plain = _open(make()), _open(make(cache="off"))
    assert cached.fingerprint == plain.fingerprint
    ledger = tmp_path / "ledger.jsonl"
    pairs = zip(_splits_of(cached, ledger), _splits_of(plain, ledger), strict=True)
    for one, other in pairs:
        _assert_equal(one, other)
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 5


def test_the_sealed_split_is_decoded_when_it_is_opened(folders: Make, tmp_path: Path) -> None:
    splits = _open(folders())
    cache = tmp_path / "cache"
    assert len(list(cache.glob("*.arrow"))) == 4
    assert splits.target_test is not None
    splits.target_test.open(tmp_path / "ledger.jsonl", "test")
    assert len(list(cache.glob("*.arrow"))) == 5


def test_classes_and_scenes_are_told_apart(folders: Make, scenes: Make) -> None:
    images, maps = _open(folders(cache="off")).target_val, _open(scenes(cache="off")).target_val
    assert isinstance(images, ClassSplit)
    assert not isinstance(images, SceneSplit)
    assert isinstance(maps, SceneSplit)
    assert not isinstance(maps, ClassSplit)


def _damage(config: FilesConfig, split: str, position: int) -> Path:
    """Cut one image of a split off in its middle."""
    files = list_files(config).splits[split].files
    path = files.root / files.images[position]
    path.write_bytes(path.read_bytes()[:60])
    return path


def test_a_damaged_image_is_left_out_with_its_label(folders: Make) -> None:
    before = _open(folders(cache="off")).source_train
    _damage(folders(), "source_train", 4)
    config = folders(max_unreadable=0.1)
    after = _open(config).source_train
    assert isinstance(before, ClassSplit)
    assert isinstance(after, ClassSplit)
    kept = [index for index in range(len(before)) if index != 4]
    assert len(after) == len(kept)
    assert after.labels.tolist() == before.labels[kept].tolist()
    for place, index in enumerate(kept):
        assert after.image(place).tobytes() == before.image(index).tobytes()
    # Both see the same files, whatever can be read of them.
    assert after.fingerprint == _open(folders(cache="off")).source_train.fingerprint
    assert "max_unreadable" in refusal(lambda: _open(folders(max_unreadable=0.0)))


def test_a_damaged_scene_is_left_out_with_its_label_map(scenes: Make) -> None:
    _damage(scenes(), "source_train", 2)
    split = _open(scenes(max_unreadable=0.2)).source_train
    assert isinstance(split, SceneSplit)
    assert len(split) == 7
    plain = _open(scenes(cache="off")).source_train
    assert isinstance(plain, SceneSplit)
    for place, index in enumerate((0, 1, 3, 4, 5, 6, 7)):
        assert split.label_map(place).tolist() == plain.label_map(index).tolist()
        assert split.image(place).tobytes() == plain.image(index).tobytes()


def test_without_the_cache_a_damaged_image_is_named_when_it_is_read(folders: Make) -> None:
    path = _damage(folders(), "source_train", 4)
    split = _open(folders(cache="off")).source_train
    split.image(3)
    said = refusal(lambda: split.image(4))
    assert said.startswith(f"{path}: is damaged (")
    path.unlink()
    assert refusal(lambda: split.image(4)).startswith(f"{path}: does not exist; repair")
    path.write_text("no image")
    assert refusal(lambda: split.image(4)).startswith(f"{path}: is no image; repair")


@pytest.mark.parametrize("cache", [True, False])
def test_luminance_in_the_place_of_ids_is_refused_by_name(
    scenes: Make, cache: bool, tmp_path: Path
) -> None:
    config = scenes() if cache else scenes(cache="off")
    path = tmp_path / "gta5" / "labels" / "00003.png"
    with Image.open(path) as image:
        grey = image.convert("L")
    grey.save(path)

    def read() -> object:
        split = _open(config).source_train
        assert isinstance(split, SceneSplit)
        return [split.label_map(index) for index in range(len(split))]

    said = refusal(read)
    assert str(path) in said
    assert "which is no label id" in said


def test_a_label_map_of_another_size_is_refused_when_packing(scenes: Make, tmp_path: Path) -> None:
    path = tmp_path / "gta5" / "labels" / "00003.png"
    save_palettised(path, random_ids(3, (20, 16)))
    said = refusal(lambda: _open(scenes()))
    assert f"{path} has 20 x 16 pixels" in said
    assert "00003.png has 24 x 16" in said


def test_a_label_map_of_another_size_is_refused_while_training_without_the_cache(
    scenes: Make, tmp_path: Path
) -> None:
    path = tmp_path / "gta5" / "labels" / "00003.png"
    save_palettised(path, random_ids(3, (30, 20)))
    config = RunConfig(
        data=scenes(cache="off"), model=ModelConfig(head="fcn"), train=TrainConfig(batch_size=4)
    )
    split = _open(scenes(cache="off")).source_train
    said = refusal(lambda: list(train_batches(split, config, 2, 0)))
    assert said == (
        "image 2 of source_train has 24x16 pixels, but its label map has 30x20; give each image "
        "its own label map"
    )


def test_images_are_limited_in_the_cache_alone(folders: Make, scenes: Make) -> None:
    small, whole = _open(folders(max_side=8)).target_val, _open(folders()).target_val
    for index in range(len(small)):
        assert min(small.image(index).size) == 8
        assert min(whole.image(index).size) == 9
    maps = _open(scenes(max_side=8)).target_val
    assert isinstance(maps, SceneSplit)
    assert maps.label_map(0).shape == (8, 12)


@pytest.mark.parametrize("cache", [True, False])
def test_splits_go_to_loader_processes(scenes: Make, folders: Make, cache: bool) -> None:
    for make in (scenes, folders):
        split = _open(make() if cache else make(cache="off")).source_train
        split.image(0)
        _assert_equal(pickle.loads(pickle.dumps(split)), split)


def test_splits_are_loaded_once_for_the_same_settings(folders: Make) -> None:
    first = load_splits(folders(cache="off"))
    assert load_splits(folders(cache="off")) is first
    others = [load_splits(folders(cache="off", seed=seed)) for seed in range(1, 5)]
    assert len({id(splits) for splits in [first, *others]}) == 5
    # Four are remembered; the first had to go.
    assert load_splits(folders(cache="off", seed=4)) is others[3]
    assert load_splits(folders(cache="off")) is not first


def test_where_the_cache_is(folders: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CSG_RAY_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(folders(cache="off")) is None
    assert cache_folder(folders(cache="auto")) == tmp_path / ".cache" / "csg_ray"
    assert cache_folder(folders(cache="~/mine")) == tmp_path / "mine"
    monkeypatch.setenv("CSG_RAY_CACHE", "~/set")
    assert cache_folder(folders(cache="auto")) == tmp_path / "set"
    assert cache_folder(folders(cache="~/mine")) == tmp_path / "mine"


def test_what_a_file_may_be(tmp_path: Path) -> None:
    image = random_image(0, 30, 20)
    for name in ("a.png", "a.webp", "a.bmp"):
        image.save(tmp_path / name, lossless=True)
        assert read_image(tmp_path / name).tobytes() == image.tobytes()
    grey = image.convert("L")
    grey.save(tmp_path / "grey.png")
    found = np.asarray(read_image(tmp_path / "grey.png"))
    assert (found == np.asarray(grey)[..., None]).all()


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a\x01\0\x01\0"])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_what_is_no_image_says_so_with_its_path(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: is ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp"])
def test_an_image_that_ends_anywhere_is_unreadable(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"image.{ending}"
    random_image(0, 40, 30).save(path)
    whole = path.read_bytes()
    for size in range(1, len(whole) - 16, 97):
        path.write_bytes(whole[:size])
        with pytest.raises(UnreadableImageError):
            read_image(path)


def test_a_folder_in_the_place_of_an_image(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="is damaged"):
        read_image(tmp_path)
