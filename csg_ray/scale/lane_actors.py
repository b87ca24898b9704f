"""The processes of a study in which one process trains several trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial

from csg_ray.scale.lane_keeper import LaneKeeper
from csg_ray.scale.lane_worker import LaneWorker
from csg_ray.scale.resources import Plan
from csg_ray.training.lanes import Way


@contextmanager
def lane_workers(layout: Plan, way: Way) -> Iterator[list[Any]]:
    """The actors that train all trials, for as long as the block takes; one that dies comes back.

    They reserve what there is for training before any trial starts.
    """
    build = partial(LaneKeeper, layout.cpus_per_worker, layout.gpus_per_worker, way)
    actor = ray.remote(
        num_cpus=layout.cpus_per_worker, num_gpus=layout.gpus_per_worker, max_restarts=-1
    )(LaneWorker)
    workers: list[Any] = [actor.remote(layout.fuse, build) for _ in range(layout.processes)]
    try:
        yield workers
    finally:
        for worker in workers:
            ray.kill(worker)


class LeaveCallback(Callback):
    """Frees the place of a trial that has ended, whatever has become of its own process."""

    def __init__(self, workers: Sequence[Any]) -> None:
        self._workers = workers

    def __getstate__(self) -> dict[str, Any]:
        # As `StudyDriver`: Tune pickles it into a file that nothing reads.
        return {}

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """It was stopped, or has trained its last epoch."""
        self._leave(trial)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Its process died for the last time."""
        self._leave(trial)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Its process died, and another will go on."""
        self._leave(trial)

    def _leave(self, trial: Trial) -> None:
        for worker in self._workers:
            worker.leave.remote(trial.config["id"])
