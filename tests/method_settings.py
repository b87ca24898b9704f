"""A legal configuration of every method: the defaults, and what short tests need besides."""

from __future__ import annotations

import atexit
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from csg_ray.config.data import DataConfig
from csg_ray.config.methods import (
    METHOD_CONFIGS,
    MethodConfig,
    MethodSection,
    SelfTrainingConfig,
    VanillaConfig,
)
from csg_ray.config.run import RunConfig
from csg_ray.data.load import load_splits
from csg_ray.data.styled import file_names
from csg_ray.methods import build_method
from csg_ray.storage.checkpoint import save_checkpoint

# Of asg_l2o a window short enough that a policy decides within a few steps.
REQUIRED: dict[str, dict[str, Any]] = {
    "asg_l2o": {"min_window": 1},
    "drpc": {"styles": "not read"},  # before training_data
}
SELF_TRAINING = sorted(
    name for name, kind in METHOD_CONFIGS.items() if issubclass(kind, SelfTrainingConfig)
)


def method_config(name: str, start_from: RunConfig | None = None, **settings: Any) -> MethodConfig:
    """The method's settings, changed by `settings`.

    Args:
        name: of the method.
        start_from: whose data and model a start has, for the methods that need one.
    """
    kind: type[MethodSection] = METHOD_CONFIGS[name]
    needed = dict(REQUIRED.get(name, {}))
    if issubclass(kind, SelfTrainingConfig) and "start" not in settings:
        needed["start"] = start_checkpoint(start_from or RunConfig())
    config: Any = kind(**{**needed, **settings})
    return config  # type: ignore[no-any-return]


def start_checkpoint(like: RunConfig) -> str:
    """A checkpoint of an untrained vanilla run with the data and the model of a configuration."""
    return _start_checkpoint(RunConfig(data=like.data, model=like.model, method=VanillaConfig()))


@lru_cache
def _start_checkpoint(config: RunConfig) -> str:
    folder = tempfile.TemporaryDirectory(prefix="csg_ray_start_")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "checkpoint.pt"
    num_classes = 10 if config.data.task == "classification" else 11
    method = build_method(config, num_classes, 1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # so that it predicts something
        for param in method.head.parameters():
            param.add_(0.2 * torch.randn(param.shape, generator=generator))
    state = method.state_dict()
    save_checkpoint(
        path,
        {
            "config": config.model_dump(),
            "epoch": 1,
            "metrics": {"epoch": 1, "diverged": 0},
            "repeats": [{"seed": config.seed, "method": state}],
        },
    )
    return str(path)


@lru_cache
def stylised_copies(data: DataConfig, num_styles: int = 3) -> str:
    """A folder with copies of a task's source_train in greys of their own."""
    folder = tempfile.TemporaryDirectory(prefix="csg_ray_styles_")
    atexit.register(folder.cleanup)
    split = load_splits(data).source_train
    for style in range(num_styles):
        below = Path(folder.name) / f"style{style}"
        below.mkdir()
        for number, name in enumerate(file_names(split)):
            pixels = np.asarray(split.image(number)).astype(int)
            grey = (pixels // (style + 2) + 30 * style).astype(np.uint8)
            Image.fromarray(grey).save(below / name)
    return folder.name
