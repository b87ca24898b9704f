"""What is left of a trial that is trained elsewhere, with workers that answer, and die, at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from csg_ray.scale import lane_trial
from csg_ray.scale.lane_trial import MAX_LOSSES, MAX_LOST_JOINS, Joined, LaneTrial, Report


class Worker:
    """An actor of Ray's in looks; `events` are what becomes of the epochs asked for."""

    def __init__(self, *events: str, load: int = 0, epoch: int = 0) -> None:
        self.events = iter(events)
        self.load = load
        self.epoch = epoch
        self.joined: list[tuple[int, bool]] = []
        self.full = False
        self._next = ""

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Any] = object.__getattribute__(self, f"do_{name}")
        return type("Method", (), {"remote": staticmethod(lambda *a: lambda: method(*a))})

    def do_leave(self, name: str) -> int:
        return self.load

    def do_join(self, assignment: dict[str, Any], alone: bool) -> Joined | None:
        if self.full:
            return None
        known = assignment["known_epochs"]
        self.joined.append((known, alone))
        reports: list[Report] = [
            {"epoch": epoch, "diverged": 0} for epoch in range(known + 1, self.epoch + 1)
        ]
        return Joined(reports, self.epoch >= 3)

    def do_begin(self, name: str) -> bool:
        self._next = next(self.events)
        if self._next == "dies before":
            raise RayActorError
        return self._next != "gone before"

    def do_end(self, name: str) -> Report | None:
        if self._next == "dies":
            raise RayActorError
        if self._next == "dies after":
            self.epoch += 1
            raise RayActorError
        if self._next == "gone":
            return None
        if self._next == "fails":
            return {"error": "its own"}
        self.epoch += 1
        return {"epoch": self.epoch, "diverged": int(self._next == "diverges")}


class Dead(Worker):
    def do_leave(self, name: str) -> int:
        raise RayActorError


@pytest.fixture(autouse=True)
def _ray_that_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda call: call())
    monkeypatch.setattr(lane_trial, "RETRY_SECONDS", 0.001)


def follow(*workers: Worker, known: int = 0, name: str = "0001") -> list[Any]:
    """The epochs that are reported, and the one error."""
    assignment = {"id": name, "known_epochs": known, "config": {"train": {"epochs": 3}}}
    reports = LaneTrial(assignment, workers).reports()
    return [report.get("epoch") or report["error"] for report in reports]


def test_every_epoch_is_asked_for_and_passed_on() -> None:
    worker = Worker("trains", "trains", "trains")
    assert follow(worker) == [1, 2, 3]
    assert worker.joined == [(0, False)]


@pytest.mark.parametrize(("last", "told"), [("diverges", 2), ("fails", "its own")])
def test_it_ends_with_a_trial_that_diverges_or_fails(last: str, told: int | str) -> None:
    assert follow(Worker("trains", last)) == [1, told]


def test_epochs_that_the_driver_does_not_know_come_first() -> None:
    assert follow(Worker("trains", epoch=2), known=1) == [2, 3]
    assert follow(Worker(epoch=3), known=2) == [3]
    assert follow(Worker(epoch=3), known=3) == []


@pytest.mark.parametrize("loss", ["gone before", "gone", "dies before"])
def test_a_lost_place_is_taken_again_with_nothing_against_the_trial(loss: str) -> None:
    worker = Worker("trains", *[loss] * (MAX_LOSSES + 1), "trains", "trains")
    assert follow(worker) == [1, 2, 3]
    assert set(worker.joined) == {(0, False), (1, False)}


def test_after_a_loss_in_its_epoch_a_trial_is_trained_alone() -> None:
    worker = Worker("trains", "dies", "trains", "trains")
    assert follow(worker) == [1, 2, 3]
    assert worker.joined == [(0, False), (1, True)]


def test_an_epoch_that_was_recorded_before_the_worker_died_is_not_lost() -> None:
    worker = Worker("dies after", "trains", "trains")
    assert follow(worker) == [1, 2, 3]


def test_a_trial_that_ends_its_process_again_and_again_fails() -> None:
    """Losses with an epoch between them do not add up."""
    assert follow(Worker("dies", "dies", "trains", "dies", "dies", "trains", "trains")) == [1, 2, 3]
    (reason,) = follow(Worker(*["dies"] * MAX_LOSSES))
    assert reason == "its process died 3 times in a row without a finished epoch"


def test_a_trial_that_ends_every_process_that_makes_its_lane_fails() -> None:
    class Deadly(Worker):
        left = 0

        def do_join(self, assignment: dict[str, Any], alone: bool) -> Joined | None:
            if self.left > 0:
                self.left -= 1
                raise RayActorError
            return super().do_join(assignment, alone)

    worker = Deadly("trains", "gone", "trains", "trains")
    worker.left = MAX_LOST_JOINS - 1
    assert follow(worker) == [1, 2, 3]
    worker = Deadly("trains")
    worker.left = MAX_LOST_JOINS
    (reason,) = follow(worker)
    assert reason == "10 processes died while its training was set up"
    assert worker.joined == []


def test_the_worker_with_the_fewest_trials_is_joined() -> None:
    busy, idle, dead = Worker(load=2), Worker("trains", "trains", "trains", load=1), Dead()
    assert follow(busy, dead, idle) == [1, 2, 3]
    assert not busy.joined


def test_trials_that_start_together_spread() -> None:
    workers = [Worker(epoch=3) for _ in range(3)]
    for number in range(1, 7):
        follow(*workers, name=f"{number:04d}")
    assert [len(worker.joined) for worker in workers] == [2, 2, 2]


def test_a_full_worker_is_passed_over_and_a_place_is_waited_for() -> None:
    full, other = Worker("trains", "trains", "trains"), Worker(load=1, epoch=3)
    full.full = True
    assert follow(full, other, known=3) == []

    class Opens(Worker):
        def do_leave(self, name: str) -> int:
            self.full, was = False, self.full
            return int(was)

    opening = Opens("trains", "trains", "trains")
    opening.full = True
    assert follow(opening) == [1, 2, 3]


def test_it_starts_without_torch() -> None:
    """Else each trial would take seconds to start, and half a gigabyte."""
    modules = "csg_ray.scale.lane_trial, csg_ray.scale.lane_worker"
    look = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look]).returncode == 0
