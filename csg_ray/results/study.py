"""A study read from its plain files, while or after a search wrote them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csg_ray.config.data import measured_splits
from csg_ray.config.errors import UserError
from csg_ray.config.reader import read_yaml
from csg_ray.results.selection import (
    OBJECTIVE,
    Rule,
    Spearman,
    final_value,
    find_rule,
    objective_rule,
    rank,
    rules_for,
    spearman,
)
from csg_ray.search_space import SearchSpace, parse_search_space
from csg_ray.storage.folders import in_parallel, subfolders
from csg_ray.storage.paths import RemotePath, StoragePath, open_path
from csg_ray.storage.records import CHECKPOINT_FILE, read_json, read_results

STUDY_FORMAT = 1
FINAL_STATES = ("completed", "stopped", "diverged", "failed")
ENERGY = "target_val/hse"
THREADS = 16  # that read trials from a store


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Attributes:
        state: completed | stopped (by the scheduler) | diverged | failed | unfinished.
        origin: warm start | sampler | grid.
        results: the metrics of every finished epoch, in order.
        created: when it was handed out, in seconds since 1970.
    """

    id: str
    params: Mapping[str, Any]
    origin: str
    state: str
    reason: str
    results: tuple[Mapping[str, Any], ...]
    directory: StoragePath
    created: float = 0.0

    @property
    def last(self) -> Mapping[str, Any]:
        """Metrics of the last epoch; empty when there is none."""
        return self.results[-1] if self.results else {}

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return int(self.last.get("epoch", 0))

    @property
    def seconds(self) -> float | None:
        """What its recorded epochs have cost on each worker; None where that was not measured."""
        return cost_of(self.results)

    @property
    def checkpoint(self) -> StoragePath:
        """Where the newest checkpoint is, if it was kept."""
        return self.directory / CHECKPOINT_FILE

    def with_state(self, state: str, reason: str) -> Trial:
        """A copy in another state."""
        return replace(self, state=state, reason=reason)


