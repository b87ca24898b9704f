"""What is left of the encoder's own skill: `reference_task/accuracy`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from csg_ray.cli.preparing import prepare_run, prepare_study
from csg_ray.config.data import DigitScenesConfig, DigitsConfig
from csg_ray.config.run import EvaluationConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.load import load_splits
from csg_ray.data.reference_images import load_reference_images
from csg_ray.methods import build_method
from csg_ray.methods.base import ReferenceMethod
from csg_ray.search_space import parse_search_space
from csg_ray.training.evaluate import reference_accuracy
from csg_ray.training.lanes import EpochReport, Lane, LaneGroup
from csg_ray.training.loop import Metrics, Training
from made_data import random_image, refusal

CPU = torch.device("cpu")
CLASSES = 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of each of ten classes, some larger than what the encoder sees."""
    for number in range(CLASSES):
        (tmp_path / f"class{number}").mkdir()
        for image in range(3):
            side = 32 + 8 * image
            picture = random_image(10 * number + image, side, side)
            picture.save(tmp_path / f"class{number}" / f"{image}.png")
    return tmp_path


def _config(folder: Path | None, **sections: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "data": DigitsConfig(num_train=20, num_val=10),
        "train": TrainConfig(epochs=1, batch_size=10),
        "evaluation": EvaluationConfig(
            reference_images=None if folder is None else str(folder), batch_size=7
        ),
    }
    return RunConfig(**{**settings, **sections})


def _plain_accuracy(method: ReferenceMethod, folder: Path) -> float:
    """Image by image; the reference encoder is the trained one before training."""
    encoder, correct, count = method.reference_encoder, 0, 0
    for number, name in enumerate(sorted(path.name for path in folder.iterdir())):
        for path in (folder / name).iterdir():
            image = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
            mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
            std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
            maps = encoder(((pixels - mean) / std)[None])
            logits = encoder.fc(maps[4].mean(dim=(2, 3)))[0]
            correct += int(logits.argmax()) == number
            count += 1
    return correct / count


@pytest.mark.parametrize("scenes", [False, True])
def test_the_accuracy_is_that_of_the_frozen_classifier(folder: Path, scenes: bool) -> None:
    config = _config(folder)
    if scenes:
        data = DigitScenesConfig(num_train=10, num_val=10, image_size=32)
        config = _config(folder, data=data, model=ModelConfig(head="fcn"))
    method = build_method(config, CLASSES, 2)
    assert isinstance(method, ReferenceMethod)
    method.train()
    found = reference_accuracy(method, load_reference_images(str(folder)), config, CPU)
    assert method.training
    assert found == pytest.approx(_plain_accuracy(method, folder))
    # The trained encoder is asked, not the reference.
    with torch.no_grad():
        for param in method.encoder.stage(4).parameters():
            param.zero_()
    gone = reference_accuracy(method, load_reference_images(str(folder)), config, CPU)
    assert gone == pytest.approx(1 / CLASSES)  # the classifier's bias names one class for all


def _epoch(config: RunConfig, repeats: int = 1) -> Metrics:
    """One epoch of a task whose target_val is small."""
    splits = load_splits(config.data)
    assert splits.source_val is not None
    small = replace(splits, target_val=replace(splits.source_val, name="target_val"))  # type: ignore[type-var]
    group = LaneGroup()
    group.add("only", Lane(config, small, CPU, repeats))
    report = group.run_epoch()["only"]
    assert isinstance(report, EpochReport)
    return report.metrics


def test_a_training_reports_it_and_is_not_changed_by_it(folder: Path) -> None:
    measured, plain = _epoch(_config(folder)), _epoch(_config(None))
    assert 0 <= measured.pop("reference_task/accuracy") <= 1
    for report in (measured, plain):
        del report["images_per_second"], report["seconds"]
    assert measured == plain


def test_a_diverged_training_has_none_left_and_the_keys_of_a_good_one(folder: Path) -> None:
    good = _epoch(_config(folder), repeats=2)
    train = TrainConfig(epochs=1, batch_size=10, max_gradient_norm=1e-9, max_skipped_steps=1)
    bad = _epoch(_config(folder, train=train), repeats=2)
    assert bad["diverged"] == 1
    assert bad.keys() == good.keys()
    assert bad["reference_task/accuracy"] == 0
    assert good["reference_task/accuracy_std"] == 0  # twice the same seed


def test_folders_are_the_classes_in_their_order(folder: Path) -> None:
    split = load_reference_images(str(folder))
    assert split.class_names == tuple(f"class{number}" for number in range(CLASSES))
    assert split.labels.tolist() == [number for number in range(CLASSES) for _ in range(3)]
    assert np.array(split.image(4)).tolist() == np.array(random_image(11, 40, 40)).tolist()


def _refused(config: RunConfig) -> list[str]:
    """What the commands say before anything starts."""
    space = parse_search_space(
        {
            "study": "s",
            "base": {
                "evaluation.reference_images": config.evaluation.reference_images,
                "data.num_train": 20,
            },
            "space": {"method.temperature": {"uniform": [0.1, 1]}},
            "search": {"metric": "target_val/hse", "mode": "min"},
        }
    )
    return [refusal(lambda: prepare_run(config)), refusal(lambda: prepare_study(space))]


def test_a_missing_class_is_refused_before_anything_starts(folder: Path) -> None:
    for image in (folder / "class3").iterdir():
        image.unlink()
    for sentence in _refused(_config(folder)):
        assert "the class 'class3' has no image" in sentence
    (folder / "class3").rmdir()
    for sentence in _refused(_config(folder)):
        assert "evaluation.reference_images holds 9 class folders" in sentence
        assert "pre-trained on 10 classes" in sentence


def test_a_missing_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for sentence in _refused(_config(tmp_path / "nowhere")):
        assert f"evaluation.reference_images: the folder {tmp_path}/nowhere does not" in sentence


def test_weights_of_another_task_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "others"
    for name in ("cat", "dog"):
        (other / name).mkdir(parents=True)
        random_image(0, 32, 32).save(other / name / "0.png")
    config = _config(other)
    sentence = refusal(lambda: Training(config, load_splits(config.data), CPU))
    assert "holds 2 class folders, but the weights of model.name mini (bundled)" in sentence
