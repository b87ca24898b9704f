"""What a training leaves behind: a JSON line an epoch, a checkpoint, TensorBoard files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from csg_ray.config.errors import UserError

RESULT_FILE = "result.json"
CHECKPOINT_FILE = "checkpoint.pt"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` whole or not at all; an older one stays until then."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a crash, sees the old file or the new one."""
    with atomic_file(path) as file:
        file.write(text.encode())


def append_result(directory: Path, metrics: dict[str, Any]) -> None:
    """Append one JSON line to the result file and bring it to the disk.

    A torn last line, left by a crash or a full disk, is cut off first.
    """
    line = json.dumps(metrics, allow_nan=False) + "\n"
    path = directory / RESULT_FILE
    _cut_torn_line(path)
    with path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_results(directory: Path) -> list[dict[str, Any]]:
    """The reports of one training, in order; a torn last line is left out.

    Raises:
        UserError: a line before the last is not JSON.
    """
    path = directory / RESULT_FILE
    if not path.is_file():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [_parse_line(line, path, number) for number, line in enumerate(lines, start=1)]


def _parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"{path}, line {number} is not JSON; remove that line, or restore the file from a copy"
        ) from error
    return record


def _cut_torn_line(path: Path) -> None:
    """Remove what follows the last line feed."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


class EpochRecorder:
    """The callback of a training that keeps its own directory: checkpoint first, then the line.

    Building one repairs what a crash left: a torn last line goes, and a checkpoint that is ahead of
    the lines brings the missing line with it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None
        directory.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(directory / RESULT_FILE)
        self._repair()

    def __call__(self, metrics: dict[str, float], save_checkpoint: Callable[[Path], None]) -> None:
        """Record one finished epoch."""
        save_checkpoint(self._directory / CHECKPOINT_FILE)
        self._record(metrics)

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _repair(self) -> None:
        path = self._directory / CHECKPOINT_FILE
        if not path.is_file():
            return
        # Only a directory with a checkpoint needs torch, and only for this.
        from csg_ray.training.checkpoint import load_checkpoint

        metrics = load_checkpoint(path)["metrics"]
        recorded = [record["epoch"] for record in read_results(self._directory)]
        if metrics["epoch"] > max(recorded, default=0):
            self._record(metrics)

    def _record(self, metrics: dict[str, float]) -> None:
        self._forget_from(int(metrics["epoch"]))
        append_result(self._directory, {**metrics, "timestamp": time.time()})
        self._write_scalars(metrics)

    def _forget_from(self, epoch: int) -> None:
        """Drop lines of epochs that are trained again, after a start from an older checkpoint."""
        records = read_results(self._directory)
        kept = [record for record in records if record["epoch"] < epoch]
        if len(kept) < len(records):
            lines = "".join(json.dumps(record) + "\n" for record in kept)
            write_atomically(self._directory / RESULT_FILE, lines)

    def _write_scalars(self, metrics: dict[str, float]) -> None:
        if self._writer is None:
            # Imported late: readers of results need no TensorBoard.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._directory))
        for name, value in metrics.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(metrics["epoch"]))
        self._writer.flush()
