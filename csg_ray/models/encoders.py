"""Encoders with their pre-trained weights; weights that cannot be had are an error."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights

from csg_ray.config.errors import UserError
from csg_ray.config.run import ModelConfig
from csg_ray.models.resnet import OutputStride, TappedResNet, build_resnet

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
BUNDLED_FILES = {"batch": "mini.pt", "ibn_a": "mini_ibn_a.pt", "ibn_b": "mini_ibn_b.pt"}


def build_encoder(config: ModelConfig, output_stride: OutputStride = 32) -> TappedResNet:
    """The encoder that `config` names, in float32, filled with the weights that it names.

    `weights: none` is the one way to a random start; it draws from torch's global generator.

    Args:
        config: its name, its norm and its weights.
        output_stride: as of `build_resnet`.

    Raises:
        UserError: the weights cannot be had, or belong to another network.
    """
    if config.weights == "none":
        return build_resnet(config.name, config.norm, output_stride=output_stride)
    if config.weights == "bundled":
        source = _bundled_file(config)
        weights = _read_weights(source)
    elif config.weights == "imagenet":
        source, weights = _imagenet_weights(config)
    else:
        source = Path(config.weights).expanduser()
        weights = _read_weights(source)
    encoder = build_resnet(config.name, config.norm, _classifier_width(weights), output_stride)
    _fill(encoder, weights, config, source)
    return encoder


def _bundled_file(config: ModelConfig) -> Path:
    path = WEIGHTS_FOLDER / BUNDLED_FILES[config.norm]
    if not path.is_file():
        command = f"python scripts/pretrain_mini.py --cifar10 DIR --norm {config.norm} --out {path}"
        raise UserError(
            f"model.weights 'bundled' with model.norm '{config.norm}' needs the file {path}, "
            f"which is missing; make it with '{command}'"
        )
    return path


def _imagenet_weights(config: ModelConfig) -> tuple[Path, Mapping[str, Tensor]]:
    """ImageNet-1K weights, version 1, from torch.hub's cache or the network."""
    if config.norm != "batch":
        raise UserError(
            f"model.weights 'imagenet' exists for model.norm 'batch' only, not '{config.norm}'; "
            "set model.weights to the path of a file with IBN weights"
        )
    published: WeightsEnum = get_model_weights(config.name).IMAGENET1K_V1
    name = Path(urlparse(published.url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path, _read_weights(path)
    try:
        return path, published.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, no space, or a damaged download
        raise UserError(
            f"model.weights 'imagenet': {published.url} could not be downloaded ({error}); "
            f"put the file {name} into {path.parent}"
        ) from error


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"model.weights: the file {path} does not exist; "
            "give bundled, imagenet, none, or the path of a state dict written by torch.save"
        )
    try:
        weights: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"model.weights: {path} is not a readable weight file ({reason})"
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise UserError(f"model.weights: {path} must hold a flat state dict of tensors")
    return weights


def _classifier_width(weights: Mapping[str, Tensor]) -> int | None:
    """The classes of the pre-training task, which may be any number; None when that is not told."""
    classifier = weights.get("fc.weight")
    return len(classifier) if classifier is not None and classifier.ndim > 0 else None


def _fill(
    encoder: TappedResNet, weights: Mapping[str, Tensor], config: ModelConfig, source: Path
) -> None:
    mismatch = _first_mismatch(encoder.state_dict(), weights)
    if mismatch is not None:
        raise UserError(
            f"model.weights: {source} does not fit model.name '{config.name}' with model.norm "
            f"'{config.norm}': {mismatch}"
        )
    encoder.load_state_dict(weights, strict=False)


def _first_mismatch(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the first tensor that does not fit; None when all do."""
    for name, tensor in expected.items():
        # Counts training batches; files from before 2018 lack it and frozen statistics ignore it.
        if name.endswith("num_batches_tracked"):
            continue
        if name not in weights:
            return f"'{name}' is missing"
        if weights[name].shape != tensor.shape:
            return (
                f"'{name}' is {tuple(weights[name].shape)} there and must be {tuple(tensor.shape)}"
            )
    extra = sorted(weights.keys() - expected.keys())
    return f"'{extra[0]}' has no place in it" if extra else None
