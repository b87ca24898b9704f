"""Budgets: how they are written, what spends them, and how a search ends and goes on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from csg_ray.cli import main
from csg_ray.cli.board import Board
from csg_ray.cli.console import PlainProgress
from csg_ray.config.errors import UserError
from csg_ray.results.cost import Meter, describe_cost, describe_seconds, spent_before, study_cost
from csg_ray.results.progress import TrialUpdate
from csg_ray.results.report.cautions import find_cautions
from csg_ray.results.study import load_study
from csg_ray.scale.driver import StudyDriver
from csg_ray.scale.tuner import restore_study, run_study
from csg_ray.search_space import Changes, ResourcesConfig, SearchSpace, parse_search_space
from csg_ray.search_space.budget import parse_budget
from csg_ray.storage.records import append_result
from small_study import Recorder, small_space, space_mapping
from written_study import write_study

Capture = pytest.CaptureFixture[str]
ACCURACY = "target_val/mean_class_accuracy"
SPACE = """
study: digits
base: {data.name: digits, method.name: csg, train.epochs: 3}
space: {method.loss_weight: {loguniform: [0.01, 10.0]}}
search: {metric: target_val/mean_class_accuracy, mode: max, num_trials: 4}
"""


def clock_at(now: float = 0.0) -> tuple[SimpleNamespace, Callable[[], float]]:
    clock = SimpleNamespace(now=now)
    return clock, lambda: clock.now


@pytest.fixture(autouse=True)
def _called_csg_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["csg-ray"])


# how it is written


@pytest.mark.parametrize(
    ("text", "seconds", "on_the_wall"),
    [
        ("90s", 90, True),
        ("45m", 45 * 60, True),
        ("2h", 2 * 60 * 60, True),
        ("1.5d", 36 * 60 * 60, True),
        ("16cpuh", 16 * 60 * 60, False),
        ("0.25gpuh", 15 * 60, False),
    ],
)
def test_a_budget_is_a_number_with_its_unit(text: str, seconds: float, on_the_wall: bool) -> None:
    budget = parse_budget(text)
    assert budget is not None
    assert (budget.seconds, budget.is_wall_clock, str(budget)) == (seconds, on_the_wall, text)


def test_none_is_no_budget() -> None:
    assert parse_budget("none") is None
    assert small_space(2).budget is None


@pytest.mark.parametrize(
    "text",
    ["", "2", "2 h", "2x", "h", "0h", "0.0gpuh", "-2h", "1e3h", "2H", f"{'9' * 400}d", "\uff12h"],
)
def test_anything_else_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE)
    write_study(tmp_path / "study")
    for words in (["search", "space.yaml"], ["check", "space.yaml"], ["restore", "study"]):
        assert main([*words, "--budget", text]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert printed.err.startswith(
            "csg-ray: search.budget must be a time above 0 with its unit, such as 90s, 45m, 2h or "
        )
    assert not Path("studies").exists()


def test_gpu_hours_need_gpus(tmp_path: Path) -> None:
    mapping = space_mapping(2, 1, budget="4gpuh")
    with pytest.raises(UserError, match=r"^search.budget is 4gpuh, but resources.gpus_per_worker"):
        parse_search_space(mapping)
    with pytest.raises(UserError, match=r"^search.budget is 1gpuh, but resources.gpus_per_worker"):
        small_space(2).with_budget("1gpuh")
    assert parse_search_space(mapping | {"resources": {"gpus_per_worker": 0.5}}).budget


def test_the_option_stands_above_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE.replace("num_trials: 4", "num_trials: 4, budget: 3h"))
    assert main(["check", "space.yaml"]) == 0
    assert "\n    budget  3h on the wall\n" in capsys.readouterr().out
    assert main(["check", "space.yaml", "--budget", "2cpuh"]) == 0
    shown = "\n    budget  2cpuh, the hours that trials keep CPUs busy\n"
    assert shown in capsys.readouterr().out
    assert main(["check", "space.yaml", "--budget", "none"]) == 0
    assert "budget" not in capsys.readouterr().out


# what spends it


def test_time_on_the_wall_passes_by_itself() -> None:
    clock, now = clock_at(1000.0)
    meter = Meter(parse_budget("2h"), spent=3600.0, clock=now)
    clock.now += 3599
    meter.add(1e6)
    assert not meter.is_spent()
    assert meter.seconds_left() == pytest.approx(1.0)
    clock.now += 1
    assert meter.is_spent()
    assert meter.seconds_left() == 0


def test_busy_hours_are_those_of_all_that_trials_hold() -> None:
    clock, now = clock_at()
    held = ResourcesConfig(workers_per_trial=2, cpus_per_worker=3, gpus_per_worker=1)
    cpus, gpus = (Meter(parse_budget(text), held, clock=now) for text in ("6cpuh", "2gpuh"))
    assert cpus.seconds_left() is None  # before there is any pace
    for _ in range(3):
        clock.now += 450
        for meter in (cpus, gpus):
            meter.add(900.0)
            assert not meter.is_spent()
    # Three of four quarters in 1350 s.
    assert cpus.seconds_left() == pytest.approx(450)
    assert gpus.seconds_left() == pytest.approx(450)
    cpus.add(900.0)
    gpus.add(900.0)
    assert cpus.is_spent()
    assert gpus.is_spent()


def test_without_a_budget_nothing_is_ever_spent() -> None:
    meter = Meter()
    meter.add(1e12)
    assert not meter.is_spent()
    assert meter.seconds_left() is None


def iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


@pytest.mark.parametrize("seed", range(5))
def test_earlier_sessions_are_read_from_the_files(tmp_path: Path, seed: int) -> None:
    """Sessions one after the other, some of which give a new budget; counted along the way."""
    draws = random.Random(seed)
    write_study(tmp_path, ("unfinished", []), ("unfinished", []))
    at, wall, busy, epoch = 1000.0, 0.0, 0.0, 0
    restores: list[dict[str, Any]] = []
    for session in range(4):
        begun = at
        if session:
            renewed = draws.random() < 0.4
            restores.append({"at": iso(at), "more": 0, "changed": {}})
            if renewed:
                restores[-1]["budget"] = "1h"
                wall = busy = 0.0
        for _ in range(draws.randrange(4)):
            epoch += 1
            at += draws.randint(1, 100)
            seconds = draws.random()
            busy += seconds
            line = {"epoch": epoch, "seconds": seconds, "timestamp": at}
            append_result(tmp_path / "trials" / f"{1 + epoch % 2:04d}", line)
        wall += at - begun
        at += 500  # until somebody restores it
    header = yaml.safe_load((tmp_path / "study.yaml").read_text())
    header |= {"created": iso(1000.0), "restores": restores}
    header["space"]["resources"] = {"workers_per_trial": 2, "cpus_per_worker": 4}
    for budget, spent in (("1h", wall), ("1cpuh", 8 * busy), ("none", 0.0)):
        header["space"]["search"]["budget"] = budget
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(header))
        assert spent_before(load_study(tmp_path)) == pytest.approx(spent), budget


# how the search ends and goes on


def new_study(directory: Path, space: SearchSpace) -> None:
    (directory / "trials").mkdir(parents=True)
    header = {"format": 1, "created": iso(0), "space": space.to_mapping(), "provenance": {}}
    (directory / "study.yaml").write_text(yaml.safe_dump(header))


def session(directory: Path, at_once: int) -> tuple[StudyDriver, Recorder]:
    """What Tune does until the driver lets no trial go on; each epoch takes a minute."""
    study, progress = load_study(directory), Recorder()
    meter = Meter(study.space.budget, study.space.resources, spent_before(study))
    driver = StudyDriver(study.space, directory, progress, study.trials, meter)
    running = list(itertools.islice(iter(driver.next_trial, None), at_once))
    while running:
        for trial in list(running):
            line = {"epoch": len(trial.results) + 1, ACCURACY: 0.5, "seconds": 60.0}
            append_result(driver.trial_directory(trial.id), line | {"timestamp": 5.0})
            if driver.report(trial.id, line) or line["epoch"] == 3:
                running.remove(trial)
                driver.finish(trial.id)
                running += [new for new in (driver.next_trial(),) if new is not None]
    return driver, progress


def test_trials_end_with_their_epoch_and_go_on_later(tmp_path: Path) -> None:
    new_study(tmp_path, small_space(4, 3, scheduler="none", budget="0.1cpuh"))  # six epochs
    driver, progress = session(tmp_path, at_once=2)
    assert driver.out_of_budget
    # The first trial ends with a minute left, so that the third one starts; the fourth does not.
    ended = [("completed", 3)] * 2
    trials = load_study(tmp_path).trials
    assert [(trial.state, trial.epoch) for trial in trials] == [*ended, ("unfinished", 1)]
    assert {update.id: update.state for update in progress.updates}["0003"] == "unfinished"
    assert len(progress.messages) == 1
    assert progress.messages[0].startswith("the budget of 0.1cpuh is spent: no trial starts any")

    driver, _ = session(tmp_path, at_once=2)  # killed before that was noted: it is spent still
    assert driver.out_of_budget
    assert [trial.epoch for trial in load_study(tmp_path).trials] == [3, 3, 1]

    header = yaml.safe_load((tmp_path / "study.yaml").read_text())
    header["space"]["search"]["budget"] = "0.12cpuh"  # twelve seconds more
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(header))
    driver, progress = session(tmp_path, at_once=2)
    assert [trial.epoch for trial in load_study(tmp_path).trials] == [3, 3, 2, 1]

    header["space"]["search"]["budget"] = "none"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(header))
    driver, _ = session(tmp_path, at_once=2)
    assert not driver.out_of_budget
    whole = load_study(tmp_path)
    assert [(trial.state, trial.epoch) for trial in whole.trials] == [("completed", 3)] * 4


def test_a_budget_that_ends_with_the_last_trial_has_ended_nothing(tmp_path: Path) -> None:
    new_study(tmp_path, small_space(2, 3, scheduler="none", budget="0.1cpuh"))
    driver, progress = session(tmp_path, at_once=2)
    assert not driver.out_of_budget
    assert progress.messages == []


def spent_study(directory: Path, *trials: tuple[str, list[tuple[float, float, float]]]) -> Path:
    header = {"budget_spent": "2026-01-01T02:00:00+00:00"}
    write_study(directory, *trials, search={"budget": "2h"}, header=header)
    return directory


EPOCHS = [(0.2, 0.9, 0.8), (0.4, 0.8, 0.9), (0.60, 0.70, 0.95)]


def test_the_summary_says_what_ended_it_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from csg_ray.cli.summary import summarise

    monkeypatch.chdir(tmp_path)
    spent_study(Path("s"), ("completed", EPOCHS), ("stopped", EPOCHS[:1]), ("unfinished", EPOCHS))
    summarise(load_study("s"))
    out = capsys.readouterr().out
    assert "Cost: 7 min of training, 0.12 CPU h; 7 epochs of 9 without a scheduler.\n" in out
    said = "The budget of 2h is spent: of 6 trials 2 ended, 1 can go on and 3 were not begun.\n"
    assert said in out
    assert "Next:\n  csg-ray restore s --budget 2h\n" in out
    sentences = [caution.what for caution in find_cautions(load_study("s"), None, [], [])]
    assert said.rstrip() in sentences


def test_before_any_trial_completed_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    spent_study(Path("s"), ("unfinished", EPOCHS[:2]))
    assert main(["best", "s"]) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert "no trial of study s has completed" in sentence
    assert "the budget of 2h is spent" in sentence
    assert sentence.endswith("continue it with: csg-ray restore s --budget 2h\n")


def test_what_the_budget_left_does_not_keep_target_test_closed(tmp_path: Path) -> None:
    trials = (("completed", EPOCHS), ("unfinished", EPOCHS[:2]))
    load_study(spent_study(tmp_path / "s", *trials)).refuse_unfinished()
    write_study(tmp_path / "t", *trials)
    with pytest.raises(UserError, match="unfinished"):
        load_study(tmp_path / "t").refuse_unfinished()


def test_the_option_is_of_studies(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    assert main(["restore", str(tmp_path), "--budget", "2h"]) == 2
    assert "is a run, and --budget is for studies; leave it out" in capsys.readouterr().err


# what is shown


def test_the_time_left_is_that_of_the_budget_when_it_ends_first() -> None:
    clock, now = clock_at()
    board = Board(now)
    meter = Meter(parse_budget("1cpuh"), ResourcesConfig(cpus_per_worker=2), clock=now)
    board.start("s", Path(), 100, 4, ACCURACY, "max", meter)
    for number, minutes in ((1, 5), (2, 10)):
        clock.now = 60.0 * minutes
        meter.add(300.0)
        board.take(TrialUpdate(f"{number:04d}", "running", 4, seconds=300.0))
    # 2 of 6 times 10 CPU minutes in 10 minutes; a hundred trials would take 490 more.
    assert board.seconds_left() == pytest.approx(20 * 60)
    assert board.standing() == "0/100 finished, 2 running, cost 10 min, about 20 min left of 1cpuh"


def test_the_time_left_is_that_of_the_trials_when_they_end_first() -> None:
    clock, now = clock_at()
    board = Board(now)
    board.start("s", Path(), 2, 4, ACCURACY, "max", Meter(parse_budget("2d"), clock=now))
    clock.now = 600.0
    board.take(TrialUpdate("0001", "running", 4, seconds=600.0))
    assert board.standing() == "0/2 finished, 1 running, cost 10 min, about 10 min left"


def test_a_search_begins_with_its_budget() -> None:
    lines: list[str] = []
    meter = Meter(parse_budget("90s"))
    PlainProgress(lines.append).study_started("s", Path("d"), 4, 3, ACCURACY, "max", meter)
    assert lines == ["study s in d: 4 trials of up to 3 epochs, budget 90s on the wall"]


def test_a_cost_is_training_time_or_gpu_hours() -> None:
    plain, shared = ResourcesConfig(cpus_per_worker=4), ResourcesConfig(gpus_per_worker=0.25)
    several = ResourcesConfig(workers_per_trial=4, gpus_per_worker=1)
    assert describe_cost(None, plain) == describe_cost(None, several) == "-"
    assert [describe_cost(40, plain), describe_cost(420, plain)] == ["40 s", "7 min"]
    assert describe_cost(3 * 3600, several) == "12.0 GPU h"
    assert describe_cost(600, shared) == "0.042 GPU h"
    assert describe_seconds(3 * 3600) == describe_cost(3 * 3600, plain) == "3.0 h"


# under Ray


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_real_search_ends_with_its_budget_and_goes_on(shared_ray: None, tmp_path: Path) -> None:
    directory = tmp_path / "s"
    space = small_space(3, 2, scheduler="none", budget="0.0001cpuh")  # 0.36 s: one epoch at most
    progress = Recorder()
    run_study(space, directory, progress, verbose=False)
    study = load_study(directory)
    assert study.budget_spent
    assert [trial.epoch for trial in study.trials] == [1] * len(study.trials)
    assert {trial.state for trial in study.trials} == {"unfinished"}
    assert all(trial.checkpoint.exists() for trial in study.trials)
    assert progress.messages == [
        "the budget of 0.0001cpuh is spent: no trial starts any more, and those at work end with "
        "their epoch"
    ]
    with pytest.raises(UserError, match=r"the budget of 0.0001cpuh of study .* is spent; give it"):
        restore_study(directory, Changes(), Recorder(), verbose=False)
    restore_study(directory, Changes(budget="none"), Recorder(), verbose=False)
    whole = load_study(directory)
    assert not whole.budget_spent
    assert [(trial.state, trial.epoch) for trial in whole.trials] == [("completed", 2)] * 3
    assert whole.restores[-1]["budget"] == "none"
    assert study_cost(whole) is not None
