"""The callback of a training that keeps its own directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from csg_ray.storage.records import (
    CHECKPOINT_FILE,
    RESULT_FILE,
    append_result,
    cut_torn_line,
    read_results,
    write_atomically,
)
from csg_ray.training.checkpoint import load_checkpoint


class EpochRecorder:
    """The callback of a training that keeps its own directory: checkpoint first, then the line.

    Building one repairs what a crash left: a torn last line goes, and a checkpoint that is ahead of
    the lines brings the missing line with it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None
        directory.mkdir(parents=True, exist_ok=True)
        cut_torn_line(directory / RESULT_FILE)
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
            self._writer = SummaryWriter(str(self._directory))
        for name, value in metrics.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(metrics["epoch"]))
        self._writer.flush()
