"""A trial that is trained in another process, together with others: what is left of it for Tune.

Free of torch, so that its own process starts in a second and takes little memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.exceptions import RayActorError

# Of the process that trains it, each time during an epoch of this trial, without an epoch between.
MAX_LOSSES = 3
# Of one that has just answered, each time while it made this trial's lane. More, as others may be
# at fault; a lane that ends its process is given up all the same.
MAX_LOST_JOINS = 10
RETRY_SECONDS = 0.5

Report = dict[str, Any]


class Joined(NamedTuple):
    """What a trial is told when it gets its lane.

    Attributes:
        reports: of epochs that the driver does not know of, or why there is no lane.
        finished: whether there is nothing left to train.
    """

    reports: list[Report]
    finished: bool


def follow_lane(assignment: dict[str, Any], workers: Sequence[Any]) -> None:
    """Have one of the workers train a trial, epoch by epoch, and pass each report on to Tune.

    Args:
        assignment: as `train_trial` takes it.
        workers: handles of `LaneWorker` actors.
    """
    for report in LaneTrial(assignment, workers).reports():
        tune.report(report)


class LaneTrial:
    """Follows a trial from worker to worker until it has ended.

    A worker that is lost comes back, or another has a place: the trial goes on from its checkpoint.
    The loss counts only for the trials that were being trained then, and those train their next
    epoch alone: one that ends its process again and again fails, and no other with it.
    """

    def __init__(self, assignment: dict[str, Any], workers: Sequence[Any]) -> None:
        self._assignment = assignment
        self._name: str = assignment["id"]
        self._workers = workers
        self._known: int = assignment["known_epochs"]
        self._losses = self._lost_joins = 0

    def reports(self) -> Iterator[Report]:
        """The reports of all epochs from the first that the driver does not know."""
        while self._losses < MAX_LOSSES:
            place = self._join()
            if place is None:
                yield {"error": f"{MAX_LOST_JOINS} processes died while its training was set up"}
                return
            worker, joined = place
            for report in joined.reports:
                yield self._noted(report)
            if joined.finished:
                return
            while (latest := self._next(worker)) is not None:
                yield self._noted(latest)
                if "epoch" not in latest or self._is_last(latest):
                    return
        yield {"error": f"its process died {MAX_LOSSES} times in a row without a finished epoch"}

    def _noted(self, report: Report) -> Report:
        if "epoch" in report:
            self._known = int(report["epoch"])
            self._losses = self._lost_joins = 0
        return report

    def _is_last(self, report: Report) -> bool:
        epochs = self._assignment["config"]["train"]["epochs"]
        return bool(report["diverged"]) or report["epoch"] >= epochs

    def _join(self) -> tuple[Any, Joined] | None:
        """Wait for a place, in the worker with the fewest trials first; None to give up."""
        assignment = self._assignment | {"known_epochs": self._known}
        while self._lost_joins < MAX_LOST_JOINS:
            for worker in self._by_load():
                try:
                    joined = ray.get(worker.join.remote(assignment, self._losses > 0))
                except RayActorError:
                    self._lost_joins += 1
                    continue
                if joined is not None:
                    return worker, joined
            time.sleep(RETRY_SECONDS)
        return None

    def _by_load(self) -> list[Any]:
        """The workers that answer, those with the fewest trials first.

        What an earlier try of this trial has left there goes. All are waited for: one that still
        trains the trial would write the files that the next one writes.
        """
        asked = [worker.leave.remote(self._name) for worker in self._workers]
        loads = []
        for index, (reference, worker) in enumerate(zip(asked, self._workers, strict=True)):
            try:
                loads.append((ray.get(reference), self._turn(index), worker))
            except RayActorError:
                continue
        return [worker for *_, worker in sorted(loads, key=lambda load: load[:2])]

    def _turn(self, index: int) -> int:
        """Trials that start at the same time do not all go to the same worker."""
        return (index + int(self._name)) % len(self._workers)

    def _next(self, worker: Any) -> Report | None:
        """The report of one more epoch; None if the worker, or the place in it, was lost."""
        try:
            if not ray.get(worker.begin.remote(self._name)):
                return None
        except RayActorError:
            return None
        try:
            report: Report | None = ray.get(worker.end.remote(self._name))
        except RayActorError:
            self._losses += 1
            return None
        return report
