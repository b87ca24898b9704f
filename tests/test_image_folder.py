from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csg_ray.config.data import ImageFolderConfig
from csg_ray.data.file_splits import TaskFiles
from csg_ray.data.image_folder import list_image_folders
from csg_ray.data.load import load_splits
from csg_ray.data.splits import ClassSplit
from made_data import PACS_LIKE, make_image_folder, refusal

TARGET = {"dog": 10, "guitar": 8, "horse": 15}


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    make_image_folder(tmp_path / "cartoon", PACS_LIKE)
    make_image_folder(tmp_path / "photo", TARGET, seed=7000)
    return tmp_path


def _config(roots: Path, **settings: Any) -> ImageFolderConfig:
    defaults = {"source": str(roots / "cartoon"), "target": str(roots / "photo"), "cache": "off"}
    return ImageFolderConfig(**{**defaults, **settings})


def _fingerprints(task: TaskFiles) -> dict[str, str]:
    return {name: split.fingerprint(task.class_names) for name, split in task.splits.items()}


def _write_lists(roots: Path, **lists: list[str]) -> Path:
    folder = roots / "lists"
    folder.mkdir(exist_ok=True)
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def _lists(roots: Path) -> Path:
    return _write_lists(
        roots,
        source_train=["guitar/guitar_000.jpg", "dog/dog_001.png", "horse/horse_002.png"],
        source_val=["horse/horse_000.jpg"],
        target_val=["dog/dog_004.png", "dog/dog_002.png"],
        target_test=["horse/horse_000.jpg"],
    )


@pytest.mark.parametrize("train_share", [0.0, 0.2])
def test_splits_share_out_each_domain_by_class(roots: Path, train_share: float) -> None:
    task = list_image_folders(_config(roots, source_val_share=0.25, target_train_share=train_share))
    names = {"source_train", "source_val", "target_val", "target_test"}
    assert set(task.splits) == names | ({"target_train"} if train_share else set())
    assert task.class_names == ("dog", "guitar", "horse")
    for domain, folder in (("source", "cartoon"), ("target", "photo")):
        there = [
            path.relative_to(roots / folder).as_posix() for path in (roots / folder).rglob("*.*g")
        ]
        parts = [split for name, split in task.splits.items() if name.startswith(domain)]
        assert sorted(image for part in parts for image in part.files.images) == sorted(there)
        assert all(part.files.root == roots / folder for part in parts)
    of_class = {
        name: Counter(image.partition("/")[0] for image in split.files.images)
        for name, split in task.splits.items()
    }
    assert of_class["source_val"] == {"dog": 3, "guitar": 5, "horse": 2}
    assert of_class["target_val"] == {"dog": 5, "guitar": 4, "horse": 8}
    if train_share:
        assert of_class["target_train"] == {"dog": 2, "guitar": 2, "horse": 3}


def test_a_label_is_the_place_of_the_folders_name(roots: Path) -> None:
    task = list_image_folders(_config(roots, target_train_share=0.2))
    for name, split in task.splits.items():
        folders = [task.class_names[label] if label >= 0 else "?" for label in split.labels]
        expected = [image.partition("/")[0] for image in split.files.images]
        assert folders == (["?"] * len(expected) if name == "target_train" else expected)


def test_target_train_gives_no_label_away(roots: Path) -> None:
    splits = load_splits(_config(roots, target_train_share=0.4, seed=1))
    assert isinstance(splits.target_train, ClassSplit)
    assert set(splits.target_train.labels.tolist()) == {-1}
    assert splits.target_train.labelled_classes() == []


