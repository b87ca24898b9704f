"""The encoder and the head of a finished training, for another one to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from csg_ray.config.errors import UserError
from csg_ray.config.run import RunConfig
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.storage.paths import open_path
from csg_ray.storage.records import CHECKPOINT_FILE

# The weights decide what pre-training classes the encoder knows.
SAME = (
    "data.name",
    "model.name",
    "model.weights",
    "model.norm",
    "model.head",
    "model.head_width",
)
PARTS = ("encoder.", "head.")


def load_start(place: str, config: RunConfig, num_classes: int) -> dict[str, Tensor]:
    """The weights of encoder and head in a checkpoint, named as in a method's `state_dict`.

    Of a training with several repeats it is that of the same seed, or the first one where no seed
    is the same.

    Args:
        place: the directory or URI of a run or a trial, or a checkpoint file.
        config: of the training that starts there.
        num_classes: of its task.

    Raises:
        UserError: no checkpoint, one of another task or network, or of a training that diverged.
    """
    path = open_path(place)
    if isinstance(path, Path):
        path = path.expanduser()
    inside = path / CHECKPOINT_FILE
    try:
        state = load_checkpoint(inside if inside.is_file() else path)
    except (UserError, IsADirectoryError) as error:
        reason = error if isinstance(error, UserError) else f"{inside} does not exist"
        raise UserError(
            f"method.start: {reason}; give a run or a trial that kept its checkpoint"
        ) from error
    _check_same(place, state, config)
    repeats = {repeat["seed"]: repeat["method"] for repeat in state["repeats"]}
    method = repeats.get(config.seed, next(iter(repeats.values())))
    weights = {name: each for name, each in method.items() if name.startswith(PARTS)}
    found = _num_classes(weights)
    if found != num_classes:
        raise UserError(
            f"method.start: {place} knows {found} classes, and the task has {num_classes}; start "
            "from a training on the same task"
        )
    return weights


def _check_same(place: str, state: dict[str, Any], config: RunConfig) -> None:
    here, inert = config.model_dump(), config.inert_settings()
    for path in SAME:
        if path in inert:
            continue
        section, _, name = path.partition(".")
        there, wanted = state["config"][section][name], here[section][name]
        if there != wanted:
            raise UserError(
                f"method.start: {place} was trained with {path} {there}, not {wanted}; start from "
                "a training on the same task with the same model, or change this one"
            )
    if state["metrics"]["diverged"]:
        raise UserError(
            f"method.start: the training in {place} diverged; start from one that did not"
        )


def _num_classes(weights: dict[str, Tensor]) -> int:
    """The outputs of the head's last layer."""
    last = [each for name, each in weights.items() if name.startswith("head.")][-1]
    return len(last)
