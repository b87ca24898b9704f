"""What to try next: Optuna's ask and tell over a SearchSpace, rebuilt from plain files."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import TrialState

from csg_ray.results.optuna_study import (
    directions,
    final_values,
    frozen_trial,
    learning_curve,
    named_domains,
    optuna_params,
)
from csg_ray.results.study import Trial
from csg_ray.scale.history import ThinnedHistory
from csg_ray.scale.tpe import RememberingTPE
from csg_ray.search_space import Choice, Domain, Float, Integer, SearchSpace
from csg_ray.seeding import sub_seed

# Finished trials that TPE looks at, besides the best (benchmarks/sampler_limit.py).
SHOWN_TRIALS = 1000
TPE_BEST = 25  # how many at most Optuna's TPE models good settings from


@dataclass(frozen=True)
class Suggestion:
    """One setting of the searched paths, and where it came from."""

    params: dict[str, Any]
    origin: str
    number: int


class Suggestions:
    """Asks Optuna for settings and tells it what came of them.

    `frozen_trial` says which state is told of a trial that ended one way or another.

    Args:
        space: the search space.
        finished: trials of an earlier run of this study, told before anything is asked.
        unfinished: interrupted trials; the first `ask` calls give their settings again.
    """

    def __init__(
        self, space: SearchSpace, finished: Sequence[Trial] = (), unfinished: Sequence[Trial] = ()
    ) -> None:
        self._space = space
        known = [*finished, *unfinished]
        seed = sub_seed(space.search.seed, f"sampler/{len(known)}") % 2**32
        self._study = optuna.create_study(
            directions=directions(space),
            sampler=_build_sampler(space.search.sampler, seed, space.search.num_trials),
            storage=_build_storage(space),
        )
        self._open: dict[int, optuna.Trial] = {}
        self._add_finished(finished)
        self._planned = deque((trial.origin, trial.params) for trial in unfinished)
        for origin, points in self._points():
            ran = sum(trial.origin == origin for trial in known)
            self._planned.extend((origin, point) for point in points[ran:])

    def _points(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """What is tried before the sampler is asked, by origin."""
        warm = list(self._space.points_to_evaluate)
        if self._space.search.sampler != "grid":
            return [("warm start", warm)]
        # No more than can run: a grid may have more points than memory holds.
        grid = (point for point in _grid(self._space.space) if point not in warm)
        return [
            ("warm start", warm),
            ("grid", list(itertools.islice(grid, self._space.search.num_trials))),
        ]

    def ask(self) -> Suggestion | None:
        """The next setting, or None when a grid has no point left."""
        if not self._planned and self._space.search.sampler == "grid":
            return None
        origin = "sampler"
        if self._planned:
            origin, point = self._planned.popleft()
            self._study.enqueue_trial(optuna_params(self._space, point))
        trial = self._study.ask()
        params = _suggest(trial, self._space)
        self._open[trial.number] = trial
        return Suggestion(params, origin, trial.number)

    def tell(self, number: int, state: str, results: Sequence[Mapping[str, Any]]) -> None:
        """Close a suggestion with the trial's state and its reports, one per epoch."""
        trial = self._open.pop(number)
        values = final_values(self._space, results)
        if state in ("completed", "diverged") and values is not None:
            self._study.tell(trial, values)
        elif state == "stopped":
            for epoch, value in learning_curve(self._space, results).items():
                trial.report(value, epoch)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _add_finished(self, finished: Sequence[Trial]) -> None:
        """Bring in the trials of earlier drivers, with what NSGA-II notes in each of its own.

        Without the number of its generation it would begin anew.
        """
        sampler, evolved = self._study.sampler, 0
        for trial in finished:
            noted: dict[str, int] = {}
            if isinstance(sampler, NSGAIISampler) and trial.origin == "sampler":
                assert sampler.population_size is not None  # `_build_sampler` gives it
                noted = {sampler._get_generation_key(): evolved // sampler.population_size}
            frozen = frozen_trial(self._space, trial, system_attrs=noted)
            evolved += bool(noted) and frozen.state == TrialState.COMPLETE
            self._study.add_trial(frozen)


def _build_sampler(name: str, seed: int, num_trials: int) -> BaseSampler:
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(4, min(50, num_trials // 4)))
    if name == "tpe":
        # Optuna's ten random trials would be most of a small study.
        startup = max(4, min(10, num_trials // 3))
        return RememberingTPE(seed=seed, n_startup_trials=startup, constant_liar=True)
    return RandomSampler(seed=seed)


def _build_storage(space: SearchSpace) -> ThinnedHistory | None:
    """TPE alone takes longer and longer; None is Optuna's own storage."""
    if space.search.sampler != "tpe":
        return None
    best = TPE_BEST if len(space.objectives) == 1 else 0
    return ThinnedHistory(SHOWN_TRIALS, best, maximize=space.objectives[0].mode == "max")


def _suggest(trial: optuna.Trial, space: SearchSpace) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, path, domain in named_domains(space.space, params):
        if isinstance(domain, Float):
            params[path] = trial.suggest_float(
                name, domain.low, domain.high, log=domain.log, step=domain.step
            )
        elif isinstance(domain, Integer):
            params[path] = trial.suggest_int(name, domain.low, domain.high, log=domain.log)
        else:
            params[path] = trial.suggest_categorical(name, domain.values)
    return params


def _grid(space: Mapping[str, Domain]) -> Iterator[dict[str, Any]]:
    """Every combination, branches included; the last setting varies fastest."""
    if not space:
        yield {}
        return
    (path, domain), *others = space.items()
    assert isinstance(domain, Choice)  # the loader refuses a grid over ranges
    for value in domain.values:
        for branch in _grid(domain.branch(value).space):
            for rest in _grid(dict(others)):
                yield {path: value} | branch | rest
