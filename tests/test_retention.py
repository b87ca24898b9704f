"""The disk of a study: which checkpoints stay, which go, and when."""

from __future__ import annotations

import errno
import math
import random
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from csg_ray.results.cost import Meter
from csg_ray.results.progress import TrialUpdate
from csg_ray.results.retention import BestTrials, retention_rules
from csg_ray.results.selection import RULES, Candidate, Outcome, Rule
from csg_ray.results.study import Trial, load_study
from csg_ray.scale.cluster import Cluster, Node
from csg_ray.scale.driver import LiveTrial, StudyDriver
from csg_ray.scale.lock import StudyLock
from csg_ray.scale.resources import plan
from csg_ray.scale.tuner import _drive, _Means
from csg_ray.search_space import Objective, SearchSpace, parse_search_space
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import append_result, remove_checkpoint, write_atomically, write_whole

ACCURACY = "target_val/mean_class_accuracy"
SOURCE = "source_val/mean_class_accuracy"
ENERGY = "target_val/hse"
TORN = ".checkpoint.pt.tmp"
EPOCHS = 4


class Messages:
    """A Progress that keeps the sentences."""

    def __init__(self) -> None:
        self.texts: list[str] = []

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

    def trial_updated(self, update: TrialUpdate) -> None: ...

    def study_finished(self) -> None: ...

    def message(self, text: str) -> None:
        self.texts.append(text)


def best_ids(trials: Iterable[Candidate], rules: Sequence[Rule], count: int) -> set[str]:
    """The whole decision at once, by sorting everything under every rule."""
    kept: set[str] = set()
    for rule in rules:
        sign = -1 if rule.mode == "max" else 1
        able = [
            (sign * trial.last[rule.metric], int(trial.id), trial.id)
            for trial in trials
            if trial.state == "completed"
            and not trial.last.get("diverged")
            and math.isfinite(trial.last.get(rule.metric, math.nan))
        ]
        kept |= {trial_id for *_, trial_id in sorted(able)[:count]}
    return kept


def random_outcome(draws: random.Random, number: int) -> Outcome:
    names = (ACCURACY, SOURCE, ENERGY, "source_val/hse")
    last: dict[str, Any] = {name: draws.randrange(9) / 8 for name in names}  # with ties
    last["diverged"] = int(draws.random() < 0.1)
    for name in names:
        if draws.random() < 0.1:
            last[name] = math.nan
        elif draws.random() < 0.1:
            del last[name]
    state = draws.choice(["completed"] * 4 + ["stopped", "diverged", "failed"])
    return Outcome(f"{number:04d}", state, last if draws.random() < 0.9 else {})


@pytest.mark.parametrize("seed", range(20))
def test_kept_trial_by_trial_as_by_sorting_everything(seed: int) -> None:
    draws = random.Random(seed)
    own = [Objective(metric="source_val/hse", mode="min"), Objective(metric=ENERGY, mode="min")]
    rules, count = retention_rules(own, "mean_class_accuracy"), draws.randint(1, 4)
    numbers = draws.sample(range(9_950, 10_050), 60)  # ids of four and of five digits
    best = BestTrials(rules, count)
    ended: list[Outcome] = []
    dropped: set[str] = set()
    for number in numbers:
        outcome = random_outcome(draws, number)
        ended.append(outcome)
        gone = best.add(outcome)
        assert not gone & dropped, "nobody is dropped twice"
        dropped |= gone
        assert {each.id for each in ended} - dropped == best_ids(ended, rules, count)


def test_every_rule_and_every_objective_counts_once() -> None:
    assert retention_rules(
        [Objective(metric=ACCURACY, mode="max")], "mean_class_accuracy"
    ) == tuple(RULES.values())
    several = [Objective(metric=ENERGY, mode="min"), Objective(metric="source_val/hse", mode="max")]
    *named, own = retention_rules(several, "mean_class_accuracy")
    assert named == list(RULES.values())
    assert (own.metric, own.mode) == ("source_val/hse", "max")


def make_space(**search: Any) -> SearchSpace:
    goal = {} if "objectives" in search else {"metric": ACCURACY, "mode": "max"}
    return parse_search_space(
        {
            "study": "s",
            "base": {"method.name": "csg", "train.epochs": EPOCHS},
            "space": {"method.temperature": {"loguniform": [0.02, 0.5]}},
            "search": goal | {"num_trials": 12} | search,
        }
    )


def start(directory: Path, space: SearchSpace) -> StudyDriver:
    header = {"format": 1, "space": space.to_mapping(), "provenance": {}}
    (directory / "study.yaml").write_text(yaml.safe_dump(header))
    return StudyDriver(space, directory, Messages())


def reopen(directory: Path, space: SearchSpace, progress: Messages | None = None) -> StudyDriver:
    """What a restore does after a kill: a new driver over what is on the disk."""
    return StudyDriver(space, directory, progress or Messages(), load_study(directory).trials)


