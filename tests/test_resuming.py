"""`search --resume`: starts a study, goes on with it, and refuses to mix two."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from csg_ray.cli import main
from csg_ray.results.progress import Progress
from csg_ray.scale.lock import HEARTBEAT_SECONDS, STALE_SECONDS, BeingRunError
from csg_ray.search_space import Changes, SearchSpace, load_search_space

Capture = pytest.CaptureFixture[str]
SPACE = """
study: digits
base: {data.name: digits, method.name: csg, train.epochs: 3}
space:
  method.loss_weight: {loguniform: [0.01, 10.0]}
  augment.magnitude: {randint: [0, 25]}
search: {metric: target_val/mean_class_accuracy, mode: max, num_trials: 6}
"""
TRIALS = 4 * [("completed", [(0.2, 0.9, 0.8), (0.4, 0.8, 0.9), (0.6, 0.7, 0.95)])]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE)


@pytest.fixture
def study(make_study: Callable[..., Path]) -> Path:
    """A study of space.yaml, 4 of its 6 trials done, its header written as a search writes it."""
    directory = make_study(*TRIALS)
    header = yaml.safe_load((directory / "study.yaml").read_text())
    header["space"] = load_search_space(Path("space.yaml")).to_mapping()
    (directory / "study.yaml").write_text(yaml.safe_dump(header))
    return directory


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch, make_study: Callable[..., Path]) -> SimpleNamespace:
    """Stands in for the room that needs Ray: `ran` holds the calls; each first raises `busy[i]`."""
    room = SimpleNamespace(ran=[], busy=[])

    def run_study(
        space: SearchSpace, directory: Path, progress: Progress, verbose: bool, *_: object
    ) -> None:
        room.ran.append(("new", directory))
        made = make_study(*TRIALS)
        if made != directory.absolute():
            made.rename(directory)

    def restore_study(
        directory: Path, changes: Changes, progress: Progress, verbose: bool, to: object
    ) -> None:
        if room.busy:
            raise room.busy.pop(0)
        budget = [changes.budget] if changes.budget else []
        room.ran.append(("restored", directory, changes.more, *budget))
        room.fuse = changes.fuse

    tuner = SimpleNamespace(run_study=run_study, restore_study=restore_study)
    monkeypatch.setitem(sys.modules, "csg_ray.scale.tuner", tuner)
    # Digits take seconds to render.
    monkeypatch.setattr("csg_ray.data.load.load_splits", lambda *_: None)
    return room


def resume(*words: str) -> int:
    return main(["search", "space.yaml", "--resume", *words])


@pytest.mark.parametrize("directory", ["studies/digits", "other"])
def test_what_is_not_there_is_begun(scale: SimpleNamespace, directory: str) -> None:
    assert resume(*([] if directory == "studies/digits" else ["--study", directory])) == 0
    assert scale.ran == [("new", Path(directory))]


def test_what_is_there_goes_on(scale: SimpleNamespace, study: Path, capsys: Capture) -> None:
    assert resume() == 0
    assert resume("--study", "studies/digits") == 0
    assert scale.ran == 2 * [("restored", Path("studies/digits"), 0)]
    assert "Best trial: " in capsys.readouterr().out


@pytest.mark.parametrize(("trials", "more"), [(6, 0), (5, 0), (10, 4)])
def test_more_trials_are_added_and_fewer_ignored(
    scale: SimpleNamespace, study: Path, trials: int, more: int
) -> None:
    assert resume("--trials", str(trials)) == 0
    assert scale.ran == [("restored", Path("studies/digits"), more)]


def test_another_budget_is_a_new_one(scale: SimpleNamespace, study: Path) -> None:
    assert resume("--budget", "2h") == 0
    assert scale.ran == [("restored", Path("studies/digits"), 0, "2h")]


def test_a_budget_that_is_spent_leaves_nothing_to_do(
    scale: SimpleNamespace, study: Path, capsys: Capture
) -> None:
    file = study / "study.yaml"
    header = yaml.safe_load(file.read_text()) | {"budget_spent": "2026-01-01T00:00:00+00:00"}
    header["space"]["search"]["budget"] = "2h"
    file.write_text(yaml.safe_dump(header))
    assert resume("--budget", "2h") == 0
    assert scale.ran == []
    assert "The budget of 2h is spent: " in capsys.readouterr().out
    assert resume("--budget", "4h") == 0
    assert scale.ran == [("restored", Path("studies/digits"), 0, "4h")]


def test_another_number_of_trials_in_a_process_holds_from_now_on(
    scale: SimpleNamespace, study: Path
) -> None:
    assert resume("--set", "search.fuse=4") == 0
    assert scale.fuse == 4


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("train.epochs=5", "base.train.epochs is 5 in space.yaml, but study studies/digits was "),
        ("search.seed=3", "search.seed is 3 in space.yaml, but study studies/digits was begun "),
        ("resources.gpus_per_worker=0.5", "resources.gpus_per_worker is 0.5 in space.yaml, but "),
    ],
)
def test_another_search_in_its_place_is_refused(
    scale: SimpleNamespace, study: Path, capsys: Capture, word: str, sentence: str
) -> None:
    assert resume("--set", word) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"csg-ray: {sentence}")
    assert captured.err.endswith("; set it back, or give another --study\n")
    assert captured.err.count("\n") == 1
    assert scale.ran == []


def test_what_is_no_study_is_not_overwritten(scale: SimpleNamespace, capsys: Capture) -> None:
    Path("studies/digits").mkdir(parents=True)
    assert resume() == 2
    assert capsys.readouterr().err.startswith("csg-ray: studies/digits exists; ")
    assert scale.ran == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes only where somebody sleeps."""
    clock = SimpleNamespace(now=100.0, naps=0)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        clock.naps += 1

    stand_in = SimpleNamespace(sleep=sleep, monotonic=lambda: clock.now)
    monkeypatch.setattr("csg_ray.cli.resuming.time", stand_in)
    return clock


def test_the_lock_of_a_dead_driver_is_waited_for(
    scale: SimpleNamespace, study: Path, clock: SimpleNamespace, capsys: Capture
) -> None:
    busy = BeingRunError("studies/digits is being run by process 1 on there; wait")
    scale.busy = [busy, busy, busy]

    assert resume() == 0

    assert scale.ran == [("restored", Path("studies/digits"), 0)]
    assert clock.naps == 3
    said = [line for line in capsys.readouterr().out.splitlines() if "being run by" in line]
    assert said == [f"{busy}; waiting 70 s, in case it is dead"]


def test_a_driver_that_lives_is_left_alone(
    scale: SimpleNamespace, study: Path, clock: SimpleNamespace, capsys: Capture
) -> None:
    scale.busy = 1000 * [BeingRunError("studies/digits is being run by process 1 on there; wait")]

    assert resume() == 2

    assert scale.ran == []
    # Long enough for a heartbeat just before its death to grow stale.
    assert clock.now - 100.0 > STALE_SECONDS + HEARTBEAT_SECONDS
    assert capsys.readouterr().err.startswith("csg-ray: studies/digits is being run by ")


def test_a_lock_is_what_is_waited_for(tmp_path: Path) -> None:
    from csg_ray.scale.lock import StudyLock

    with StudyLock(tmp_path), pytest.raises(BeingRunError), StudyLock(tmp_path):
        pass


def test_without_resume_nothing_changes(
    scale: SimpleNamespace, study: Path, capsys: Capture
) -> None:
    words: list[Any] = ["search", "space.yaml", "--study", "studies/digits"]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("csg-ray: studies/digits exists; continue it with ")
