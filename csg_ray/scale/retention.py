"""Removes the checkpoints that no selection rule will ask for, so that a study fits its disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from csg_ray.results.retention import BestTrials, retention_rules
from csg_ray.results.selection import Candidate
from csg_ray.search_space import SearchSpace
from csg_ray.storage.folders import in_parallel
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import THREADS, remove_checkpoint


class CheckpointKeeper:
    """Keeps the checkpoints of a study's best trials and removes those of all other ended ones.

    It is told of a trial once the trial's state is on the disk, never before: an unfinished trial
    is resumed from its checkpoint.

    Args:
        space: its selection rules, and `search.keep_checkpoints`.
        trial_directory: id -> where the trial's files are.
    """

    def __init__(self, space: SearchSpace, trial_directory: Callable[[str], StoragePath]) -> None:
        rules = retention_rules(space.objectives, space.score)
        self._best = BestTrials(rules, space.search.keep_checkpoints)
        self._trial_directory = trial_directory
        self._dropped: set[str] = set()

    def ended(self, trial: Candidate) -> None:
        """Take a trial that has ended; remove its checkpoint, or those that it displaced."""
        dropped = self._best.add(trial)
        self._dropped |= dropped
        for trial_id in dropped:
            remove_checkpoint(self._trial_directory(trial_id))

    def collect(self, trials: Iterable[Candidate] = ()) -> int:
        """Take more ended trials, then look once at every trial that has ended.

        That finds what a killed driver left, and what a trial's process wrote after its end.

        Returns:
            Trials whose checkpoint was there and is removed now.
        """
        for trial in trials:
            self._dropped |= self._best.add(trial)
        directories = [self._trial_directory(each) for each in sorted(self._dropped)]
        return sum(in_parallel(remove_checkpoint, directories, THREADS))
