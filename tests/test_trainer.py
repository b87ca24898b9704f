"""A training spread over workers: when to try again, and real workers that are killed."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray._private.state import actors
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import WorkerGroupError

from csg_ray.config.data import DigitsConfig
from csg_ray.config.errors import UserError
from csg_ray.config.run import AugmentConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.scale import trainer
from csg_ray.scale.resources import Workers
from csg_ray.scale.trainer import WorkersLostError, train_with_workers
from csg_ray.storage.records import append_result, read_results
from csg_ray.training.loop import fit

TWO = Workers(maximum=2, minimum=2, cpus=1, gpus=0)
Outcome = Callable[[], None]


class Attempts:
    """Stands for Ray Train: each attempt does as told, then ends well or with an error."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.count = 0

    def __call__(self, job: dict[str, Any], name: str, workers: Workers) -> Attempts:
        self.count += 1
        self.error: Exception | None = None
        self.running = True
        return self

    def wait(self, seconds: float) -> None:
        self.running = False
        try:
            self.outcomes.pop(0)()
        except Exception as error:
            self.error = error


def lost(*failures: Exception) -> Exception:
    return WorkerGroupError("rank 0: died", dict(enumerate(failures)))


def run(
    monkeypatch: pytest.MonkeyPatch, directory: Path, *outcomes: Outcome, known: int = 0
) -> tuple[list[int], Attempts]:
    attempts, seen = Attempts(*outcomes), list[int]()
    monkeypatch.setattr(trainer, "_Attempt", attempts)
    trainer.train_with_workers(
        {"directory": str(directory)}, "run", TWO, lambda line: seen.append(line["epoch"]), known
    )
    return seen, attempts


def finishing(directory: Path, *epochs: int, then: Exception | None = None) -> Outcome:
    def act() -> None:
        for epoch in epochs:
            append_result(directory, {"epoch": epoch})
        if then is not None:
            raise then

    return act


def test_workers_may_be_lost_as_often_as_epochs_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [finishing(tmp_path, epoch, then=lost(OSError("gone"))) for epoch in range(1, 8)]
    seen, attempts = run(monkeypatch, tmp_path, *outcomes, finishing(tmp_path, 8))
    assert seen == list(range(1, 9))
    assert attempts.count == 8


def test_three_losses_without_an_epoch_between_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = finishing(tmp_path, then=lost(RuntimeError("Connection closed by peer")))
    progress = finishing(tmp_path, 1, then=lost(RuntimeError("Connection closed by peer")))
    with pytest.raises(WorkersLostError, match="failed 3 times in a row without a finished epoch"):
        run(monkeypatch, tmp_path, dies, dies, progress, dies, dies, finishing(tmp_path, 2))
    assert [line["epoch"] for line in read_results(tmp_path)] == [1]


@pytest.mark.parametrize(
    "mistake", [UserError("no such file"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_what_no_second_attempt_mends_is_raised_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Exception
) -> None:
    wrapped = UserExceptionWithTraceback(mistake, "Traceback ...")
    outcome = finishing(tmp_path, then=lost(RuntimeError("Connection closed"), wrapped))
    with pytest.raises(type(mistake), match=str(mistake.args[-1])):
        run(monkeypatch, tmp_path, outcome)


def test_an_error_of_rays_own_is_not_taken_for_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="bad config"):
        run(monkeypatch, tmp_path, finishing(tmp_path, then=ValueError("bad config")))


def test_epochs_that_are_known_are_not_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epoch in (1, 2):
        append_result(tmp_path, {"epoch": epoch})
    seen, _ = run(monkeypatch, tmp_path, finishing(tmp_path, 3), known=1)
    assert seen == [2, 3]


def config(**sections: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "data": DigitsConfig(num_train=320, num_val=20),
        "augment": AugmentConfig(translate="fraction"),
        "train": TrainConfig(epochs=8, batch_size=32, learning_rate=0.02),
    }
    return RunConfig(**{**settings, **sections})


def job(directory: Path, settings: RunConfig) -> dict[str, Any]:
    return {
        "directory": str(directory),
        "settings": {},
        "config": settings.model_dump(),
        "repeats": 1,
        "threads": 1,
    }


def worker_processes() -> list[int]:
    return [
        actor["Pid"]
        for actor in actors().values()
        if actor["State"] == "ALIVE" and "RayTrainWorker" in actor["ActorClassName"]
    ]


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_killed_worker_costs_the_epoch_in_flight(shared_ray: None, tmp_path: Path) -> None:
    """Two workers, one of them killed after the second epoch, report what one process would."""
    seen: list[dict[str, Any]] = []
    killed: list[int] = []

    def on_epoch(line: dict[str, Any]) -> None:
        seen.append(line)
        if line["epoch"] == 2 and not killed:
            killed.append(worker_processes()[-1])
            os.kill(killed[0], signal.SIGKILL)

    train_with_workers(job(tmp_path, config()), "killed", TWO, on_epoch)

    assert killed
    assert [line["epoch"] for line in seen] == list(range(1, 9))
    assert {line["workers"] for line in seen} == {2}
    alone: list[dict[str, float]] = []
    fit(config(), lambda metrics, *_: alone.append(metrics))
    for ours, theirs in zip(seen, alone, strict=True):
        for key in ("train/loss", "target_val/mean_class_accuracy", "target_val/hse"):
            assert ours[key] == pytest.approx(theirs[key], rel=0.05), (ours["epoch"], key)


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_a_mistake_of_the_user_reaches_the_user(shared_ray: None, tmp_path: Path) -> None:
    wrong = config(model=ModelConfig(weights=str(tmp_path / "missing.pt")))
    with pytest.raises(UserError, match=r"missing\.pt"):
        train_with_workers(job(tmp_path, wrong), "wrong", TWO, lambda line: None)
