"""What to try next: Optuna's ask and tell over a SearchSpace, rebuilt from plain files."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
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
from csg_ray.scale.history import ThinnedHistory
from csg_ray.search_space import Choice, Domain, Float, Integer, SearchSpace
from csg_ray.seeding import sub_seed

optuna.logging.set_verbosity(optuna.logging.WARNING)

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
            self._study.enqueue_trial(_optuna_params(self._space, point))
        trial = self._study.ask()
        params = _suggest(trial, self._space)
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
            frozen = self._frozen(trial, noted)
            evolved += bool(noted) and frozen.state == TrialState.COMPLETE
            self._study.add_trial(frozen)

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
            params=_optuna_params(self._space, trial.params),
            distributions=_distributions(self._space, trial.params),
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


def _build_storage(space: SearchSpace) -> ThinnedHistory | None:
    """TPE alone takes longer and longer; None is Optuna's own storage."""
    if space.search.sampler != "tpe":
        return None
    best = TPE_BEST if len(space.objectives) == 1 else 0
    return ThinnedHistory(SHOWN_TRIALS, best, maximize=space.objectives[0].mode == "max")


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Float):
        return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
    if isinstance(domain, Integer):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return CategoricalDistribution(domain.values)


def _named_domains(
    space: Mapping[str, Domain], params: Mapping[str, Any], owner: str = ""
) -> Iterator[tuple[str, str, Domain]]:
    """What a trial searches: Optuna's name, path and domain of each setting.

    Reads the value of a setting with branches only after it has yielded that setting, so that a
    caller may draw the values into `params` on the way.

    A setting of a branch carries the branch in its name: Optuna wants the same choices wherever the
    name is the same, and TPE must not take what it learned of one method's strength for another's.
    """
    for path, domain in space.items():
        yield owner + path, path, domain
        if isinstance(domain, Choice) and domain.branches:
            value = params[path]
            yield from _named_domains(domain.branch(value).space, params, f"{value}: ")


def _optuna_params(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, Any]:
    """Values of searched settings under Optuna's names."""
    return {name: params[path] for name, path, _ in _named_domains(space.space, params)}


def _distributions(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    return {name: _distribution(domain) for name, _, domain in _named_domains(space.space, params)}


def _suggest(trial: optuna.Trial, space: SearchSpace) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, path, domain in _named_domains(space.space, params):
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
