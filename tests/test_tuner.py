"""Real studies under Ray: searched, killed, interrupted, restored, extended, out of disk."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from csg_ray.config.errors import UserError
from csg_ray.results.progress import TrialUpdate
from csg_ray.results.study import load_study
from csg_ray.scale.lock import StudyLock
from csg_ray.scale.tuner import restore_study, run_study
from csg_ray.search_space import Changes
from csg_ray.storage.paths import StoragePath
from small_study import Command, Recorder, assert_whole, small_space, space_mapping

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Searched:
    directory: Path
    progress: Recorder
    printed: str


@pytest.fixture(scope="session")
def searched(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """One finished study of two trials; tests that change it work on a copy."""
    directory = tmp_path_factory.mktemp("studies") / "small"
    progress, printed = Recorder(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        run_study(small_space(2), directory, progress, verbose=False)
    return Searched(directory, progress, printed.getvalue())


@pytest.fixture
def study_copy(searched: Searched, tmp_path: Path) -> Path:
    return Path(shutil.copytree(searched.directory, tmp_path / "small"))


def edit_header(directory: Path, change: Callable[[dict[str, Any]], None]) -> str:
    header = yaml.safe_load((directory / "study.yaml").read_text())
    change(header)
    text = str(yaml.safe_dump(header))
    (directory / "study.yaml").write_text(text)
    return text


def test_two_trials_leave_a_study_that_needs_no_ray_to_read(searched: Searched) -> None:
    directory = searched.directory
    study = load_study(directory)
    assert_whole(study, 2)
    assert [trial.epoch for trial in study.trials] == [2, 2]
    assert [trial.origin for trial in study.trials] == ["warm start", "sampler"]
    best = study.best_trial()
    assert best is not None
    assert best.last["target_val/mean_class_accuracy"] == max(
        trial.last["target_val/mean_class_accuracy"] for trial in study.trials
    )
    assert not (directory / "driver.lock").exists()
    assert (directory / "trials.parquet").exists()
    assert list((directory / "trials" / "0001").glob("events.out.tfevents.*"))
    header = yaml.safe_load((directory / "study.yaml").read_text())
    assert len(header["provenance"]["data_sha256"]) == 64
    folder = directory / "trials" / "0001"
    params = json.loads((folder / "params.json").read_text())["params"]
    assert params == {"method.temperature": 0.07}
    assert json.loads((folder / "state.json").read_text())["state"] == "completed"


def test_a_quiet_search_prints_nothing_by_itself(searched: Searched) -> None:
    assert searched.printed == ""
    states = {update.state for update in searched.progress.updates}
    assert states == {"pending", "running", "completed"}
    assert searched.progress.finished


def test_extended_from_plain_files_alone_with_a_changed_version(study_copy: Path) -> None:
    """The study has moved, a state was never written, torch has changed: one trial more."""
    (study_copy / "trials" / "0002" / "state.json").unlink()
    old = {
        path: path.read_bytes()
        for path in (study_copy / "trials").rglob("*")
        if path.is_file() and path.name != "state.json"
    }
    edit_header(study_copy, lambda h: h["provenance"]["versions"].update(torch="1.0.0"))
    progress = Recorder()
    restore_study(study_copy, Changes(more=1), progress, verbose=False)
    assert_whole(load_study(study_copy), 3)
    assert load_study(study_copy).space.search.num_trials == 3
    assert all(path.read_bytes() == content for path, content in old.items())
    (message,) = progress.messages
    assert message.startswith("changed since the study began: versions.torch: 1.0.0 -> ")
    (restore,) = load_study(study_copy).restores
    assert restore["changed"]["versions.torch"]["was"] == "1.0.0"


def test_data_that_changed_is_refused(study_copy: Path) -> None:
    text = edit_header(study_copy, lambda h: h["provenance"].update(data_sha256="0" * 64))
    with pytest.raises(UserError, match=f"the data of study {study_copy} has changed"):
        restore_study(study_copy, Changes(more=1), Recorder(), verbose=False)
    assert (study_copy / "study.yaml").read_text() == text


def test_a_second_driver_is_refused(study_copy: Path) -> None:
    with StudyLock(study_copy), pytest.raises(UserError, match="is being run by process"):
        restore_study(study_copy, Changes(more=1), Recorder(), verbose=False)


def test_a_crashing_trial_fails_alone(
    shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial's directory that is a file makes that trial's process raise."""
    from csg_ray.scale.driver import StudyDriver

    original = StudyDriver.trial_directory

    def misplaced(self: StudyDriver, trial_id: str) -> StoragePath:
        folder = original(self, trial_id)
        if trial_id == "0001" and (folder / "params.json").exists():
            (folder / "checkpoint.pt").write_bytes(b"not a checkpoint")
        return folder

    monkeypatch.setattr(StudyDriver, "trial_directory", misplaced)
    run_study(small_space(2, epochs=1), tmp_path / "s", Recorder(), verbose=False)
    first, second = load_study(tmp_path / "s").trials
    assert (first.state, second.state) == ("failed", "completed")
    assert "checkpoint.pt" in first.reason
    assert "Traceback" in (first.directory / "error.txt").read_text()