def train(driver: StudyDriver, trial: LiveTrial, accuracy: float, **metrics: float) -> bool:
    """One epoch: the checkpoint, then the line, then the report."""
    folder = driver.trial_directory(trial.id)
    write_atomically(folder / "checkpoint.pt", f"after {len(trial.results) + 1}")
    record = {"epoch": len(trial.results) + 1, ACCURACY: accuracy, SOURCE: 0.5, ENERGY: 0.5}
    record |= {"diverged": 0, "timestamp": 0.0} | metrics
    append_result(folder, record)
    return driver.report(trial.id, record)


def take(driver: StudyDriver) -> LiveTrial:
    trial = driver.next_trial()
    assert trial is not None
    return trial


def run_whole(driver: StudyDriver, accuracy: float, **metrics: float) -> LiveTrial:
    trial = take(driver)
    for _ in range(EPOCHS):
        train(driver, trial, accuracy, **metrics)
    driver.finish(trial.id)
    return trial


def checkpoints(directory: Path) -> set[str]:
    return {path.parent.name for path in directory.glob("trials/*/checkpoint.pt")}


def test_a_better_trial_takes_the_place_and_the_checkpoint(tmp_path: Path) -> None:
    driver = start(tmp_path, make_space(scheduler="none", keep_checkpoints=1))
    run_whole(driver, 0.5)
    assert checkpoints(tmp_path) == {"0001"}
    run_whole(driver, 0.4)  # as good by the other two rules, but later
    assert checkpoints(tmp_path) == {"0001"}
    run_whole(driver, 0.6)  # 0001 still leads by the other two
    assert checkpoints(tmp_path) == {"0001", "0003"}
    run_whole(driver, 0.1, **{SOURCE: 0.6, ENERGY: 0.4})
    assert checkpoints(tmp_path) == {"0003", "0004"}


@pytest.mark.parametrize("ending", ["stopped", "diverged", "failed"])
def test_what_cannot_win_keeps_its_records_alone(tmp_path: Path, ending: str) -> None:
    driver = start(tmp_path, make_space())
    for _ in range(3):
        run_whole(driver, 0.9)
    trial = take(driver)
    train(driver, trial, 0.1, diverged=int(ending == "diverged"))
    folder = tmp_path / "trials" / trial.id
    (folder / TORN).write_text("half of the next o")
    driver.finish(trial.id, "ValueError: no" if ending == "failed" else None)
    assert load_study(tmp_path).trial(trial.id).state == ending
    assert sorted(path.name for path in folder.iterdir()) == [
        "params.json",
        "result.json",
        "state.json",
    ]


def test_a_checkpoint_goes_only_when_the_state_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space()
    driver = start(tmp_path, space)
    trial = take(driver)
    train(driver, trial, 0.5)

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("csg_ray.scale.driver.write_atomically", full)
        driver.finish(trial.id, "ValueError: no")
    driver.collect_checkpoints()
    assert load_study(tmp_path).trial("0001").state == "unfinished"
    assert checkpoints(tmp_path) == {"0001"}


