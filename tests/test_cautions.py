"""Each caution where it belongs, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from csg_ray.results.picks import rule_picks
from csg_ray.results.report.cautions import find_cautions
from csg_ray.results.study import Study, load_study
from csg_ray.search_space import parse_search_space
from written_study import SPACE, write_study

MakeStudy = Callable[..., Path]
# Best before the last epoch, in the middle of all ranges, and many of them: nothing to say.
GOOD = [
    (
        "completed",
        [(0.2, 0.9, 0.8), (0.7 - n / 100, 0.5, 0.9), (0.6 - n / 100, 0.5 + n / 50, 0.9 - n / 100)],
    )
    for n in range(12)
]
CALM = {"metric": "source_val/mean_class_accuracy", "repeats": 3}


def cautions(study: Study, reruns: tuple[Study, ...] = ()) -> list[str]:
    best = study.best_trial(study.default_rule)
    found = find_cautions(study, best, rule_picks(study), reruns)
    assert all(caution.advice.endswith(".") for caution in found)
    return [caution.what for caution in found]


def only(found: list[str], words: str) -> str:
    matching = [text for text in found if words in text]
    assert len(matching) == 1, found
    return matching[0]


@pytest.fixture
def calm(make_study: MakeStudy) -> Study:
    return load_study(make_study(*GOOD, search=CALM))


def with_best_params(study: Study, **changes: Any) -> Study:
    """The best trial (the first) with other settings: dots are written as double underscores."""
    first, *others = study.trials
    params = dict(first.params) | {k.replace("__", "."): v for k, v in changes.items()}
    return replace(study, trials=(replace(first, params=params), *others))


def test_a_study_without_fault_gets_the_one_about_labels_alone(calm: Study) -> None:
    assert cautions(calm) == [
        "The pick by target_val used target labels; its score on target_val is too good."
    ]


def test_a_search_that_was_steered_by_labels_is_told_of(make_study: MakeStudy) -> None:
    study = load_study(make_study(*GOOD))
    text = only(cautions(study), "target labels")
    assert text.startswith("Selection used target labels: the search itself was steered by them")


def with_repeats(study: Study, repeats: int) -> Study:
    search = study.space.search.model_copy(update={"repeats": repeats})
    return replace(study, space=replace(study.space, search=search))


def test_seeds(calm: Study) -> None:
    assert "trained with 1 seed:" in only(cautions(with_repeats(calm, 1)), "seed")
    assert "trained with 2 seeds:" in only(cautions(with_repeats(calm, 2)), "seed")
    # Reruns over three seeds are seeds enough.
    assert not [text for text in cautions(with_repeats(calm, 1), (calm,)) if "seed" in text]


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"method__loss_weight": 9.0}, "upper"),  # log: 98 % of the way, though 90 % of the range
        ({"method__loss_weight": 0.0135}, "lower"),
        ({"method__loss_weight": 5.0}, None),  # 90 % of the way
        ({"augment__magnitude": 24}, "upper"),
        ({"augment__magnitude": 23}, "upper"),
        ({"augment__magnitude": 22}, None),
        ({"augment__magnitude": 0}, None),  # at the lower end, but there is no M below 0
    ],
)
def test_the_best_trial_at_an_edge(calm: Study, changes: dict[str, Any], end: str | None) -> None:
    found = [text for text in cautions(with_best_params(calm, **changes)) if "end of what" in text]
    if end is None:
        assert found == []
    else:
        (path,) = changes
        assert len(found) == 1
        assert path.replace("__", ".") in found[0]
        assert f"at the {end} end" in found[0]


@pytest.mark.parametrize(
    ("choice", "value", "end"),
    [
        ([0.05, 0.07, 0.2], 0.2, "upper"),
        ([0.05, 0.07, 0.2], 0.05, "lower"),
        ([0.05, 0.07, 0.2], 0.07, None),
        ([0.2, 0.07, 0.05], 0.05, "lower"),  # the order in the file does not matter
        ([0.05, 0.2], 0.2, None),  # two values have no inside
    ],
)
def test_a_choice_of_numbers_has_edges_and_names_have_none(
    make_study: MakeStudy, choice: list[float], value: float, end: str | None
) -> None:
    study = load_study(make_study(*GOOD, search=CALM))
    space = {**SPACE, "search": study.space.to_mapping()["search"]}
    space["space"] = {
        "method.temperature": {"choice": choice},
        "method.stages": {"choice": ["4", "3,4", "2,3,4"]},
    }
    space["points_to_evaluate"] = []
    trials = tuple(
        replace(t, params={"method.temperature": value, "method.stages": "4"}) for t in study.trials
    )
    changed = replace(study, space=parse_search_space(space), trials=trials)
    found = [text for text in cautions(changed) if "end of what" in text]
    assert [f"at the {end} end" in text for text in found] == ([True] if end else [])


def test_still_rising(make_study: MakeStudy) -> None:
    rising = ("completed", [(0.2, 0.9, 0.8), (0.7, 0.5, 0.9), (0.8, 0.5, 0.95)])
    study = load_study(make_study(rising, *GOOD, search=CALM))
    assert "at its best in its last epoch (3)" in only(cautions(study), "last epoch")


@pytest.mark.parametrize(("bad", "told"), [(3, False), (4, True)])
def test_many_that_ended_badly(make_study: MakeStudy, bad: int, told: bool) -> None:
    """Of 15 trials 3 are a fifth, which is not more than that; of 16 trials 4 are."""
    failed = [("failed", [(0.2, 0.9, 0.8)])] * (bad - 1) + [("diverged", [(0.0, 20.0, 0.0)])]
    study = load_study(make_study(*GOOD, *failed, search=CALM))
    found = [text for text in cautions(study) if "ended badly" in text]
    assert bool(found) is told
    if told:
        assert found[0].startswith(f"{bad} of {12 + bad} trials ended badly ({bad - 1} failed, 1 ")


def test_few_completed(make_study: MakeStudy) -> None:
    study = load_study(make_study(*GOOD[:9], search=CALM))
    assert only(cautions(study), "full budget").startswith("9 trials had the full budget")


def test_ties(make_study: MakeStudy) -> None:
    study = load_study(make_study(*GOOD, GOOD[0], search=CALM))
    found = [text for text in cautions(study) if "equal by" in text]
    assert found == [
        f"2 trials are equal by {rule}; the earliest, 0001, is its pick by that alone."
        for rule in ("target_val", "source_val", "hse")
    ]


def test_published_settings_that_did_not_complete(make_study: MakeStudy, calm: Study) -> None:
    first, *others = calm.trials
    cut = replace(calm, trials=(first.with_state("stopped", ""), *others))
    assert only(cautions(cut), "published").endswith("did not complete (stopped).")
    unnamed = replace(calm, trials=tuple(replace(t, origin="sampler") for t in calm.trials))
    assert "were not run" in only(cautions(unnamed), "published")


def test_a_test_set_that_was_opened_again(calm: Study) -> None:
    assert isinstance(calm.directory, Path)
    picks: dict[str, Any] = {"picks": []}
    once = picks | {"earlier_openings": [], "earlier_results": []}
    (calm.directory / "test_results.json").write_text(json.dumps(once))
    assert not [text for text in cautions(calm) if "opened" in text]
    # By a run of an export, which wrote into the study's ledger but not into its results.
    other = picks | {"earlier_openings": [{"user": "x"}, {"user": "y"}], "earlier_results": []}
    (calm.directory / "test_results.json").write_text(json.dumps(other))
    assert "opened 3 times" in only(cautions(calm), "opened")
    again = once | {"earlier_results": [picks | {"earlier_openings": []}]}
    (calm.directory / "test_results.json").write_text(json.dumps(again))
    assert "opened 2 times" in only(cautions(calm), "opened")


def test_other_conditions_after_a_restore(make_study: MakeStudy) -> None:
    restores = [{"at": "x", "more": 2, "changed": {}}, {"at": "y", "changed": {"versions.ray": {}}}]
    study = load_study(make_study(*GOOD, search=CALM, header={"restores": restores}))
    assert "versions.ray changed" in only(cautions(study), "restored")


def test_without_a_winner_only_what_can_be_said_is_said(make_study: MakeStudy) -> None:
    study = load_study(make_study(("stopped", [(0.2, 0.9, 0.8)]), search=CALM))
    found = cautions(study)
    assert only(found, "full budget").startswith("0 trials")
    assert "did not complete (stopped)" in only(found, "published")


def test_a_best_trial_that_new_seeds_do_not_confirm(calm: Study) -> None:
    """By accuracy on source_val 0001 is the best, and 0002 the second."""
    assert isinstance(calm.directory, Path)
    worse, better = (("completed", [(0.5, 0.5, value)]) for value in (0.7, 0.8))
    write_study(calm.directory / "reruns", worse, better, search=CALM)
    reruns = load_study(calm.directory / "reruns")
    assert only(cautions(calm, (reruns,)), "lucky") == (
        "Trained again over 3 new seeds, trial 0002 is better than the best trial of the search, "
        "0001: that one was lucky."
    )
    write_study(calm.directory / "reruns-2", better, worse, search=CALM)
    confirmed = load_study(calm.directory / "reruns-2")
    assert not [text for text in cautions(calm, (reruns, confirmed)) if "lucky" in text]
