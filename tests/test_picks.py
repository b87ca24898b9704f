from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csg_ray.cli import main
from csg_ray.config.errors import UserError
from csg_ray.results.picks import read_test_results, rule_picks
from csg_ray.results.study import load_study

MakeStudy = Callable[..., Path]
# (accuracy, HSE, source accuracy) of the last epoch decides each rule.
BY_TARGET = ("completed", [(0.2, 0.9, 0.8), (0.7, 0.5, 0.90)])
BY_SOURCE = ("completed", [(0.2, 0.9, 0.8), (0.3, 0.8, 0.9), (0.6, 0.6, 0.99)])
BY_ENERGY = ("completed", [(0.2, 0.9, 0.8), (0.5, 0.2, 0.95)])
CUT = ("stopped", [(0.99, 0.01, 1.0)])


def look(*picks: tuple[str, str, int, float], **more: Any) -> dict[str, Any]:
    """A look at target_test: (rule, trial, epoch, accuracy) of each pick."""
    return {
        "picks": [
            {
                "rule": rule,
                "trial": trial,
                "epoch": epoch,
                "metrics": {"mean_class_accuracy": value},
            }
            for rule, trial, epoch, value in picks
        ],
        "earlier_openings": [],
    } | more


def test_each_rule_picks_its_own_trial(make_study: MakeStudy) -> None:
    picks = rule_picks(load_study(make_study(CUT, BY_SOURCE, BY_TARGET, BY_ENERGY)))

    assert [(pick.rule.name, pick.trial.id) for pick in picks] == [
        ("target_val", "0003"),
        ("source_val", "0002"),
        ("hse", "0004"),
    ]
    assert all(pick.equals == () and pick.tested is None for pick in picks)


def test_labels_are_used_by_the_rule_or_by_the_search(make_study: MakeStudy) -> None:
    trials = (BY_SOURCE, BY_TARGET, BY_ENERGY)
    steered = rule_picks(load_study(make_study(*trials)))
    assert [pick.uses_target_labels for pick in steered] == [True, True, True]


def test_a_search_that_sees_no_target_label_leaves_two_clean_picks(make_study: MakeStudy) -> None:
    search = {"metric": "source_val/mean_class_accuracy"}
    picks = rule_picks(load_study(make_study(BY_SOURCE, BY_TARGET, BY_ENERGY, search=search)))
    assert [pick.uses_target_labels for pick in picks] == [True, False, False]


def test_of_equal_trials_the_earliest_is_picked_and_the_others_are_named(
    make_study: MakeStudy,
) -> None:
    unlike_at_first = ("completed", [(0.3, 0.9, 0.8), (0.1, 0.9, 0.99)])
    study = load_study(make_study(BY_TARGET, BY_SOURCE, unlike_at_first, CUT, BY_SOURCE))
    by_rule = {pick.rule.name: pick for pick in rule_picks(study)}

    assert by_rule["source_val"].trial.id == "0002"
    assert by_rule["source_val"].equals == ("0003", "0005")
    assert by_rule["target_val"].equals == ()


def test_without_a_completed_trial_nothing_is_picked(make_study: MakeStudy) -> None:
    assert rule_picks(load_study(make_study(CUT, ("diverged", [(0.9, 0.1, 0.9)])))) == []


def test_the_test_results_of_a_trial_are_those_of_its_epoch_and_of_the_newest_look(
    make_study: MakeStudy,
) -> None:
    directory = make_study(BY_TARGET, BY_SOURCE, BY_ENERGY)
    first = look(
        ("target_val", "0001", 2, 0.5), ("source_val", "0002", 3, 0.55), ("hse", "0003", 1, 0.3)
    )
    second = look(("target_val", "0001", 2, 0.6))
    results = second | {"earlier_results": [first]}
    (directory / "test_results.json").write_text(json.dumps(results))

    tested = {pick.trial.id: pick.tested for pick in rule_picks(load_study(directory))}

    # 0003 was tested after its first epoch, which is not the one that is picked.
    assert tested == {
        "0001": {"mean_class_accuracy": 0.6},
        "0002": {"mean_class_accuracy": 0.55},
        "0003": None,
    }
    assert read_test_results(directory) == [first, second]
    assert not (directory / "test_ledger.jsonl").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"earlier_results": 3}'])
def test_a_damaged_file_of_results_is_named(make_study: MakeStudy, content: str) -> None:
    directory = make_study(BY_TARGET)
    (directory / "test_results.json").write_text(content)
    with pytest.raises(UserError, match=r"test_results\.json is damaged"):
        rule_picks(load_study(directory))


def test_best_shows_the_picks_side_by_side(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_study(BY_SOURCE, BY_TARGET, BY_ENERGY, BY_ENERGY)
    results = look(("target_val", "0002", 2, 0.625)) | {"earlier_results": []}
    (directory / "test_results.json").write_text(json.dumps(results))

    assert main(["best", str(directory)]) == 0

    out = capsys.readouterr().out
    rows = [line.replace("│", " ").split() for line in out.splitlines() if "│" in line]
    assert ["target_val", "0002", "0.700", "0.500", "0.900", "0.625", "yes"] in rows
    assert ["source_val", "0001", "0.600", "0.600", "0.990", "sealed", "yes"] in rows
    energy = ["hse", "0003", "(of", "2", "equal)", "0.500", "0.200", "0.950", "sealed", "yes"]
    assert energy in rows
    assert "of equal trials the earliest is picked" in out
