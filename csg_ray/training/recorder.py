"""The callback of a training that keeps its own directory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.storage.paths import RemotePath, StoragePath
from csg_ray.storage.records import (
    CHECKPOINT_FILE,
    append_result,
    cut_torn_line,
    forget_results,
    read_results,
)


class EpochRecorder:
    """The callback of a training that keeps its own directory: checkpoint first, then the line.

    Building one repairs what a crash left: a torn last line goes, and a checkpoint that is ahead of
    the lines brings the missing line with it.
    """

    def __init__(self, directory: StoragePath) -> None:
        self._directory = directory
        self._scalars = _Scalars(directory)
        directory.mkdir(parents=True, exist_ok=True)
        cut_torn_line(directory)
        self._repair()

    def __call__(
        self, metrics: dict[str, float], save_checkpoint: Callable[[StoragePath], None]
    ) -> None:
        """Record one finished epoch."""
        save_checkpoint(self._directory / CHECKPOINT_FILE)
        self._record(metrics)

    def close(self) -> None:
        """Close the TensorBoard file."""
        self._scalars.close()

    def _repair(self) -> None:
        path = self._directory / CHECKPOINT_FILE
        if not path.is_file():
            return
        metrics = load_checkpoint(path)["metrics"]
        recorded = [record["epoch"] for record in read_results(self._directory)]
        if metrics["epoch"] > max(recorded, default=0):
            self._record(metrics)

    def _record(self, metrics: dict[str, float]) -> None:
        forget_results(self._directory, int(metrics["epoch"]))
        append_result(self._directory, {**metrics, "timestamp": time.time()})
        self._scalars.write(metrics)


class _Scalars:
    """The TensorBoard file of one recorder, made with its first epoch.

    On a URI it is written in a temporary folder and uploaded whole after each epoch.
    """

    def __init__(self, directory: StoragePath) -> None:
        self._directory = directory
        self._writer: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def write(self, metrics: dict[str, float]) -> None:
        """Add the metrics of one epoch."""
        # Not a SummaryWriter: that one writes when it likes, and an upload would miss the rest.
        if self._writer is None:
            self._writer = EventsWriter(f"{self._local_folder()}/events")
        step = int(metrics["epoch"])
        for name, value in metrics.items():
            if name != "epoch":
                summary = scalar(name, value)
                event = Event(wall_time=time.time(), step=step, summary=summary)
                self._writer.write_event(event)
        self._writer.flush()
        if isinstance(self._directory, RemotePath):
            for file in Path(self._local_folder()).iterdir():
                (self._directory / file.name).write_bytes(file.read_bytes())

    def close(self) -> None:
        """Close the file; a later epoch makes another one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _local_folder(self) -> str:
        if not isinstance(self._directory, RemotePath):
            return str(self._directory)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="csg_ray_")
        return self._folder.name