@dataclass(frozen=True)
class Study:
    """One search: its space, its provenance, its trials in the order of their ids.

    Attributes:
        created: when it began, as ISO 8601; empty where that was not written down.
        budget_spent: when its budget ended the search, as ISO 8601; empty when it did not.
    """

    directory: StoragePath
    space: SearchSpace
    provenance: Mapping[str, Any]
    restores: tuple[Mapping[str, Any], ...]
    trials: tuple[Trial, ...]
    created: str = ""
    budget_spent: str = ""

    @property
    def name(self) -> str:
        """The name that the search-space file gave."""
        return self.space.study

    @property
    def budget_given(self) -> str:
        """Since when its budget counts, as ISO 8601: since a restore gave it, or from the start."""
        given = [str(restore["at"]) for restore in self.restores if restore.get("budget")]
        return given[-1] if given else self.created

    @property
    def published(self) -> Trial | None:
        """The first warm start: the published settings, when the file begins with them."""
        return next((trial for trial in self.trials if trial.origin == "warm start"), None)

    @property
    def default_rule(self) -> str:
        """The name of the rule that ranks by what the study searched for first of all."""
        return self.rule(OBJECTIVE).name

    @property
    def rules(self) -> dict[str, Rule]:
        """The selection rules of the study's task that have a split to rank by, by name."""
        measured = measured_splits(self.space.first_config().data)
        rules = rules_for(self.space.score)
        return {name: rule for name, rule in rules.items() if rule.split in measured}

    @property
    def score_metric(self) -> str:
        """The metric that its trials are compared by: accuracy or mIoU on target_val."""
        return f"target_val/{self.space.score}"

    def rule(self, name: str) -> Rule:
        """A selection rule: one of `rules`, or `objective`, the study's own.

        Raises:
            UserError: there is no such rule, or no split to rank by.
        """
        if name in rules_for(self.space.score) and name not in self.rules:
            raise UserError(
                f"study {self.directory} has no source_val to select by, since with data.protocol "
                f"published none is held out; use {' or '.join(self.rules)}"
            )
        if name != OBJECTIVE:
            return find_rule(name, self.rules)
        first = self.space.objectives[0]
        return objective_rule(first.metric, first.mode, self.rules)

    def refuse_unfinished(self) -> None:
        """Refuse to settle anything while a trial is under way.

        Where the budget ended the search, no more is coming unless somebody gives it more.

        Raises:
            UserError: a trial is unfinished.
        """
        unfinished = sum(trial.state == "unfinished" for trial in self.trials)
        if unfinished and not self.budget_spent:
            raise UserError(
                f"{unfinished} of {len(self.trials)} trials of study {self.directory} are "
                "unfinished, and one of them may win yet; restore the study with csg-ray restore "
                "first"
            )

    def trial(self, trial_id: str) -> Trial:
        """The trial called `trial_id`; leading zeros may be left out.

        Raises:
            UserError: there is no such trial.
        """
        for trial in self.trials:
            if trial.id.lstrip("0") == trial_id.lstrip("0"):
                return trial
        held = f"{self.trials[0].id} to {self.trials[-1].id}" if self.trials else "no trial yet"
        raise UserError(f"study {self.directory} has no trial '{trial_id}'; it holds {held}")

    def top(self, k: int, selection: str = "target_val") -> list[Trial]:
        """The best `k` completed trials by a selection rule, best first."""
        rule = self.rule(selection)
        return rank(self.trials, rule.metric, rule.mode)[:k]

    def best_trial(self, selection: str = "target_val") -> Trial | None:
        """The winner by a selection rule, at the last epoch of the full budget.

        Args:
            selection: target_val (accuracy), source_val (accuracy), hse (of target_val), or
                objective (what the study searched for).

        Returns:
            None when no trial has completed.
        """
        return next(iter(self.top(1, selection)), None)

    def energy_and_accuracy(self) -> Spearman | None:
        """How the target's energy and accuracy (or mIoU) go together over the completed trials."""
        pairs = [
            (energy, accuracy)
            for trial in self.trials
            if (energy := final_value(trial, ENERGY)) is not None
            and (accuracy := final_value(trial, self.score_metric)) is not None
        ]
        return spearman([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def cost_of(results: Iterable[Mapping[str, Any]]) -> float | None:
    """Seconds that the epochs on these lines have cost; None where that was not measured."""
    costs = [line.get("seconds") for line in results]
    return None if None in costs else float(sum(cost for cost in costs if cost is not None))


def is_study(path: StoragePath) -> bool:
    """Whether `path` is a study directory."""
    return (path / "study.yaml").is_file()


def load_study(path: str | StoragePath) -> Study:
    """Read a study from its directory or URI.

    Raises:
        UserError: `path` is not a study, cannot be read, or comes from a newer version.
    """
    directory = open_path(path)
    header = _read_header(directory)
    threads = THREADS if isinstance(directory, RemotePath) else 1
    trials = in_parallel(_read_trial, _trial_folders(directory), threads)
    found = [trial for trial in trials if trial is not None]
    return Study(
        directory=directory,
        space=parse_search_space(header["space"]),
        provenance=header["provenance"],
        restores=tuple(header.get("restores") or ()),
        trials=tuple(sorted(found, key=lambda trial: (len(trial.id), trial.id))),
        created=str(header.get("created", "")),
        budget_spent=str(header.get("budget_spent", "")),
    )


def _read_header(directory: StoragePath) -> dict[str, Any]:
    file = directory / "study.yaml"
    if isinstance(directory, Path) and _is_closed(directory):
        raise UserError(f"{directory} cannot be read: no permission")
    if not file.is_file():
        what = "holds no study.yaml" if directory.exists() else "does not exist"
        raise UserError(f"{directory} is not a study: it {what}")
    header = read_yaml(file)
    if not isinstance(header.get("format"), int):
        raise UserError(f"{file} is not the description of a study: it has no 'format' number")
    if header["format"] > STUDY_FORMAT:
        raise UserError(
            f"{directory} was written by a newer csg_ray {header.get('csg_ray')} (format "
            f"{header['format']}, this one reads {STUDY_FORMAT}); update csg_ray to read it"
        )
    for key in ("space", "provenance"):
        if not isinstance(header.get(key), dict):
            raise UserError(f"{file} is not the description of a study: it has no '{key}'")
    return header


def _is_closed(directory: Path) -> bool:
    return directory.is_dir() and not os.access(directory, os.R_OK | os.X_OK)


def _trial_folders(directory: StoragePath) -> list[StoragePath]:
    trials = directory / "trials"
    try:
        return subfolders(trials)
    except OSError as error:
        raise UserError(f"{trials} cannot be read: {error.strerror}") from None


def _read_trial(folder: StoragePath) -> Trial | None:
    # The state first: a driver writes it last, so the epochs read after it are all there.
    state = _read_json(folder / "state.json") or {}
    try:
        results = read_results(folder)
    except OSError as error:
        raise UserError(f"the results in {folder} cannot be read: {error.strerror}") from None
    params = _read_json(folder / "params.json")
    if params is None or not {"id", "params", "origin"} <= params.keys():
        if results:
            raise UserError(
                f"{folder} holds results, but its params.json is missing or damaged; "
                "bring that file back from a copy, or remove the folder"
            )
        return None
    return Trial(
        id=str(params["id"]),
        params=params["params"],
        origin=str(params["origin"]),
        state=_known_state(state.get("state", "unfinished"), folder),
        reason=str(state.get("reason", "")),
        results=tuple(results),
        directory=folder,
        created=float(params.get("created", 0.0)),
    )


def _known_state(state: str, folder: StoragePath) -> str:
    if state not in (*FINAL_STATES, "unfinished"):
        raise UserError(f"{folder}/state.json has the unknown state '{state}'; update csg_ray")
    return state


def _read_json(path: StoragePath) -> dict[str, Any] | None:
    """The object in a file; None when it is missing or torn."""
    try:
        value = read_json(path)
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return value if isinstance(value, dict) else None
