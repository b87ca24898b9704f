"""Optuna's ask and tell over a search space, without Ray."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler, TPESampler
from optuna.samplers._tpe.sampler import default_gamma
from optuna.trial import TrialState

from csg_ray.results.study import Trial
from csg_ray.scale.suggestions import SHOWN_TRIALS, TPE_BEST, Suggestions, _build_sampler
from csg_ray.scale.tpe import RememberingTPE
from csg_ray.search_space import Choice, SearchSpace, parse_search_space
from csg_ray.seeding import sub_seed

ACCURACY = "target_val/mean_class_accuracy"
HSE = "target_val/hse"
PUBLISHED = {"method.temperature": 0.07, "method.stages": "3,4"}


def make_space(**search: Any) -> SearchSpace:
    mapping: dict[str, Any] = {
        "study": "s",
        "base": {"method.name": "csg", "train.epochs": 9},
        "space": {
            "method.temperature": {"loguniform": [0.02, 0.5]},
            "method.stages": {"choice": ["4", "3,4"]},
        },
        "points_to_evaluate": [PUBLISHED],
        "search": {"metric": ACCURACY, "mode": "max", "num_trials": 16} | search,
    }
    if search.get("objectives"):
        del mapping["search"]["metric"], mapping["search"]["mode"]
    if search.get("sampler") == "grid":
        mapping["search"]["num_trials"] = 6
        mapping["space"]["method.temperature"] = {"choice": [0.07, 0.1, 0.2]}
    return parse_search_space(mapping)


def lines(*values: float, **extra: float) -> list[dict[str, Any]]:
    return [{"epoch": i, ACCURACY: v, HSE: 1 - v} | extra for i, v in enumerate(values, start=1)]


def trial(number: int, state: str, results: list[dict[str, Any]], **params: Any) -> Trial:
    return Trial(
        id=f"{number:04d}",
        params=PUBLISHED | params,
        origin="warm start" if number == 1 else "sampler",
        state=state,
        reason="",
        results=tuple(results),
        directory=Path(),
    )


def optuna_trials(suggestions: Suggestions) -> list[Any]:
    return suggestions._study.trials


def test_warm_start_comes_first_then_the_sampler_inside_the_space() -> None:
    suggestions = Suggestions(make_space())
    first = suggestions.ask()
    assert first is not None
    assert (first.params, first.origin) == (PUBLISHED, "warm start")
    for _ in range(20):
        later = suggestions.ask()
        assert later is not None
        assert later.origin == "sampler"
        assert 0.02 <= later.params["method.temperature"] <= 0.5
        assert later.params["method.stages"] in ("4", "3,4")


@pytest.mark.parametrize(
    ("state", "results", "told", "value"),
    [
        ("completed", lines(0.1, 0.5), TrialState.COMPLETE, 0.5),
        ("diverged", lines(0.1, 0.0, diverged=1), TrialState.COMPLETE, 0.0),
        ("stopped", lines(0.3, 0.4), TrialState.PRUNED, 0.4),
        ("failed", lines(0.3), TrialState.FAIL, None),
        ("failed", [], TrialState.FAIL, None),
        ("completed", [{"epoch": 9}], TrialState.FAIL, None),  # the metric never came
    ],
)
def test_states_told_live_and_after_a_restore(
    state: str, results: list[dict[str, Any]], told: TrialState, value: float | None
) -> None:
    live = Suggestions(make_space())
    asked = live.ask()
    assert asked is not None
    live.tell(asked.number, state, results)
    restored = Suggestions(make_space(), finished=[trial(1, state, results)])
    for suggestions in (live, restored):
        (found,) = optuna_trials(suggestions)[:1]
        assert found.state == told
        assert found.value == value
        if told == TrialState.PRUNED:
            assert found.intermediate_values == {1: 0.3, 2: 0.4}


def test_interrupted_trials_come_back_first_with_their_own_params() -> None:
    interrupted = trial(3, "unfinished", lines(0.2), **{"method.temperature": 0.3})
    suggestions = Suggestions(
        make_space(), finished=[trial(1, "completed", lines(0.5))], unfinished=[interrupted]
    )
    again = suggestions.ask()
    assert again is not None
    assert again.params == interrupted.params
    later = suggestions.ask()
    assert later is not None
    assert later.origin == "sampler", "the warm start ran already and must not come again"


def test_a_restored_sampler_draws_new_points() -> None:
    fresh, restored = (
        Suggestions(make_space(sampler="random"), finished=done)
        for done in ([], [trial(1, "completed", lines(0.5)), trial(2, "completed", lines(0.4))])
    )
    fresh.ask()
    drawn = [suggestions.ask() for suggestions in (fresh, restored)]
    assert drawn[0] is not None
    assert drawn[1] is not None
    assert drawn[0].params != drawn[1].params


def test_same_seed_same_suggestions() -> None:
    def run(seed: int) -> list[dict[str, Any]]:
        suggestions, asked = Suggestions(make_space(seed=seed)), []
        for i in range(8):
            suggestion = suggestions.ask()
            assert suggestion is not None
            suggestions.tell(suggestion.number, "completed", lines(i / 10))
            asked.append(suggestion.params)
        return asked

    assert run(0) == run(0)
    assert run(0) != run(1)


def _optuna_sampler(name: str, seed: int) -> BaseSampler:
    if name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=10, constant_liar=True)
    return _build_sampler(name, seed, 60)


def test_tpe_asks_for_numbers_by_the_method_that_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[int] = []
    replaced = RememberingTPE._get_internal_repr

    def noted(self: RememberingTPE, trials: list[Any], *others: Any) -> dict[str, Any]:
        called.append(len(trials))
        return replaced(self, trials, *others)

    monkeypatch.setattr(RememberingTPE, "_get_internal_repr", noted)
    suggestions = Suggestions(make_space())
    for i in range(8):
        suggestion = suggestions.ask()
        assert suggestion is not None
        suggestions.tell(suggestion.number, "completed", lines(i / 10))
    assert sum(called) > 0, "Optuna has changed: TPE is no longer made cheap"


@pytest.mark.parametrize(
    ("sampler", "several"),
    [("tpe", False), ("tpe", True), ("nsga2", False), ("nsga2", True), ("random", False)],
)
def test_decisions_are_those_of_optuna_alone(sampler: str, several: bool) -> None:
    """A small study: no thinning, and warm starts as if all had been queued at the beginning."""
    objectives = [{"metric": ACCURACY, "mode": "max"}, {"metric": HSE, "mode": "min"}]
    search = {"sampler": sampler} | ({"objectives": objectives} if several else {})
    space = make_space(num_trials=60, **search)
    space = replace(space, points_to_evaluate=(PUBLISHED, PUBLISHED | {"method.stages": "4"}))
    seed = sub_seed(space.search.seed, "sampler/0") % 2**32
    plain = optuna.create_study(
        directions=["maximize", "minimize"] if several else ["maximize"],
        sampler=_optuna_sampler(sampler, seed),
    )
    for point in space.points_to_evaluate:
        plain.enqueue_trial(point)
    ours, draws, live = Suggestions(space), random.Random(0), []
    for _ in range(60):
        asked, trial = ours.ask(), plain.ask()
        assert asked is not None
        params = {
            "method.temperature": trial.suggest_float("method.temperature", 0.02, 0.5, log=True),
            "method.stages": trial.suggest_categorical("method.stages", ["4", "3,4"]),
        }
        assert asked.params == params
        live.append((asked.number, trial))
        while len(live) > draws.randint(1, 5):
            number, trial = live.pop(draws.randrange(len(live)))
            results = lines(*(draws.random() for _ in range(3)))
            cut = draws.random() < 0.5
            ours.tell(number, "stopped" if cut else "completed", results)
            if cut and not several:
                for line in results:
                    trial.report(line[ACCURACY], line["epoch"])
            values = [results[-1][ACCURACY], results[-1][HSE]][: 1 + several]
            plain.tell(trial, None if cut else values, state=TrialState.PRUNED if cut else None)


def test_no_good_trial_of_tpe_is_hidden() -> None:
    assert default_gamma(10**6) == TPE_BEST <= default_gamma(SHOWN_TRIALS)


def test_tpe_sees_the_same_part_of_a_long_study_after_a_restore(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("csg_ray.scale.suggestions.SHOWN_TRIALS", 40)
    monkeypatch.setattr("csg_ray.scale.suggestions.TPE_BEST", 5)
    space = make_space(num_trials=200)
    ours, draws, live, ended = Suggestions(space), random.Random(0), [], []
    for i in range(1, 151):
        asked = ours.ask()
        assert asked is not None
        live.append((i, asked))
        if len(live) > 7:
            number, asked = live.pop(draws.randrange(7))
            state, results = draws.choice(["stopped", "completed"]), lines(draws.random())
            ours.tell(asked.number, state, results)
            ended.append(replace(trial(number, state, results), params=asked.params))
    ended.sort(key=lambda each: each.id)
    unfinished = [replace(trial(n, "unfinished", []), params=a.params) for n, a in live]
    restored = Suggestions(space, finished=ended, unfinished=unfinished)

    def seen(suggestions: Suggestions) -> list[tuple[Any, ...]]:
        return sorted(
            (each.params["method.temperature"], each.state, each.value)
            for each in optuna_trials(suggestions)
            if each.state.is_finished()
        )

    assert seen(restored) == seen(ours)
    assert 40 <= len(seen(ours)) <= 45


def test_a_grid_larger_than_memory_is_not_written_out() -> None:
    space = replace(
        make_space(sampler="grid"),
        space={letter: Choice(tuple(range(10))) for letter in "abcdefghij"},  # 10^10 points
        points_to_evaluate=(),
    )
    suggestions = Suggestions(space)
    asked = [suggestions.ask() for _ in range(7)]
    assert [each and each.params["j"] for each in asked] == [0, 1, 2, 3, 4, 5, None], "six trials"


def test_grid_runs_every_combination_once_then_ends() -> None:
    space = make_space(sampler="grid")
    suggestions = Suggestions(space)
    asked = []
    while (suggestion := suggestions.ask()) is not None:
        asked.append(tuple(suggestion.params.values()))
    assert sorted(asked) == [(t, s) for t in (0.07, 0.1, 0.2) for s in ("3,4", "4")]
    assert asked[0] == (0.07, "3,4")


def test_grid_goes_on_after_a_restore() -> None:
    space = make_space(sampler="grid")
    done = [trial(1, "completed", lines(0.5))]
    suggestions = Suggestions(space, finished=done)
    asked = set()
    while (suggestion := suggestions.ask()) is not None:
        asked.add(tuple(suggestion.params.values()))
    assert len(asked) == 5
    assert (0.07, "3,4") not in asked


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_several_objectives_with_cut_trials(sampler: str) -> None:
    objectives = [{"metric": ACCURACY, "mode": "max"}, {"metric": HSE, "mode": "min"}]
    suggestions = Suggestions(make_space(objectives=objectives, sampler=sampler, num_trials=24))
    for i in range(24):
        suggestion = suggestions.ask()
        assert suggestion is not None
        suggestions.tell(suggestion.number, ("completed", "stopped")[i % 2], lines(i / 30))
    done = [t for t in optuna_trials(suggestions) if t.state == TrialState.COMPLETE]
    assert [t.values for t in done] == [[i / 30, 1 - i / 30] for i in range(0, 24, 2)]
    assert [d.name for d in suggestions._study.directions] == ["MAXIMIZE", "MINIMIZE"]


def test_nsga2_goes_on_with_its_generations_after_a_restore() -> None:
    space = make_space(sampler="nsga2", num_trials=16)  # populations of four
    live = Suggestions(space)
    done = []
    for i in range(13):
        suggestion = live.ask()
        assert suggestion is not None
        live.tell(suggestion.number, "completed", lines(i / 20))
        done.append(replace(trial(i + 1, "completed", lines(i / 20)), params=suggestion.params))
    restored = Suggestions(space, finished=done)
    key = "NSGAIISampler:generation"
    generations = [t.system_attrs.get(key) for t in optuna_trials(live)]
    assert generations == [None] + [0] * 4 + [1] * 4 + [2] * 4  # the warm start is of none
    assert [t.system_attrs.get(key) for t in optuna_trials(restored)] == generations
    restored.ask()
    assert optuna_trials(restored)[-1].system_attrs[key] == 3


def test_branches_of_a_searched_method_are_asked_and_rebuilt() -> None:
    space = parse_search_space(
        {
            "study": "s",
            "base": {"train.epochs": 9},
            "space": {
                "method.name": {
                    "choice": {
                        "vanilla": {},
                        "csg": {"space": {"method.temperature": {"loguniform": [0.02, 0.5]}}},
                    }
                },
                "augment.magnitude": {"randint": [0, 25]},
            },
            "search": {"metric": ACCURACY, "mode": "max", "num_trials": 16},
        }
    )
    suggestions = Suggestions(space)
    seen: dict[str, set[str]] = {}
    for i in range(12):
        suggestion = suggestions.ask()
        assert suggestion is not None
        seen.setdefault(suggestion.params["method.name"], set()).update(suggestion.params)
        suggestions.tell(suggestion.number, "completed", lines(i / 12))
    assert seen == {
        "vanilla": {"method.name", "augment.magnitude"},
        "csg": {"method.name", "augment.magnitude", "method.temperature"},
    }
    params = {"method.name": "vanilla", "augment.magnitude": 3}
    old = Trial("0001", params, "sampler", "completed", "", tuple(lines(0.5)), Path())
    (rebuilt,) = optuna_trials(Suggestions(space, finished=[old]))
    assert rebuilt.params == params


STRENGTHS: dict[str, list[float]] = {
    "asg": [0.1, 1.0],
    "weight_l2": [0.01, 0.1, 3.0],
    "vanilla": [],
}


def _strengths(sampler: str) -> SearchSpace:
    """The same setting in two branches, on other choices in each."""
    return parse_search_space(
        {
            "study": "s",
            "base": {"train.epochs": 9},
            "space": {
                "method.name": {
                    "choice": {
                        name: {"space": {"method.loss_weight": {"choice": each}} if each else {}}
                        for name, each in STRENGTHS.items()
                    }
                },
                "augment.num_ops": {"choice": [0, 1]},
            },
            "points_to_evaluate": [
                {"method.name": "weight_l2", "method.loss_weight": 3.0, "augment.num_ops": 1}
            ],
            "search": {
                "metric": ACCURACY,
                "mode": "max",
                "num_trials": 12,
                "sampler": sampler,
                "scheduler": "none",
            },
        }
    )


def test_branches_may_search_the_same_setting_each_in_its_own_range() -> None:
    space = _strengths("grid")
    suggestions = Suggestions(space)
    asked: list[dict[str, Any]] = []
    while (suggestion := suggestions.ask()) is not None:
        asked.append(suggestion.params)
        suggestions.tell(suggestion.number, "completed", lines(len(asked) / 20))
    for name, strengths in STRENGTHS.items():
        for num_ops in (0, 1):
            common = {"method.name": name, "augment.num_ops": num_ops}
            for strength in strengths:
                assert asked.count(common | {"method.loss_weight": strength}) == 1
            assert asked.count(common) == (not strengths)
    assert len(asked) == 12
    assert asked[0] == space.points_to_evaluate[0]


def test_what_tpe_learned_of_one_branch_is_not_taken_for_another() -> None:
    space = _strengths("tpe")
    live = Suggestions(space)
    done = []
    for i in range(12):
        suggestion = live.ask()
        assert suggestion is not None
        live.tell(suggestion.number, "completed", lines(i / 20))
        done.append(replace(trial(i + 1, "completed", lines(i / 20)), params=suggestion.params))
    names = {name for each in optuna_trials(live) for name in each.params}
    assert names == {
        "method.name",
        "augment.num_ops",
        "asg: method.loss_weight",
        "weight_l2: method.loss_weight",
    }
    restored = Suggestions(space, finished=done)
    assert [each.params for each in optuna_trials(restored)] == [
        each.params for each in optuna_trials(live)
    ]
    again = restored.ask()
    assert again is not None
    assert space.config_for(again.params).method.name == again.params["method.name"]
