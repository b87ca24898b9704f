"""A study that takes seconds, for the tests that start Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from csg_ray.results.cost import Meter
from csg_ray.results.progress import TrialUpdate
from csg_ray.results.selection import RULES
from csg_ray.results.study import Study
from csg_ray.search_space import SearchSpace, parse_search_space
from csg_ray.storage.paths import StoragePath


class Recorder:
    """A Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.updates: list[TrialUpdate] = []
        self.messages: list[str] = []
        self.finished = False
        # A live table holds one, and Tune pickles what it is given: it must not get this far.
        self.lock = threading.RLock()

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

    def trial_updated(self, update: TrialUpdate) -> None:
        self.updates.append(update)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def study_finished(self) -> None:
        self.finished = True


def space_mapping(num_trials: int, epochs: int, **search: Any) -> dict[str, Any]:
    return {
        "study": "small",
        "base": {
            "method.name": "csg",
            "train.epochs": epochs,
            "data.num_train": 64,
            "data.num_val": 20,
            "augment.translate": "fraction",
        },
        "space": {"method.temperature": {"loguniform": [0.05, 0.5]}},
        "points_to_evaluate": [{"method.temperature": 0.07}],
        "search": {
            "metric": "target_val/mean_class_accuracy",
            "mode": "max",
            "num_trials": num_trials,
        }
        | search,
    }


def small_space(num_trials: int, epochs: int = 2, **search: Any) -> SearchSpace:
    return parse_search_space(space_mapping(num_trials, epochs, **search))


def assert_whole(study: Study, num_trials: int) -> None:
    """No trial lost, none double, no epoch twice, and the checkpoints that may be asked for."""
    assert [trial.id for trial in study.trials] == [f"{i:04d}" for i in range(1, num_trials + 1)]
    for trial in study.trials:
        epochs = [line["epoch"] for line in trial.results]
        assert epochs == list(range(1, len(epochs) + 1)), trial.id
        assert trial.state in ("completed", "stopped"), trial
    kept = {trial.id for rule in RULES for trial in study.top(3, rule)}
    assert {trial.id for trial in study.trials if trial.checkpoint.exists()} == kept


class Command:
    """`csg-ray` in a process of its own, with its own Ray."""

    def __init__(self, *words: str | Path, cwd: Path) -> None:
        self._output = cwd / f"output-{time.monotonic_ns()}.txt"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
        with self._output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "csg_ray", *map(str, words)],
                cwd=cwd,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)
