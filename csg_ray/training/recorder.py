"""The callback of a training that keeps its own directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import (
    CHECKPOINT_FILE,
    append_result,
    cut_torn_line,
    forget_results,
    read_results,
)
from csg_ray.training.pictures import Pictures
from csg_ray.training.tensorboard import EventFile


class EpochRecorder:
    """The callback of a training that keeps its own directory: checkpoint first, then the line.

    Building one repairs what a crash left: a torn last line goes, and a checkpoint that is ahead of
    the lines brings the missing line with it.

    Args:
        directory: the training's own.
        settings: what TensorBoard shows as its hyperparameters, by dotted path; None: nothing.
        epochs: the number of the last one, with which the training ends.
    """

    def __init__(
        self,
        directory: StoragePath,
        settings: Mapping[str, Any] | None = None,
        epochs: int | None = None,
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._epochs = epochs
        self._events = EventFile(directory)
        directory.mkdir(parents=True, exist_ok=True)
        cut_torn_line(directory)
        self._repair()

    def __call__(
        self,
        metrics: dict[str, float],
        save_checkpoint: Callable[[StoragePath], None],
        pictures: Pictures | None = None,
    ) -> None:
        """Record one finished epoch, and what there is to see of it."""
        save_checkpoint(self._directory / CHECKPOINT_FILE)
        self._record(metrics, pictures)

    def close(self) -> None:
        """Close the TensorBoard file."""
        self._events.close()

    def _repair(self) -> None:
        path = self._directory / CHECKPOINT_FILE
        if not path.is_file():
            return
        metrics = load_checkpoint(path)["metrics"]
        recorded = [record["epoch"] for record in read_results(self._directory)]
        if metrics["epoch"] > max(recorded, default=0):
            self._record(metrics)

    def _record(self, metrics: dict[str, float], pictures: Pictures | None = None) -> None:
        forget_results(self._directory, int(metrics["epoch"]))
        append_result(self._directory, {**metrics, "timestamp": time.time()})
        self._show(metrics, pictures)

    def _show(self, metrics: dict[str, float], pictures: Pictures | None) -> None:
        """Tell TensorBoard; a training that goes on in another file has said its settings."""
        if self._settings and metrics["epoch"] == 1:
            self._events.write_settings(self._settings)
        self._events.write_scalars(metrics)
        if pictures is not None:
            self._draw(pictures, int(metrics["epoch"]))
        if self._settings and metrics["epoch"] == self._epochs and not metrics["diverged"]:
            self._events.write_end()
        self._events.flush()

    def _draw(self, pictures: Pictures, epoch: int) -> None:
        """The views that the training begins with, and what has become of it in the end."""
        if epoch == 1:
            self._events.write_picture("train/views", pictures.training_views(), epoch)
        if epoch == self._epochs:
            self._events.write_picture("target_val/predictions", pictures.predictions(), epoch)
            self._events.write_picture("target_val/confusion", pictures.confusion(), epoch)
