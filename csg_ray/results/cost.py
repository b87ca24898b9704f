"""What a study has cost: the time its trials kept workers, CPUs and GPUs busy; and its budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from csg_ray.results.study import FINAL_STATES, Study
from csg_ray.search_space import Budget, ResourcesConfig


@dataclass(frozen=True)
class Cost:
    """Sums over all trials of the epochs that are on record; time in a queue does not count.

    Attributes:
        training_hours: as if one trial came after the other.
        cpu_hours: `training_hours` times the CPUs of a trial; `gpu_hours` likewise.
        epochs: finished.
        epochs_at_full_budget: what the same trials would have taken without a scheduler.
    """

    training_hours: float
    cpu_hours: float
    gpu_hours: float
    epochs: int
    epochs_at_full_budget: int

    @property
    def training(self) -> str:
        """`training_hours` in words."""
        return describe_seconds(3600 * self.training_hours)

    @property
    def busy(self) -> str:
        """What was held all the while, in words."""
        gpus = f", {_hours(self.gpu_hours, 'GPU h')}" if self.gpu_hours else ""
        return f"{_hours(self.cpu_hours, 'CPU h')}{gpus}"

    @property
    def work(self) -> str:
        """What was done, and what the scheduler has saved, in words."""
        return f"{self.epochs} epochs of {self.epochs_at_full_budget} without a scheduler"


def study_cost(study: Study) -> Cost | None:
    """The cost of a study so far; None where epochs were not timed (csg_ray before 0.2)."""
    seconds = [trial.seconds for trial in study.trials]
    hours = sum(each for each in seconds if each is not None) / 3600
    if None in seconds:
        return None
    resources = study.space.resources
    return Cost(
        training_hours=hours,
        cpu_hours=hours * _held(resources, "cpuh"),
        gpu_hours=hours * _held(resources, "gpuh"),
        epochs=sum(trial.epoch for trial in study.trials),
        epochs_at_full_budget=len(study.trials) * study.space.first_config().train.epochs,
    )


def describe_seconds(seconds: float) -> str:
    """A duration in the unit that fits: 40 s, 7 min, 3.2 h."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return _hours(seconds / 3600, "h")


def describe_cost(seconds: float | None, resources: ResourcesConfig) -> str:
    """What trials have cost: the hours of the GPUs that they held, or else their training time.

    Args:
        seconds: on each worker; None where that was not measured.
        resources: of a trial.
    """
    if seconds is None:
        return "-"
    gpus = _held(resources, "gpuh")
    if gpus == 0:
        return describe_seconds(seconds)
    return _hours(seconds * gpus / 3600, "GPU h")


def _hours(hours: float, unit: str) -> str:
    """To a tenth, and less than one to two digits: 3.2 h, 0.042 h."""
    return f"{hours:.1f} {unit}" if hours >= 1 else f"{hours:.2g} {unit}"


def _held(resources: ResourcesConfig, unit: str) -> float:
    """How many CPUs or GPUs a trial holds."""
    each = resources.gpus_per_worker if unit == "gpuh" else resources.cpus_per_worker
    return resources.workers_per_trial * each


class Meter:
    """What a running search has spent of its budget.

    Args:
        budget: None: it never ends.
        resources: of a trial.
        spent: in earlier sessions, as `spent_before` gives it.
        clock: in seconds.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        resources: ResourcesConfig | None = None,
        spent: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = budget
        self.resources = resources or ResourcesConfig()
        self._before = spent
        self._busy = 0.0
        self._clock = clock
        self._began = clock()

    def add(self, seconds: float) -> None:
        """An epoch of one trial has taken so long on each worker."""
        if self.budget is not None:
            self._busy += seconds * _held(self.resources, self.budget.unit)

    def is_spent(self) -> bool:
        """Whether nothing is left."""
        return self.budget is not None and self._before + self._here() >= self.budget.seconds

    def seconds_left(self) -> float | None:
        """Time on the wall until all is spent, at the pace so far; None before there is any."""
        if self.budget is None or self._here() <= 0:
            return None
        left = max(0.0, self.budget.seconds - self._before - self._here())
        return left * (self._clock() - self._began) / self._here()

    def _here(self) -> float:
        """Spent in this session."""
        assert self.budget is not None
        return self._clock() - self._began if self.budget.is_wall_clock else self._busy


def spent_before(study: Study) -> float:
    """What earlier sessions have spent of a study's budget, by its files; in the budget's seconds.

    A session that was killed counts up to its last epoch.
    """
    budget = study.space.budget
    if budget is None:
        return 0.0
    since = _seconds(study.budget_given)
    lines = [
        line
        for trial in study.trials
        for line in trial.results
        if line.get("timestamp", 0.0) >= since
    ]
    if not budget.is_wall_clock:
        busy = sum(line.get("seconds", 0.0) for line in lines)
        return float(busy * _held(study.space.resources, budget.unit))
    begun = [since, *sorted(at for each in study.restores if (at := _seconds(each["at"])) > since)]
    ended = [*begun[1:], float("inf")]
    return sum(
        max(
            (line["timestamp"] for line in lines if begin <= line["timestamp"] < end), default=begin
        )
        - begin
        for begin, end in zip(begun, ended, strict=True)
    )


def what_budget_left(study: Study) -> str:
    """What a study had not done when its budget was spent, in words that follow a `the`."""
    ended = sum(trial.state in FINAL_STATES for trial in study.trials)
    begun, total = len(study.trials), study.space.search.num_trials
    return (
        f"budget of {study.space.search.budget} is spent: of {total} trials {ended} ended, "
        f"{begun - ended} can go on and {total - begun} were not begun"
    )


def _seconds(moment: str) -> float:
    """Since 1970, of a time in ISO 8601; 0 where none was written down."""
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
