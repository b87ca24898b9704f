"""A study in Optuna's words that keeps up with the study's files while a search writes them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from csg_ray.results.optuna_study import build_optuna_study, frozen_trial
from csg_ray.results.study import Study, Trial, load_study


class FollowedStudy:
    """An Optuna study that is brought up to date with a study's files.

    An unfinished trial is RUNNING with its learning curve so far, whether or not somebody is at
    work on it. Nothing is ever written into the study.

    Args:
        study: as read from its files.
        storage: where Optuna's study is put, and from then on changed by nobody else.
        name: of Optuna's study.
    """

    def __init__(self, study: Study, storage: BaseStorage, name: str) -> None:
        self.directory = study.directory
        self.name = name
        self._storage = storage
        self._begin(study)
        self._take(study)

    def refresh(self) -> None:
        """Add what the files hold by now.

        Raises:
            UserError: the files cannot be read.
            StorageError: the store that holds them is away.
        """
        study = load_study(self.directory)
        if self._was_deleted():
            self._begin(study)
        self._take(study)

    def _begin(self, study: Study) -> None:
        empty = replace(study, trials=())
        self._optuna = build_optuna_study(empty, self._storage, self.name)
        self._known: dict[str, int] = {}  # trial id -> Optuna's id of the same trial

    def _was_deleted(self) -> bool:
        """Whether a user of the dashboard has deleted or renamed it there."""
        return self.name not in [study.study_name for study in self._storage.get_all_studies()]

    def _take(self, study: Study) -> None:
        for trial in study.trials:
            now = _dated(frozen_trial(study.space, trial, _attributes(study, trial)), trial)
            if trial.id in self._known:
                self._update(self._known[trial.id], now)
            else:
                self._optuna.add_trial(now)
                self._known[trial.id] = self._optuna.get_trials(deepcopy=False)[-1]._trial_id

    def _update(self, optuna_id: int, now: FrozenTrial) -> None:
        shown = self._storage.get_trial(optuna_id)
        if shown.state.is_finished():
            return
        for epoch, value in now.intermediate_values.items():
            if epoch not in shown.intermediate_values:
                self._storage.set_trial_intermediate_value(optuna_id, epoch, value)
        for name, value in now.user_attrs.items():
            self._storage.set_trial_user_attr(optuna_id, name, value)
        if now.state.is_finished():
            self._storage.set_trial_state_values(optuna_id, now.state, now.values)


def _attributes(study: Study, trial: Trial) -> dict[str, str | float]:
    """What is shown of a trial beside its settings and values."""
    metrics = dict.fromkeys([*(rule.metric for rule in study.rules.values()), "epoch"])
    known = {name: trial.last[name] for name in metrics if name in trial.last}
    return {"id": trial.id, "state": trial.state, "reason": trial.reason} | known


def _dated(frozen: FrozenTrial, trial: Trial) -> FrozenTrial:
    """With the times of the files, in place of now."""
    frozen.datetime_start = datetime.fromtimestamp(trial.created)
    if frozen.state.is_finished():
        ended = trial.last.get("timestamp", trial.created)
        frozen.datetime_complete = datetime.fromtimestamp(ended)
    return frozen
