"""One flat trial: the trial's own process trains, records each epoch, then reports it to Tune."""

from __future__ import annotations

import errno
import traceback
from typing import Any

import torch
from ray import tune

from csg_ray.config.run import RunConfig
from csg_ray.storage.paths import StoragePath, open_path
from csg_ray.storage.records import CHECKPOINT_FILE, read_results, write_atomically
from csg_ray.storage.stores import StorageError
from csg_ray.training.loop import fit
from csg_ray.training.recorder import EpochRecorder


def train_trial(assignment: dict[str, Any]) -> None:
    """Train one trial, or go on with one from its checkpoint.

    Args:
        assignment: `id`, `directory`, `config` (a RunConfig as a mapping), `repeats`, `threads`,
            `known_epochs` (the reports that the driver already has).
    """
    torch.set_num_threads(assignment["threads"])
    directory = open_path(assignment["directory"])
    try:
        _train(assignment, directory)
    except Exception as error:
        _report_failure(directory, error)


def _train(assignment: dict[str, Any], directory: StoragePath) -> None:
    checkpoint = directory / CHECKPOINT_FILE
    recorder = EpochRecorder(directory)
    try:
        for line in read_results(directory):
            if line["epoch"] > assignment["known_epochs"]:
                tune.report(line)

        def on_epoch_end(metrics: dict[str, float], save_checkpoint: Any) -> None:
            recorder(metrics, save_checkpoint)
            tune.report(dict(metrics))

        fit(
            RunConfig.model_validate(assignment["config"]),
            on_epoch_end,
            resume_from=checkpoint if checkpoint.exists() else None,
            repeats=assignment["repeats"],
        )
    finally:
        recorder.close()


def _report_failure(directory: StoragePath, error: Exception) -> None:
    """Hand the reason to the driver; storage that fails pauses the study, all else this trial."""
    if isinstance(error, StorageError):
        tune.report({"store": error.filename, "reason": error.strerror})
        return
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        tune.report({"disk_full": str(directory)})
        return
    write_atomically(directory / "error.txt", traceback.format_exc())
    tune.report({"error": f"{type(error).__name__}: {error}"})
