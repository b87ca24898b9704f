"""One trial: in its own process, or spread over workers by Ray Train. Every epoch goes to Tune."""

from __future__ import annotations

from typing import Any

import torch
from ray import tune

from csg_ray.config.run import RunConfig
from csg_ray.scale.failures import check_sees_study, failure_report
from csg_ray.scale.gpu_share import CurrentGpu, train_within
from csg_ray.storage.paths import StoragePath, open_path
from csg_ray.storage.records import CHECKPOINT_FILE, read_results
from csg_ray.training.loop import Metrics, fit
from csg_ray.training.pictures import Pictures
from csg_ray.training.recorder import EpochRecorder


def train_trial(assignment: dict[str, Any]) -> None:
    """Train one trial, or go on with one from its checkpoint.

    Args:
        assignment: `id`, `directory`, `params` (the searched settings), `config` (a RunConfig as a
            mapping), `repeats`, `workers` and `cpus` and `gpus` of each, `known_epochs` (the
            reports that the driver already has).
    """
    directory = open_path(assignment["directory"])
    try:
        check_sees_study(directory)
        if assignment["workers"] == 1:
            _train_here(assignment, directory)
        else:
            _train_with_workers(assignment)
    except Exception as error:
        tune.report(failure_report(directory, error))


def _train_here(assignment: dict[str, Any], directory: StoragePath) -> None:
    torch.set_num_threads(assignment["cpus"])
    config = RunConfig.model_validate(assignment["config"])
    recorder = EpochRecorder(directory, assignment["params"], config.train.epochs)

    def on_epoch_end(metrics: Metrics, save_checkpoint: Any, pictures: Pictures | None) -> None:
        recorder(metrics, save_checkpoint, pictures)
        tune.report(dict(metrics))

    def train() -> None:
        checkpoint = directory / CHECKPOINT_FILE
        fit(
            config,
            on_epoch_end,
            resume_from=checkpoint if checkpoint.exists() else None,
            repeats=assignment["repeats"],
        )

    try:
        for line in read_results(directory):
            if line["epoch"] > assignment["known_epochs"]:
                tune.report(line)
        train_within(assignment["gpus"], train, CurrentGpu())
    finally:
        recorder.close()


def _train_with_workers(assignment: dict[str, Any]) -> None:
    # Ray Train takes seconds to import, and most trials need none of it.
    from csg_ray.scale.resources import Workers
    from csg_ray.scale.trainer import train_with_workers

    job = {key: assignment[key] for key in ("directory", "config", "repeats")}
    count = assignment["workers"]
    train_with_workers(
        job | {"settings": assignment["params"], "threads": assignment["cpus"]},
        assignment["id"],
        Workers(count, count, assignment["cpus"], assignment["gpus"]),
        tune.report,
        assignment["known_epochs"],
    )