def test_the_seed_fixes_the_splits_and_another_gives_others(roots: Path) -> None:
    first, again, other = (list_image_folders(_config(roots, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert all(first.splits[name] != other.splits[name] for name in first.splits)


def test_fingerprints_follow_the_files_and_not_the_place_of_the_roots(roots: Path) -> None:
    before = _fingerprints(list_image_folders(_config(roots)))
    assert len(set(before.values())) == 4
    moved = roots / "else" / "where"
    for name in ("cartoon", "photo"):
        shutil.copytree(roots / name, moved / name)
    assert _fingerprints(list_image_folders(_config(moved))) == before
    image = list_image_folders(_config(moved)).splits["source_val"].files.images[0]
    with (moved / "cartoon" / image).open("ab") as file:
        file.write(b"\0")
    after = _fingerprints(list_image_folders(_config(moved)))
    assert {name for name in after if after[name] != before[name]} == {"source_val"}


def test_fingerprints_follow_a_label_and_a_class_name(roots: Path) -> None:
    split = list_image_folders(_config(roots)).splits["target_val"]
    names = ("dog", "guitar", "horse")
    prints = {
        split.fingerprint(names),
        split.fingerprint(("dog", "guitar", "house")),
        type(split)(split.files, (*split.labels[:-1], 0 if split.labels[-1] else 1)).fingerprint(
            names
        ),
    }
    assert len(prints) == 3


def test_lists_say_what_is_in_a_split_and_in_which_order(roots: Path) -> None:
    task = list_image_folders(_config(roots, lists=str(_lists(roots))))
    assert set(task.splits) == {"source_train", "source_val", "target_val", "target_test"}
    found = {name: (split.files.images, split.labels) for name, split in task.splits.items()}
    assert found == {
        "source_train": (
            ("guitar/guitar_000.jpg", "dog/dog_001.png", "horse/horse_002.png"),
            (1, 0, 2),
        ),
        "source_val": (("horse/horse_000.jpg",), (2,)),
        "target_val": (("dog/dog_004.png", "dog/dog_002.png"), (0, 0)),
        "target_test": (("horse/horse_000.jpg",), (2,)),
    }
    _write_lists(roots, target_train=["dog/dog_003.jpg"])
    extra = list_image_folders(_config(roots, lists=str(roots / "lists"))).splits["target_train"]
    assert (extra.files.images, extra.labels) == (("dog/dog_003.jpg",), (-1,))


def test_the_place_in_an_unlabelled_list_gives_no_class_away(roots: Path) -> None:
    lists = _lists(roots)
    by_class = list_image_folders(_config(roots)).splits["target_test"].files.images
    listed = sorted(set(by_class) - {"dog/dog_004.png", "dog/dog_002.png", "horse/horse_000.jpg"})
    (lists / "target_train.txt").write_text("\n".join(listed))
    taken = list_image_folders(_config(roots, lists=str(lists))).splits["target_train"]
    assert sorted(taken.files.images) == listed
    assert list(taken.files.images) != listed


def test_images_are_those_of_the_files(roots: Path) -> None:
    split = load_splits(_config(roots, lists=str(_lists(roots)), seed=2)).source_train
    assert isinstance(split, ClassSplit)
    for index, name in enumerate(("guitar/guitar_000.jpg", "dog/dog_001.png")):
        with Image.open(roots / "cartoon" / name) as image:
            assert split.image(index).tobytes() == image.convert("RGB").tobytes()
    assert split.labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"source": "gone"}, "data.source: the folder {roots}/gone does not exist"),
        ({"target": "gone"}, "data.target: the folder {roots}/gone does not exist"),
        ({"source": "empty"}, "data.source: {roots}/empty holds no folder"),
        ({"target": "fewer"}, "{roots}/fewer has no folder horse of {roots}/cartoon"),
        ({"source": "fewer"}, "{roots}/fewer has no folder horse of {roots}/photo"),
        ({"target": "hollow"}, "the class 'guitar' has no image in {roots}/hollow/guitar"),
        ({"source": "scarce"}, "the class 'horse' has 1 images in {roots}/scarce, too few"),
        ({"lists": "gone"}, "the list file {roots}/gone/source_train.txt does not exist"),
    ],
)
def test_bad_folders_are_one_sentence(roots: Path, settings: dict[str, str], sentence: str) -> None:
    (roots / "empty").mkdir()
    make_image_folder(roots / "fewer", {"dog": 9, "guitar": 9})
    make_image_folder(roots / "hollow", {"dog": 9, "guitar": 0, "horse": 9})
    (roots / "hollow" / "guitar").mkdir()
    make_image_folder(roots / "scarce", {"dog": 9, "guitar": 9, "horse": 1})
    config = _config(roots, **{name: str(roots / folder) for name, folder in settings.items()})
    assert sentence.format(roots=roots) in refusal(lambda: list_image_folders(config))


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        (
            {"source_val": ["dog/dog_999.png"]},
            "source_val.txt names files that do not exist, 1 in all, the first is "
            "{roots}/cartoon/dog/dog_999.png",
        ),
        ({"target_val": ["dog/dog_002.png"] * 2}, "target_val.txt names dog/dog_002.png twice"),
        ({"target_test": ["dog/dog_002.png"]}, "name dog/dog_002.png in two splits"),
        ({"source_val": ["readme.jpg"]}, "source_val.txt names readme.jpg, which is no image in a"),
        ({"source_val": []}, "source_val.txt is empty"),
        ({"target_train": ["dog/dog_002.png"]}, "name dog/dog_002.png in two splits"),
    ],
)
def test_bad_lists_are_one_sentence(
    roots: Path, lists: dict[str, list[str]], sentence: str
) -> None:
    (roots / "cartoon" / "readme.jpg").touch()
    folder = _lists(roots)
    _write_lists(roots, **lists)
    config = _config(roots, lists=str(folder))
    assert sentence.format(roots=roots) in refusal(lambda: list_image_folders(config))


def test_a_list_of_the_source_may_name_what_a_list_of_the_target_does(roots: Path) -> None:
    _lists(roots)
    _write_lists(roots, target_val=["dog/dog_001.png"])
    task = list_image_folders(_config(roots, lists=str(roots / "lists")))
    assert "dog/dog_001.png" in task.splits["source_train"].files.images
