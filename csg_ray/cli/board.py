"""What is known of a running search: which trial leads, how far it is, how long it will take."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from csg_ray.results.cost import Meter, describe_cost, describe_seconds
from csg_ray.results.progress import TrialUpdate
from csg_ray.results.selection import RULES, SCORE_NAMES, Outcome, rank_key
from csg_ray.results.study import ENERGY
from csg_ray.storage.paths import StoragePath

RUNNING_STATES = ("pending", "running", "unfinished")
LABELS = {
    ENERGY: "HSE",
    "source_val/hse": "source HSE",
    **{f"target_val/{score}": name for score, name in SCORE_NAMES.items()},
    **{f"source_val/{score}": f"source {name}" for score, name in SCORE_NAMES.items()},
}


class Board:
    """The newest update of every trial, and what follows from them, kept up update by update.

    Attributes:
        finished: trials that have ended, whatever way.
        running: trials at work.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.study = ""
        self.directory: StoragePath = Path()
        self.num_trials = 0
        self.epochs = 0
        self.metric = RULES["target_val"].metric
        self.mode: Literal["max", "min"] = "max"
        self.updates: dict[str, TrialUpdate] = {}
        self.finished = 0
        self.running = 0
        self._done = 0  # in epochs; a trial that has ended counts with all of them
        self._best: tuple[tuple[float, int, str], TrialUpdate] | None = None
        self._clock = clock
        self._meter = Meter()
        self._seconds: float | None = 0.0  # of all trials; None: not measured in all
        self._began = clock()
        self._done_before = 0

    def start(
        self,
        study: str,
        directory: StoragePath,
        num_trials: int,
        epochs: int,
        metric: str,
        mode: str,
        meter: Meter,
    ) -> None:
        """A search begins or goes on."""
        self.study, self.directory = study, directory
        self.num_trials, self.epochs = num_trials, epochs
        self.metric, self.mode = metric, "min" if mode == "min" else "max"
        self._meter = meter
        self._began = self._clock()

    def take(self, update: TrialUpdate) -> bool:
        """Note an update; True when it ends a trial that was seen at work."""
        known = self.updates.get(update.id)
        self.updates[update.id] = update
        if known is not None:
            self._count(known, -1)
        self._count(update, 1)
        if known is None and update.state != "pending" and update.state != "running":
            # From an earlier session: its work says nothing about the speed of this one.
            self._done_before += self._epochs_done(update)
        ended = update.state not in RUNNING_STATES
        return ended and known is not None and known.state in RUNNING_STATES

    def known(self) -> list[TrialUpdate]:
        """A copy, safe to walk through while another thread draws or notes updates."""
        return list(self.updates.values())

    def best(self) -> TrialUpdate | None:
        """The leading trial of those that had their full budget."""
        return None if self._best is None else self._best[1]

    def cost(self, update: TrialUpdate) -> str:
        """What a trial has cost so far; a dash before its first epoch."""
        return describe_cost(update.seconds or None, self._meter.resources)

    def seconds_left(self) -> float | None:
        """Time to the end at the pace so far: of the trials, or of the budget if it comes first.

        None before there is any pace.
        """
        ends = (self._seconds_of_trials(), self._meter.seconds_left())
        return min((end for end in ends if end is not None), default=None)

    def _seconds_of_trials(self) -> float | None:
        here = self._done - self._done_before
        if here <= 0 or not self.num_trials:
            return None
        left = self.num_trials * self._epochs_each - self._done
        return (self._clock() - self._began) * max(0, left) / here

    def standing(self) -> str:
        """One line: finished, running, best, cost, time left."""
        parts = [f"{self.finished}/{self.num_trials} finished", f"{self.running} running"]
        best = self.best()
        if best is not None:
            parts.append(
                f"best {LABELS.get(self.metric, self.metric)} "
                f"{best.metrics[self.metric]:.3f} (trial {best.id})"
            )
        if self._seconds:
            parts.append(f"cost {describe_cost(self._seconds, self._meter.resources)}")
        left, budget = self.seconds_left(), self._meter.seconds_left()
        if left is not None and self.finished < self.num_trials:
            # The clock has gone on between the two.
            of = f" of {self._meter.budget}" if budget is not None and budget <= left else ""
            parts.append(f"about {describe_seconds(left)} left{of}")
        return ", ".join(parts)

    def _count(self, update: TrialUpdate, times: int) -> None:
        if self._seconds is not None and update.seconds is not None:
            self._seconds += times * update.seconds
        else:
            self._seconds = None
        self._done += times * self._epochs_done(update)
        if update.state in RUNNING_STATES:
            self.running += times * (update.state == "running")
            return
        self.finished += times
        key = rank_key(Outcome(update.id, update.state, update.metrics), self.metric, self.mode)
        if key is not None and (self._best is None or key < self._best[0]):
            self._best = key, update

    @property
    def _epochs_each(self) -> int:
        return max(1, self.epochs)

    def _epochs_done(self, update: TrialUpdate) -> int:
        if update.state not in RUNNING_STATES:
            return self._epochs_each
        return min(update.epoch, self.epochs)


def describe_bytes(count: float) -> str:
    """A size in the unit that fits: 512 B, 3.4 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def describe_value(value: object) -> str:
    """A metric or setting, short: numbers to four digits at most, all else as it is."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def describe_reason(reason: str) -> str:
    """Why a trial failed, on one line; error messages may be pages long."""
    return textwrap.shorten(reason, 200, placeholder=" ...") or "no reason was given"


def score_of(metrics: Mapping[str, Any], split: str = "target_val/") -> str:
    """The metric that is a task's score: mIoU where there is one, else accuracy."""
    iou = f"{split}mean_iou"
    return iou if iou in metrics else f"{split}mean_class_accuracy"


def describe_scores(metrics: Mapping[str, Any]) -> str:
    """Score and energy on target_val, such as "accuracy 0.612, HSE 0.402"."""
    score = score_of(metrics)
    energy = describe_metric(metrics, ENERGY)
    return f"{LABELS[score]} {describe_metric(metrics, score)}, HSE {energy}"


def describe_metric(metrics: Mapping[str, Any], name: str) -> str:
    """A metric to three places; a dash where there is none."""
    value = metrics.get(name)
    return "-" if value is None else f"{value:.3f}"
