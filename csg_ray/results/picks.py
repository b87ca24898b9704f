"""What each selection rule picks in a study, side by side, and how the picks did on target_test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csg_ray.config.errors import UserError
from csg_ray.results.export import selected_with_target_labels
from csg_ray.results.selection import Rule, final_value
from csg_ray.results.study import Study, Trial
from csg_ray.storage.paths import StoragePath

RESULTS_FILE = "test_results.json"
TIES = "of equal trials the earliest is picked"


@dataclass(frozen=True)
class RulePick:
    """The trial that a rule picks.

    Attributes:
        uses_target_labels: whether target labels had a hand in it, the search included.
        equals: ids of the other trials with the very same value, which came later.
        tested: its metrics on target_test, by name without a split; None while it has none.
    """

    rule: Rule
    trial: Trial
    uses_target_labels: bool
    equals: tuple[str, ...]
    tested: Mapping[str, Any] | None


def rule_picks(study: Study) -> list[RulePick]:
    """The pick of every rule of the study's task; empty when no trial has completed.

    Opens nothing: target_test is read from what `csg-ray evaluate` has written.

    Raises:
        UserError: that file is damaged.
    """
    tested = _tested_trials(study.directory)
    return [
        RulePick(
            rule=rule,
            trial=best,
            uses_target_labels=selected_with_target_labels(study, name),
            equals=_equals(study, rule, best),
            tested=tested.get((best.id, best.epoch)),
        )
        for name, rule in study.rules.items()
        if (best := study.best_trial(name)) is not None
    ]


def read_test_results(directory: StoragePath) -> list[dict[str, Any]]:
    """What every `csg-ray evaluate` of a study or run found, oldest first; empty if there was none.

    Raises:
        UserError: the file is damaged.
    """
    path = directory / RESULTS_FILE
    if not path.is_file():
        return []
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        last = None
    if not isinstance(last, dict) or not isinstance(last.get("earlier_results"), list):
        raise UserError(
            f"{path} is damaged or was not written by csg-ray evaluate; bring it back from a copy, "
            "or move it away"
        )
    return [*last.pop("earlier_results"), last]


def _tested_trials(directory: StoragePath) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Metrics on target_test by trial id and epoch; the newest look wins."""
    return {
        (pick["trial"], pick["epoch"]): pick["metrics"]
        for outcome in read_test_results(directory)
        for pick in outcome["picks"]
    }


def _equals(study: Study, rule: Rule, best: Trial) -> tuple[str, ...]:
    value = final_value(best, rule.metric)
    return tuple(
        trial.id
        for trial in study.trials
        if trial.id != best.id and final_value(trial, rule.metric) == value
    )
