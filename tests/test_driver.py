"""The study's book-keeping, driven by hand: no Ray, no training."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from csg_ray.config.errors import UserError
from csg_ray.results.cost import Meter
from csg_ray.results.progress import TrialUpdate
from csg_ray.results.study import load_study
from csg_ray.scale.driver import LiveTrial, StudyDriver
from csg_ray.search_space import SearchSpace, parse_search_space
from csg_ray.storage.paths import RemotePath, StoragePath
from csg_ray.storage.records import append_result, write_atomically
from csg_ray.storage.stores import StorageError
from s3_server import S3Server

ACCURACY = "target_val/mean_class_accuracy"


class Recorder:
    """A Progress that keeps the last state of every trial."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def study_started(
        self,
        study: str,
        directory: StoragePath,
        num_trials: int,
        epochs: int,
        metric: str,
        mode: str,
        meter: Meter,
    ) -> None: ...

    def message(self, text: str) -> None: ...

    def study_finished(self) -> None: ...

    def trial_updated(self, update: TrialUpdate) -> None:
        self.states[update.id] = update.state
        self.reasons[update.id] = update.reason


def make_space(**search: Any) -> SearchSpace:
    return parse_search_space(
        {
            "study": "s",
            "base": {"method.name": "csg", "train.epochs": 9},
            "space": {"method.temperature": {"loguniform": [0.02, 0.5]}},
            "points_to_evaluate": [{"method.temperature": 0.07}],
            "search": {"metric": ACCURACY, "mode": "max", "num_trials": 6} | search,
        }
    )


def start(directory: StoragePath, space: SearchSpace) -> StudyDriver:
    directory.mkdir(parents=True, exist_ok=True)
    header = {"format": 1, "space": space.to_mapping(), "provenance": {}}
    write_atomically(directory / "study.yaml", yaml.safe_dump(header))
    return StudyDriver(space, directory, Recorder())


def reopen(directory: StoragePath, space: SearchSpace) -> StudyDriver:
    """What a restore does after a kill: a new driver over what is on the disk."""
    return StudyDriver(space, directory, Recorder(), load_study(directory).trials)


def line(epoch: int, value: float, timestamp: float = 0.0, **extra: float) -> dict[str, Any]:
    return {"epoch": epoch, ACCURACY: value, "diverged": 0, "timestamp": timestamp} | extra


def train(driver: StudyDriver, trial: LiveTrial, epoch: int, value: float, **extra: float) -> bool:
    """One epoch of the trial's own process, then its report."""
    record = line(epoch, value, **extra)
    append_result(driver.trial_directory(trial.id), record)
    return driver.report(trial.id, record)


def take(driver: StudyDriver) -> LiveTrial:
    trial = driver.next_trial()
    assert trial is not None
    return trial


def run_whole(driver: StudyDriver, value: float) -> LiveTrial:
    trial = take(driver)
    for epoch in range(1, 10):
        if train(driver, trial, epoch, value):
            break
    driver.finish(trial.id)
    return trial


def states(directory: StoragePath) -> dict[str, str]:
    return {trial.id: trial.state for trial in load_study(directory).trials}


def test_a_trial_is_written_down_before_it_is_handed_out(place: StoragePath) -> None:
    driver = start(place, make_space())
    trial = take(driver)
    record = json.loads((place / "trials" / "0001" / "params.json").read_text())
    assert (trial.id, record["params"]) == ("0001", {"method.temperature": 0.07})
    assert record["origin"] == "warm start"
    assert states(place) == {"0001": "unfinished"}


def test_end_states(place: StoragePath) -> None:
    driver = start(place, make_space(num_trials=7))
    for value in (0.9, 0.8, 0.7):
        run_whole(driver, value)
    assert run_whole(driver, 0.1).cut
    diverged = take(driver)
    train(driver, diverged, 1, 0.0, diverged=1)
    driver.finish(diverged.id)
    failed = take(driver)
    driver.finish(failed.id, "ValueError: no")
    stopped_early = take(driver)
    train(driver, stopped_early, 1, 0.95)
    driver.finish(stopped_early.id)  # Tune was torn down: neither cut nor complete
    assert states(place) == {
        **dict.fromkeys(("0001", "0002", "0003"), "completed"),
        "0004": "stopped",
        "0005": "diverged",
        "0006": "failed",
        "0007": "unfinished",
    }
    assert driver.next_trial() is None
    assert load_study(place).trial("0006").reason == "ValueError: no"


