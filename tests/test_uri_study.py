"""A real study on a URI, under Ray: the head is lost with its disk, the store goes away."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from csg_ray.cli import main
from csg_ray.config.load import load_config
from csg_ray.results.progress import TrialUpdate
from csg_ray.results.study import load_study
from csg_ray.scale import claims
from csg_ray.scale.tuner import restore_study, run_study
from csg_ray.search_space import Changes
from csg_ray.storage.ledger import read_ledger
from csg_ray.storage.paths import RemotePath
from csg_ray.storage.stores import StorageError
from s3_server import S3Server, let_pass
from small_study import Command, Recorder, assert_whole, small_space, space_mapping

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def finished_epochs(study: RemotePath) -> int:
    if not (study / "study.yaml").is_file():
        return 0
    return sum(trial.epoch for trial in load_study(study).trials)


@pytest.fixture
def head() -> Iterator[Path]:
    """All that the machine of the driver has; short, for Ray keeps sockets in it."""
    with tempfile.TemporaryDirectory(prefix="head", dir="/tmp", ignore_cleanup_errors=True) as disk:
        yield Path(disk)


def test_a_head_lost_with_its_disk_costs_no_trial_and_no_finished_epoch(
    shared_ray: None,
    uri: RemotePath,
    head: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TMPDIR", str(head))
    (head / "small.yaml").write_text(yaml.safe_dump(space_mapping(4, 5, scheduler="none")))
    search = Command("search", "small.yaml", "--storage", str(uri), cwd=head)
    study = uri / "studies" / "small"
    search.wait_until(lambda: finished_epochs(study) >= 7)
    search.process.kill()
    search.process.wait()
    monkeypatch.delenv("TMPDIR")
    shutil.rmtree(head, ignore_errors=True)  # Ray's processes may still be on their way out
    before = load_study(study).trials
    assert sum(trial.epoch for trial in before) >= 7

    monkeypatch.chdir(tmp_path)
    restore_study(study, Changes(), Recorder(), verbose=False)
    whole = load_study(study)
    assert_whole(whole, 4)
    assert all(trial.epoch == 5 for trial in whole.trials)
    for old, new in zip(before, whole.trials, strict=False):
        assert new.results[: old.epoch] == old.results, "epochs kept as they were"
    assert list((study / "driver.lock").iterdir()) == []
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(sys, "argv", ["csg-ray"])
    assert main(["best", str(study)]) == 0
    assert main(["export", str(study), str(uri / "best.yaml")]) == 0
    best = whole.best_trial()
    assert best is not None
    assert load_config(uri / "best.yaml") == whole.space.config_for(dict(best.params))
    assert main(["evaluate", str(study)]) == 0
    results = json.loads((study / "test_results.json").read_text())
    assert results["picks"][0]["trial"] == best.id
    assert len(read_ledger(study / "test_ledger.jsonl")) == 1
    assert capsys.readouterr().err == ""


class Outage(Recorder):
    """Lets the store refuse everything once the first epochs are in."""

    def __init__(self, s3: S3Server) -> None:
        super().__init__()
        self._s3 = s3

    def trial_updated(self, update: TrialUpdate) -> None:
        super().trial_updated(update)
        if sum(bool(known.epoch) for known in self.updates) == 2:
            self._s3.fault = lambda request: "403 ExpiredToken"


def test_a_store_that_goes_away_pauses_the_study_and_it_restores(
    shared_ray: None,
    s3: S3Server,
    uri: RemotePath,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(claims, "STALE_SECONDS", 1.0)  # the claim could not be withdrawn
    space = small_space(4, epochs=3, scheduler="none")
    with pytest.raises(StorageError):
        run_study(space, uri / "s", Outage(s3), verbose=False)
    assert capfd.readouterr() == ("", ""), "no traceback of Tune's"
    s3.fault = let_pass
    states = {trial.state for trial in load_study(uri / "s").trials}
    assert states <= {"unfinished", "completed"}
    assert "unfinished" in states

    progress = Recorder()
    restore_study(uri / "s", Changes(), progress, verbose=False)
    assert_whole(load_study(uri / "s"), 4)
    assert "has a claim on" in progress.messages[0]
