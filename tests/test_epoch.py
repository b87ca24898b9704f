"""Epochs of scenes, and of draws with replacement; see test_loader.py for those of images."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from csg_ray.config.data import DigitScenesConfig, DigitsConfig
from csg_ray.config.methods import CSGConfig
from csg_ray.config.run import AugmentConfig, EvaluationConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.draws import draw_key, occurrence
from csg_ray.data.epoch import (
    eval_batches,
    scene_transform,
    steps_per_epoch,
    train_batches,
)
from csg_ray.data.loader import Batch, Batches
from csg_ray.data.rand_augment import ColorJitter, PhotometricRandAugment
from csg_ray.data.splits import ArraySceneSplit, ArraySplit, SceneSplit, Split
from csg_ray.data.transforms import normalise
from csg_ray.seeding import sub_seed
from made_data import random_image, refusal

SIZE, CROP, COUNT = 32, 24, 11
JITTER = AugmentConfig(implementation="color_jitter")


class ColouredScenes:
    """Scenes that tell everything: red is the row, green the column, blue the scene's number."""

    name = "source_train"
    class_names = tuple("abcd")
    fingerprint = "0"

    def __len__(self) -> int:
        return COUNT

    def image(self, index: int) -> Image.Image:
        rows, columns = np.mgrid[:SIZE, :SIZE] * 4
        return Image.fromarray(
            np.stack([rows, columns, np.full_like(rows, index * 20)], 2).astype(np.uint8)
        )

    def label_map(self, index: int) -> NDArray[np.uint8]:
        rows, columns = np.mgrid[:SIZE, :SIZE] // 8
        labels: NDArray[np.uint8] = ((rows + columns + index) % 4).astype(np.uint8)
        return labels

    def labelled_classes(self) -> list[int]:
        return [0, 1, 2, 3]


@pytest.fixture
def scenes() -> SceneSplit:
    return ColouredScenes()


@pytest.fixture
def images() -> ArraySplit:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32), dtype=np.uint8)
    return ArraySplit("source_train", pixels, torch.arange(COUNT) % 4, tuple("abcd"))


def _config(workers: int = 0, seed: int = 0, **sections: Any) -> RunConfig:
    train = {"batch_size": 4, **sections.pop("train", {})}
    data = DigitScenesConfig(
        image_size=CROP, workers=workers, flip=True, **sections.pop("data", {})
    )
    defaults = {
        "data": data,
        "model": ModelConfig(head="fcn"),
        "method": CSGConfig(patch_grid=3),
        "augment": JITTER,
    }
    return RunConfig(seed=seed, train=TrainConfig(**train), **{**defaults, **sections})


def _digits(workers: int = 0, **train: Any) -> RunConfig:
    return RunConfig(data=DigitsConfig(workers=workers), train=TrainConfig(batch_size=4, **train))


def _assert_equal(one: Batches, other: Batches) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left.indices, right.indices)
        assert torch.equal(left.labels, right.labels)
        assert all(torch.equal(a, b) for a, b in zip(left.views, right.views, strict=True))