def test_a_restore_on_a_full_disk_makes_room_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space(num_trials=2)
    driver = start(tmp_path, space)
    driver.finish(take(driver).id, "ValueError: no")
    unclosed = take(driver)
    for _ in range(EPOCHS):
        train(driver, unclosed, 0.5)
    (tmp_path / "trials" / "0001" / "checkpoint.pt").write_text("left by a killed driver")

    def full(path: Path, text: str) -> None:
        if "0001" in checkpoints(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_text(text)

    monkeypatch.setattr("csg_ray.scale.driver.write_atomically", full)
    assert reopen(tmp_path, space).halted is None
    assert load_study(tmp_path).trial("0002").state == "completed"


def test_a_restore_collects_what_a_killed_driver_left_and_says_so(tmp_path: Path) -> None:
    space = make_space(num_trials=6, scheduler="none", keep_checkpoints=1)
    driver = start(tmp_path, space)
    for accuracy in (0.5, 0.6, 0.4):
        run_whole(driver, accuracy)
    unfinished = take(driver)
    train(driver, unfinished, 0.0)
    (tmp_path / "trials" / "0003" / "checkpoint.pt").touch()
    (tmp_path / "trials" / "0003" / TORN).touch()
    progress = Messages()
    driver = reopen(tmp_path, space, progress)
    assert checkpoints(tmp_path) == {"0001", "0002", "0004"}
    assert not list(tmp_path.rglob(TORN))
    assert progress.texts == [
        "removed the checkpoints of 1 ended trial(s) that are not among the best 1 by any rule "
        "(search.keep_checkpoints)"
    ]
    driver = reopen(tmp_path, space, progress)
    assert len(progress.texts) == 1
    again = take(driver)
    assert again.id == unfinished.id
    for _ in range(EPOCHS - 1):
        train(driver, again, 0.9)
    driver.finish(again.id)
    assert checkpoints(tmp_path) == {"0001", "0004"}


def test_more_trials_compete_with_those_of_before(tmp_path: Path) -> None:
    space = make_space(num_trials=3, scheduler="none", keep_checkpoints=2)
    driver = start(tmp_path, space)
    for accuracy in (0.5, 0.6, 0.7):
        run_whole(driver, accuracy, **{SOURCE: accuracy, ENERGY: -accuracy})
    driver = reopen(tmp_path, space.with_num_trials(5))
    run_whole(driver, 0.4, **{SOURCE: 0.4, ENERGY: -0.4})
    assert checkpoints(tmp_path) == {"0002", "0003"}
    run_whole(driver, 0.65, **{SOURCE: 0.65, ENERGY: -0.65})
    assert checkpoints(tmp_path) == {"0003", "0005"}


def test_the_end_of_a_study_collects_what_a_process_wrote_after_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space(num_trials=1)
    start(tmp_path, space)

    def run(driver: StudyDriver, *_: Any) -> None:
        folder = tmp_path / "trials" / take(driver).id
        driver.finish(folder.name, "ValueError: no")
        (folder / "checkpoint.pt").write_text("by a process that has not died yet")

    monkeypatch.setitem(sys.modules, "csg_ray.scale.tune_run", SimpleNamespace(run_tune=run))
    monkeypatch.setattr("csg_ray.scale.tuner.running", lambda *_: nullcontext())
    machine = Cluster((Node(1, 0),))
    lock = StudyLock(tmp_path)
    means = _Means(machine, plan(space, machine), log_to=(), verbose=False)
    _drive(load_study(tmp_path), means, Messages(), lock)
    assert load_study(tmp_path).trial("0001").state == "failed"
    assert checkpoints(tmp_path) == set()


class Crash(Exception):
    """Stands for kill -9."""


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment_no_rule_loses_its_pick(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random studies; the driver dies between two files at random; nothing of worth is gone."""
    draws = random.Random(seed)
    count = draws.randint(1, 3)
    several = [{"metric": SOURCE, "mode": "min"}, {"metric": ENERGY, "mode": "min"}]
    goals = {"objectives": several} if draws.random() < 0.5 else {}
    space = make_space(num_trials=16, keep_checkpoints=count, **goals)
    rules = retention_rules(space.objectives, space.score)

    def fragile(folder: Path) -> bool:
        if draws.random() < 0.05:
            raise Crash
        removed = remove_checkpoint(folder)
        if draws.random() < 0.05:
            raise Crash
        return removed

    monkeypatch.setattr("csg_ray.scale.retention.remove_checkpoint", fragile)
    driver, live, crashes = start(tmp_path, space), dict[str, LiveTrial](), 0
    while driver.remaining or live:
        try:
            while len(live) < 3 and (trial := driver.next_trial()) is not None:
                live[trial.id] = trial
            step(driver, live, draws)
        except Crash:
            crashes += 1
            assert_all_that_matters_is_there(tmp_path, rules)
            driver, live = restart(tmp_path, space), {}
            assert_all_that_matters_is_there(tmp_path, rules)
    assert crashes
    monkeypatch.undo()
    reopen(tmp_path, space)
    trials = load_study(tmp_path).trials
    assert len(trials) == 16
    assert checkpoints(tmp_path) == best_ids(trials, rules, count)
    assert not list(tmp_path.rglob(TORN))


def step(driver: StudyDriver, live: dict[str, LiveTrial], draws: random.Random) -> None:
    trial = draws.choice(list(live.values()))
    metrics = {SOURCE: draws.random(), ENERGY: draws.random()}
    diverges = draws.random() < 0.05
    cut = train(driver, trial, draws.random(), diverged=int(diverges), **metrics)
    if len(trial.results) < EPOCHS and draws.random() < 0.05:
        write_whole(driver.trial_directory(trial.id) / TORN, b"")
        raise Crash
    if cut or diverges or len(trial.results) == EPOCHS:
        del live[trial.id]
        driver.finish(trial.id, "ValueError: no" if draws.random() < 0.05 else None)


def restart(directory: Path, space: SearchSpace) -> StudyDriver:
    while True:
        try:
            return reopen(directory, space)
        except Crash:
            continue


def assert_all_that_matters_is_there(directory: Path, rules: Sequence[Rule]) -> None:
    study = load_study(directory)
    for trial in study.trials:
        if trial.state == "unfinished" and trial.epoch:
            assert trial.checkpoint.read_text() == f"after {trial.epoch}", "it must be resumable"
    for rule in rules:
        picks: list[Trial] = [t for t in study.trials if t.id in best_ids(study.trials, [rule], 1)]
        assert all(pick.checkpoint.exists() for pick in picks), rule
    picked = [study.best_trial(name) for name in (*RULES, "objective")]
    assert all(pick.checkpoint.exists() for pick in picked if pick is not None)
