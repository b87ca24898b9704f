"""Which trial wins: named rules on plain records, and how far two rules agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from csg_ray.config.errors import UserError, nearest

OBJECTIVE = "objective"
_NORMAL_QUANTILE = 1.959963984540054  # 97.5 %


@dataclass(frozen=True)
class Rule:
    """A selection rule: the metric it ranks by, and what it has to see of the target."""

    name: str
    metric: str
    mode: Literal["max", "min"]
    uses_target_labels: bool
    meaning: str

    @property
    def split(self) -> str:
        """The split that the metric is measured on."""
        return self.metric.partition("/")[0]


SCORE_NAMES = {"mean_class_accuracy": "accuracy", "mean_iou": "mIoU"}


def rules_for(score: str) -> dict[str, Rule]:
    """The rules of a task, by name.

    Args:
        score: the metric of the task, `mean_class_accuracy` or `mean_iou`.
    """
    word = SCORE_NAMES[score]
    energy = "hyperspherical energy of target_val images, without their labels"
    rules = (
        Rule("target_val", f"target_val/{score}", "max", True, f"{word} on target_val"),
        Rule("source_val", f"source_val/{score}", "max", False, f"{word} on source_val"),
        Rule("hse", "target_val/hse", "min", False, energy),
    )
    return {rule.name: rule for rule in rules}


RULES = rules_for("mean_class_accuracy")


class Candidate(Protocol):
    """What a rule needs to know of a trial."""

    @property
    def id(self) -> str:
        """Unique in its study; a longer id is a later one."""

    @property
    def state(self) -> str:
        """Only `completed` ones can win: the others did not have the full budget."""

    @property
    def last(self) -> Mapping[str, Any]:
        """Metrics of the last epoch; empty when there is none."""


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, and no more: the least that is a candidate."""

    id: str
    state: str
    last: Mapping[str, Any]


def find_rule(name: str, rules: Mapping[str, Rule] = RULES) -> Rule:
    """The rule called `name`.

    Raises:
        UserError: there is no such rule.
    """
    if name not in rules:
        raise UserError(f"no selection rule '{name}': {nearest(name, rules)}")
    return rules[name]


def objective_rule(
    metric: str, mode: Literal["max", "min"], rules: Mapping[str, Rule] = RULES
) -> Rule:
    """The rule that ranks as a search does: a named one if one does, else `objective`."""
    for rule in rules.values():
        if (rule.metric, rule.mode) == (metric, mode):
            return rule
    extreme = "highest" if mode == "max" else "lowest"
    return Rule(OBJECTIVE, metric, mode, needs_target_labels(metric), f"{extreme} {metric}")


def needs_target_labels(metric: str) -> bool:
    """Whether choosing by `metric` looks at labels of the target (its energy needs images only)."""
    split, _, name = metric.partition("/")
    return split.startswith("target") and not name.startswith("hse")


def final_value(candidate: Candidate, metric: str) -> float | None:
    """`metric` at the last epoch of a trial that may win; None for all other trials."""
    value = candidate.last.get(metric)
    if candidate.state != "completed" or candidate.last.get("diverged") or value is None:
        return None
    return float(value) if math.isfinite(value) else None


def rank(
    candidates: Iterable[AnyCandidate], metric: str, mode: Literal["max", "min"]
) -> list[AnyCandidate]:
    """The trials that may win by `metric`, best first; equal ones by id, the lower first."""
    keyed = [(rank_key(candidate, metric, mode), candidate) for candidate in candidates]
    able = [(key, candidate) for key, candidate in keyed if key is not None]
    return [candidate for _, candidate in sorted(able, key=lambda entry: entry[0])]


def rank_key(
    candidate: Candidate, metric: str, mode: Literal["max", "min"]
) -> tuple[float, int, str] | None:
    """What `rank` sorts by, the best trial's the lowest; None for a trial that cannot win."""
    value = final_value(candidate, metric)
    if value is None:
        return None
    return (-value if mode == "max" else value, len(candidate.id), candidate.id)


@dataclass(frozen=True)
class Spearman:
    """A rank correlation; the interval does not exist where the correlation is +1 or -1."""

    rho: float
    interval: tuple[float, float] | None
    count: int

    def __str__(self) -> str:
        if self.interval is None:
            return f"Spearman {self.rho:+.2f} (no interval at +1 or -1)"
        low, high = self.interval
        return f"Spearman {self.rho:+.2f} (95 % interval {low:+.2f} to {high:+.2f})"


def spearman(x: Sequence[float], y: Sequence[float]) -> Spearman | None:
    """Spearman's rank correlation with a 95 % interval.

    Equal values share their mean rank. The interval is Fisher's z with the standard error
    sqrt((1 + rho^2 / 2) / (n - 3)) of Bonett and Wright (Psychometrika 65, 2000, Eq. 7).

    Args:
        x: (n,) values.
        y: (n,) values, paired with `x`.

    Returns:
        None for fewer than four pairs, or when one side does not vary.
    """
    assert len(x) == len(y), "values must come in pairs"
    count = len(x)
    if count < 4:
        return None
    rho = _pearson(_ranks(x), _ranks(y))
    if rho is None:
        return None
    if abs(rho) > 1 - 1e-12:
        return Spearman(math.copysign(1.0, rho), None, count)
    half_width = _NORMAL_QUANTILE * math.sqrt((1 + rho**2 / 2) / (count - 3))
    centre = math.atanh(rho)
    interval = (math.tanh(centre - half_width), math.tanh(centre + half_width))
    return Spearman(rho, interval, count)


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    first = {value: index for index, value in reversed(list(enumerate(order)))}
    last = {value: index for index, value in enumerate(order)}
    return [(first[value] + last[value]) / 2 for value in values]


def _pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    variance = sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)
    return covariance / math.sqrt(variance) if variance > 0 else None
