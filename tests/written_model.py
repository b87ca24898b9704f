"""Runs written by hand with a checkpoint in them, as a training would leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from csg_ray.config.load import config_to_mapping, override_config
from csg_ray.config.reader import dump_yaml
from csg_ray.config.run import RunConfig
from csg_ray.methods import build_method
from csg_ray.storage.checkpoint import save_checkpoint
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import append_result, write_atomically

SMALL: dict[str, Any] = {"method.name": "vanilla", "train.epochs": 2}
MADE_HERE: dict[str, Any] = {"data.num_train": 64, "data.num_val": 20}
SCENES: dict[str, Any] = {"data.name": "digit_scenes", "model.head": "fcn"}


def small_config(**settings: Any) -> RunConfig:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    data = MADE_HERE if named.get("data.name", "digits").startswith("digit") else {}
    return override_config(RunConfig(), SMALL | data | named)


def write_checkpoint(
    path: StoragePath,
    config: RunConfig,
    noise: float = 0.1,
    epoch: int = 2,
    repeats: int = 1,
    num_classes: int | None = None,
) -> None:
    """`noise` says how far the weights are from those before training; each repeat has its own."""
    num_classes = num_classes or (10 if config.data.task == "classification" else 11)
    trained = []
    for seed in range(config.seed, config.seed + repeats):
        method = build_method(config.model_copy(update={"seed": seed}), num_classes, 2)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for param in method.parameters():
                param.mul_(1 + noise * torch.randn(param.shape, generator=generator))
        trained.append({"seed": seed, "method": method.state_dict()})
    metrics = {"epoch": epoch, "diverged": 0}
    state = {"config": config.model_dump(), "epoch": epoch, "metrics": metrics, "repeats": trained}
    save_checkpoint(path, state)


def write_model(
    folder: StoragePath,
    noise: float = 0.1,
    epoch: int = 2,
    repeats: int = 1,
    provenance: dict[str, Any] | None = None,
    num_classes: int | None = None,
    **settings: Any,
) -> StoragePath:
    config = small_config(**settings)
    folder.mkdir(parents=True)
    mapping = config_to_mapping(config) | {"provenance": provenance or {}}
    write_atomically(folder / "run.yaml", dump_yaml(mapping))
    for number in range(1, epoch + 1):
        append_result(folder, {"epoch": number, "diverged": 0, "timestamp": float(number)})
    write_checkpoint(folder / "checkpoint.pt", config, noise, epoch, repeats, num_classes)
    return folder


def mark_diverged(folder: Path) -> None:
    (folder / "result.json").write_text(json.dumps({"epoch": 1, "diverged": 1}) + "\n")
