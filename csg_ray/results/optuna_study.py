"""A study in Optuna's words: what a trial searched, how it ended, what it reported."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from csg_ray.results.study import Study, Trial
from csg_ray.search_space import Choice, Domain, Float, Integer, SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)


def build_optuna_study(
    study: Study, storage: BaseStorage | None = None, name: str | None = None
) -> optuna.Study:
    """The study's ended trials as an Optuna study, for its plots and for its dashboard.

    Args:
        study: as read from its files.
        storage: where to put it; None: in memory.
        name: of Optuna's study; the study's own unless given.
    """
    rebuilt = optuna.create_study(
        study_name=name or study.name, directions=directions(study.space), storage=storage
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # "the interface can change"
        rebuilt.set_metric_names([objective.metric for objective in study.space.objectives])
    ended = [trial for trial in study.trials if trial.state != "unfinished"]
    rebuilt.add_trials([frozen_trial(study.space, trial, {"id": trial.id}) for trial in ended])
    return rebuilt


def directions(space: SearchSpace) -> list[StudyDirection]:
    """Optuna's word for the mode of each objective."""
    modes = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    return [modes[objective.mode] for objective in space.objectives]


def frozen_trial(
    space: SearchSpace,
    trial: Trial,
    user_attrs: Mapping[str, Any] | None = None,
    system_attrs: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """A trial as it stands.

    A full-budget trial is COMPLETE, a cut one PRUNED with its learning curve (so that a good slow
    starter is not mistaken for a bad setting), a crashed one FAIL, an unfinished one RUNNING. A
    diverged trial is COMPLETE with the worst values that it reports: on a space with a cliff that
    keeps TPE away from it, while FAIL hides it (`benchmarks/diverged_trials.py`).
    """
    values = final_values(space, trial.results)
    if trial.state in ("completed", "diverged") and values is not None:
        state = TrialState.COMPLETE
    elif trial.state == "stopped":
        state = TrialState.PRUNED
        # As Optuna's own `tell` does: the last point of the curve.
        values = list(learning_curve(space, trial.results).values())[-1:] or None
    elif trial.state == "unfinished":
        state, values = TrialState.RUNNING, None
    else:
        state, values = TrialState.FAIL, None
    return create_trial(
        state=state,
        values=values,
        params=optuna_params(space, trial.params),
        distributions=_distributions(space, trial.params),
        intermediate_values=learning_curve(space, trial.results),
        user_attrs=dict(user_attrs or {}),
        system_attrs=dict(system_attrs or {}),
    )


def final_values(space: SearchSpace, results: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """The objectives' values at the last epoch; None when one was not reported."""
    if not results:
        return None
    last = results[-1]
    names = [objective.metric for objective in space.objectives]
    return [float(last[name]) for name in names] if all(n in last for n in names) else None


def learning_curve(space: SearchSpace, results: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """The objective's value after each epoch; empty when there are several objectives."""
    if len(space.objectives) > 1:  # Optuna has no learning curves for several
        return {}
    metric = space.objectives[0].metric
    return {int(line["epoch"]): float(line[metric]) for line in results if metric in line}


def named_domains(
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
            yield from named_domains(domain.branch(value).space, params, f"{value}: ")


def optuna_params(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, Any]:
    """Values of searched settings under Optuna's names."""
    return {name: params[path] for name, path, _ in named_domains(space.space, params)}


def _distributions(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    return {name: _distribution(domain) for name, _, domain in named_domains(space.space, params)}


def _distribution(domain: Domain) -> BaseDistribution:
    if isinstance(domain, Float):
        return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
    if isinstance(domain, Integer):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return CategoricalDistribution(domain.values)
