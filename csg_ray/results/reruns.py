"""The best trials of a study trained again, over seeds that no trial of the search has seen.

The best of many trials owes a part of its lead to luck with its one seed. So the first few are
trained again before one of them is called the winner, and the seed that made them first does not
count. Reruns are a study of their own, in a folder of the study: all that a study can, they can.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from csg_ray.config.errors import UserError
from csg_ray.results.selection import Rule, final_value, rank
from csg_ray.results.study import Study, Trial, is_study, load_study
from csg_ray.search_space import NO_BUDGET, SearchSpace
from csg_ray.seeding import sub_seed
from csg_ray.storage.folders import subfolders
from csg_ray.storage.paths import StoragePath

FOLDER = "reruns"
_FOLDER = re.compile(rf"{FOLDER}(?:-\d+)?")


@dataclass(frozen=True)
class Rerun:
    """A trial of the search, and the trial of its reruns: means over the seeds."""

    original: Trial
    again: Trial


def distinct_settings(trials: Iterable[Trial], count: int) -> list[Trial]:
    """The first `count` trials of which no two have the same settings."""
    chosen: list[Trial] = []
    for trial in trials:
        if len(chosen) < count and all(trial.params != each.params for each in chosen):
            chosen.append(trial)
    return chosen


def rerun_space(study: Study, trials: Sequence[Trial], seeds: int) -> SearchSpace:
    """The search space of reruns: the settings of the trials, at full budget, over new seeds.

    Args:
        study: whose trials they are.
        trials: with settings that differ.
        seeds: trainings of each, the same seeds for all.

    Raises:
        UserError: the study searched the seed itself.
    """
    space = study.space
    if "seed" in {*space.space, *space.branch_paths()}:
        raise UserError(
            f"study {study.directory} searched the seed itself, so its trials are reruns already; "
            "csg-ray compare puts them side by side"
        )
    seed = sub_seed(int(space.base.get("seed", 0)), FOLDER) % 2**32
    search = space.search.model_copy(
        update={
            "num_trials": len(trials),
            "repeats": seeds,
            "scheduler": "none",
            "keep_checkpoints": len(trials),
            "budget": NO_BUDGET,
        }
    )
    return replace(
        space,
        base=space.base | {"seed": seed},
        points_to_evaluate=tuple(dict(trial.params) for trial in trials),
        search=search,
    )


def find_reruns(study: Study) -> list[Study]:
    """The reruns that a study has, the oldest first."""
    folders = [folder for folder in subfolders(study.directory) if _FOLDER.fullmatch(folder.name)]
    ordered = sorted(folders, key=lambda folder: (len(folder.name), folder.name))
    return [load_study(folder) for folder in ordered if is_study(folder)]


def reruns_of(study: Study, space: SearchSpace) -> Study | None:
    """The study's reruns of this very space, if they were begun; however they are trained."""
    wanted = _plan_aside(space)
    return next((each for each in find_reruns(study) if _plan_aside(each.space) == wanted), None)


def _plan_aside(space: SearchSpace) -> dict[str, Any]:
    """A space without what changes none of its results."""
    return space.with_budget(NO_BUDGET).with_fuse(1).to_mapping()


def pair_up(study: Study, reruns: Study) -> list[Rerun]:
    """The reruns beside the trials that they repeat, in the order in which they were asked for."""
    return [
        Rerun(original, again)
        for again in reruns.trials
        if (original := _same_settings(study.trials, again)) is not None
    ]


def winner(pairs: Iterable[Rerun], rule: Rule) -> Rerun | None:
    """The best by the means over the seeds; None when no rerun has completed."""
    by_id = {pair.again.id: pair for pair in pairs}
    ranked = rank([pair.again for pair in by_id.values()], rule.metric, rule.mode)
    return by_id[ranked[0].id] if ranked else None


def lead(pairs: Iterable[Rerun], rule: Rule, seeds: int) -> tuple[float, float] | None:
    """By how much the winner's mean beats the second one's, and the standard error of that.

    The error is sqrt((s1^2 + s2^2) / n), with the deviations over n seeds.

    Returns:
        None when fewer than two reruns completed, or the metric has no deviation.
    """
    first, *others = rank([pair.again for pair in pairs], rule.metric, rule.mode) or (None,)
    if first is None or not others:
        return None
    spreads = [trial.last.get(f"{rule.metric}_std") for trial in (first, others[0])]
    if None in spreads:
        return None
    means = [final_value(trial, rule.metric) or 0.0 for trial in (first, others[0])]
    return abs(means[0] - means[1]), math.sqrt(sum(s**2 for s in spreads if s) / seeds)


def parent_of(directory: StoragePath) -> StoragePath | None:
    """The study that a directory of reruns belongs to; None for any other directory."""
    above = directory.parent
    return above if _FOLDER.fullmatch(directory.name) and is_study(above) else None


def _same_settings(trials: Iterable[Trial], again: Trial) -> Trial | None:
    """The completed trial with the settings of a rerun."""
    return next(
        (trial for trial in trials if trial.params == again.params and trial.state == "completed"),
        None,
    )
