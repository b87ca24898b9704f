"""The metrics of segmentation against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from csg_ray.config.data import DigitScenesConfig
from csg_ray.config.methods import VanillaConfig
from csg_ray.config.run import EvaluationConfig, ModelConfig, RunConfig
from csg_ray.data.splits import ArraySceneSplit
from csg_ray.methods.vanilla import Vanilla
from csg_ray.training.evaluate import evaluate_split, measure_split, worst_metrics

CPU = torch.device("cpu")
NAMES = ("road", "sky", "tree", "bus")


class ByBrightness(Vanilla):
    """Predicts the class of a pixel by its level: below 64, 128, 192, and above."""

    def features(self, images: Tensor) -> dict[int, Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        return {4: images}

    def classify(self, maps: dict[int, Tensor], size: tuple[int, int]) -> Tensor:
        level = (maps[4][:, 0] * 0.229 + 0.485) * 255
        centres = torch.tensor([31.5, 95.5, 159.5, 223.5])
        return -(level[:, None] - centres[None, :, None, None]).abs()


def _config(**settings: Any) -> RunConfig:
    return RunConfig(
        data=DigitScenesConfig(),
        model=ModelConfig(head="fcn"),
        method=VanillaConfig(),
        evaluation=EvaluationConfig(**settings),
    )


def _split(
    labels_from: tuple[int, ...] = (0, 1, 2, 3, 255), levels: int = 256, seed: int = 0
) -> ArraySceneSplit:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, levels, (7, 20, 24), dtype=np.uint8)
    labels = rng.choice(np.array(labels_from, dtype=np.uint8), (7, 20, 24))
    # Half of the labels are right.
    right = np.minimum(images // 64, 3).astype(np.uint8)
    use = (rng.random(labels.shape) < 0.5) & (labels != 255) & np.isin(right, labels_from)
    return ArraySceneSplit("target_val", images, np.where(use, right, labels), NAMES)


def _evaluate(split: ArraySceneSplit, **settings: Any) -> dict[str, float]:
    config = _config(**settings)
    return evaluate_split(ByBrightness(config, 4, 1), split, config, CPU)


def _by_loops(split: ArraySceneSplit) -> dict[str, float]:
    """IoU of each class as Cityscapes counts it, pixel by pixel."""
    hits, false_hits, misses = (dict.fromkeys(range(4), 0) for _ in range(3))
    for image, label_map in zip(split.images, split.label_maps, strict=True):
        for level, label in zip(image.ravel().tolist(), label_map.ravel().tolist(), strict=True):
            if label == 255:
                continue
            predicted = min(level // 64, 3)
            if predicted == label:
                hits[label] += 1
            else:
                misses[label] += 1
                false_hits[predicted] += 1
    ious = {
        number: hits[number] / (hits[number] + misses[number] + false_hits[number])
        for number in range(4)
        if hits[number] + misses[number] + false_hits[number] > 0
    }
    recalls = [hits[n] / (hits[n] + misses[n]) for n in range(4) if hits[n] + misses[n] > 0]
    return {
        "mean_iou": sum(ious.values()) / len(ious),
        "mean_class_accuracy": sum(recalls) / len(recalls),
        "accuracy": sum(hits.values()) / (sum(hits.values()) + sum(misses.values())),
        **{
            f"class_iou/{NAMES[number]}": iou
            for number, iou in ious.items()
            if hits[number] + misses[number] > 0
        },
    }


@pytest.mark.parametrize(
    ("labels_from", "levels"),
    [((0, 1, 2, 3, 255), 256), ((0, 2), 256), ((0, 2, 255), 192), ((1,), 120)],
)
@pytest.mark.parametrize("settings", [{}, {"batch_size": 2}, {"window": 16, "flip": True}])
def test_metrics_equal_those_of_a_plain_loop(
    labels_from: tuple[int, ...], levels: int, settings: dict[str, Any]
) -> None:
    split = _split(labels_from, levels)
    metrics = _evaluate(split, **settings)
    expected = _by_loops(split)
    found = {name: value for name, value in metrics.items() if not name.startswith("hse")}
    assert found == pytest.approx(expected)


def test_a_class_has_a_key_if_it_has_a_label_whatever_is_predicted() -> None:
    split = _split((0, 2, 255))
    assert split.labelled_classes() == [0, 2]
    predicted = {min(level // 64, 3) for level in split.images.ravel().tolist()}
    assert predicted == {0, 1, 2, 3}
    keys = {name for name in _evaluate(split) if name.startswith("class_")}
    assert keys == {"class_iou/road", "class_iou/tree"}
    dark = ArraySceneSplit("target_val", split.images // 8, split.label_maps, NAMES)
    assert {name for name in _evaluate(dark) if name.startswith("class_")} == keys


def test_ignored_pixels_change_nothing() -> None:
    split = _split((0, 1, 2, 3, 255))
    ignored = split.label_maps == 255
    other = split.images.copy()
    other[ignored] = 255 - other[ignored]
    changed = ArraySceneSplit("target_val", other, split.label_maps, NAMES)
    scores = [
        {name: value for name, value in _evaluate(each).items() if not name.startswith("hse")}
        for each in (split, changed)
    ]
    assert scores[0] == scores[1]
    config = _config()
    confusion = measure_split(ByBrightness(config, 4, 1), split, config, CPU).confusion
    assert int(confusion.counts.sum()) == int((~ignored).sum())


def test_energies_are_of_the_pooled_features_of_each_scene() -> None:
    split = _split()
    metrics = _evaluate(split)
    pooled = []
    for index in range(len(split)):
        levels = np.asarray(split.image(index), dtype=np.float64) / 255
        pooled.append(((levels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).mean(axis=(0, 1)))
    unit = [row / math.sqrt(float(row @ row)) for row in pooled]
    pairs = [(i, j) for i in range(7) for j in range(i)]
    logs = [-math.log(float(((unit[i] - unit[j]) ** 2).sum())) for i, j in pairs]
    assert metrics["hse"] == pytest.approx(sum(logs) / len(logs), rel=1e-3)


def test_worst_metrics_have_the_keys_of_good_ones_and_are_worse() -> None:
    for labels_from in ((0, 1, 2, 3, 255), (0, 2), (1, 255)):
        split = _split(labels_from)
        worst, good = worst_metrics(split, "segmentation"), _evaluate(split)
        assert worst.keys() == good.keys()
        for name, value in good.items():
            is_score = "iou" in name or "accuracy" in name
            assert worst[name] < value if is_score else worst[name] > value


class TwoSizes(ArraySceneSplit):
    """The last scene is cut to another size."""

    def image(self, index: int) -> Image.Image:
        image = super().image(index)
        return image.crop((0, 0, 17, 13)) if index == 6 else image

    def label_map(self, index: int) -> Any:
        label_map = super().label_map(index)
        return label_map[:13, :17] if index == 6 else label_map


def test_scenes_of_several_sizes_count_by_their_pixels() -> None:
    split = _split()
    mixed = TwoSizes("target_val", split.images, split.label_maps, NAMES)
    label_maps = split.label_maps.copy()
    label_maps[6, 13:] = 255
    label_maps[6, :, 17:] = 255
    same = ArraySceneSplit("target_val", split.images, label_maps, NAMES)
    found = _evaluate(mixed, batch_size=1)
    assert {name: found[name] for name in _by_loops(same)} == pytest.approx(_by_loops(same))
