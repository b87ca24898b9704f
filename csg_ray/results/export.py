"""The deliverable of a search: a trial's run config, with where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from csg_ray.config.errors import UserError
from csg_ray.config.load import config_to_mapping
from csg_ray.config.reader import dump_yaml
from csg_ray.results.cost import study_cost
from csg_ray.results.selection import OBJECTIVE, needs_target_labels
from csg_ray.results.study import Study, Trial
from csg_ray.storage.folders import check_writable
from csg_ray.storage.paths import RemotePath, StoragePath
from csg_ray.storage.records import write_atomically

CHOSEN_BY_ID = "chosen by id"

Place = TypeVar("Place", Path, RemotePath, StoragePath)


def export_config(study: Study, trial: Trial, selection: str | None = None) -> dict[str, Any]:
    """A trial as a plain run config that `csg_ray.config.load_config` reads, plus `provenance`.

    Args:
        study: holds the trial.
        trial: with at least one finished epoch.
        selection: the rule that picked the trial; None: the user did, by its id.

    Returns:
        The sections of the run config in their order, `provenance` last; plain types only.
    """
    config = study.space.config_for(dict(trial.params))
    origin = {
        "study": study.name,
        "study_directory": str(study.directory.resolve()),
        "trial": trial.id,
        "state": trial.state,
        "selection": selection or CHOSEN_BY_ID,
        "selected with target labels": selected_with_target_labels(study, selection),
        "metrics": {key: trial.last[key] for key in sorted(trial.last) if key != "timestamp"},
        "seed": config.seed,
        "repeats": study.space.search.repeats,
        "cost": {"trial_seconds": trial.seconds, "search": _search_cost(study)},
    }
    provenance = origin | dict(study.provenance)
    if config.notes:
        provenance["notes"] = list(config.notes)
    if selection == OBJECTIVE:
        provenance["objective"] = study.rule(OBJECTIVE).meaning
    if study.restores:
        # The versions above are those of the first day; these trials may have seen others.
        provenance["restores"] = [dict(restore) for restore in study.restores]
    return config_to_mapping(config) | {"provenance": provenance}


def _search_cost(study: Study) -> dict[str, float] | None:
    cost = study_cost(study)
    return None if cost is None else asdict(cost)


def selected_with_target_labels(study: Study, selection: str | None) -> bool:
    """Whether target labels had a hand in a pick: in the rule, or in what steered the search.

    A pick by id counts as one: whoever made it could read the accuracies on target_val.
    """
    if selection is None or study.rule(selection).uses_target_labels:
        return True
    search = study.space.search
    steered = search.sampler in ("tpe", "nsga2") or search.scheduler == "asha"
    return steered and any(needs_target_labels(goal.metric) for goal in study.space.objectives)


def export_behind(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the export of a run's config wrote, also when it was that of another run; else empty."""
    exported = provenance.get("exported")
    if not isinstance(exported, dict):
        return {}
    return export_behind(exported) if "exported" in exported else exported


def write_config(mapping: Mapping[str, Any], path: StoragePath) -> None:
    """Write a run config as YAML, whole or not at all.

    Raises:
        UserError: `path` exists, or its folder is missing or refuses to be written to.
    """
    check_new_file(path)
    write_atomically(path, dump_yaml(dict(mapping)))


def check_new_file(path: StoragePath) -> None:
    """Refuse a path that exists or whose folder cannot be written to, before any work is done."""
    if _is_taken(path):
        raise UserError(f"{path} exists and is not overwritten; choose another name or remove it")
    if isinstance(path, Path) and not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: the folder {path.parent} does not exist")
    check_writable(path.parent)


def first_free(path: Place) -> Place:
    """`path`, or the first of NAME-2, NAME-3, ... (before .yaml) that does not exist yet."""
    suffix = ".yaml" if path.suffix == ".yaml" else ""
    candidate, number = path, 1
    while _is_taken(candidate):
        number += 1
        candidate = path.with_name(f"{path.name.removesuffix(suffix)}-{number}{suffix}")
    return candidate


def _is_taken(path: StoragePath) -> bool:
    return path.exists() or (isinstance(path, Path) and path.is_symlink())


def check_new_directory(path: StoragePath) -> None:
    """Refuse a directory that could not be made, before any work is done."""
    if isinstance(path, RemotePath):
        check_writable(path.parent)
        return
    parents = path.absolute().parents
    above = next(folder for folder in parents if folder.exists() or folder.is_symlink())
    if not above.is_dir():
        what = "a file" if above.exists() else "a link to nowhere"
        raise UserError(f"{path} cannot be made: {above} is {what}")
    check_writable(above)
