"""What is known of a running search: which trial leads, how far it is, how long it will take."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from csg_ray.results.progress import TrialUpdate
from csg_ray.results.selection import rank
from csg_ray.results.study import ACCURACY, ENERGY
from csg_ray.storage.paths import StoragePath

RUNNING_STATES = ("pending", "running", "unfinished")
LABELS = {
    ACCURACY: "accuracy",
    ENERGY: "HSE",
    "source_val/mean_class_accuracy": "source accuracy",
    "source_val/hse": "source HSE",
}


class Board:
    """The newest update of every trial, and what follows from them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.study = ""
        self.directory: StoragePath = Path()
        self.num_trials = 0
        self.epochs = 0
        self.metric = ACCURACY
        self.mode: Literal["max", "min"] = "max"
        self.updates: dict[str, TrialUpdate] = {}
        self._clock = clock
        self._began = clock()
        self._done_before = 0.0

    def start(
        self,
        study: str,
        directory: StoragePath,
        num_trials: int,
        epochs: int,
        metric: str,
        mode: str,
    ) -> None:
        """A search begins or goes on."""
        self.study, self.directory = study, directory
        self.num_trials, self.epochs = num_trials, epochs
        self.metric, self.mode = metric, "min" if mode == "min" else "max"
        self._began = self._clock()

    def take(self, update: TrialUpdate) -> bool:
        """Note an update; True when it ends a trial that was seen at work."""
        known = self.updates.get(update.id)
        self.updates[update.id] = update
        if known is None and update.state != "pending" and update.state != "running":
            # From an earlier session: its work says nothing about the speed of this one.
            self._done_before += self._share(update)
        ended = update.state not in RUNNING_STATES
        return ended and known is not None and known.state in RUNNING_STATES

    def known(self) -> list[TrialUpdate]:
        """A copy, safe to walk through while another thread draws or notes updates."""
        return list(self.updates.values())

    @property
    def finished(self) -> int:
        """Trials that have ended, whatever way."""
        return sum(update.state not in RUNNING_STATES for update in self.known())

    @property
    def running(self) -> int:
        """Trials at work."""
        return sum(update.state == "running" for update in self.known())

    def best(self) -> TrialUpdate | None:
        """The leading trial of those that had their full budget."""
        candidates = [_Standing(update) for update in self.known()]
        return next((entry.update for entry in rank(candidates, self.metric, self.mode)), None)

    def seconds_left(self) -> float | None:
        """Time to the end at the pace so far; None before there is any pace."""
        done = sum(self._share(update) for update in self.known())
        here = done - self._done_before
        if here <= 0 or not self.num_trials:
            return None
        return (self._clock() - self._began) * max(0.0, self.num_trials - done) / here

    def standing(self) -> str:
        """One line: finished, running, best, time left."""
        parts = [f"{self.finished}/{self.num_trials} finished", f"{self.running} running"]
        best = self.best()
        if best is not None:
            parts.append(
                f"best {LABELS.get(self.metric, self.metric)} "
                f"{best.metrics[self.metric]:.3f} (trial {best.id})"
            )
        left = self.seconds_left()
        if left is not None and self.finished < self.num_trials:
            parts.append(f"about {describe_seconds(left)} left")
        return ", ".join(parts)

    def _share(self, update: TrialUpdate) -> float:
        if update.state not in RUNNING_STATES:
            return 1.0
        return min(1.0, update.epoch / self.epochs) if self.epochs else 0.0


class _Standing:
    """An update as a candidate of a selection rule."""

    def __init__(self, update: TrialUpdate) -> None:
        self.update = update
        self.id = update.id
        self.state = update.state
        self.last: Mapping[str, Any] = update.metrics


def describe_seconds(seconds: float) -> str:
    """A duration in the unit that fits: 40 s, 7 min, 3.2 h."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def describe_value(value: object) -> str:
    """A metric or setting, short: numbers to four digits at most, all else as it is."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def describe_reason(reason: str) -> str:
    """Why a trial failed, on one line; error messages may be pages long."""
    return textwrap.shorten(reason, 200, placeholder=" ...") or "no reason was given"


def describe_metric(metrics: Mapping[str, Any], name: str) -> str:
    """A metric to three places; a dash where there is none."""
    value = metrics.get(name)
    return "-" if value is None else f"{value:.3f}"
