from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from csg_ray.config.data import DigitScenesConfig
from csg_ray.data.digits import scenes
from csg_ray.data.digits.scenes import INK_THRESHOLD, MIN_SIDE, load_digit_scenes
from csg_ray.data.digits.task import handwritten_images
from csg_ray.data.load import load_splits
from csg_ray.data.splits import ArraySceneSplit, DomainSplits, Split

SMALL = DigitScenesConfig(num_train=60, num_val=40)
NAMES = ("source_train", "source_val", "target_train", "target_val", "target_test")


def _splits(splits: DomainSplits, ledger: Path) -> dict[str, ArraySceneSplit]:
    assert splits.target_test is not None
    test, _ = splits.target_test.open(ledger, "test")
    found: list[Split | None] = [
        splits.source_train,
        splits.source_val,
        splits.target_train,
        splits.target_val,
        test,
    ]
    named = {}
    for name, split in zip(NAMES, found, strict=True):
        assert isinstance(split, ArraySceneSplit)
        assert split.name == name
        named[name] = split
    return named


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ArraySceneSplit]:
    return _splits(load_splits(SMALL), tmp_path_factory.mktemp("ledger") / "ledger.jsonl")


def test_sizes_and_classes(made: dict[str, ArraySceneSplit]) -> None:
    sizes = {name: split.images.shape for name, split in made.items()}
    assert sizes == {name: (60 if name == "source_train" else 40, 64, 64) for name in NAMES}
    for split in made.values():
        assert split.class_names == ("background", *"0123456789")
        assert split.label_maps.shape == split.images.shape
    for name in ("source_train", "source_val", "target_val", "target_test"):
        assert made[name].labelled_classes() == list(range(11))


def test_a_digit_is_labelled_where_its_ink_is(made: dict[str, ArraySceneSplit]) -> None:
    for name in ("source_train", "source_val", "target_val", "target_test"):
        split = made[name]
        np.testing.assert_array_equal(split.label_maps > 0, split.images >= INK_THRESHOLD)


def test_a_cell_holds_one_digit_or_none(made: dict[str, ArraySceneSplit]) -> None:
    filled = 0
    for name in ("source_train", "target_test"):
        for label_map, image in zip(made[name].label_maps, made[name].images, strict=True):
            cells = [
                (rows, columns)
                for rows in (slice(32), slice(32, 64))
                for columns in (slice(32), slice(32, 64))
            ]
            digits = [set(np.unique(label_map[cell])) - {0} for cell in cells]
            assert all(len(each) <= 1 for each in digits)
            assert any(digits)
            filled += sum(map(len, digits))
            for cell in cells:
                rows, columns = (np.flatnonzero(image[cell].any(axis=axis)) for axis in (1, 0))
                if len(rows):
                    assert max(np.ptp(rows), np.ptp(columns)) < 32
    # A cell is filled with chance 0.75, one of the four in any case: 3.25 / 4.
    assert abs(filled / (4 * 100) - 0.8125) < 0.08


@pytest.mark.parametrize("name", ["target_val", "target_test"])
def test_targets_hold_digits_of_their_own_pool_alone(
    name: str, made: dict[str, ArraySceneSplit]
) -> None:
    pools = {each: handwritten_images(each, SMALL.seed) for each in NAMES[2:]}
    # Every size that a digit may have, of every digit of every target pool.
    held: dict[bytes, set[tuple[str, int]]] = {}
    for pool, (images, digits) in pools.items():
        for image, digit in zip(images, digits.tolist(), strict=True):
            held.setdefault(_trimmed(image), set()).add((pool, digit))
    found = 0
    split = made[name]
    for image, label_map in zip(split.images, split.label_maps, strict=True):
        for rows in (slice(32), slice(32, 64)):
            for columns in (slice(32), slice(32, 64)):
                # Only a digit of full size is there pixel for pixel.
                owners = held.get(_trimmed(image[rows, columns]))
                if not image[rows, columns].any() or owners is None:
                    continue
                found += 1
                digit = int(label_map[rows, columns].max()) - 1
                assert {(pool, held_digit) for pool, held_digit in owners} == {(name, digit)}
    # One in 13 sizes is the full one, of 40 scenes with 3.25 digits.
    assert found >= 3


def _trimmed(image: NDArray[np.uint8]) -> bytes:
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return b""
    part = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return bytes(part.shape) + part.tobytes()


def test_digits_of_every_size_are_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []
    resize = Image.Image.resize

    def noted(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
        sides.append(size[0])
        return resize(image, size, resample)

    pool = np.full((3, 32, 32), 255, np.uint8)
    monkeypatch.setattr(Image.Image, "resize", noted)
    split = scenes._compose("x", pool, np.array([4, 4, 4]), 0, 100)
    assert set(sides) == set(range(MIN_SIDE, 33))
    # Full squares: as many pixels are inked as the digits have, and none is cut off.
    assert int((split.label_maps == 5).sum()) == sum(side**2 for side in sides)


def test_target_train_gives_no_label_away(made: dict[str, ArraySceneSplit]) -> None:
    assert (made["target_train"].label_maps == 255).all()
    assert made["target_train"].labelled_classes() == []
    assert (made["target_train"].images > 0).any(axis=(1, 2)).all()


def test_scenes_repeat_and_another_seed_or_split_has_others(
    made: dict[str, ArraySceneSplit], tmp_path: Path
) -> None:
    again = _splits(load_digit_scenes(SMALL), tmp_path / "ledger.jsonl")
    for name, split in made.items():
        assert split.fingerprint == again[name].fingerprint
    assert len({split.fingerprint for split in made.values()}) == 5
    other = load_digit_scenes(SMALL.model_copy(update={"seed": 1}))
    assert isinstance(other.target_val, ArraySceneSplit)
    differ = (other.target_val.images != made["target_val"].images).any(axis=(1, 2))
    assert differ.all()


def test_the_first_scenes_are_the_same_however_many_there_are(
    made: dict[str, ArraySceneSplit],
) -> None:
    more = load_digit_scenes(SMALL.model_copy(update={"num_train": 90, "num_val": 50}))
    for name, count in (("source_train", 60), ("target_val", 40)):
        split = getattr(more, name)
        np.testing.assert_array_equal(split.images[:count], made[name].images)
        np.testing.assert_array_equal(split.label_maps[:count], made[name].label_maps)


def test_how_the_training_is_cut_changes_no_scene() -> None:
    loaded = load_splits(SMALL)
    cut = load_splits(SMALL.model_copy(update={"image_size": 32, "flip": True, "workers": 1}))
    assert cut.fingerprint == loaded.fingerprint
