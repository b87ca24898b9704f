"""What to try next: Optuna's ask and tell over a SearchSpace, rebuilt from plain files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from csg_ray.results.study import Trial
from csg_ray.search_space import Choice, Domain, Float, Integer, SearchSpace
from csg_ray.seeding import sub_seed

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Suggestion:
    """One setting of the searched paths, and where it came from."""

    params: dict[str, Any]
    origin: str
    number: int


class Suggestions:
    """Asks Optuna for settings and tells it what came of them.

    States told: a full-budget trial is COMPLETE, a cut one PRUNED with its learning curve (so that
    a good slow starter is not mistaken for a bad setting), a crashed one FAIL. A diverged trial is
    COMPLETE with the worst values that it reports: on a space with a cliff that keeps TPE away from
    it, while FAIL hides it (`benchmarks/diverged_trials.py`).

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
            directions=["maximize" if o.mode == "max" else "minimize" for o in space.objectives],
            sampler=_build_sampler(space.search.sampler, seed, space.search.num_trials),
        )
        self._open: dict[int, optuna.Trial] = {}
        for trial in finished:
            self._study.add_trial(self._frozen(trial, self._generation(trial.origin)))
        self._origins: list[str] = []
        for trial in unfinished:
            self._enqueue(trial.params, trial.origin)
        for origin, points in self._planned():
            ran = sum(trial.origin == origin for trial in known)
            for point in points[ran:]:
                self._enqueue(point, origin)

    def _planned(self) -> list[tuple[str, list[dict[str, Any]]]]:
        planned = [("warm start", list(self._space.points_to_evaluate))]
        if self._space.search.sampler == "grid":
            taken = self._space.points_to_evaluate
            grid = [point for point in _grid(self._space.space) if point not in taken]
            planned.append(("grid", grid))
        return planned

    def _enqueue(self, params: Mapping[str, Any], origin: str) -> None:
        self._study.enqueue_trial(dict(params))
        self._origins.append(origin)

    def ask(self) -> Suggestion | None:
        """The next setting, or None when a grid has no point left."""
        origin = self._origins.pop(0) if self._origins else "sampler"
        if origin == "sampler" and self._space.search.sampler == "grid":
            return None
        trial = self._study.ask()
        params = _suggest(trial, self._space.space)
        self._open[trial.number] = trial
        return Suggestion(params, origin, trial.number)

    def tell(self, number: int, state: str, results: Sequence[Mapping[str, Any]]) -> None:
        """Close a suggestion with the trial's state and its reports, one per epoch."""
        trial = self._open.pop(number)
        values = self._values(results)
        if state in ("completed", "diverged") and values is not None:
            self._study.tell(trial, values)
        elif state == "stopped":
            for epoch, value in self._curve(results).items():
                trial.report(value, epoch)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _values(self, results: Sequence[Mapping[str, Any]]) -> list[float] | None:
        if not results:
            return None
        last = results[-1]
        names = [objective.metric for objective in self._space.objectives]
        return [float(last[name]) for name in names] if all(n in last for n in names) else None

    def _curve(self, results: Sequence[Mapping[str, Any]]) -> dict[int, float]:
        if len(self._space.objectives) > 1:  # Optuna has no learning curves for several objectives
            return {}
        metric = self._space.objectives[0].metric
        return {int(line["epoch"]): float(line[metric]) for line in results if metric in line}

    def _generation(self, origin: str) -> dict[str, int]:
        """What NSGA-II notes in each trial of its own; without it, it would begin anew."""
        sampler = self._study.sampler
        if not isinstance(sampler, NSGAIISampler) or origin != "sampler":
            return {}
        assert sampler.population_size is not None  # `_build_sampler` gives it
        key = sampler._get_generation_key()
        complete = self._study.get_trials(states=[TrialState.COMPLETE], deepcopy=False)
        earlier = sum(key in trial.system_attrs for trial in complete)
        return {key: earlier // sampler.population_size}

    def _frozen(self, trial: Trial, system_attrs: dict[str, int]) -> optuna.trial.FrozenTrial:
        values = self._values(trial.results)
        if trial.state in ("completed", "diverged") and values is not None:
            state = TrialState.COMPLETE
        elif trial.state == "stopped":
            state = TrialState.PRUNED
            # As Optuna's own `tell` does: the last point of the curve.
            values = list(self._curve(trial.results).values())[-1:] or None
        else:
            state, values = TrialState.FAIL, None
        return create_trial(
            state=state,
            values=values,
            params=dict(trial.params),
            distributions=_distributions(self._space.space, trial.params),
            intermediate_values=self._curve(trial.results),
            system_attrs=system_attrs,
        )


def _build_sampler(name: str, seed: int, num_trials: int) -> BaseSampler:
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(4, min(50, num_trials // 4)))
    if name == "tpe":
        # Optuna's ten random trials would be most of a small study.
        startup = max(4, min(10, num_trials // 3))
        return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
    return RandomSampler(seed=seed)


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Float):
        return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
    if isinstance(domain, Integer):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return CategoricalDistribution(domain.values)


def _distributions(
    space: Mapping[str, Domain], params: Mapping[str, Any]
) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for path, domain in space.items():
        found[path] = _distribution(domain)
        if isinstance(domain, Choice):
            found |= _distributions(domain.branches.get(params[path], {}), params)
    return found


def _suggest(trial: optuna.Trial, space: Mapping[str, Domain]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for path, domain in space.items():
        if isinstance(domain, Float):
            params[path] = trial.suggest_float(
                path, domain.low, domain.high, log=domain.log, step=domain.step
            )
        elif isinstance(domain, Integer):
            params[path] = trial.suggest_int(path, domain.low, domain.high, log=domain.log)
        else:
            params[path] = trial.suggest_categorical(path, domain.values)
            params |= _suggest(trial, domain.branches.get(params[path], {}))
    return params


def _grid(space: Mapping[str, Domain]) -> list[dict[str, Any]]:
    """Every combination, branches included; the last setting varies fastest."""
    points: list[dict[str, Any]] = [{}]
    for path, domain in space.items():
        assert isinstance(domain, Choice)  # the loader refuses a grid over ranges
        options = [
            {path: value} | branch
            for value in domain.values
            for branch in _grid(domain.branches.get(value, {}))
        ]
        points = [old | new for old, new in itertools.product(points, options)]
    return points
