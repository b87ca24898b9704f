"""What TPE sees of a long study: all up to the limit, then the best and an even sample."""

from __future__ import annotations

import random
from typing import Any, Literal

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler

# Optuna's own split into good and other trials: what is shown must not change the good ones.
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

from csg_ray.scale.history import ThinnedHistory

Direction = Literal["maximize", "minimize"]


def make_study(limit: int, num_best: int = 25, direction: Direction = "maximize") -> optuna.Study:
    storage = ThinnedHistory(limit, num_best, direction == "maximize")
    return optuna.create_study(
        storage=storage, direction=direction, sampler=TPESampler(seed=0, n_startup_trials=5)
    )


def random_trial(draws: random.Random) -> FrozenTrial:
    x = draws.random()
    state = draws.choice([TrialState.COMPLETE] + 4 * [TrialState.PRUNED] + [TrialState.FAIL])
    value = draws.randrange(50) / 50  # with ties
    steps = dict.fromkeys(range(1, draws.randint(0, 5)), value)
    valued = state == TrialState.COMPLETE or (state == TrialState.PRUNED and steps)
    return create_trial(
        state=state,
        values=[value] if valued else None,
        params={"x": x},
        distributions={"x": FloatDistribution(0, 1)},
        intermediate_values=steps if state == TrialState.PRUNED else {},
    )


def told(trials: list[FrozenTrial], limit: int, **options: Any) -> list[FrozenTrial]:
    study = make_study(limit, **options)
    for trial in trials:
        study.add_trial(trial)
    return study.get_trials(deepcopy=False)


def run_some(study: optuna.Study, draws: random.Random, count: int) -> list[dict[str, Any]]:
    """Ask and tell with several trials at work, ended in random order and ways."""
    asked, live = [], list[optuna.Trial]()
    for _ in range(count):
        trial = study.ask()
        trial.suggest_float("x", 0.01, 1, log=True)
        trial.suggest_categorical("c", ["a", "b"])
        asked.append(trial.params)
        live.append(trial)
        while len(live) > draws.randint(1, 6):
            done = live.pop(draws.randrange(len(live)))
            kind, value = draws.random(), done.params["x"] + draws.random() / 10
            if kind < 0.3:
                study.tell(done, value)
            elif kind < 0.9:
                done.report(value, 2)
                study.tell(done, state=TrialState.PRUNED)
            else:
                study.tell(done, state=TrialState.FAIL)
    return asked


@pytest.mark.parametrize("seed", range(3))
def test_up_to_the_limit_every_decision_is_that_of_optunas_own_storage(seed: int) -> None:
    plain = optuna.create_study(
        direction="maximize", sampler=TPESampler(seed=0, n_startup_trials=5)
    )
    asked = run_some(plain, random.Random(seed), 60)
    assert run_some(make_study(60), random.Random(seed), 60) == asked
    assert run_some(make_study(30, num_best=3), random.Random(seed), 60) != asked


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_good_ones_are_those_of_the_whole_history(direction: Direction) -> None:
    draws = random.Random(0)
    trials = [random_trial(draws) for _ in range(1000)]
    for count in (400, 700, 1000):
        plain = optuna.create_study(direction=direction)
        plain.add_trials(trials[:count])
        shown = told(trials[:count], 300, direction=direction)
        assert 300 <= len(shown) <= 325

        def good(among: list[FrozenTrial], study: optuna.Study = plain) -> list[int]:
            able = [trial for trial in among if trial.state != TrialState.FAIL]
            return [trial.number for trial in _split_trials(study, able, 25)[0]]

        assert good(shown) == good(plain.trials)


def test_the_sample_is_even_and_the_same_in_any_order() -> None:
    draws = random.Random(1)
    trials = [random_trial(draws) for _ in range(2000)]
    settings = sorted(trial.params["x"] for trial in told(trials, 500, num_best=0))
    draws.shuffle(trials)
    assert sorted(trial.params["x"] for trial in told(trials, 500, num_best=0)) == settings
    assert len(settings) == 500
    # 125 are expected in each quarter, give or take 10.
    quarters = [sum(low / 4 <= x < (low + 1) / 4 for x in settings) for low in range(4)]
    assert all(95 <= count <= 155 for count in quarters), quarters


def test_equal_settings_are_not_kept_or_dropped_together() -> None:
    trials = [
        create_trial(
            state=TrialState.COMPLETE,
            values=[number / 100],
            params={"x": (number % 2) / 2},
            distributions={"x": FloatDistribution(0, 1)},
        )
        for number in range(100)
    ]
    settings = [trial.params["x"] for trial in told(trials, 50, num_best=0)]
    assert 15 <= settings.count(0.0) <= 35


def test_failed_trials_go_first() -> None:
    draws = random.Random(2)
    trials = [random_trial(draws) for _ in range(400)]
    failed = sum(trial.state == TrialState.FAIL for trial in trials)
    assert failed > 40
    some_left = [trial.state for trial in told(trials, 380)]
    assert (len(some_left), some_left.count(TrialState.FAIL)) == (380, failed - 20)
    assert TrialState.FAIL not in [trial.state for trial in told(trials, 300)]


def test_whoever_is_at_work_is_shown_and_nothing_shown_can_be_changed() -> None:
    study = make_study(limit=5, num_best=2)
    draws = random.Random(3)
    for _ in range(50):
        study.add_trial(random_trial(draws))
    asked = [study.ask() for _ in range(9)]
    running = study.get_trials(states=[TrialState.RUNNING])
    assert [trial.number for trial in running] == [trial.number for trial in asked]
    assert study.get_trials(states=(TrialState.WAITING,)) == []
    running[0].params["x"] = 7.0
    assert "x" not in study.get_trials(states=[TrialState.RUNNING])[0].params
    study.tell(asked[8], 1.0)  # now a finished one comes after those at work
    numbers = [trial.number for trial in study.trials]
    assert numbers == sorted(numbers)
    assert {50, 58} < set(numbers)
    assert asked[-1].number == 58, "numbers count all trials, shown or not"


def test_a_queued_trial_is_found_behind_any_number_at_work() -> None:
    study = make_study(limit=5, num_best=2)
    study.enqueue_trial({"x": 0.5})
    study.enqueue_trial({"x": 0.25})
    for _ in range(20):
        study.add_trial(create_trial(state=TrialState.RUNNING))
    assert [study.ask().suggest_float("x", 0, 1) for _ in range(2)] == [0.5, 0.25]
