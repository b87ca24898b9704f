"""What a sampler sees of a long study: all of it up to a limit, then an even part and the best."""

from __future__ import annotations

import bisect
import copy
import hashlib
import heapq
import json
from collections.abc import Container, Sequence

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState


class ThinnedHistory(InMemoryStorage):
    """An Optuna storage of one study that shows at most so many of the finished trials.

    TPE looks at every trial that it is shown, each time that it is asked. Shown are all that are
    not finished, and of the finished ones

    - an even sample of `limit`, failed ones last. Who is in it follows from each trial's settings
      and values alone, so it is the same whatever the order, and after a restore;
    - the best `num_best`, ranked as TPE ranks them.

    Args:
        limit: finished trials up to which all are shown.
        num_best: as many as TPE models good settings from, so that this model stays what it is
            with all trials; 0 with several objectives, where it is a tenth of the trials shown.
        maximize: whether the best are the highest.
    """

    def __init__(self, limit: int, num_best: int, maximize: bool) -> None:
        super().__init__()
        self._limit = limit
        self._num_best = num_best
        self._sign = -1.0 if maximize else 1.0
        self._unfinished: dict[int, None] = {}  # in the order of their numbers
        self._sample: list[tuple[int, int, int]] = []  # a heap: who is to go next is first
        self._best: list[tuple[tuple[float, ...], int]] = []
        self._shown: list[int] | None = None  # the finished ones; None: to be collected

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As Optuna has it."""
        trial_id = super().create_new_trial(study_id, template_trial)
        self._note(self.get_trial(trial_id))
        return trial_id

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """As Optuna has it."""
        changed = super().set_trial_state_values(trial_id, state, values)
        self._note(self.get_trial(trial_id))
        return changed

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """The trials that are shown, in the order of their numbers."""
        if states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        if self._shown is None:
            ids = {trial_id for *_, trial_id in self._sample}
            ids.update(trial_id for _, trial_id in self._best)
            self._shown = sorted(ids)
        # One study to a storage: the ids of its trials are their numbers.
        everything = super().get_all_trials(study_id, deepcopy=False)
        trials = [everything[number] for number in sorted([*self._shown, *self._unfinished])]
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _note(self, trial: FrozenTrial) -> None:
        trial_id = trial._trial_id
        if not trial.state.is_finished():
            self._unfinished[trial_id] = None
            return
        self._unfinished.pop(trial_id, None)
        self._shown = None
        failed = trial.state == TrialState.FAIL
        heapq.heappush(self._sample, (-int(failed), -_lot(trial), trial_id))
        if len(self._sample) > self._limit:
            heapq.heappop(self._sample)
        if not failed:
            bisect.insort(self._best, (self._rank(trial), trial_id))
            del self._best[self._num_best :]

    def _rank(self, trial: FrozenTrial) -> tuple[float, ...]:
        """TPE's order, the best first: complete trials by value, then pruned ones by last epoch."""
        if self._num_best == 0:
            return ()
        if trial.state == TrialState.COMPLETE:
            return (0, 0, self._sign * trial.values[0])
        if trial.last_step is None:
            return (1, 1, 0)
        return (1, -trial.last_step, self._sign * trial.intermediate_values[trial.last_step])


def _lot(trial: FrozenTrial) -> int:
    """A number from what a trial is, as good as drawn."""
    # A restored trial has a learning curve even when it was complete; a live one only when pruned.
    curve = trial.intermediate_values if trial.state == TrialState.PRUNED else {}
    facts = json.dumps([trial.params, curve, trial.values], sort_keys=True)
    return int.from_bytes(hashlib.blake2b(facts.encode(), digest_size=8).digest(), "big")
