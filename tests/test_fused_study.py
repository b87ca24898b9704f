"""Studies in which one process trains several trials: as each alone, and through every loss."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from csg_ray.results.progress import TrialUpdate
from csg_ray.results.study import load_study
from csg_ray.scale.driver import StudyDriver
from csg_ray.scale.tuner import restore_study, run_study
from csg_ray.search_space import Changes, parse_search_space
from csg_ray.storage.paths import StoragePath
from csg_ray.training.loop import fit
from small_study import Command, Recorder, assert_whole, space_mapping

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TIMES = ("seconds", "images_per_second", "timestamp")
# One process on both CPUs, two trials in it.
RESOURCES = {"cpus_per_worker": 2}
SEARCH = {"fuse": 2, "scheduler": "none", "sampler": "random"}


def lane_processes(ancestor: int) -> list[int]:
    """The descendants of a process that train several trials."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()[1:]]
    ours = {ancestor}
    while found := {int(r[0]) for r in rows if int(r[1]) in ours} - ours:
        ours |= found
    return [int(r[0]) for r in rows if int(r[0]) in ours and "ray::LaneWorker" in r[2]]


class Killer(Recorder):
    """Kills the process that trains as soon as the third epoch is in."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def trial_updated(self, update: TrialUpdate) -> None:
        super().trial_updated(update)
        epochs = {(known.id, known.epoch) for known in self.updates if known.epoch}
        if len(epochs) == 3 and not self.killed:
            self.killed = lane_processes(os.getpid())
            for process in self.killed:
                os.kill(process, signal.SIGKILL)


def test_trials_that_share_a_process_have_their_own_numbers_even_if_it_is_killed(
    shared_ray: None, tmp_path: Path
) -> None:
    mapping = space_mapping(3, 2, **SEARCH)
    space = parse_search_space(mapping | {"resources": RESOURCES})
    progress = Killer()
    run_study(space, tmp_path / "s", progress, verbose=False)

    assert len(progress.killed) == 1, "one process for all"
    study = load_study(tmp_path / "s")
    assert_whole(study, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    for trial in study.trials:
        alone: list[dict[str, float]] = []
        fit(space.config_for(trial.params), lambda metrics, *_, a=alone: a.append(metrics))
        for ours, theirs in zip(trial.results, alone, strict=True):
            assert {k: v for k, v in ours.items() if k not in TIMES} == {
                k: v for k, v in theirs.items() if k not in TIMES
            }
    torch.set_num_threads(threads)


def test_one_is_cut_one_raises_one_diverges_and_the_next_take_their_places(
    shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, place = StudyDriver.report, StudyDriver.trial_directory

    def cut(self: StudyDriver, trial_id: str, metrics: Mapping[str, Any]) -> bool:
        report(self, trial_id, metrics)
        self._live[trial_id].cut = trial_id == "0001"
        return trial_id == "0001"

    def misplaced(self: StudyDriver, trial_id: str) -> StoragePath:
        folder = place(self, trial_id)
        if trial_id == "0002" and (folder / "params.json").exists():
            (folder / "checkpoint.pt").write_bytes(b"not a checkpoint")
        return folder

    monkeypatch.setattr(StudyDriver, "report", cut)
    monkeypatch.setattr(StudyDriver, "trial_directory", misplaced)
    limit = "train.max_gradient_norm"
    mapping = space_mapping(4, 2, **SEARCH)
    mapping["base"] |= {"train.max_skipped_steps": 1}
    mapping["space"] = {limit: {"loguniform": [1e-9, 1e4]}}
    mapping["points_to_evaluate"] = [{limit: value} for value in (1e4, 5e3, 1e-9, 1e3)]
    run_study(
        parse_search_space(mapping | {"resources": RESOURCES}),
        tmp_path / "s",
        Recorder(),
        verbose=False,
    )

    first, second, third, fourth = load_study(tmp_path / "s").trials
    assert (first.state, first.epoch) == ("stopped", 1), "not an epoch more"
    assert second.state == "failed"
    assert "checkpoint.pt" in second.reason
    assert "Traceback" in (second.directory / "error.txt").read_text()
    assert (third.state, third.epoch) == ("diverged", 1)
    assert (fourth.state, fourth.epoch) == ("completed", 2)


def test_the_driver_is_killed_and_the_study_goes_on_with_each_trial_by_itself(
    shared_ray: None, tmp_path: Path
) -> None:
    file, directory = tmp_path / "small.yaml", tmp_path / "s"
    mapping = space_mapping(3, 3, **SEARCH)
    file.write_text(yaml.safe_dump(mapping | {"resources": RESOURCES}))
    search = Command("search", file, "--study", directory, cwd=tmp_path)
    search.wait_until(
        lambda: sum(p.read_text().count("\n") for p in directory.glob("trials/*/result.json")) >= 2,
        seconds=600,
    )
    search.process.kill()
    search.process.wait()
    before = {t.id: [dict(line) for line in t.results] for t in load_study(directory).trials}

    restore_study(directory, Changes(fuse=1), Recorder(), verbose=False)

    study = load_study(directory)
    assert study.space.search.fuse == 1
    assert_whole(study, 3)
    for trial in study.trials:
        old = before.get(trial.id, [])
        assert [dict(line) for line in trial.results[: len(old)]] == old, "epochs kept as they were"
        assert trial.epoch == 3
