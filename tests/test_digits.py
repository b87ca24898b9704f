from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from csg_ray.config.data import DigitsConfig
from csg_ray.data.digits.glyphs import FAMILIES, TRAIN_FAMILIES, VAL_FAMILIES, render_glyphs
from csg_ray.data.digits.sensor import count_blocks, to_images
from csg_ray.data.digits.task import split_target
from csg_ray.data.load import load_splits
from csg_ray.data.splits import ClassSplit, DomainSplits

SMALL = DigitsConfig(num_train=60, num_val=40)


def stacked(split: object) -> NDArray[np.uint8]:
    images = [np.asarray(split.image(i))[..., 0] for i in range(len(split))]  # type: ignore[attr-defined, arg-type]
    return np.stack(images)


@pytest.fixture(scope="module")
def splits() -> DomainSplits:
    return load_splits(SMALL)


def test_a_glyph_depends_on_seed_and_index_alone() -> None:
    short, labels = render_glyphs("source_train", TRAIN_FAMILIES, 3, 20)
    long, _ = render_glyphs("source_train", TRAIN_FAMILIES, 3, 45)
    np.testing.assert_array_equal(long[:20], short)
    np.testing.assert_array_equal(labels, np.arange(20) % 10)
    other, _ = render_glyphs("source_train", TRAIN_FAMILIES, 4, 20)
    assert (other != short).any(axis=(1, 2)).all()


def test_glyphs_of_one_class_vary() -> None:
    images, labels = render_glyphs("source_train", TRAIN_FAMILIES, 0, 200)
    for digit in range(10):
        assert len(np.unique(images[labels == digit], axis=0)) >= 19


def test_families_are_disjoint_text_fonts() -> None:
    assert not set(TRAIN_FAMILIES) & set(VAL_FAMILIES)
    faces = [face for family in (*TRAIN_FAMILIES, *VAL_FAMILIES) for face in FAMILIES[family]]
    assert len(faces) == len(set(faces)) == 21
    assert {face[:4] for family in TRAIN_FAMILIES for face in FAMILIES[family]} == {"Deja", "STIX"}
    assert {face[:2] for family in VAL_FAMILIES for face in FAMILIES[family]} == {"cm"}
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    assert all((folder / f"{face}.ttf").is_file() for face in faces)
    for unwanted in ("STIXSiz", "NonUni", "Display", "LastResort", "cmex", "cmsy", "cmmi"):
        assert not any(unwanted in face for face in faces)


def test_sensor_counts_a_half_inked_square() -> None:
    drawing = np.zeros((100, 90), np.uint8)
    drawing[10:74, 20:36] = 255
    drawing[42:74, 36:84] = 255
    expected = np.zeros((8, 8), int)
    expected[:, :2] = 16
    expected[4:, :] = 16
    np.testing.assert_array_equal(count_blocks(Image.fromarray(drawing)), expected)


def test_sensor_crops_to_the_ink_and_keeps_its_proportions() -> None:
    drawing = np.zeros((100, 90), np.uint8)
    drawing[60:92, 70:78] = 255
    expected = np.zeros((8, 8), int)
    expected[:, 3:5] = 16
    np.testing.assert_array_equal(count_blocks(Image.fromarray(drawing)), expected)


def test_sensor_counts_blocks_like_a_double_loop() -> None:
    bitmap = np.random.default_rng(0).random((32, 32)) < 0.5
    bitmap[0, 0] = bitmap[31, 31] = True
    expected = [
        [sum(bitmap[4 * r + i, 4 * c + j] for i in range(4) for j in range(4)) for c in range(8)]
        for r in range(8)
    ]
    drawing = Image.fromarray(bitmap.astype(np.uint8) * 255)
    assert count_blocks(drawing).tolist() == expected


def test_counts_become_grey_levels_over_the_full_range() -> None:
    counts = np.stack([np.full((8, 8), level, np.uint8) for level in (0, 4, 8, 16)])
    images = to_images(counts)
    assert images.shape == (4, 32, 32)
    assert [np.unique(image).tolist() for image in images] == [[0], [64], [128], [255]]


def test_target_is_split_disjointly_and_evenly_over_the_classes() -> None:
    labels = load_digits().target.astype(np.int64)
    parts = split_target(labels, 0)
    assert [len(part) for part in parts] == [200, 798, 799]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    for part in parts:
        expected = np.bincount(labels) * len(part) / 1797
        assert np.abs(np.bincount(labels[part]) - expected).max() < 1.5
    again, other = split_target(labels, 0), split_target(labels, 1)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts.test, other.test)


def test_target_splits_hold_the_handwritten_digits(splits: DomainSplits, tmp_path: Path) -> None:
    digits = load_digits()
    whole = to_images(digits.images.astype(np.uint8))
    parts = split_target(digits.target.astype(np.int64), SMALL.seed)
    assert splits.target_test is not None
    test, _ = splits.target_test.open(tmp_path / "ledger.jsonl", "test")
    assert splits.target_train is not None
    np.testing.assert_array_equal(stacked(splits.target_train), whole[parts.train])
    np.testing.assert_array_equal(stacked(splits.target_val), whole[parts.val])
    np.testing.assert_array_equal(stacked(test), whole[parts.test])
    assert isinstance(splits.target_val, ClassSplit)
    assert isinstance(test, ClassSplit)
    np.testing.assert_array_equal(splits.target_val.labels.numpy(), digits.target[parts.val])
    np.testing.assert_array_equal(test.labels.numpy(), digits.target[parts.test])


def test_target_train_gives_no_label_away(splits: DomainSplits) -> None:
    assert isinstance(splits.target_train, ClassSplit)
    assert splits.target_train.labels.tolist() == [-1] * 200
    labels = load_digits().target.astype(np.int64)
    hidden = labels[split_target(labels, SMALL.seed).train]
    # Sorted by class, neighbours would share theirs nearly always; by chance one in ten does.
    assert (hidden[1:] == hidden[:-1]).mean() < 0.25


def test_source_does_not_depend_on_the_number_of_images(splits: DomainSplits) -> None:
    larger = load_splits(DigitsConfig(num_train=70, num_val=40))
    np.testing.assert_array_equal(stacked(larger.source_train)[:60], stacked(splits.source_train))
    for name in ("source_val", "target_test"):
        assert getattr(larger, name).fingerprint == getattr(splits, name).fingerprint
    assert larger.fingerprint != splits.fingerprint


def test_both_domains_are_bright_ink_on_black(splits: DomainSplits) -> None:
    for split in (splits.source_train, splits.source_val, splits.target_val):
        images = stacked(split)
        assert images.dtype == np.uint8
        assert images.min() == 0
        assert images.max() == 255
        # The first and last columns are margin, the middle holds the strokes.
        assert images[:, :, [0, 31]].mean() < 25 < 60 < images[:, :, 8:24].mean()


def test_splits_are_made_once_per_process(splits: DomainSplits) -> None:
    assert load_splits(DigitsConfig(num_train=60, num_val=40)) is splits