def assert_calm(output: str) -> None:
    """Only our own lines: no log, no warning, no traceback of anybody."""
    ours = ("checking data and weights", "study small in", "trial 0", "csg-ray: ")
    others = [line for line in output.splitlines() if not line.startswith(ours)]
    assert all(re.match(r"\d/4 finished, ", line) for line in others), output


def count_lines(directory: Path) -> int:
    return sum(p.read_text().count("\n") for p in directory.glob("trials/*/result.json"))


@pytest.fixture
def space_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(space_mapping(4, epochs=5, scheduler="none")))
    return path


def test_interrupted_bereaved_killed_and_restored(
    shared_ray: None, space_file: Path, tmp_path: Path
) -> None:
    """Ctrl-C; then a trial's process dies; then the driver is killed; then all is made whole."""
    directory = tmp_path / "studies" / "small"
    search = Command("search", space_file, "--study", directory, cwd=tmp_path)
    search.wait_until(lambda: count_lines(directory) >= 2)
    began = time.monotonic()
    search.process.send_signal(signal.SIGINT)
    assert search.process.wait(timeout=30) == 130
    assert time.monotonic() - began < 10
    assert f"restore {directory}" in search.output
    assert_calm(search.output)

    restore = Command("restore", directory, cwd=tmp_path)
    seen = count_lines(directory)
    restore.wait_until(lambda: count_lines(directory) >= seen + 1)
    os.kill(a_trial_process(restore.process.pid), signal.SIGKILL)
    seen = count_lines(directory)
    restore.wait_until(lambda: count_lines(directory) >= seen + 3)
    restore.process.kill()
    restore.process.wait()

    before = {t.id: [dict(line) for line in t.results] for t in load_study(directory).trials}
    restore_study(directory, Changes(), Recorder(), verbose=False)
    study = load_study(directory)
    assert_whole(study, 4)
    assert all(trial.epoch == 5 for trial in study.trials)
    for trial in study.trials:
        old = before.get(trial.id, [])
        assert [dict(line) for line in trial.results[: len(old)]] == old, "epochs kept as they were"


@pytest.mark.slow
def test_sigterm_says_how_to_go_on(space_file: Path, tmp_path: Path) -> None:
    """Ray's core has a handler of its own that aborts; ours must be the one that counts."""
    directory = tmp_path / "s"
    search = Command("search", space_file, "--study", directory, cwd=tmp_path)
    search.wait_until(lambda: count_lines(directory) >= 1)
    search.process.terminate()
    assert search.process.wait(timeout=30) == 143
    assert f"restore {directory}" in search.output
    assert_calm(search.output)


def a_trial_process(driver: int) -> int:
    """One of the driver's descendants that trains a trial."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()[1:]]
    ours = {driver}
    while found := {int(r[0]) for r in rows if int(r[1]) in ours} - ours:
        ours |= found
    return next(int(r[0]) for r in rows if int(r[0]) in ours and "ImplicitFunc" in r[2])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs root and the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave not one byte."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return filler


class Filler(Recorder):
    """Fills the disk when the first epochs are in."""

    def __init__(self, disk: Path) -> None:
        super().__init__()
        self._disk = disk

    def trial_updated(self, update: TrialUpdate) -> None:
        super().trial_updated(update)
        if sum(bool(known.epoch) for known in self.updates) == 2:
            fill(self._disk)


def test_a_full_disk_pauses_the_study_and_it_restores(
    shared_ray: None, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = small_space(4, epochs=3, scheduler="none")
    directory, filler = small_disk / "s", fill(small_disk)
    with pytest.raises(OSError, match="No space left on device"):
        run_study(space, directory, Recorder(), verbose=False)
    assert list(small_disk.iterdir()) == [filler], "a refused study leaves nothing"

    filler.unlink()
    with pytest.raises(OSError, match="no space left on the disk") as caught:
        run_study(space, directory, Filler(small_disk), verbose=False)
    assert caught.value.errno == errno.ENOSPC  # the command line turns it into how to go on
    assert capfd.readouterr() == ("", ""), "no traceback of Tune's"
    assert not list(directory.glob("trials/*/.*.tmp"))
    assert any(trial.state == "unfinished" for trial in load_study(directory).trials)

    filler.unlink()
    restore_study(directory, Changes(), Recorder(), verbose=False)
    assert_whole(load_study(directory), 4)
