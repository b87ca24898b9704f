"""The study's book-keeping, without Ray: who runs what, what stops, what is written down.

Ray only calls in: `next_trial`, `report`, `finish`. Everything that a later restore needs is in the
study's plain files before the call returns.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from csg_ray.results.cost import Meter
from csg_ray.results.progress import Progress, TrialUpdate
from csg_ray.results.selection import Outcome
from csg_ray.results.study import Trial, cost_of
from csg_ray.scale.halving import SuccessiveHalving
from csg_ray.scale.retention import CheckpointKeeper
from csg_ray.scale.suggestions import Suggestions
from csg_ray.search_space import SearchSpace
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import DISK_FULL, write_atomically
from csg_ray.storage.stores import StorageError

# Of a trial's process without a finished epoch between.
MAX_STARTS = 3


@dataclass
class LiveTrial:
    """A trial of this driver: its setting, its Optuna number, its reports so far."""

    id: str
    params: dict[str, Any]
    number: int
    results: list[dict[str, Any]] = field(default_factory=list)
    cut: bool = False
    starts: int = 0


class StudyDriver:
    """Hands out trials and closes them.

    Args:
        space: what is searched; `space.search.num_trials` is the study's total.
        directory: the study's directory.
        progress: told of every change.
        trials: trials of earlier drivers, as read from the directory.
        meter: of the study's budget; None: there is none.

    Attributes:
        halted: why the study cannot go on for now (a full disk, a store that is away, another
            process in its place), else None.
        out_of_budget: whether the budget has kept a trial from going on.
    """

    def __init__(
        self,
        space: SearchSpace,
        directory: StoragePath,
        progress: Progress,
        trials: Sequence[Trial] = (),
        meter: Meter | None = None,
    ) -> None:
        self.halted: Exception | None = None
        self.out_of_budget = False
        self._meter = meter or Meter()
        self._space = space
        self._directory = directory
        self._progress = progress
        # Fixed over a study, so any point tells it.
        self._epochs = space.config_for(space.first_point()).train.epochs
        self._halving = _build_halving(space, self._epochs)
        self._live: dict[str, LiveTrial] = {}
        self._keeper = CheckpointKeeper(space, self.trial_directory)
        # Before anything is written: the disk may be full.
        self.collect_checkpoints(trials)
        cut = self._replay(trials)
        finished, unfinished = self._close_ended(trials, cut)
        self._resuming = list(unfinished)
        self._suggestions = Suggestions(space, finished, unfinished)
        self._count = max((int(trial.id) for trial in trials), default=0)
        self._left = space.search.num_trials - len(trials)
        for trial in finished:
            progress.trial_updated(
                _update(trial.id, trial.state, trial.params, trial.results, trial.reason)
            )

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles all it is given into a file that nothing here reads; the plain files are the
        # record, and a live table cannot be pickled.
        return {}

    @property
    def remaining(self) -> int:
        """Trials still to be handed out, interrupted ones included."""
        return len(self._resuming) + max(0, self._left)

    def next_trial(self) -> LiveTrial | None:
        """The next trial to run, written down before it is handed out; None if there is none."""
        if self.halted or self.remaining == 0 or self._runs_out():
            return None
        suggestion = self._suggestions.ask()
        if suggestion is None:
            self._left = 0
            return None
        if self._resuming:
            old = self._resuming.pop(0)
            trial = LiveTrial(
                old.id, dict(old.params), suggestion.number, [dict(line) for line in old.results]
            )
        else:
            self._count += 1
            self._left -= 1
            trial = LiveTrial(f"{self._count:04d}", suggestion.params, suggestion.number)
            record = {
                "id": trial.id,
                "params": trial.params,
                "origin": suggestion.origin,
                "created": time.time(),
            }
            if not self._write(trial.id, "params.json", record):
                return None
        self._live[trial.id] = trial
        self._progress.trial_updated(_update(trial.id, "pending", trial.params, trial.results))
        return trial

    def started(self, trial_id: str) -> bool:
        """A trial's process is up; True if this is its last try.

        Nodes may come and go as often as they like while there is progress. A trial whose process
        dies again and again before it has finished an epoch is given up.
        """
        trial = self._live[trial_id]
        trial.starts += 1
        self._progress.trial_updated(_update(trial_id, "running", trial.params, trial.results))
        return trial.starts >= MAX_STARTS

    def trial_directory(self, trial_id: str) -> StoragePath:
        """Where a trial's files are."""
        return self._directory / "trials" / trial_id

    def report(self, trial_id: str, metrics: Mapping[str, Any]) -> bool:
        """Take one epoch's metrics; True if the trial is to end now: cut, or out of budget.

        An epoch that is known already (a trial that was restarted from its checkpoint repeats its
        last ones) changes nothing.
        """
        trial = self._live.get(trial_id)
        if trial is None:
            return False
        if trial.results and metrics["epoch"] <= trial.results[-1]["epoch"]:
            return False
        trial.results.append(dict(metrics))
        trial.starts = 0
        self._meter.add(metrics.get("seconds", 0.0))
        self._progress.trial_updated(_update(trial_id, "running", trial.params, trial.results))
        trial.cut = trial.cut or self._cuts(trial_id, metrics)
        goes_on = self._end_state(trial.results, trial.cut, None)[0] == "unfinished"
        return trial.cut or (goes_on and self._runs_out())

    def halt(self, reason: Exception) -> None:
        """Stop handing out trials and writing; the study stays restorable."""
        if self.halted is None:
            self.halted = reason

    def finish(self, trial_id: str, error: str | None = None) -> None:
        """Close a trial that has ended: tell Optuna, write its state, tell the user."""
        trial = self._live.pop(trial_id, None)
        if trial is None:
            return
        state, reason = self._end_state(trial.results, trial.cut, error)
        if state == "unfinished":
            self._progress.trial_updated(_update(trial_id, state, trial.params, trial.results))
            return
        self._suggestions.tell(trial.number, state, trial.results)
        self._close(trial_id, state, reason, trial.results)
        self._progress.trial_updated(_update(trial_id, state, trial.params, trial.results, reason))

    def collect_checkpoints(self, trials: Sequence[Trial] = ()) -> None:
        """Remove what is left of the checkpoints of trials that ended and lead by no rule.

        Args:
            trials: of earlier drivers; the unfinished ones keep theirs.
        """
        ended = [trial for trial in trials if trial.state != "unfinished"]
        removed = self._keeper.collect(ended)
        if removed:
            best = self._space.search.keep_checkpoints
            self._progress.message(
                f"removed the checkpoints of {removed} ended trial(s) that are not among the best "
                f"{best} by any rule (search.keep_checkpoints)"
            )

    def _end_state(
        self, results: Sequence[Mapping[str, Any]], cut: bool, error: str | None
    ) -> tuple[str, str]:
        epoch = int(results[-1]["epoch"]) if results else 0
        if error is not None:
            return "failed", error
        if results and results[-1].get("diverged"):
            return "diverged", f"diverged in epoch {epoch}"
        if epoch >= self._epochs:
            return "completed", f"all {self._epochs} epochs"
        if cut:
            return "stopped", f"cut by ASHA after epoch {epoch}"
        return "unfinished", ""

    def _runs_out(self) -> bool:
        """Whether the budget is spent; asked only when a trial would start or go on."""
        if not self._meter.is_spent():
            return False
        if not self.out_of_budget:
            self.out_of_budget = True
            self._progress.message(
                f"the budget of {self._space.search.budget} is spent: no trial starts any more, "
                "and those at work end with their epoch"
            )
        return True

    def _cuts(self, trial_id: str, metrics: Mapping[str, Any]) -> bool:
        objective = self._space.objectives[0]
        if self._halving is None or objective.metric not in metrics:
            return False
        value = float("nan") if metrics.get("diverged") else float(metrics[objective.metric])
        return self._halving.stops(trial_id, int(metrics["epoch"]), value)

    def _replay(self, trials: Sequence[Trial]) -> dict[str, int]:
        """Feed old reports to ASHA in the order in which they came; the epoch of each cut."""
        lines = [
            (line.get("timestamp", 0.0), trial.id, line)
            for trial in trials
            for line in trial.results
        ]
        cut: dict[str, int] = {}
        for _, trial_id, line in sorted(lines, key=lambda entry: (entry[0], entry[1])):
            if self._cuts(trial_id, line):
                cut[trial_id] = int(line["epoch"])
        return cut

    def _close_ended(
        self, trials: Sequence[Trial], cut: Mapping[str, int]
    ) -> tuple[list[Trial], list[Trial]]:
        """Split into finished and unfinished; write the states that the last driver could not."""
        finished, unfinished = [], []
        for trial in trials:
            if trial.state != "unfinished":
                finished.append(trial)
                continue
            # One with epochs beyond its cut went on: the order of the replay is not the true one.
            was_cut = cut.get(trial.id) == trial.epoch
            state, reason = self._end_state(trial.results, was_cut, None)
            if state == "unfinished":
                unfinished.append(trial)
            else:
                self._close(trial.id, state, reason, trial.results)
                finished.append(trial.with_state(state, reason))
        return finished, unfinished

    def _close(
        self, trial_id: str, state: str, reason: str, results: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write how a trial ended, then let go of the checkpoints that nobody needs any more."""
        record = {"state": state, "reason": reason, "timestamp": time.time()}
        if self._write(trial_id, "state.json", record):
            self._keeper.ended(Outcome(trial_id, state, results[-1] if results else {}))

    def _write(self, trial_id: str, name: str, record: Mapping[str, Any]) -> bool:
        """Write a trial's file; a full disk or an absent store halts the study."""
        if self.halted is not None:
            return False
        folder = self.trial_directory(trial_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, json.dumps(record, indent=1))
        except StorageError as error:
            self.halt(error)
            return False
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            self.halt(disk_full(str(self._directory)))
            return False
        return True


def disk_full(directory: str) -> OSError:
    """What halts a study on a full disk."""
    return OSError(errno.ENOSPC, f"no space left on the disk of {directory}", directory)


def _build_halving(space: SearchSpace, epochs: int) -> SuccessiveHalving | None:
    search = space.search
    if search.scheduler != "asha":
        return None
    mode = space.objectives[0].mode
    return SuccessiveHalving(epochs, search.grace_period, search.reduction_factor, mode)


def _update(
    trial_id: str,
    state: str,
    params: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    reason: str = "",
) -> TrialUpdate:
    last = results[-1] if results else {}
    return TrialUpdate(
        id=trial_id,
        state=state,
        epoch=int(last.get("epoch", 0)),
        metrics=dict(last),
        params=dict(params),
        reason=reason,
        seconds=cost_of(results),
    )
