from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from csg_ray.data.class_folders import LabelledFiles, list_folders, list_images, split_by_share
from made_data import make_image_folder, refusal


def _files(*counts: int) -> LabelledFiles:
    """Images that do not exist, so many of each class."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    images = tuple(f"{label}/{place}.png" for place, label in enumerate(labels))
    return LabelledFiles(Path("root"), images, tuple(labels))


def test_folders_are_sorted_and_hidden_ones_and_files_are_none(tmp_path: Path) -> None:
    for name in ("zebra", "Ape", "cat", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "readme.txt").touch()
    assert list_folders(tmp_path, "data.source") == ["Ape", "cat", "zebra"]


def test_a_missing_and_an_empty_root_name_the_setting(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    said = refusal(lambda: list_folders(gone, "data.target"))
    assert said.startswith(f"data.target: the folder {gone} does not exist")
    (tmp_path / "file.txt").touch()
    said = refusal(lambda: list_folders(tmp_path, "data.source"))
    assert said.startswith(f"data.source: {tmp_path} holds no folder")


def test_images_of_every_ending_and_depth_are_found_in_order(tmp_path: Path) -> None:
    names = ["b/2.PNG", "b/1.jpeg", "b/deep/er/0.webp", "a/x.bmp", "a/notes.txt", "c/1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list_images(tmp_path, ("a", "b"))
    assert found.images == ("a/x.bmp", "b/1.jpeg", "b/2.PNG", "b/deep/er/0.webp")
    assert found.labels == (0, 1, 1, 1)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    make_image_folder(tmp_path, {"dog": 3})
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").touch()
    said = refusal(lambda: list_images(tmp_path, ("cat", "dog")))
    assert said.startswith(f"the class 'cat' has no image in {tmp_path / 'cat'}")


@pytest.mark.parametrize("shares", [{"val": 0.5}, {"val": 0.3, "extra": 0.1}])
def test_parts_are_disjoint_whole_and_as_large_as_asked_in_every_class(
    shares: dict[str, float],
) -> None:
    counts = (40, 41, 100, 7)
    files = _files(*counts)
    parts = split_by_share(files, tuple("abcd"), shares, "test", 0)
    assert list(parts) == [*shares, "test"]
    everything = [image for part in parts.values() for image in part.files.images]
    assert sorted(everything) == sorted(files.images)
    label_of = dict(zip(files.images, files.labels, strict=True))
    for part in parts.values():
        assert list(part.labels) == [label_of[image] for image in part.files.images]
    for name, share in shares.items():
        per_class = Counter(parts[name].labels)
        assert all(
            abs(per_class[label] - share * count) <= 0.5 for label, count in enumerate(counts)
        )


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"val": 0.01, "extra": 0.01}, {"val": 1, "extra": 1, "test": 1}),
        ({"val": 0.98, "extra": 0.01}, {"val": 1, "extra": 1, "test": 1}),
        ({"val": 0.01, "extra": 0.98}, {"val": 1, "extra": 1, "test": 1}),
    ],
)
def test_every_part_gets_an_image_of_every_class(
    shares: dict[str, float], expected: dict[str, int]
) -> None:
    parts = split_by_share(_files(3, 3), ("a", "b"), shares, "test", 0)
    assert {name: part.labels.count(0) for name, part in parts.items()} == expected
    assert {name: part.labels.count(1) for name, part in parts.items()} == expected


def test_a_class_with_fewer_images_than_parts_is_named() -> None:
    said = refusal(
        lambda: split_by_share(_files(5, 2), ("a", "b"), {"val": 0.5, "extra": 0.1}, "test", 0)
    )
    assert said.startswith("the class 'b' has 2 images in root, too few for val, extra, test")


def test_the_seed_fixes_the_parts_and_another_gives_others() -> None:
    def images(seed: int) -> dict[str, tuple[str, ...]]:
        parts = split_by_share(_files(30, 30), ("a", "b"), {"val": 0.5}, "test", seed)
        return {name: part.files.images for name, part in parts.items()}

    assert images(3) == images(3)
    overlap = len(set(images(3)["val"]) & set(images(4)["val"]))
    # 15 of 30 expected; 30 if the seed did not matter.
    assert overlap < 24


def test_a_class_is_parted_alike_whatever_other_classes_there_are() -> None:
    few, many = (
        split_by_share(files, names, {"val": 0.5}, "test", 0)["val"].files.images
        for files, names in ((_files(20), ("a",)), (_files(20, 30), ("a", "b")))
    )
    assert set(few) == {image for image in many if image.startswith("0/")}


def test_the_place_says_nothing_of_the_class() -> None:
    parts = split_by_share(_files(*[40] * 10), tuple("abcdefghij"), {"val": 0.5}, "test", 0)
    for part in parts.values():
        same = sum(a == b for a, b in zip(part.labels, part.labels[1:], strict=False))
        # One in ten by chance; nearly all if the classes stood in a row.
        assert same / len(part) < 0.25
