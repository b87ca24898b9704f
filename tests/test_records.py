from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from csg_ray.config.errors import UserError
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import (
    CHECKPOINT_FILE,
    RESULT_FILE,
    append_result,
    read_results,
    write_atomically,
)
from csg_ray.training.checkpoint import save_checkpoint
from csg_ray.training.recorder import EpochRecorder


def _metrics(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "train/loss": 1 / epoch, "diverged": 0}


def _saver(metrics: dict[str, float]) -> Callable[[StoragePath], None]:
    return lambda path: save_checkpoint(path, {"epoch": metrics["epoch"], "metrics": metrics})


def _report(recorder: EpochRecorder, epoch: int) -> None:
    recorder(_metrics(epoch), _saver(_metrics(epoch)))


def _epochs(directory: Path) -> list[float]:
    return [record["epoch"] for record in read_results(directory)]


def test_records_are_importable_without_torch() -> None:
    code = "import sys, csg_ray.storage.records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_write_atomically_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    write_atomically(path, "old")
    write_atomically(path, "new \u00e4")
    assert path.read_text(encoding="utf-8") == "new \u00e4"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_half_way_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    write_atomically(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="large") as caught:
            write_atomically(path, "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_results_come_back_in_order(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        append_result(tmp_path, _metrics(epoch))
    assert read_results(tmp_path) == [_metrics(1), _metrics(2), _metrics(3)]
    assert len((tmp_path / RESULT_FILE).read_text().splitlines()) == 3


def test_no_file_is_no_results(tmp_path: Path) -> None:
    assert read_results(tmp_path) == []


def test_a_non_finite_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        append_result(tmp_path, {"epoch": 1, "train/loss": float("nan")})
    assert read_results(tmp_path) == []


@pytest.mark.parametrize("torn", ['{"epoch": 2, "train', '{"epoch": 2}', "\0\0\0"])
def test_a_torn_last_line_is_left_out_and_cut_before_the_next(tmp_path: Path, torn: str) -> None:
    append_result(tmp_path, _metrics(1))
    with (tmp_path / RESULT_FILE).open("a") as file:
        file.write(torn)
    assert _epochs(tmp_path) == [1]
    append_result(tmp_path, _metrics(2))
    assert read_results(tmp_path) == [_metrics(1), _metrics(2)]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / RESULT_FILE).write_text('{"epoch": 1}\nnonsense\n{"epoch": 3}\n')
    with pytest.raises(UserError, match=r"result\.json, line 2"):
        read_results(tmp_path)


def test_recorder_writes_the_checkpoint_before_the_line(tmp_path: Path) -> None:
    recorder = EpochRecorder(tmp_path)

    def full_disk(path: StoragePath) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.raises(OSError, match="No space left"):
        recorder(_metrics(1), full_disk)
    assert read_results(tmp_path) == []
    _report(recorder, 1)
    recorder.close()
    (record,) = read_results(tmp_path)
    assert {**_metrics(1), "timestamp": record["timestamp"]} == record
    assert (tmp_path / CHECKPOINT_FILE).is_file()


def test_recorder_writes_tensorboard_scalars(tmp_path: Path) -> None:
    recorder = EpochRecorder(tmp_path)
    _report(recorder, 1)
    recorder.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()


def test_a_checkpoint_ahead_of_the_lines_brings_the_missing_line(tmp_path: Path) -> None:
    recorder = EpochRecorder(tmp_path)
    _report(recorder, 1)
    recorder.close()
    _saver(_metrics(2))(tmp_path / CHECKPOINT_FILE)
    with (tmp_path / RESULT_FILE).open("a") as file:
        file.write('{"epoch": 2, "tra')
    repaired = EpochRecorder(tmp_path)
    assert _epochs(tmp_path) == [1, 2]
    assert read_results(tmp_path)[1]["train/loss"] == 0.5
    _report(repaired, 3)
    repaired.close()
    assert _epochs(tmp_path) == [1, 2, 3]


def test_a_checkpoint_in_step_with_the_lines_changes_nothing(tmp_path: Path) -> None:
    recorder = EpochRecorder(tmp_path)
    _report(recorder, 1)
    recorder.close()
    before = (tmp_path / RESULT_FILE).read_bytes()
    EpochRecorder(tmp_path).close()
    assert (tmp_path / RESULT_FILE).read_bytes() == before


def test_epochs_trained_again_replace_their_lines(tmp_path: Path) -> None:
    recorder = EpochRecorder(tmp_path)
    for epoch in (1, 2, 3):
        _report(recorder, epoch)
    recorder.close()
    (tmp_path / CHECKPOINT_FILE).unlink()
    again = EpochRecorder(tmp_path)
    assert _epochs(tmp_path) == [1, 2, 3]
    _report(again, 2)
    again.close()
    assert _epochs(tmp_path) == [1, 2]


def test_lines_are_plain_json(tmp_path: Path) -> None:
    append_result(tmp_path, _metrics(1))
    (line,) = (tmp_path / RESULT_FILE).read_text().splitlines()
    assert json.loads(line) == _metrics(1)
