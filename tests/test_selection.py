from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from csg_ray.config.errors import UserError
from csg_ray.results.selection import (
    RULES,
    final_value,
    find_rule,
    needs_target_labels,
    objective_rule,
    rank,
    rules_for,
    spearman,
)

ACCURACY = "target_val/mean_class_accuracy"
ENERGY = "target_val/hse"


@dataclass(frozen=True)
class Record:
    id: str
    state: str = "completed"
    last: Mapping[str, Any] = field(default_factory=dict)


def record(trial_id: str, accuracy: float, energy: float = 0.5, state: str = "completed") -> Record:
    return Record(trial_id, state, {ACCURACY: accuracy, ENERGY: energy})


def counted_ranks(values: list[float]) -> list[float]:
    """Smaller values, plus half of the equal ones: a plain double loop."""
    return [sum(b < a for b in values) + sum(b == a for b in values) / 2 for a in values]


def ids(records: list[Record]) -> list[str]:
    return [entry.id for entry in records]


def test_the_best_completed_record_wins_in_both_directions() -> None:
    records = [record("0001", 0.5, 0.3), record("0002", 0.7, 0.4), record("0003", 0.6, 0.2)]

    assert ids(rank(records, ACCURACY, "max")) == ["0002", "0003", "0001"]
    assert ids(rank(records, ENERGY, "min")) == ["0003", "0001", "0002"]


def test_no_valid_record_gives_no_winner() -> None:
    records = [
        record("0001", 0.9, state="stopped"),
        record("0002", 0.9, state="failed"),
        record("0003", 0.9, state="unfinished"),
        record("0004", 0.9, state="diverged"),
        Record("0005", "completed", {ACCURACY: 0.9, "diverged": 1}),
        record("0006", math.nan),
        record("0007", math.inf),
        Record("0008", "completed", {}),
    ]

    assert rank(records, ACCURACY, "max") == []
    assert rank([], ACCURACY, "max") == []


def test_a_stopped_record_with_a_better_value_does_not_win() -> None:
    records = [record("0001", 0.9, state="stopped"), record("0002", 0.1)]

    assert ids(rank(records, ACCURACY, "max")) == ["0002"]


def test_equal_values_go_to_the_lower_id_whatever_the_direction_and_order() -> None:
    records = [record("10000", 0.7), record("0002", 0.7), record("9999", 0.7)]

    assert ids(rank(records, ACCURACY, "max")) == ["0002", "9999", "10000"]
    assert ids(rank(records, ENERGY, "min")) == ["0002", "9999", "10000"]


def test_not_diverged_is_not_diverged() -> None:
    assert final_value(Record("1", "completed", {ACCURACY: 1, "diverged": 0.0}), ACCURACY) == 1.0


def test_an_objective_is_a_named_rule_where_it_ranks_as_one() -> None:
    assert objective_rule(ENERGY, "min") is RULES["hse"]
    other = objective_rule(ENERGY, "max")
    assert (other.name, other.metric, other.mode) == ("objective", ENERGY, "max")
    assert other.meaning == "highest target_val/hse"
    assert objective_rule("target_val/accuracy", "min").uses_target_labels is True
    assert objective_rule("source_val/accuracy", "min").meaning == "lowest source_val/accuracy"


def test_rules_by_name() -> None:
    assert (find_rule("hse").metric, find_rule("hse").mode) == (ENERGY, "min")
    assert {name: rule.uses_target_labels for name, rule in RULES.items()} == {
        "target_val": True,
        "source_val": False,
        "hse": False,
    }
    with pytest.raises(
        UserError, match=r"no selection rule 'sorce_val': did you mean 'source_val'"
    ):
        find_rule("sorce_val")


@pytest.mark.parametrize(
    ("metric", "needed"),
    [
        ("target_val/mean_class_accuracy", True),
        ("target_val/mean_iou", True),
        ("target_val/hse", False),
        ("target_val/hse_power1", False),
        ("source_val/mean_class_accuracy", False),
        ("train/loss", False),
    ],
)
def test_which_metrics_look_at_target_labels(metric: str, needed: bool) -> None:
    assert needs_target_labels(metric) is needed


@pytest.mark.parametrize("count", [4, 7, 30])
@pytest.mark.parametrize("levels", [3, 1000])
def test_spearman_correlates_counted_ranks_with_and_without_ties(count: int, levels: int) -> None:
    draw = random.Random(count * levels)
    x = [float(draw.randrange(levels)) for _ in range(count)] + [0.0, 1.0]
    y = [value + draw.randrange(levels) for value in x[:-1]] + [-5.0]

    result = spearman(x, y)

    assert result is not None
    assert result.rho == pytest.approx(statistics.correlation(counted_ranks(x), counted_ranks(y)))
    assert result.count == count + 2


def test_the_interval_by_hand() -> None:
    # Ranks 1..5 against 2 1 4 3 5: sum of squared differences 4, rho = 1 - 6 * 4 / 120 = 0.8.
    result = spearman([10, 20, 30, 40, 50], [2, 1, 4, 3, 5])

    assert result is not None
    assert result.rho == pytest.approx(0.8)
    # z = ln(1.8 / 0.2) / 2 = ln 3; standard error sqrt(1.32 / 2) = sqrt(0.66).
    low, high = (math.exp(2 * (math.log(3) + s * 1.959964 * math.sqrt(0.66))) for s in (-1, 1))
    assert result.interval == pytest.approx(((low - 1) / (low + 1), (high - 1) / (high + 1)))


@pytest.mark.parametrize("sign", [1, -1])
def test_perfect_agreement_has_no_interval(sign: int) -> None:
    result = spearman([1, 2, 3, 4], [sign * v for v in (1, 8, 27, 64)])

    assert result is not None
    assert (result.rho, result.interval) == (sign, None)


def test_spearman_needs_four_pairs_that_vary() -> None:
    assert spearman([1, 2, 3], [1, 3, 2]) is None
    assert spearman([1, 2, 3, 4], [7, 7, 7, 7]) is None


@pytest.mark.parametrize(
    ("score", "word"), [("mean_class_accuracy", "accuracy"), ("mean_iou", "mIoU")]
)
def test_the_rules_of_a_task_rank_by_its_score(score: str, word: str) -> None:
    rules = rules_for(score)

    assert {name: (rule.metric, rule.mode, rule.split) for name, rule in rules.items()} == {
        "target_val": (f"target_val/{score}", "max", "target_val"),
        "source_val": (f"source_val/{score}", "max", "source_val"),
        "hse": ("target_val/hse", "min", "target_val"),
    }
    assert [rule.uses_target_labels for rule in rules.values()] == [True, False, False]
    assert rules["source_val"].meaning == f"{word} on source_val"
    # A search that optimises one of them is named by it.
    assert objective_rule(f"target_val/{score}", "max", rules).name == "target_val"
    other = {"mean_iou": "mean_class_accuracy", "mean_class_accuracy": "mean_iou"}[score]
    assert objective_rule(f"target_val/{other}", "max", rules).name == "objective"