def test_why_a_trial_failed_is_passed_on(tmp_path: Path) -> None:
    space, progress = make_space(), Recorder()
    driver = start(tmp_path, space)
    driver.finish(take(driver).id, "ValueError: no")
    StudyDriver(space, tmp_path, progress, load_study(tmp_path).trials)
    assert progress.reasons == {"0001": "ValueError: no"}


def test_a_diverged_trial_is_worst_to_asha_and_never_wins(tmp_path: Path) -> None:
    driver = start(tmp_path, make_space())
    for _ in range(3):
        trial = take(driver)
        train(driver, trial, 1, 0.99, diverged=1)
        driver.finish(trial.id)
    assert not train(driver, take(driver), 1, 0.01), "worse than nobody but the diverged"
    assert load_study(tmp_path).best_trial() is None


def test_a_report_without_the_metric_does_not_end_anything(tmp_path: Path) -> None:
    driver = start(tmp_path, make_space())
    trial = take(driver)
    assert not driver.report(trial.id, {"epoch": 1, "diverged": 0})
    for epoch in range(2, 10):
        train(driver, trial, epoch, 0.5)
    driver.finish(trial.id)
    assert states(tmp_path) == {"0001": "completed"}


def test_a_repeated_epoch_changes_nothing(tmp_path: Path) -> None:
    driver = start(tmp_path, make_space())
    trial = take(driver)
    for _ in range(3):
        driver.report(trial.id, line(1, 0.5))
    assert len(trial.results) == 1


@pytest.mark.timeout(60)  # hundreds of requests
@pytest.mark.parametrize(
    ("place", "seed"), [*(("disk", seed) for seed in range(5)), ("uri", 5)], indirect=["place"]
)
def test_killed_at_any_moment_and_restored(place: StoragePath, seed: int) -> None:
    """Two trials at a time; the driver vanishes at random moments; every file-backed fact holds."""
    draws = random.Random(seed)
    num_trials = 12 if isinstance(place, Path) else 4  # a store in Python is slow
    space = make_space(num_trials=num_trials)
    driver = start(place, space)
    live: dict[str, LiveTrial] = {}
    trained: list[tuple[str, int]] = []
    while True:
        if draws.random() < 0.1:  # kill -9: the driver and its trials are gone
            driver, live = reopen(place, space), {}
        while len(live) < 2 and (trial := driver.next_trial()) is not None:
            live[trial.id] = trial
        if not live:
            break
        trial = draws.choice(list(live.values()))
        epoch = trial.results[-1]["epoch"] + 1 if trial.results else 1
        record = line(epoch, float(trial.params["method.temperature"]), timestamp=len(trained))
        append_result(driver.trial_directory(trial.id), record)
        trained.append((trial.id, epoch))
        if draws.random() < 0.1:  # killed between the trial's line and the driver's knowing it
            driver, live = reopen(place, space), {}
            continue
        if driver.report(trial.id, record) or epoch == 9:
            if draws.random() < 0.2:  # killed before the state was written
                driver, live = reopen(place, space), {}
                continue
            driver.finish(trial.id)
            del live[trial.id]
    found = load_study(place).trials
    assert [trial.id for trial in found] == [f"{i:04d}" for i in range(1, num_trials + 1)], (
        "none lost"
    )
    assert len(trained) == len(set(trained)), "no epoch was trained twice"
    assert {trial.state for trial in found} <= {"completed", "stopped"}
    assert all(trial.epoch == 9 for trial in found if trial.state == "completed")
    assert sum(trial.origin == "warm start" for trial in found) == 1


def test_asha_decides_the_same_after_a_restore(place: StoragePath) -> None:
    space = make_space(num_trials=8)
    driver = start(place, space)
    for value in (0.9, 0.8, 0.7):
        run_whole(driver, value)
    driver = reopen(place, space)
    trial = take(driver)
    assert train(driver, trial, 1, 0.1), "three peers of before the restore beat it"


