"""One trial: in its own process, or spread over workers by Ray Train. Every epoch goes to Tune."""

from __future__ import annotations

import traceback
from typing import Any

import ray
import torch
from ray import tune

from csg_ray.config.errors import UserError
from csg_ray.config.run import RunConfig
from csg_ray.scale.gpu_share import CurrentGpu, train_within
from csg_ray.storage.paths import StoragePath, open_path
from csg_ray.storage.records import CHECKPOINT_FILE, DISK_FULL, read_results, write_atomically
from csg_ray.storage.stores import StorageError
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
        _check_sees_study(directory)
        if assignment["workers"] == 1:
            _train_here(assignment, directory)
        else:
            _train_with_workers(assignment)
    except Exception as error:
        _report_failure(directory, error)


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


def _check_sees_study(directory: StoragePath) -> None:
    """Refuse to train on a machine that would write where nobody reads."""
    if not (directory / "params.json").exists():
        raise UserError(
            f"{directory} is not visible from {ray.util.get_node_ip_address()}; put the study on "
            "a file system that all machines share, or on an object store with --storage"
        )


def _report_failure(directory: StoragePath, error: Exception) -> None:
    """Hand the reason to the driver; storage that fails pauses the study, all else this trial."""
    if isinstance(error, StorageError):
        tune.report({"store": error.filename, "reason": error.strerror})
        return
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        tune.report({"disk_full": str(directory)})
        return
    write_atomically(directory / "error.txt", traceback.format_exc())
    tune.report({"error": f"{type(error).__name__}: {error}"})
