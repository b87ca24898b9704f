"""Settings that contradict each other, and settings that do nothing: told, and rightly so."""

from __future__ import annotations

from typing import Any

import pytest

from csg_ray.config.data import DigitScenesConfig
from csg_ray.config.errors import UserError
from csg_ray.config.load import override_config
from csg_ray.config.run import RunConfig
from csg_ray.data.digits.scenes import CANVAS_SIDE

SCENES = {"data.name": "digit_scenes", "model.head": "fcn"}
VANILLA = {"method.name": "vanilla"}
AUGMENT = ("implementation", "num_ops", "magnitude", "translate", "views", "jitter")


def config(*settings: dict[str, Any]) -> RunConfig:
    return override_config(RunConfig(), {path: v for part in settings for path, v in part.items()})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model.name": "resnet50"}, "model.weights 'bundled' exists for model.name 'mini' only"),
        ({"model.weights": "imagenet"}, "model.weights 'imagenet' does not exist for 'mini'"),
        ({"model.head": "fcn"}, "model.head is fcn, but data.name digits is a task of class"),
        (SCENES | {"model.head": "mlp"}, "set model.head to aspp_v3 or deeplabv2 or fcn"),
        (
            SCENES | {"model.name": "resnet18", "model.weights": "none"},
            "model.name resnet18 cannot be dilated for segmentation; set it to mini or resnet50",
        ),
        (
            SCENES | {"model.head": "aspp_v3", "train.batch_size": 1},
            "train.batch_size must be at least 2, not 1",
        ),
        (
            SCENES | {"augment.implementation": "torchvision"},
            "augment.implementation torchvision moves pixels",
        ),
        (
            {"augment.implementation": "color_jitter"},
            "augment.implementation color_jitter is of segmentation, but data.name digits",
        ),
        (
            {"model.weights": "none", "evaluation.reference_images": "cifar10/test"},
            "evaluation.reference_images measures what is left of the pre-training, but model.w",
        ),
        (
            {"method.name": "oracle", "model.freeze_batch_norm": False},
            "method oracle keeps the encoder as it is, but with model.freeze_batch_norm false",
        ),
        (
            SCENES | {"method.name": "asg_l2o"},
            "method asg_l2o is of classification, but data.name digit_scenes is a task of segment",
        ),
        (
            {"method.name": "asg_l2o", "method.episodes": 3, "train.epochs": 3},
            "train.epochs is 3, and the first 3 (method.episodes) are for the policy alone, so "
            "that nothing would be trained; set train.epochs to at least 4",
        ),
        (SCENES | {"data.min_scale": 0.5}, "a scene has 32 pixels a side at data.min_scale 0.5"),
        (SCENES | {"data.image_size": 49}, "data.image_size is 49, but a scene has 48 pixels"),
        (SCENES | {"data.min_scale": 1.3}, "data.min_scale 1.3 is above data.max_scale 1.25"),
    ],
)
def test_a_contradiction_is_one_sentence_that_names_both_settings(
    settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        config(settings)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        SCENES | {"data.min_scale": 1.0, "data.image_size": 64},
        SCENES | {"model.head": "aspp_v3", "train.batch_size": 2},
        SCENES | {"augment.implementation": "color_jitter"},
        {"method.name": "asg_l2o", "method.episodes": 3, "train.epochs": 4},
    ],
)
def test_what_only_just_fits_is_taken(settings: dict[str, Any]) -> None:
    config(settings)


@pytest.mark.parametrize(
    ("settings", "inert"),
    [
        ({}, {"augment.jitter", "evaluation.window"}),
        (VANILLA, {"augment.jitter", "augment.views", "evaluation.window"}),
        (
            {"method.name": "oracle"},
            {"augment.jitter", "augment.views", "evaluation.window", "train.backbone_lr_mult"}
            | {"model.train_batch_norm_affine"},
        ),
        (
            {"augment.num_ops": 0},
            {f"augment.{name}" for name in AUGMENT if name != "num_ops"} | {"evaluation.window"},
        ),
        (
            {"augment.implementation": "torchvision"},
            {"augment.jitter", "augment.translate", "evaluation.window"},
        ),
        (
            SCENES,
            {"augment.jitter", "augment.translate", "augment.views", "model.head_width"},
        ),
        (
            SCENES | {"augment.implementation": "color_jitter"},
            {f"augment.{name}" for name in ("num_ops", "magnitude", "translate", "views")}
            | {"model.head_width"},
        ),
        (SCENES | VANILLA, {f"augment.{name}" for name in AUGMENT} | {"model.head_width"}),
        (
            {"method.pooling": "mean", "method.train_projection": False},
            {"augment.jitter", "evaluation.window", "method.attention_from"}
            | {"method.detach_attention", "method.ema_momentum"},
        ),
    ],
)
def test_the_settings_that_do_nothing(settings: dict[str, Any], inert: set[str]) -> None:
    found = config(settings).inert_settings()

    assert set(found) == inert
    assert all(found.values())


def test_without_the_contrastive_loss_nothing_of_it_does_anything() -> None:
    csg = config({"method.loss_weight": 0.0})

    method = {path for path in csg.inert_settings() if path.startswith("method.")}
    assert method == {
        f"method.{name}" for name in csg.method.model_dump() if name not in ("name", "loss_weight")
    }


def test_scenes_are_as_large_as_their_settings_say() -> None:
    assert DigitScenesConfig.canvas_size == CANVAS_SIDE