@pytest.mark.parametrize("seed", range(3))
def test_a_restored_study_decides_as_one_that_was_never_stopped(tmp_path: Path, seed: int) -> None:
    """Both get the same reports from the middle of a study on."""
    draws = random.Random(seed)
    space = make_space(num_trials=200)
    driver = start(tmp_path, space)
    live = {trial.id: trial for trial in (take(driver) for _ in range(10))}
    for now in range(150):
        trial = draws.choice(list(live.values()))
        value = draws.randrange(20) / 20
        if train(driver, trial, len(trial.results) + 1, value, timestamp=float(now)) or (
            len(trial.results) == 9
        ):
            driver.finish(trial.id)
            del live[trial.id]
            fresh = take(driver)
            live[fresh.id] = fresh
    restored = reopen(tmp_path, space)
    again = {trial.id: trial for trial in (take(restored) for _ in live)}
    assert again.keys() == live.keys()
    cuts = []
    for trial_id, trial in live.items():
        for epoch in range(len(trial.results) + 1, 9):
            record = line(epoch, draws.randrange(20) / 20)
            cuts.append(driver.report(trial_id, record))
            assert restored.report(trial_id, record) == cuts[-1]
    assert {True, False} == set(cuts)


def test_a_trial_that_went_on_is_not_cut_by_the_order_of_the_replay(tmp_path: Path) -> None:
    space = make_space(num_trials=8)
    driver = start(tmp_path, space)
    early = take(driver)
    train(driver, early, 1, 0.1, timestamp=50)  # reported first, though its line was written last
    train(driver, early, 2, 0.1, timestamp=60)
    for number, value in enumerate((0.9, 0.8, 0.7)):
        train(driver, take(driver), 1, value, timestamp=float(number))
    driver = reopen(tmp_path, space)
    assert driver.remaining == 8
    assert set(states(tmp_path).values()) == {"unfinished"}


def test_finished_trials_are_untouched_by_a_restore(tmp_path: Path) -> None:
    space = make_space(num_trials=2)
    driver = start(tmp_path, space)
    for value in (0.9, 0.8):
        run_whole(driver, value)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    driver = reopen(tmp_path, space)
    assert driver.remaining == 0
    assert driver.next_trial() is None
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_finished_study_takes_more_trials(tmp_path: Path) -> None:
    space = make_space(num_trials=2)
    driver = start(tmp_path, space)
    for value in (0.9, 0.8):
        run_whole(driver, value)
    driver = reopen(tmp_path, space.with_num_trials(4))
    assert [run_whole(driver, 0.95).id, run_whole(driver, 0.96).id] == ["0003", "0004"]
    assert driver.next_trial() is None


def test_a_full_disk_halts_the_study_and_it_restores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space()
    driver = start(tmp_path, space)
    run_whole(driver, 0.9)

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("csg_ray.scale.driver.write_atomically", full)
        assert driver.next_trial() is None
    assert driver.halted is not None
    assert str(tmp_path) in str(driver.halted)
    driver = reopen(tmp_path, space)
    assert driver.remaining == 5
    assert take(driver).id == "0002"


def test_a_store_that_is_away_halts_the_study_and_it_restores(
    s3: S3Server, uri: RemotePath
) -> None:
    space = make_space()
    driver = start(uri, space)
    run_whole(driver, 0.9)
    s3.fault = lambda request: "403 AccessDenied" if request.startswith("PUT") else None
    assert driver.next_trial() is None
    assert isinstance(driver.halted, StorageError)
    s3.fault = lambda request: None
    assert driver.next_trial() is None, "a halted driver stays halted"
    driver = reopen(uri, space)
    assert driver.remaining == 5
    assert take(driver).id == "0002"


def test_a_driver_that_was_replaced_writes_nothing_more(place: StoragePath) -> None:
    driver = start(place, make_space())
    trial = take(driver)
    for epoch in range(1, 10):
        train(driver, trial, epoch, 0.9)
    driver.halt(UserError("taken over"))
    driver.finish(trial.id)
    assert states(place) == {"0001": "unfinished"}, "its successor closes it"
    assert driver.next_trial() is None


def test_another_error_of_the_disk_is_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = start(tmp_path, make_space())

    def broken(path: Path, text: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("csg_ray.scale.driver.write_atomically", broken)
    with pytest.raises(OSError, match="Input/output error"):
        driver.next_trial()
