"""One rank of the groups that test_distributed.py compares with a single process; run as a script.

Groups of 2, 3 and 4 ranks are formed one after the other in the same processes, as importing torch
costs more than all the trainings.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from csg_ray.config.data import DigitScenesConfig, DigitsConfig
from csg_ray.config.errors import UserError
from csg_ray.config.methods import METHOD_CONFIGS, CSGConfig
from csg_ray.config.run import AugmentConfig, EvaluationConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.load import load_splits
from csg_ray.data.splits import ArraySceneSplit, DomainSplits
from csg_ray.distributed import gather_features, gather_rows, on_rank_zero, shares
from csg_ray.methods.csg import CSG
from csg_ray.training.loop import Training, fit
from method_settings import method_config, stylised_copies

GROUPS = (2, 3, 4)
TRAININGS = (*METHOD_CONFIGS, "csg-dense", "csg-scenes", "mrkld-scenes")
DIGITS = DigitsConfig(num_train=100, num_val=30)
SCENES: dict[str, Any] = {
    "data": DigitScenesConfig(num_train=24, num_val=10),
    "model": ModelConfig(head="fcn"),
}


def config_of(name: str, **sections: Any) -> RunConfig:
    """Two epochs of three steps; three of batch 32 do not divide evenly among three ranks."""
    kind, _, variant = name.partition("-")
    like = RunConfig(**SCENES) if variant == "scenes" else RunConfig()
    styles = {"styles": stylised_copies(DIGITS)} if kind == "drpc" else {}
    method = method_config(kind, like, **styles)
    if name == "csg-dense":
        method = CSGConfig(patch_grid=2, stages="3", queue_size=300)
    settings: dict[str, Any] = {
        "data": DIGITS,
        "augment": AugmentConfig(translate="fraction"),
        "train": TrainConfig(epochs=2, batch_size=32, learning_rate=0.02, steps_per_epoch=3),
        "method": method,
    }
    if variant == "scenes":
        settings |= SCENES | {
            "train": TrainConfig(epochs=2, batch_size=8, learning_rate=0.02, steps_per_epoch=3),
            "evaluation": EvaluationConfig(batch_size=3),
        }
    if name == "csg-scenes":
        settings["method"] = CSGConfig(patch_grid=3, stages="3", queue_size=300)
    return RunConfig(**{**settings, **sections})


def splits_of(config: RunConfig) -> DomainSplits:
    """Those of the task; of scenes with pixels that do not count, in every scene another number."""
    splits = load_splits(config.data)
    source = splits.source_train
    if not isinstance(source, ArraySceneSplit):
        return splits
    label_maps = source.label_maps.copy()
    for number, label_map in enumerate(label_maps):
        label_map[:, 60 * number // len(label_maps) :] = 255
    own = ArraySceneSplit(source.name, source.images, label_maps, source.class_names)
    return replace(splits, source_train=own)


def train(name: str) -> dict[str, Any]:
    """What one training ends with: losses of every step, metrics, weights, queues."""
    config = config_of(name)
    training = Training(config, splits_of(config), torch.device("cpu"))
    losses: list[float] = []
    judge = training.guard.judge

    def noted(loss: torch.Tensor, norm: torch.Tensor, step: int) -> torch.Tensor:
        losses.append(float(loss))
        return judge(loss, norm, step)

    training.guard.judge = noted  # type: ignore[method-assign]
    metrics = [training.run_epoch(epoch) for epoch in (1, 2)]
    for each in metrics:
        del each["images_per_second"]
    return {"losses": losses, "metrics": metrics, "state": training.method.state_dict()}


def resume(folder: Path, first: int, then: int | None) -> list[dict[str, float]]:
    """One epoch that writes a checkpoint, or a second one that goes on from it."""
    reports: list[dict[str, float]] = []
    path = folder / f"checkpoint-{first}.pt"

    def write(metrics: dict[str, float], save: Callable[[Path], None], _: object) -> None:
        reports.append(metrics)
        if then is None and metrics["epoch"] == 1:
            save(path)

    fit(config_of("csg"), write, resume_from=None if then is None else path)
    return reports


def outcome(act: Callable[[], object]) -> str:
    """The exception that an act ends with, in words."""
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def full(*_: object) -> None:
    """A recorder whose disk is full."""
    raise OSError(28, "No space left on device")


def poisoned(number: int) -> None:
    """A training in which the images of rank `number` alone are not numbers."""
    config = config_of("csg")
    training = Training(config, load_splits(config.data), torch.device("cpu"))
    original = CSG.training_loss

    def spoilt(self: CSG, batch: Any) -> Any:
        if dist.get_rank() == number:
            batch.views = tuple(view * float("nan") for view in batch.views)
        return original(self, batch)

    CSG.training_loss = spoilt  # type: ignore[method-assign]
    try:
        training.run_epoch(1)
    finally:
        CSG.training_loss = original  # type: ignore[method-assign]


def facts(number: int, folder: Path, size: int) -> dict[str, Any]:
    """Everything that the tests want to know of one rank of a group of `size`."""
    rows = torch.arange(20.0).view(10, 2)
    start = sum(shares(10)[:number])
    own = rows[start : start + shares(10)[number]]
    features = [own[:1], own[1:]] if number else []
    thawed = ModelConfig(freeze_batch_norm=False)
    found: dict[str, Any] = {
        "gathered": gather_rows(own, shares(10)),
        "features": gather_features(features, torch.device("cpu")),
        "told": on_rank_zero(lambda: {"rank": dist.get_rank()}),
        "refused": outcome(lambda: on_rank_zero(lambda: (_ for _ in ()).throw(UserError("no")))),
        "disk": outcome(lambda: fit(config_of("vanilla"), full)),
        "thawed": outcome(lambda: fit(config_of("vanilla", model=thawed), full)),
        "batch": outcome(
            lambda: fit(config_of("vanilla", train=TrainConfig(epochs=1, batch_size=1)), full)
        ),
        "poisoned": outcome(lambda: poisoned(size - 1)),
        "trainings": {name: train(name) for name in TRAININGS},
        "reports": resume(folder, size, None),
    }
    return found


def write(path: Path, found: object) -> None:
    """Leave something for the tests to read."""
    path.write_bytes(pickle.dumps(found))


def main(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    for size in GROUPS:
        if number >= size:
            continue
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store-{size}", rank=number, world_size=size
        )
        write(folder / f"{size}-{number}.pickle", facts(number, folder, size))
        if size == 4:
            # Two trained the first epoch, four train the second.
            write(folder / f"resumed-{number}.pickle", resume(folder, 2, 4))
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
