"""The TensorBoard file of one training, whole after every epoch, on a disk or on a URI."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import hparams, image, scalar

from csg_ray.storage.paths import RemotePath, StoragePath


class EventFile:
    """An event file, made when something is written first.

    On a URI it is written in a temporary folder and uploaded whole by `flush`.
    """

    def __init__(self, directory: StoragePath) -> None:
        self._directory = directory
        self._writer: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Begin a session of the HParams plugin.

        Only the session is written, not the plugin's "experiment" with the names of all settings
        and metrics: of several of those TensorBoard takes the first that it meets, and then hides
        the settings that only other trials, or other studies, have. Without one it collects them.
        """
        plain = {name: _plain(value) for name, value in settings.items()}
        _, session_start, _ = hparams(plain, {})
        self._write(session_start, step=0)

    def write_end(self) -> None:
        """End the session of the HParams plugin, with success."""
        _, _, session_end = hparams({}, {})
        self._write(session_end, step=0)

    def write_scalars(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of one epoch, which is the step."""
        for name, value in metrics.items():
            if name != "epoch":
                self._write(scalar(name, value), step=int(metrics["epoch"]))

    def write_picture(self, name: str, picture: NDArray[np.uint8], epoch: int) -> None:
        """Add a picture, (H, W, 3)."""
        self._write(image(name, picture, dataformats="HWC"), step=epoch)

    def flush(self) -> None:
        """Bring what was written to the disk, or to the store."""
        self._writer.flush()
        if isinstance(self._directory, RemotePath):
            for file in Path(self._local_folder()).iterdir():
                (self._directory / file.name).write_bytes(file.read_bytes())

    def close(self) -> None:
        """Close the file; what is written later goes to another one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _write(self, summary: Any, step: int) -> None:
        # Not a SummaryWriter: that one writes when it likes, and an upload would miss the rest.
        if self._writer is None:
            # The name holds whole seconds, and a training may go on within one.
            unique = f".{time.time_ns()}"
            self._writer = EventsWriter(f"{self._local_folder()}/events", unique)
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _local_folder(self) -> str:
        if not isinstance(self._directory, RemotePath):
            return str(self._directory)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="csg_ray_")
        return self._folder.name


def _plain(value: Any) -> bool | int | float | str:
    """A value as the HParams plugin takes it."""
    return value if isinstance(value, bool | int | float | str) else str(value)
