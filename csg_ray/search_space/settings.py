"""The sections `search` and `resources` of a search-space file: objectives, sampler, scheduler."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from csg_ray.config.errors import UserError, nearest
from csg_ray.config.explain import shown, validate
from csg_ray.config.methods import Section
from csg_ray.search_space.budget import NO_BUDGET, parse_budget

SPLITS = ("source_val", "target_val")
SPLIT_METRICS = (
    "mean_class_accuracy",
    "accuracy",
    "hse",
    "hse_distance",
    "hse_power1",
    "hse_power2",
    "hse_duplicates",
    "mean_iou",
)
METRICS = tuple(f"{split}/{metric}" for split in SPLITS for metric in SPLIT_METRICS)


class Objective(Section):
    """A metric key and the direction that is better."""

    metric: str = Field(description="as search.metric")
    mode: Literal["min", "max"] = Field(description="the better direction")


class SearchConfig(Section):
    """How a study searches. `objectives` stands in the place of `metric` and `mode`."""

    metric: str | None = Field(
        None, description="what is optimised, SPLIT/METRIC; needed unless objectives are given"
    )
    mode: Literal["min", "max"] | None = Field(None, description="the better direction of metric")
    objectives: tuple[Objective, ...] = Field(
        (), description="several {metric, mode}; the sampler sees all, asha the first"
    )
    num_trials: int = Field(16, ge=1, le=1_000_000, description="in all, warm-start points too")
    budget: str = Field(
        NO_BUDGET,
        description="90s, 45m, 2h, 1.5d on the wall; 16cpuh, 4gpuh kept busy: once it is spent no "
        "trial starts, and those at work end with their epoch",
    )
    sampler: Literal["tpe", "random", "grid", "nsga2"] = Field(
        "tpe", description="Optuna's; grid: combinations of choices, each once"
    )
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="asha stops weak trials early; none runs all to the end"
    )
    grace_period: int = Field(1, ge=1, description="epochs that ASHA grants every trial")
    reduction_factor: int = Field(3, ge=2, description="ASHA keeps one of so many at a rung")
    repeats: int = Field(1, ge=1, le=1000, description="seeds per setting; means are reported")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the sampler")
    max_concurrent: Annotated[int, Field(ge=1)] | None = Field(
        None, description="trials at a time; null: as many as the resources hold"
    )
    fuse: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = Field(
        1,
        description="trials trained in one process, sharing images and the reference encoder's "
        "work; auto measures at the start; 1: each by itself",
    )
    keep_checkpoints: int = Field(
        3, ge=1, description="under each selection rule, so many of the best keep their checkpoint"
    )

    @field_validator("budget", mode="before")
    @classmethod
    def _is_a_budget(cls, value: Any) -> Any:
        parse_budget(value)
        return value


class ResourcesConfig(Section):
    """What one trial takes."""

    workers_per_trial: int = Field(
        1, ge=1, le=100_000, description="above 1 each trial is a Ray Train run"
    )
    cpus_per_worker: int = Field(1, ge=1, le=100_000, description="that Ray reserves")
    gpus_per_worker: float = Field(0.0, ge=0, le=1000, description="a fraction shares a GPU")


def parse_search(mapping: dict[Any, Any]) -> SearchConfig:
    """The section `search`.

    Raises:
        UserError: an unknown setting, a bad value, an unknown or forbidden metric.
    """
    settings = dict(mapping)
    objectives = settings.pop("objectives", [])
    if not isinstance(objectives, list) or ("objectives" in mapping and not objectives):
        raise UserError(
            f"search.objectives must be a list of {{metric, mode}}, not {shown(objectives)}"
        )
    settings["objectives"] = tuple(
        _parse_objective(f"search.objectives[{index}]", objective)
        for index, objective in enumerate(objectives)
    )
    search = validate(SearchConfig, settings, "search.")
    _check_objectives(search)
    return search


def parse_resources(mapping: dict[Any, Any]) -> ResourcesConfig:
    """The section `resources`.

    Raises:
        UserError: an unknown setting or a bad value.
    """
    resources = validate(ResourcesConfig, mapping, "resources.")
    gpus = resources.gpus_per_worker
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"resources.gpus_per_worker must be whole above 1, not {gpus}; round it")
    if resources.workers_per_trial > 1 and gpus != int(gpus):
        raise UserError(
            f"resources.gpus_per_worker must be whole when resources.workers_per_trial is "
            f"{resources.workers_per_trial}, not {gpus}: two workers of a trial on one GPU cannot "
            "exchange gradients; set it to 1, or workers_per_trial to 1"
        )
    return resources


def check_fuse(search: SearchConfig, resources: ResourcesConfig) -> None:
    """Refuse several trials in one process where one trial has several.

    Raises:
        UserError: says which two settings exclude each other.
    """
    workers = resources.workers_per_trial
    if search.fuse not in (1, "auto") and workers > 1:
        raise UserError(
            f"search.fuse is {search.fuse}, but resources.workers_per_trial is {workers}: either "
            "one process trains several trials, or several train one; set one of the two to 1"
        )


def _parse_objective(where: str, objective: Any) -> Objective:
    if not isinstance(objective, dict):
        raise UserError(f"{where} must be {{metric: ..., mode: ...}}, not {shown(objective)}")
    parsed = validate(Objective, objective, f"{where}.")
    _check_metric(f"{where}.metric", parsed.metric)
    return parsed


def _check_objectives(search: SearchConfig) -> None:
    if search.objectives:
        _check_several(search)
        return
    if search.metric is None:
        raise UserError(f"search.metric is missing; it must be one of {', '.join(METRICS)}")
    _check_metric("search.metric", search.metric)
    if search.mode is None:
        raise UserError("search.mode is missing; it must be one of min, max")


def _check_several(search: SearchConfig) -> None:
    given = {"metric": search.metric, "mode": search.mode}
    both = [name for name, value in given.items() if value is not None]
    if both:
        raise UserError(f"search.{both[0]} and search.objectives are both given; remove one")
    metrics = [objective.metric for objective in search.objectives]
    for metric in metrics:
        if metrics.count(metric) > 1:
            raise UserError(f"search.objectives names {metric} twice; remove one")
    if len(metrics) > 1 and search.sampler not in ("tpe", "nsga2"):
        raise UserError(
            f"search.sampler must be tpe or nsga2 with several objectives, not {search.sampler}"
        )


def _check_metric(where: str, metric: str) -> None:
    split = metric.partition("/")[0]
    if split == "target_test":
        raise UserError(
            f"{where} must not be {metric}: target_test is sealed, csg-ray evaluate opens it once "
            "after the search; use target_val or source_val"
        )
    if split == "train":
        raise UserError(
            f"{where} must not be {metric}: the scale of a training loss changes with lambda, tau "
            "and the queue, so it compares no trials; use target_val/mean_class_accuracy or "
            "source_val/hse"
        )
    if split not in SPLITS:
        raise UserError(
            f"{where} '{metric}' is of no known split; the splits are source_val and "
            "target_val, as in target_val/mean_class_accuracy"
        )
    if metric not in METRICS:
        raise UserError(f"{where} '{metric}' is unknown: {nearest(metric, METRICS)}")
