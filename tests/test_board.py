"""A board kept up update by update, against counting everything anew."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from csg_ray.cli.board import RUNNING_STATES, Board, describe_scores, score_of
from csg_ray.cli.console import choose_rows
from csg_ray.results.cost import Meter
from csg_ray.results.progress import TrialUpdate
from csg_ray.results.selection import Outcome, rank

ACCURACY = "target_val/mean_class_accuracy"
EPOCHS = 4


def random_life(draws: random.Random, trial_id: str) -> list[TrialUpdate]:
    """The updates of one trial: at work, then ended; or ended in an earlier session."""

    def update(state: str, epoch: int) -> TrialUpdate:
        metrics = {ACCURACY: draws.randrange(5) / 4, "diverged": int(draws.random() < 0.1)}
        return TrialUpdate(trial_id, state, epoch, metrics if draws.random() < 0.9 else {})

    end = update(draws.choice(["completed", "stopped", "diverged", "failed"]), EPOCHS)
    if draws.random() < 0.2:
        return [end]
    work = [update("running", epoch) for epoch in range(draws.randint(1, EPOCHS + 1))]
    return [update("pending", 0), *work, *([end] if draws.random() < 0.8 else [])]


def shuffled_lives(draws: random.Random) -> list[TrialUpdate]:
    """The lives of 60 trials, at work side by side."""
    lives = [random_life(draws, f"{number:04d}") for number in range(1, 61)]
    updates = []
    while lives:
        life = draws.choice(lives)
        updates.append(life.pop(0))
        if not life:
            lives.remove(life)
    return updates


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", ["max", "min"])
def test_it_counts_as_if_it_counted_anew(seed: int, mode: Literal["max", "min"]) -> None:
    clock = SimpleNamespace(now=0.0)
    board = Board(clock=lambda: clock.now)
    board.start("s", Path(), 100, EPOCHS, ACCURACY, mode, Meter())
    newest: dict[str, TrialUpdate] = {}
    earlier = 0.0
    for update in shuffled_lives(random.Random(seed)):
        earlier += update.id not in newest and update.state not in RUNNING_STATES
        newest[update.id] = update
        clock.now += 1
        board.take(update)
        ended = [each for each in newest.values() if each.state not in RUNNING_STATES]
        ranked = rank([Outcome(e.id, e.state, e.metrics) for e in ended], ACCURACY, mode)
        best = board.best()
        assert (best and best.id) == (ranked[0].id if ranked else None)
        assert board.finished == len(ended)
        assert board.running == sum(each.state == "running" for each in newest.values())
        work = sum(each.epoch / EPOCHS for each in newest.values() if each not in ended)
        done = len(ended) + work
        left = board.seconds_left()
        if done - earlier < 1e-9:
            assert left is None
        else:
            assert left == pytest.approx(clock.now * (100 - done) / (done - earlier))


def test_rows_are_of_the_leader_those_at_work_and_the_newest() -> None:
    draws = random.Random(0)
    for _ in range(200):
        states = draws.choices(["running", "pending", "completed", "stopped"], k=12)
        updates = [TrialUpdate(f"{i:04d}", state) for i, state in enumerate(states)]
        completed = [update for update in updates if update.state == "completed"]
        best = draws.choice(completed) if completed else None
        rows = draws.randint(1, 14)
        chosen = choose_rows(updates, best, rows)
        assert [each.id for each in chosen] == sorted({each.id for each in chosen})
        assert len(chosen) == min(rows, 12)
        assert best is None or best in chosen
        at_work = [each for each in updates if each.state in RUNNING_STATES]
        room = rows - (best is not None)
        assert sum(each in chosen for each in at_work) == min(len(at_work), room)
        others = [each for each in updates if each not in at_work and each != best]
        newest = others[max(0, len(others) - max(0, room - len(at_work))) :]
        assert [each for each in others if each in chosen] == newest


def test_the_score_is_miou_where_there_is_one() -> None:
    both = {ACCURACY: 0.25, "target_val/mean_iou": 0.125, "target_val/hse": 1.5}
    accuracy = {name: value for name, value in both.items() if not name.endswith("iou")}

    assert score_of(both) == "target_val/mean_iou"
    assert score_of(accuracy) == ACCURACY
    assert score_of({}) == ACCURACY  # of a trial that has not reported yet
    assert score_of({"mean_iou": 0.5}, "") == "mean_iou"
    assert describe_scores(both) == "mIoU 0.125, HSE 1.500"
    assert describe_scores(accuracy) == "accuracy 0.250, HSE 1.500"
    assert describe_scores({}) == "accuracy -, HSE -"