def _levels(view: Tensor) -> NDArray[np.uint8]:
    """Normalised (B, 3, S, S) to levels (B, S, S, 3)."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    levels: NDArray[np.uint8] = (
        ((view.permute(0, 2, 3, 1) * std + mean) * 255).round().to(torch.uint8).numpy()
    )
    return levels


def _everything(batches: Batches) -> Batch:
    listed = list(batches)
    views = tuple(torch.cat(each) for each in zip(*(batch.views for batch in listed), strict=True))
    labels, indices = (
        torch.cat([getattr(batch, name) for batch in listed]) for name in ("labels", "indices")
    )
    return Batch(views, labels, indices)


def test_query_is_the_clean_crop_and_key_the_same_crop_in_other_colours(scenes: SceneSplit) -> None:
    config = _config(seed=3)
    found = _everything(train_batches(scenes, config, 2, 5))
    assert found.views[0].shape == (8, 3, CROP, CROP)
    assert (found.labels.shape, found.labels.dtype) == ((8, CROP, CROP), torch.int64)
    transform, base = scene_transform(config.data), sub_seed(3, "augment/5")  # type: ignore[arg-type]
    for row, index in enumerate(found.indices.tolist()):
        generator = Generator().manual_seed(sub_seed(base, f"{index}/0"))
        query, labels = transform.crop(scenes.image(index), scenes.label_map(index), generator)
        assert torch.equal(found.views[0][row], normalise([query])[0])
        assert found.labels[row].tolist() == labels.tolist()
        generator.manual_seed(sub_seed(base, f"{index}/1"))
        key = ColorJitter(0.4)(query, generator)
        assert torch.equal(found.views[1][row], normalise([key])[0])
        assert not torch.equal(found.views[1][row], found.views[0][row])


@pytest.mark.parametrize("augment", [JITTER, AugmentConfig(num_ops=3, magnitude=20)])
def test_keys_move_no_pixel(augment: AugmentConfig) -> None:
    # A step in brightness along the middle of every scene, which no change of colours moves.
    pixels = np.full((COUNT, 64, 64), 70, np.uint8)
    pixels[:, 32:] = 180
    split = ArraySceneSplit("source_train", pixels, (pixels > 100).astype(np.uint8), ("a", "b"))
    config = _config(augment=augment, data={"min_scale": 1.0, "max_scale": 1.0})
    compared = 0
    for epoch in range(8):
        found = _everything(train_batches(split, config, 2, epoch))
        for key, labels in zip(_levels(found.views[1]), found.labels.numpy(), strict=True):
            # Without the margin, which sharpening leaves as it was.
            grey = key.astype(int).sum(axis=2)[1:-1, 1:-1]
            rows = np.flatnonzero(np.diff(labels[1:-1, 0]))
            if len(rows) == 0 or np.ptp(grey) == 0:
                continue
            compared += 1
            # Sharpening rings at the rows next to the step; the largest one stays there.
            steps = np.abs(np.diff(grey, axis=0))
            assert (steps.argmax(axis=0) == rows[0]).all()
            assert (np.diff(grey, axis=1) == 0).all()
    assert compared > 30


def test_image_and_labels_are_of_the_same_scene_and_place(scenes: SceneSplit) -> None:
    found = _everything(train_batches(scenes, _config(), 1, 0))
    assert len(found.views) == 1
    for levels, labels, index in zip(
        _levels(found.views[0]), found.labels.numpy(), found.indices.tolist(), strict=True
    ):
        assert (levels[..., 2] == index * 20).all()
        rows, columns = levels[..., 0] / 4, levels[..., 1] / 4
        expected = ((rows + 0.5) // 8 + (columns + 0.5) // 8 + index) % 4
        # Only where a block ends may bilinear and nearest round to different sides.
        assert (expected == labels).mean() > 0.85


def test_methods_that_use_one_view_get_one(scenes: SceneSplit) -> None:
    one = _everything(train_batches(scenes, _config(), 1, 0))
    two = _everything(train_batches(scenes, _config(), 2, 0))
    assert torch.equal(one.views[0], two.views[0])
    assert torch.equal(one.labels, two.labels)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("steps", ["auto", 7])
def test_loader_processes_change_no_batch(
    scenes: SceneSplit, images: ArraySplit, steps: Any
) -> None:
    train = {"steps_per_epoch": steps}
    _assert_equal(
        train_batches(scenes, _config(train=train), 2, 1),
        train_batches(scenes, _config(2, train=train), 2, 1),
    )
    _assert_equal(
        train_batches(images, _digits(steps_per_epoch=steps), 2, 1),
        train_batches(images, _digits(2, steps_per_epoch=steps), 2, 1),
    )
    _assert_equal(eval_batches(scenes, _config()), eval_batches(scenes, _config(2)))


def test_an_image_drawn_again_is_augmented_anew(scenes: SceneSplit, images: ArraySplit) -> None:
    config = _config(train={"steps_per_epoch": 20})
    digits = _digits(steps_per_epoch=20).model_copy(
        update={"augment": AugmentConfig(num_ops=2, magnitude=20, translate="fraction")}
    )
    for split, each in ((scenes, config), (images, digits)):
        found = _everything(train_batches(split, each, 2, 0))
        for view in found.views:
            for index in range(COUNT):
                drawn = view[found.indices == index]
                assert len(drawn) > 1
                # Two may be alike by chance: there are only so many crops and operations.
                assert len(torch.unique(drawn.flatten(1), dim=0)) > 0.6 * len(drawn)


def test_the_first_time_an_image_is_drawn_it_is_augmented_as_without_replacement(
    scenes: SceneSplit,
) -> None:
    once = _everything(train_batches(scenes, _config(), 1, 0))
    often = _everything(train_batches(scenes, _config(train={"steps_per_epoch": 20}), 1, 0))
    for index, view in zip(once.indices.tolist(), once.views[0], strict=True):
        first = int((often.indices == index).nonzero()[0])
        assert torch.equal(often.views[0][first], view)


def test_labels_are_those_of_the_images_that_are_drawn_with_replacement(images: ArraySplit) -> None:
    found = _everything(train_batches(images, _digits(steps_per_epoch=20), 1, 0))
    assert torch.equal(found.labels, found.indices % 4)
    assert found.indices.max() < COUNT


def test_draws_with_replacement_are_as_many_as_set_and_uniform(images: ArraySplit) -> None:
    config = _digits(steps_per_epoch=300)
    batches = train_batches(images, config, 1, 0)
    assert len(batches) == steps_per_epoch(COUNT, config.train) == 300
    draws = torch.cat(batches.batch_indices) % COUNT
    assert len(draws) == 1200
    counts = torch.bincount(draws, minlength=COUNT)
    # 109 of each expected, give or take 10; an epoch of permutations would have 109 or 110.
    assert (counts - 1200 / COUNT).abs().max() < 50
    assert counts.float().std() > 3
    others = [train_batches(images, config, 1, 1), train_batches(images, _seeded(config, 1), 1, 0)]
    for other in others:
        assert not torch.equal(torch.cat(other.batch_indices) % COUNT, draws)


def _seeded(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"seed": seed})


def test_auto_is_every_image_once(images: ArraySplit) -> None:
    config = _digits()
    batches = train_batches(images, config, 1, 0)
    assert len(batches) == steps_per_epoch(COUNT, config.train) == 2
    assert len(set(torch.cat(batches.batch_indices).tolist())) == 8


def test_more_steps_than_images_need_no_full_batch(images: ArraySplit) -> None:
    config = _digits(steps_per_epoch=2)
    big = config.model_copy(update={"train": TrainConfig(batch_size=COUNT + 5, steps_per_epoch=2)})
    found = list(train_batches(images, big, 1, 0))
    assert [len(batch.labels) for batch in found] == [COUNT + 5] * 2


@pytest.mark.parametrize("values", [[], [3], [5, 5, 5], [2, 0, 2, 2, 1, 0, 2], "random"])
def test_occurrence_counts_what_stood_before(values: Any) -> None:
    if values == "random":
        values = np.random.default_rng(0).integers(0, 30, 500).tolist()
    seen: Counter[int] = Counter()
    expected = []
    for value in values:
        expected.append(seen[value])
        seen[value] += 1
    assert occurrence(torch.tensor(values, dtype=torch.int64)).tolist() == expected


def test_every_draw_and_view_has_a_key_of_its_own() -> None:
    keys = {draw_key(draw, 10, view) for draw in range(50) for view in range(3)}
    assert len(keys) == 150
    assert draw_key(7, 10, 1) == "7/1"


def test_evaluation_has_whole_scenes_in_order(scenes: SceneSplit) -> None:
    config = _config(evaluation=EvaluationConfig(batch_size=4))
    listed = list(eval_batches(scenes, config))
    assert [len(batch.indices) for batch in listed] == [4, 4, 3]
    found = _everything(eval_batches(scenes, config))
    assert found.indices.tolist() == list(range(COUNT))
    for index in range(COUNT):
        assert (_levels(found.views[0])[index] == np.asarray(scenes.image(index))).all()
        assert (found.labels[index].numpy() == scenes.label_map(index)).all()


class OfTwoSizes(ColouredScenes):
    """The last scene is larger."""

    def image(self, index: int) -> Image.Image:
        return random_image(index, 40 if index == COUNT - 1 else SIZE, SIZE)

    def label_map(self, index: int) -> NDArray[np.uint8]:
        return np.zeros((SIZE, 40 if index == COUNT - 1 else SIZE), np.uint8)


def test_scenes_of_several_sizes_are_evaluated_one_by_one() -> None:
    split = OfTwoSizes()
    said = refusal(
        lambda: list(eval_batches(split, _config(evaluation=EvaluationConfig(batch_size=4))))
    )
    assert said.startswith("evaluation.batch_size puts images of source_train that differ in size")
    alone = list(eval_batches(split, _config(evaluation=EvaluationConfig(batch_size=1))))
    assert alone[-1].views[0].shape == (1, 3, SIZE, 40)
    # Training crops them to one size.
    assert _everything(train_batches(split, _config(), 2, 0)).views[0].shape[2:] == (CROP, CROP)


def test_a_scene_that_is_smaller_than_the_crop_is_named() -> None:
    small = ArraySceneSplit(
        "source_train", np.zeros((4, 40, 64), np.uint8), np.zeros((4, 40, 64), np.uint8), ("a",)
    )
    config = _config(data={"min_scale": 0.5})
    said = refusal(lambda: list(train_batches(small, config, 2, 0)))
    assert said.startswith(f"data.image_size is {CROP}, but image ")
    assert "of source_train has 64x40 pixels, 20 on the shorter side" in said


@pytest.mark.parametrize(
    ("augment", "kind"),
    [(JITTER, ColorJitter), (AugmentConfig(num_ops=2, magnitude=9), PhotometricRandAugment)],
)
def test_the_keys_augmentation_is_the_configured_one(
    scenes: SceneSplit, augment: AugmentConfig, kind: type
) -> None:
    load: Any = train_batches(scenes, _config(augment=augment), 2, 0).load
    assert type(load.augment_key) is kind
    single: Any = train_batches(scenes, _config(augment=augment), 1, 0).load
    assert single.augment_key is None


def test_a_split_of_scenes_is_no_split_of_images(scenes: Split) -> None:
    with pytest.raises(AssertionError):
        train_batches(scenes, _digits(), 1, 0)
