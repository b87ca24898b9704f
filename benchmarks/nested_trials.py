"""What a trial of several workers costs, and how fast a stopped one gives its CPUs back.

    python benchmarks/nested_trials.py [--trials 20]

One Ray with two CPUs. First the same small study flat (one worker a trial) and nested (two
workers), one trial at a time, without early stopping: the difference is the price of a Ray Train
run. Then a nested study under a scheduler that stops every trial after its first epoch, which
measures the time from the decision until both CPUs can be reserved again; the last trial of every
four is stopped while its placement group is still pending. At the end everything must be back:
CPUs, placement groups, actors.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray._private.state import actors
from ray.util.placement_group import placement_group, remove_placement_group

from csg_ray.results.progress import TrialUpdate
from csg_ray.results.study import load_study
from csg_ray.scale import reclaim
from csg_ray.scale.driver import StudyDriver
from csg_ray.scale.tuner import run_study
from csg_ray.search_space import SearchSpace, parse_search_space

EPOCHS = 2


class Watcher:
    """A Progress that notes when each trial starts and ends."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    def study_started(self, **about: Any) -> None:
        """Not of interest."""

    def trial_updated(self, update: TrialUpdate) -> None:
        """Note the first sign of a trial, and its last."""
        self.started.setdefault(update.id, time.monotonic())
        if update.state not in ("pending", "running"):
            self.ended[update.id] = time.monotonic()
            print(f"  trial {update.id} {update.state} at epoch {update.epoch}", flush=True)

    def message(self, text: str) -> None:
        """Not of interest."""

    def study_finished(self) -> None:
        """Not of interest."""


def space(workers: int, num_trials: int) -> SearchSpace:
    """A small study."""
    return parse_search_space(
        {
            "study": "nested",
            "base": {
                "method.name": "csg",
                "train.epochs": EPOCHS,
                "data.num_train": 64,
                "data.num_val": 20,
                "augment.translate": "fraction",
            },
            "space": {"method.temperature": {"loguniform": [0.05, 0.5]}},
            "search": {
                "metric": "target_val/mean_class_accuracy",
                "mode": "max",
                "num_trials": num_trials,
                "scheduler": "none",
                "max_concurrent": 1,
            },
            "resources": {"workers_per_trial": workers},
        }
    )


def seconds_per_trial(workers: int, num_trials: int) -> list[float]:
    """From the end of one trial to the end of the next; the first, from its start."""
    watcher = Watcher()
    with tempfile.TemporaryDirectory() as folder:
        run_study(space(workers, num_trials), Path(folder) / "study", watcher, verbose=False)
    marks = [min(watcher.started.values()), *sorted(watcher.ended.values())]
    return [later - earlier for earlier, later in itertools.pairwise(marks)]


def stopped_trials(num_trials: int) -> tuple[list[float], int]:
    """Seconds from the decision to stop until both CPUs can be reserved; trials that ended."""
    waits: list[float] = []
    report = StudyDriver.report

    def cut(self: StudyDriver, trial_id: str, metrics: dict[str, Any]) -> bool:
        report(self, trial_id, metrics)
        self._live[trial_id].cut = True
        threading.Thread(target=wait_for_cpus, args=(waits,), daemon=True).start()
        return True

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(StudyDriver, "report", cut):
        directory = Path(folder) / "study"
        run_study(space(2, num_trials), directory, Watcher(), verbose=False)
        ended = sum(trial.state == "stopped" for trial in load_study(directory).trials)
    return waits, ended


def wait_for_cpus(waits: list[float]) -> None:
    """Ask for both CPUs, as the next trial does, and note how long it takes to get them."""
    began = time.monotonic()
    group = placement_group([{"CPU": 1}] * 2)
    group.wait(300)
    waits.append(time.monotonic() - began)
    remove_placement_group(group)


def describe(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):5.1f} s ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    trials = parser.parse_args().trials
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    flat, nested = seconds_per_trial(1, 5)[1:], seconds_per_trial(2, 5)[1:]
    print(f"a flat trial of {EPOCHS} epochs     {describe(flat)}")
    print(f"a nested one, two workers  {describe(nested)}")
    print(f"ratio of medians           {statistics.median(nested) / statistics.median(flat):5.1f}")
    waits, ended = stopped_trials(trials)
    print(f"{ended} of {trials} nested trials stopped in a row")
    print(f"decision to CPUs free      {describe(waits)}")
    time.sleep(2)
    alive = [each for each in actors().values() if each["State"] != "DEAD"]
    print(
        f"left behind: {2 - ray.available_resources().get('CPU', 0):g} CPUs, "
        f"{len(reclaim._groups_of_this_job())} placement groups, {len(alive)} actors "
        f"{[each['ActorClassName'] for each in alive]}"
    )


if __name__ == "__main__":
    main()
