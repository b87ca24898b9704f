"""The pictures of a training, decoded from its TensorBoard file, against images made by hand."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from csg_ray.config.data import DataConfig, DigitScenesConfig, DigitsConfig
from csg_ray.config.methods import VanillaConfig
from csg_ray.config.run import AugmentConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.epoch import train_batches
from csg_ray.data.load import load_splits
from csg_ray.data.loader import Batch
from csg_ray.data.splits import ArraySplit, DomainSplits, SceneSplit
from csg_ray.data.transforms import normalise
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.storage.records import CHECKPOINT_FILE
from csg_ray.training import loop
from csg_ray.training.evaluate import load_trained
from csg_ray.training.loop import fit
from csg_ray.training.pictures import (
    CELL,
    TITLE_HEIGHT,
    Pictures,
    class_colours,
    draw_classified,
    draw_confusion,
    draw_scenes,
    draw_views,
)
from csg_ray.training.recorder import EpochRecorder
from event_files import event_files, read_events

RGB = NDArray[np.uint8]
CONFIG = RunConfig(
    data=DigitsConfig(num_train=96, num_val=20),
    train=TrainConfig(epochs=2, batch_size=32, learning_rate=0.01),
    augment=AugmentConfig(translate="fraction"),
)


def noise(seed: int, height: int, width: int) -> RGB:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def batch(*views: list[RGB], labels: torch.Tensor) -> Batch:
    tensors = tuple(normalise([Image.fromarray(image) for image in view]) for view in views)
    return Batch(tensors, labels, torch.arange(len(views[0])))


def test_views_stand_in_rows_as_they_were_before_they_were_normalised() -> None:
    query, key = [noise(0, 5, 5), noise(1, 5, 5)], [noise(2, 5, 5), noise(3, 5, 5)]
    sheet = draw_views(batch(query, key, labels=torch.tensor([0, 1])))
    assert sheet.shape == (10, 10, 3)
    assert np.array_equal(sheet[:5, :5], query[0])
    assert np.array_equal(sheet[:5, 5:], key[0])
    assert np.array_equal(sheet[5:, :5], query[1])
    assert np.array_equal(sheet[5:, 5:], key[1])


def test_classified_images_are_enlarged_under_titles_in_the_colour_of_right_and_wrong() -> None:
    images = [noise(number, 32, 32) for number in range(5)]
    batches = [batch([image], labels=torch.tensor([0])) for image in images]
    guesses = [torch.tensor([number % 2]) for number in range(5)]
    sheet = draw_classified(batches, guesses, ("seven", "nine"))
    height = TITLE_HEIGHT + 64
    assert sheet.shape == (2 * height, 4 * 64, 3)
    for number, image in enumerate(images):
        top, left = number // 4 * height, number % 4 * 64
        shown = sheet[top + TITLE_HEIGHT : top + height, left : left + 64]
        assert np.array_equal(shown[::2, ::2], image)
        assert np.array_equal(shown[1::2, 1::2], image)
        darkest = sheet[top : top + TITLE_HEIGHT, left : left + 64].min(axis=(0, 1))
        assert (darkest[0] > darkest[1]) == (number % 2 == 1), "red where it is wrong"
        assert darkest.min() < 128, "there is a title"
    assert (sheet[height:, 64:] == 255).all()


def test_scenes_show_image_labels_and_prediction() -> None:
    image = noise(0, 4, 6)
    labels = torch.tensor([[0, 1, 2, 255, 0, 0]] * 4)[None]
    guess = torch.tensor([[0, 0, 2, 2, 1, 0]] * 4)[None]
    sheet = draw_scenes([batch([image], labels=labels)], [guess], num_classes=3)
    assert sheet.shape == (4, 18, 3)
    assert np.array_equal(sheet[:, :6], image)
    red, green, blue = class_colours(3)[:3].tolist()
    assert (red, green, blue) == ([255, 51, 51], [31, 153, 31], [51, 51, 255])
    assert sheet[3, 6:12].tolist() == [red, green, blue, [0, 0, 0], red, red]
    assert sheet[3, 12:].tolist() == [red, red, blue, blue, green, red]


def test_large_images_are_thinned_out() -> None:
    image = noise(0, 200, 300)
    assert np.array_equal(draw_views(batch([image], labels=torch.tensor([0]))), image[::3, ::3])


def test_the_confusion_matrix_is_shaded_by_shares_of_the_label() -> None:
    picture = draw_confusion(torch.tensor([[3, 1], [0, 0]]))
    assert picture.shape == (2 * CELL, 2 * CELL, 3)
    shades = picture[CELL // 2 :: CELL, CELL // 2 :: CELL, 0].tolist()
    assert shades == [[64, 191], [255, 255]]


# of a training


def small_splits(config: DataConfig) -> DomainSplits:
    """The digits with 40 target images."""
    splits = load_splits(config)
    target = splits.target_val
    assert isinstance(target, ArraySplit)
    few = ArraySplit(target.name, target.images[:40], target.labels[:40], target.class_names)
    return replace(splits, target_val=few)


@pytest.fixture
def small_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "load_splits", small_splits)


def pictures(directory: Path) -> dict[str, tuple[int, RGB]]:
    """The epoch and the pixels of each picture in a training's event file."""
    (path,) = event_files(directory)
    return {
        value.tag: (
            event.step,
            np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string))),
        )
        for event in read_events(path.read_bytes())
        for value in event.summary.value
        if value.HasField("image")
    }


