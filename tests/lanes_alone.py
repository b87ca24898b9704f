"""Small trainings, and what each of them comes to when `fit` trains it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from csg_ray.config.data import DataConfig, DigitsConfig
from csg_ray.config.methods import CSGConfig
from csg_ray.config.run import RunConfig, TrainConfig
from csg_ray.data.load import load_splits
from csg_ray.data.splits import ArraySplit, DomainSplits
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.training import loop
from csg_ray.training.lanes import EpochReport, Lane, LaneGroup
from csg_ray.training.loop import Metrics, fit

CPU = torch.device("cpu")
TIMES = ("images_per_second", "seconds")
CHECKPOINT = "checkpoint.pt"


def small_splits(config: DataConfig) -> DomainSplits:
    """The digits with ten target images."""
    splits = load_splits(config)
    target = splits.target_val
    assert isinstance(target, ArraySplit)
    few = ArraySplit(target.name, target.images[:10], target.labels[:10], target.class_names)
    return replace(splits, target_val=few)


def config_of(train: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    """Three epochs of three steps; the queue's pointer is in its middle after each."""
    settings = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, **(train or {})}
    whole = {
        "data": DigitsConfig(num_train=24, num_val=10),
        "method": CSGConfig(queue_size=10),
        "train": TrainConfig(**settings),
        **sections,
    }
    return RunConfig(**whole)


def lane_of(config: RunConfig, **options: Any) -> Lane:
    """A lane on the small splits."""
    return Lane(config, small_splits(config.data), CPU, **options)


def alone(
    config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[tuple[Metrics, Any]]:
    """The metrics and the checkpoint of every epoch; the files stay, named by the epoch."""
    ends: list[tuple[Metrics, Any]] = []
    folder.mkdir(parents=True, exist_ok=True)

    def on_epoch_end(metrics: Metrics, save: Callable[[Path], None], _: object) -> None:
        path = folder / f"{metrics['epoch']}.pt"
        save(path)
        ends.append((metrics, load_checkpoint(path)))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "load_splits", small_splits)
        fit(config, on_epoch_end, **options)
    return ends


def end_of(report: EpochReport | Exception, folder: Path) -> tuple[Metrics, Any]:
    """The metrics and the checkpoint of an epoch in a group."""
    assert isinstance(report, EpochReport), report
    report.save_checkpoint(folder / CHECKPOINT)
    return report.metrics, load_checkpoint(folder / CHECKPOINT)


def group_of(lanes: dict[str, Lane], how: Any = "in_turn") -> LaneGroup:
    """A group of lanes by their names."""
    group = LaneGroup(how)
    for name, lane in lanes.items():
        group.add(name, lane)
    return group


def differences(
    one: Any, other: Any, close: Callable[[Tensor, Tensor], bool], path: str = ""
) -> Iterable[str]:
    """Where two nested values differ in anything but times; floats and tensors as `close` says."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            if key not in TIMES:
                yield from differences(one[key], other[key], close, f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differences(left, right, close, f"{path}/{number}")
    elif isinstance(one, float | Tensor):
        if not close(torch.as_tensor(one), torch.as_tensor(other)):
            yield f"{path}: {one} and {other}"
    elif one != other:
        yield f"{path}: {one} and {other}"


def assert_same(one: Any, other: Any) -> None:
    """To the bit."""
    assert list(differences(one, other, Tensor.equal)) == []
