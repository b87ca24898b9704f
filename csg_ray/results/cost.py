"""What a study has cost: the time its trials kept workers, CPUs and GPUs busy."""

from __future__ import annotations

from dataclasses import dataclass

from csg_ray.results.study import Study


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


def study_cost(study: Study) -> Cost | None:
    """The cost of a study so far; None where epochs were not timed (csg_ray before 0.2)."""
    seconds = [trial.seconds for trial in study.trials]
    hours = sum(each for each in seconds if each is not None) / 3600
    if None in seconds:
        return None
    resources = study.space.resources
    workers = resources.workers_per_trial
    return Cost(
        training_hours=hours,
        cpu_hours=hours * workers * resources.cpus_per_worker,
        gpu_hours=hours * workers * resources.gpus_per_worker,
        epochs=sum(trial.epoch for trial in study.trials),
        epochs_at_full_budget=len(study.trials) * study.space.first_config().train.epochs,
    )
