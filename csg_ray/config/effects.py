"""Settings that contradict each other, and settings that change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from csg_ray.config.data import Task, lacks_target_train
from csg_ray.config.methods import ASGL2OConfig, CSGConfig, SelfTrainingConfig

if TYPE_CHECKING:
    from csg_ray.config.run import RunConfig

HEADS: dict[Task, tuple[str, ...]] = {
    "classification": ("mlp", "linear"),
    "segmentation": ("aspp_v3", "deeplabv2", "fcn"),
}
DILATED_MODELS = ("mini", "resnet50", "resnet101")
AUGMENT_SETTINGS = ("implementation", "num_ops", "magnitude", "translate", "views", "jitter")


def first_contradiction(config: RunConfig) -> str | None:
    """A sentence about two settings that exclude each other; None when there are none."""
    return next(_contradictions(config), None)


def _contradictions(config: RunConfig) -> Iterator[str]:
    model, data = config.model, config.data
    if model.weights == "bundled" and model.name != "mini":
        yield (
            "model.weights 'bundled' exists for model.name 'mini' only, "
            f"not '{model.name}'; set model.weights to imagenet, none, or the path of a file"
        )
    if model.weights == "imagenet" and model.name == "mini":
        yield "model.weights 'imagenet' does not exist for 'mini'; set it to bundled"
    if model.head not in HEADS[data.task]:
        yield (
            f"model.head is {model.head}, but data.name {data.name} is a task of {data.task}; "
            f"set model.head to {' or '.join(HEADS[data.task])}"
        )
    if data.task == "segmentation" and model.name not in DILATED_MODELS:
        yield (
            f"model.name {model.name} cannot be dilated for segmentation; set it to "
            f"{' or '.join(DILATED_MODELS)}"
        )
    if model.head == "aspp_v3" and config.train.batch_size == 1:
        yield (
            "model.head aspp_v3 normalises the mean of each image over the batch, so that "
            "train.batch_size must be at least 2, not 1; raise it, or set model.head to deeplabv2"
        )
    if model.weights == "none" and config.evaluation.reference_images is not None:
        yield (
            "evaluation.reference_images measures what is left of the pre-training, but "
            "model.weights is none; take it out, or name pre-trained weights"
        )
    yield from _method_contradictions(config)
    implementation = config.augment.implementation
    if data.task == "segmentation" and implementation == "torchvision":
        yield (
            "augment.implementation torchvision moves pixels, and query and key must stay aligned "
            "in segmentation; set it to authors or color_jitter"
        )
    if data.task == "classification" and implementation == "color_jitter":
        yield (
            "augment.implementation color_jitter is of segmentation, but data.name "
            f"{data.name} is a task of classification; set it to authors or torchvision"
        )


def _method_contradictions(config: RunConfig) -> Iterator[str]:
    method = config.method
    if method.name == "oracle" and not config.model.freeze_batch_norm:
        yield (
            "method oracle keeps the encoder as it is, but with model.freeze_batch_norm false its "
            "statistics move; set it to true"
        )
    if isinstance(method, SelfTrainingConfig):
        yield from _self_training_contradictions(config)
    if not isinstance(method, ASGL2OConfig):
        return
    if config.data.task == "segmentation":
        yield (
            f"method asg_l2o is of classification, but data.name {config.data.name} is a task of "
            "segmentation; set method.name to asg"
        )
    if config.train.epochs <= method.episodes:
        yield (
            f"train.epochs is {config.train.epochs}, and the first {method.episodes} "
            "(method.episodes) are for the policy alone, so that nothing would be trained; "
            f"set train.epochs to at least {method.episodes + 1}"
        )


def _self_training_contradictions(config: RunConfig) -> Iterator[str]:
    name = config.method.name
    if (remedy := lacks_target_train(config.data)) is not None:
        yield (
            f"method {name} trains on target images without labels, but data.name "
            f"{config.data.name} keeps no target_train as it is set; {remedy}"
        )
    if config.train.steps_per_epoch == "auto":
        yield (
            f"method {name} trains on another number of images in every round, so "
            "train.steps_per_epoch must be a number, not auto; set it to the steps of a round"
        )


def inert_settings(config: RunConfig) -> dict[str, str]:
    """Dotted paths of settings that change nothing here, each with the reason why."""
    inert: dict[str, str] = {}
    if config.data.task == "classification":
        inert["evaluation.window"] = "data.name is a task of classification"
    inert |= _inert_augment_settings(config)
    if config.method.name == "oracle":
        reason = "method oracle trains the head alone"
        inert |= {"train.backbone_lr_mult": reason, "model.train_batch_norm_affine": reason}
    if isinstance(config.method, CSGConfig):
        inert |= _inert_csg_settings(config.method)
    if config.model.head != "mlp":
        inert["model.head_width"] = f"model.head is {config.model.head}"
    return inert


def _inert_augment_settings(config: RunConfig) -> dict[str, str]:
    augment = config.augment
    method = config.method.name
    if config.data.task == "segmentation" and method != "csg":
        reason = f"method {method} sees no key view, and segmentation augments no other"
        return {f"augment.{name}": reason for name in AUGMENT_SETTINGS}
    if augment.num_ops == 0:
        others = [name for name in AUGMENT_SETTINGS if name != "num_ops"]
        return {f"augment.{name}": "augment.num_ops is 0" for name in others}
    inert: dict[str, str] = {}
    if augment.implementation == "color_jitter":
        names, reason = ("magnitude", "translate"), "augment.implementation is color_jitter"
        inert |= {f"augment.{name}": reason for name in names}
        inert["augment.num_ops"] = f"{reason}: any number but 0 is the same"
    else:
        inert["augment.jitter"] = "augment.implementation is not color_jitter"
    if augment.implementation == "torchvision":
        inert["augment.translate"] = "augment.implementation is torchvision"
    if config.data.task == "segmentation":
        reason = "segmentation augments the colours of the key view alone"
        inert |= {f"augment.{name}": reason for name in ("translate", "views")}
    elif method not in ("csg", "drpc"):
        inert["augment.views"] = f"method {method} uses one view"
    return inert


def _inert_csg_settings(method: CSGConfig) -> dict[str, str]:
    if method.loss_weight == 0:
        names = set(CSGConfig.model_fields) - {"name", "loss_weight"}
        return {f"method.{name}": "method.loss_weight is 0" for name in names}
    inert: dict[str, str] = {}
    if method.pooling == "mean":
        reason = "method.pooling is mean"
        inert |= {f"method.{name}": reason for name in ("attention_from", "detach_attention")}
    if not method.train_projection:
        inert["method.ema_momentum"] = "method.train_projection is false: there is no average"
    return inert