def train(directory: Path, with_pictures: bool = True) -> dict[str, Any]:
    recorder = EpochRecorder(directory, {}, CONFIG.train.epochs)

    def on_epoch_end(metrics: Any, save: Any, drawn: Any) -> None:
        recorder(metrics, save, drawn if with_pictures else None)

    fit(CONFIG, on_epoch_end)
    recorder.close()
    return load_checkpoint(directory / CHECKPOINT_FILE)


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("small_target")
def test_a_training_leaves_its_views_and_what_it_takes_the_target_for(tmp_path: Path) -> None:
    state = train(tmp_path)
    drawn = pictures(tmp_path)
    assert {name: epoch for name, (epoch, _) in drawn.items()} == {
        "train/views": 1,
        "target_val/predictions": 2,
        "target_val/confusion": 2,
    }
    splits = small_splits(CONFIG.data)
    (method,) = load_trained(CONFIG, splits, state, torch.device("cpu"))
    first = next(iter(train_batches(splits.source_train, CONFIG, method.num_views, 1)))
    few = Batch(tuple(view[:8] for view in first.views), first.labels[:8], first.indices[:8])
    views = drawn["train/views"][1]
    assert views.shape == (8 * 32, 2 * 32, 3)
    assert np.array_equal(views, draw_views(few))

    sheet = drawn["target_val/predictions"][1]
    target, method = splits.target_val, method.eval()
    assert isinstance(target, ArraySplit)
    logits = method.predict(normalise([target.image(index) for index in range(40)]))
    guesses = logits.argmax(dim=1)
    last = sheet[-64:, -64:, 0]
    assert np.array_equal(last[::2, ::2], target.images[39])
    title = sheet[-64 - TITLE_HEIGHT : -64, -64:].min(axis=(0, 1))
    assert (title[0] > title[1]) == bool(guesses[39] != target.labels[39])

    counts = torch.zeros(10, 10)
    for label, guess in zip(target.labels, guesses, strict=True):
        counts[label, guess] += 1
    assert np.array_equal(drawn["target_val/confusion"][1], draw_confusion(counts))


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("small_target")
def test_drawing_changes_nothing_of_the_training(tmp_path: Path) -> None:
    drawn, plain = train(tmp_path / "a"), train(tmp_path / "b", with_pictures=False)
    assert pictures(tmp_path / "b") == {}
    for name, value in plain["repeats"][0]["method"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, drawn["repeats"][0]["method"][name]), name
    for key in ("train/loss", "target_val/hse", "target_val/mean_class_accuracy"):
        assert drawn["metrics"][key] == plain["metrics"][key]


@pytest.mark.timeout(60)
def test_a_segmentation_leaves_scenes_with_their_labels_and_predictions() -> None:
    config = RunConfig(
        data=DigitScenesConfig(num_train=16, num_val=10),
        model=ModelConfig(head="fcn"),
        augment=AugmentConfig(implementation="color_jitter"),
        method=VanillaConfig(),
        train=TrainConfig(epochs=1, batch_size=8, learning_rate=0.01),
    )
    splits = load_splits(config.data)
    target = splits.target_val
    assert isinstance(target, SceneSplit)
    training = loop.Training(config, splits, torch.device("cpu"))
    training.method.train()
    sheet = Pictures(training).predictions()
    assert training.method.training, "as it was before"
    palette = class_colours(len(splits.class_names))
    training.method.eval()
    for row, index in enumerate((0, len(target) - 1)):
        scene, label_map = target.image(index), target.label_map(index)
        height, width = label_map.shape
        guess = training.method.predict(normalise([scene])).argmax(dim=1)[0].numpy()
        expected = np.hstack([np.asarray(scene), palette[label_map], palette[guess]])
        top = (0, 3)[row] * height
        assert np.array_equal(sheet[top : top + height], expected)
    assert sheet.shape == (4 * height, 3 * width, 3)
