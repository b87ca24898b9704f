from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csg_ray.config.errors import UserError
from csg_ray.storage.checkpoint import save_checkpoint
from csg_ray.storage.paths import RemotePath, StoragePath
from csg_ray.storage.records import (
    CHECKPOINT_FILE,
    RESULT_FILE,
    append_result,
    forget_results,
    read_results,
    write_atomically,
)
from csg_ray.training.recorder import EpochRecorder
from event_files import event_files, read_scalars


def _metrics(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "train/loss": 1 / epoch, "diverged": 0}


def _saver(metrics: dict[str, float]) -> Callable[[StoragePath], None]:
    return lambda path: save_checkpoint(path, {"epoch": metrics["epoch"], "metrics": metrics})


def _report(recorder: EpochRecorder, epoch: int) -> None:
    recorder(_metrics(epoch), _saver(_metrics(epoch)))


def _epochs(directory: StoragePath) -> list[float]:
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


def test_results_come_back_in_order(place: StoragePath) -> None:
    for epoch in range(1, 12):
        append_result(place, _metrics(epoch))
    assert read_results(place) == [_metrics(epoch) for epoch in range(1, 12)]


def test_in_a_folder_they_are_lines_of_one_file(tmp_path: Path) -> None:
    append_result(tmp_path, _metrics(1))
    append_result(tmp_path, _metrics(2))
    lines = (tmp_path / RESULT_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [_metrics(1), _metrics(2)]


def test_on_a_uri_each_is_an_object_of_its_own(uri: RemotePath) -> None:
    """Whoever else writes there cannot take away an epoch that is not his."""
    append_result(uri, _metrics(1))
    append_result(uri, _metrics(12))
    first, twelfth = (uri / "results").iterdir()
    assert (first.name, twelfth.name) == ("000001.json", "000012.json")
    assert json.loads(first.read_text()) == _metrics(1)
    (uri / "results" / "000002.json.part").write_bytes(b"of somebody else")
    assert _epochs(uri) == [1, 12]


def test_epochs_that_are_forgotten_while_they_are_read_are_left_out(
    uri: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epoch in (1, 2, 3):
        append_result(uri, _metrics(epoch))
    read = RemotePath.read_json

    def forget_first(path: RemotePath) -> Any:
        if path.name == "000003.json":
            forget_results(uri, 3)
        return read(path)

    monkeypatch.setattr(RemotePath, "read_json", forget_first)
    assert _epochs(uri) == [1, 2]


def test_an_object_that_is_not_json_is_named(uri: RemotePath) -> None:
    append_result(uri, _metrics(1))
    (uri / "results" / "000002.json").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"results/000002\.json.* is not JSON; remove that object"):
        read_results(uri)


def test_nothing_is_no_results(place: StoragePath) -> None:
    assert read_results(place) == []
    forget_results(place, 1)


def test_a_non_finite_metric_is_refused(place: StoragePath) -> None:
    with pytest.raises(ValueError, match="JSON"):
        append_result(place, {"epoch": 1, "train/loss": float("nan")})
    assert read_results(place) == []


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


def test_recorder_writes_the_checkpoint_before_the_line(place: StoragePath) -> None:
    recorder = EpochRecorder(place)

    def full_disk(path: StoragePath) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.raises(OSError, match="No space left"):
        recorder(_metrics(1), full_disk)
    assert read_results(place) == []
    _report(recorder, 1)
    recorder.close()
    (record,) = read_results(place)
    assert {**_metrics(1), "timestamp": record["timestamp"]} == record
    assert (place / CHECKPOINT_FILE).is_file()


def test_recorder_writes_tensorboard_scalars(place: StoragePath) -> None:
    recorder = EpochRecorder(place)
    _report(recorder, 1)
    recorder.close()
    (path,) = event_files(place)
    assert read_scalars(path.read_bytes()) == [(1, "train/loss", 1.0), (1, "diverged", 0.0)]


def test_a_checkpoint_ahead_of_the_lines_brings_the_missing_line(place: StoragePath) -> None:
    recorder = EpochRecorder(place)
    _report(recorder, 1)
    recorder.close()
    _saver(_metrics(2))(place / CHECKPOINT_FILE)
    if isinstance(place, Path):
        with (place / RESULT_FILE).open("a") as file:
            file.write('{"epoch": 2, "tra')
    repaired = EpochRecorder(place)
    assert _epochs(place) == [1, 2]
    assert read_results(place)[1]["train/loss"] == 0.5
    _report(repaired, 3)
    repaired.close()
    assert _epochs(place) == [1, 2, 3]


def test_a_checkpoint_in_step_with_the_lines_changes_nothing(place: StoragePath) -> None:
    recorder = EpochRecorder(place)
    _report(recorder, 1)
    recorder.close()
    before = read_results(place)
    EpochRecorder(place).close()
    assert read_results(place) == before


def test_epochs_trained_again_replace_their_lines(place: StoragePath) -> None:
    recorder = EpochRecorder(place)
    for epoch in (1, 2, 3):
        _report(recorder, epoch)
    recorder.close()
    (place / CHECKPOINT_FILE).unlink()
    again = EpochRecorder(place)
    assert _epochs(place) == [1, 2, 3]
    _report(again, 2)
    again.close()
    assert _epochs(place) == [1, 2]


def test_scalars_on_a_uri_are_there_after_each_epoch(uri: RemotePath) -> None:
    recorder = EpochRecorder(uri)
    for epoch in (1, 2):
        _report(recorder, epoch)
        (path,) = event_files(uri)
        losses = [found for found in read_scalars(path.read_bytes()) if found[1] == "train/loss"]
        assert losses == [(number, "train/loss", 1 / number) for number in range(1, epoch + 1)]
    recorder.close()
