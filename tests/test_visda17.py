from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from csg_ray.config.data import NO_SEALED_SPLIT, VisDA17Config
from csg_ray.data.load import load_splits
from csg_ray.data.splits import ClassSplit
from csg_ray.data.visda17 import NUM_IMAGES, list_visda17
from made_data import make_visda17, refusal

OFFICIAL_ORDER = "aeroplane bicycle bus car horse knife motorcycle person plant skateboard train"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_visda17(tmp_path, monkeypatch)


def _config(root: Path, **settings: Any) -> VisDA17Config:
    return VisDA17Config(**{"root": str(root), "cache": "off", **settings})


def _edit(root: Path, old: str, new: str, domain: str = "train") -> Path:
    path = root / domain / "image_list.txt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_sizes_are_those_of_the_data_set() -> None:
    assert NUM_IMAGES == {"train": 152_397, "validation": 55_388}


def test_classes_are_in_the_official_order_and_labels_those_of_the_list(root: Path) -> None:
    task = list_visda17(_config(root))
    assert task.class_names == (*OFFICIAL_ORDER.split(), "truck")
    assert set(task.splits) == {"source_train", "source_val", "target_val", "target_test"}
    for name, split in task.splits.items():
        domain = {"source": "train", "target": "validation"}[name.partition("_")[0]]
        assert split.files.root == root / domain
        lines = (root / domain / "image_list.txt").read_text().splitlines()
        listed = dict(line.split(" ") for line in lines)
        assert [listed[image] for image in split.files.images] == [str(n) for n in split.labels]


def test_the_sealed_protocol_splits_both_domains(root: Path) -> None:
    task = list_visda17(_config(root, source_val_share=0.2, target_val_share=0.5))
    sizes = {name: len(split) for name, split in task.splits.items()}
    assert sizes == {"source_train": 48, "source_val": 12, "target_val": 36, "target_test": 36}
    images = [image for split in task.splits.values() for image in split.files.images]
    assert len(images) == len(set(images)) == 60 + 72
    assert _config(root).notes == ()
    assert load_splits(_config(root, seed=3)).target_test is not None


def test_the_published_protocol_has_the_whole_validation_set_and_nothing_sealed(root: Path) -> None:
    config = _config(root, protocol="published")
    task = list_visda17(config)
    assert set(task.splits) == {"source_train", "target_val"}
    for name, domain in (("source_train", "train"), ("target_val", "validation")):
        lines = (root / domain / "image_list.txt").read_text().splitlines()
        split = task.splits[name]
        assert lines == [
            f"{image} {label}"
            for image, label in zip(split.files.images, split.labels, strict=True)
        ]
    splits = load_splits(config)
    assert splits.source_val is None
    assert splits.target_train is None
    assert splits.target_test is None
    assert [split.name for split in splits.measured] == ["target_val"]
    assert isinstance(splits.target_val, ClassSplit)
    assert len(splits.target_val) == 72
    assert config.notes == (NO_SEALED_SPLIT,)
    assert len(_config(root, protocol="published", cache="x", max_side=64).notes) == 2


def test_the_seed_fixes_the_splits(root: Path) -> None:
    first, again, other = (list_visda17(_config(root, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first.splits["target_test"] != other.splits["target_test"]


@pytest.mark.parametrize("domain", ["train", "validation"])
def test_a_missing_folder_or_list_is_named(root: Path, domain: str) -> None:
    path = root / domain / "image_list.txt"
    path.unlink()
    assert f"the list file {path} does not exist" in refusal(lambda: list_visda17(_config(root)))
    (root / domain).rename(root / "elsewhere")
    said = refusal(lambda: list_visda17(_config(root)))
    assert said.startswith(f"data.root: {root / domain} does not exist")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("bus/train_0001.png 2\n", "", "lists 59 images, but train of VisDA-17 has 60"),
        ("bus/train_0001.png 2", "bus/train_0009.png 2", "{root}/train/bus/train_0009.png"),
        ("bus/train_0001.png 2", "bus/train_0000.png 2", "names bus/train_0000.png twice"),
        ("bus/train_0001.png 2", "bus/train_0001.png", "entry 12: 'bus/train_0001.png' must be"),
        ("bus/train_0001.png 2", "bus/train_0001.png 12", "a class number from 0 to 11"),
        (
            "bus/train_0001.png 2",
            "bus/train_0001.png 3",
            "gives bus/train_0001.png the class 3, which is car in VisDA-17",
        ),
    ],
)
def test_a_wrong_list_is_one_sentence(root: Path, old: str, new: str, sentence: str) -> None:
    path = _edit(root, old, new)
    said = refusal(lambda: list_visda17(_config(root)))
    assert said.startswith(str(path))
    assert sentence.format(root=root) in said


def test_a_class_without_images_is_named(root: Path) -> None:
    # As many lines as there should be, all of them of other classes.
    for number in range(5):
        (root / "train/bus" / f"new_{number}.png").touch()
        _edit(root, f"plant/train_{number:04d}.png 8", f"bus/new_{number}.png 2")
    assert "the class 'plant' has 0 images" in refusal(lambda: list_visda17(_config(root)))
