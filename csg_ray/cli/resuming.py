"""`search --resume`: the same command starts a study and goes on with it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from csg_ray.cli.guard import say
from csg_ray.cli.searching import (
    CHECKING,
    load_space,
    refuse_missing_trackers,
    restore,
    run_search,
)
from csg_ray.cli.summary import summarise
from csg_ray.config.errors import UserError
from csg_ray.config.explain import shown
from csg_ray.results.study import is_study, load_study
from csg_ray.search_space import Changes, SearchSpace
from csg_ray.storage.paths import StoragePath

RETRY_SECONDS = 5.0
_MAY_CHANGE = ("search.num_trials", "search.budget", "search.fuse")


def search_or_resume(
    space_file: Path,
    trials: int | None,
    settings: list[str],
    study: StoragePath | None,
    base: StoragePath,
    verbose: bool,
    log_to: Sequence[str] = (),
) -> None:
    """Search in `study` (`base`/studies/NAME unless given), or go on with what is there.

    A launcher that restarts its job (Slurm, Kubernetes, a second `ray job submit`) can so run one
    command. More trials in the file than the study has are added to it, and another budget than
    the study's is a new one, from now on; one that is spent leaves nothing to do. Another
    `search.fuse` holds from now on, too.

    Raises:
        UserError: the study there was begun with other settings, or somebody is at work in it.
    """
    refuse_missing_trackers(log_to)
    space = load_space(space_file, trials, settings).with_absolute_paths()
    directory = study or base / "studies" / space.study
    if not is_study(directory):
        run_search(space_file, trials, settings, directory, base, verbose, log_to)
        return
    there = load_study(directory)
    begun = there.space.with_absolute_paths()
    _refuse_difference(space_file, space, directory, begun)
    more = max(0, space.search.num_trials - begun.search.num_trials)
    budget = space.search.budget if space.search.budget != begun.search.budget else None
    if there.budget_spent and budget is None:
        summarise(there)
        return
    changes = Changes(more, budget, space.search.fuse)
    _continue_when_free(directory, changes, verbose, log_to)


def _continue_when_free(
    directory: StoragePath, changes: Changes, verbose: bool, log_to: Sequence[str]
) -> None:
    """Go on once the lock of a driver that died on another host has gone stale."""
    from csg_ray.scale.lock import HEARTBEAT_SECONDS, STALE_SECONDS, BeingRunError

    give_up = time.monotonic() + STALE_SECONDS + HEARTBEAT_SECONDS
    told = False
    say(CHECKING)
    while True:
        try:
            restore(directory, changes, verbose, log_to)
        except BeingRunError as busy:
            if time.monotonic() > give_up:
                raise
            if not told:
                say(f"{busy}; waiting {give_up - time.monotonic():.0f} s, in case it is dead")
                told = True
            time.sleep(RETRY_SECONDS)
        else:
            return


def _refuse_difference(
    space_file: Path, space: SearchSpace, directory: StoragePath, begun: SearchSpace
) -> None:
    wanted, there = (dict(_leaves(each.to_mapping())) for each in (space, begun))
    for path in sorted(wanted.keys() | there.keys()):
        if path not in _MAY_CHANGE and wanted.get(path) != there.get(path):
            raise UserError(
                f"{path} is {shown(wanted.get(path))} in {space_file}, but study {directory} was "
                f"begun with {shown(there.get(path))}; set it back, or give another --study"
            )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that is not a mapping."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))
