"""Which trained models a figure shows: runs, trials of studies, and the picks of studies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from csg_ray.config.errors import UserError
from csg_ray.config.load import load_config
from csg_ray.config.reader import read_yaml
from csg_ray.config.run import RunConfig
from csg_ray.results.comparison import name_places
from csg_ray.results.ended import DATA_HASH
from csg_ray.results.export import export_behind, selected_with_target_labels
from csg_ray.results.selection import OBJECTIVE
from csg_ray.results.study import Study, Trial, is_study, load_study
from csg_ray.storage.paths import RemotePath, StoragePath, open_path
from csg_ray.storage.records import CHECKPOINT_FILE, read_results

_TRIAL_OF_STUDY = re.compile(r"(.*):(\d+)")


@dataclass(frozen=True)
class TrainedModel:
    """A run, or a trial of a study, and what its checkpoint holds.

    Attributes:
        given: the place as the user wrote it.
        directory: of the run or the trial.
        state: what `load_checkpoint` returned.
        selected_with_target_labels: whether target labels had a hand in the pick of it, or in the
            settings of a run.
        data_sha256: of all splits as they were in training; None where it is not known.
    """

    given: str
    config: RunConfig
    directory: StoragePath
    state: Mapping[str, Any] = field(repr=False)
    selected_with_target_labels: bool
    data_sha256: str | None = None

    @property
    def epoch(self) -> int:
        """The finished epochs, of `config.train.epochs`."""
        return int(self.state["epoch"])

    @property
    def repeats(self) -> int:
        """How many trainings the checkpoint holds; the first of them is drawn."""
        return len(self.state["repeats"])


def find_models(places: Sequence[str]) -> list[TrainedModel]:
    """The models that the user named, in order.

    Args:
        places: runs; studies, of which the winner by their own objective is taken; STUDY:ID for a
            trial by its id.

    Raises:
        UserError: neither a run nor a study, twice the same, nothing finished, diverged, without
            its checkpoint, or tasks that differ.
    """
    models: list[TrainedModel] = []
    for place in places:
        model = _find(place)
        _refuse_twice(model, models)
        _refuse_other_task(model, models)
        models.append(model)
    return models


def short_names(models: Sequence[TrainedModel]) -> list[str]:
    """Where each model comes from, as short as tells them apart: `runs/best`, `digits/0003`."""
    places = [_whole_name(model.directory) for model in models]
    names = name_places(places)
    return [names[place] for place in places]


def _whole_name(directory: StoragePath) -> str:
    if isinstance(directory, RemotePath):  # without the options of the connection
        return f"{directory.bucket}/{directory.key}"
    return str(directory.resolve())


def _find(given: str) -> TrainedModel:
    place = open_path(given)
    named = _TRIAL_OF_STUDY.fullmatch(place.name)
    if named is not None and not place.exists():
        folder, trial_id = named.groups()
        study = load_study(place.parent / folder if folder else place.parent)
        return _trial_model(given, study, study.trial(trial_id), None)
    if is_study(place):
        study = load_study(place)
        return _trial_model(given, study, _winner(study), OBJECTIVE)
    if (place / "run.yaml").is_file():
        return _run_model(given, place)
    what = "holds neither study.yaml nor run.yaml" if place.exists() else "does not exist"
    raise UserError(
        f"{given} is neither a study nor a run: it {what}; give a directory that csg-ray search or "
        "csg-ray train made, or STUDY:ID for a trial"
    )


def _winner(study: Study) -> Trial:
    winner = study.best_trial(OBJECTIVE)
    if winner is None:
        raise UserError(
            f"no trial of study {study.directory} has completed, so there is nothing to draw; "
            f"continue it with csg-ray restore, or name a trial as {study.directory}:ID"
        )
    return winner


def _trial_model(given: str, study: Study, trial: Trial, rule: str | None) -> TrainedModel:
    _refuse_unusable(f"trial {trial.id} of {study.directory}", trial.results, trial.state)
    if not trial.checkpoint.is_file():
        raise UserError(
            f"the checkpoint of trial {trial.id} of {study.directory} was not kept; name one of "
            f"the best trials, or csg-ray export it with --trial {trial.id}, train it and draw "
            "its run"
        )
    config = study.space.config_for(dict(trial.params))
    searched = {*study.space.space, *study.space.branch_paths()}
    same_data = not any(path.startswith("data.") for path in searched)
    return TrainedModel(
        given=given,
        config=config,
        directory=trial.directory,
        state=_load_state(trial.checkpoint, config),
        selected_with_target_labels=selected_with_target_labels(study, rule),
        data_sha256=study.provenance.get(DATA_HASH) if same_data else None,
    )


def _run_model(given: str, directory: StoragePath) -> TrainedModel:
    config = load_config(directory / "run.yaml")
    _refuse_unusable(f"run {given}", read_results(directory), "")
    provenance = read_yaml(directory / "run.yaml").get("provenance") or {}
    exported = export_behind(provenance)
    checkpoint = directory / CHECKPOINT_FILE
    if not checkpoint.is_file():
        raise UserError(
            f"the checkpoint of run {given} is missing: {checkpoint} does not exist; bring it back "
            "from a copy, or train the run again"
        )
    return TrainedModel(
        given=given,
        config=config,
        directory=directory,
        state=_load_state(checkpoint, config),
        selected_with_target_labels=bool(exported.get("selected with target labels", False)),
        data_sha256=provenance.get(DATA_HASH),
    )


def _refuse_unusable(what: str, results: Sequence[Mapping[str, Any]], state: str) -> None:
    if not results:
        raise UserError(
            f"{what} has no finished epoch, so there is nothing to draw; "
            "continue it with csg-ray restore first"
        )
    if state == "diverged" or results[-1].get("diverged"):
        raise UserError(
            f"{what} diverged in epoch {int(results[-1]['epoch'])}, so there is nothing to draw; "
            "leave it out"
        )


def _load_state(checkpoint: StoragePath, config: RunConfig) -> dict[str, Any]:
    # Loads torch, and a wrong directory is told without it.
    from csg_ray.storage.checkpoint import config_differences, load_checkpoint

    state = load_checkpoint(checkpoint)
    if differences := config_differences(state["config"], config):
        raise UserError(
            f"{checkpoint} is a checkpoint of another training ({'; '.join(differences)}); "
            "put the right one back"
        )
    return state


def _refuse_twice(model: TrainedModel, others: Sequence[TrainedModel]) -> None:
    for other in others:
        if model.directory.resolve() != other.directory.resolve():
            continue
        if model.given == other.given:
            raise UserError(f"{model.given} is given twice; leave one out")
        raise UserError(f"{other.given} and {model.given} are the same training; leave one out")


def _refuse_other_task(model: TrainedModel, others: Sequence[TrainedModel]) -> None:
    for other in others[:1]:
        task, wanted = model.config.data.task, other.config.data.task
        if task != wanted:
            raise UserError(
                f"{other.given} is a task of {wanted} and {model.given} one of {task}, which see "
                "different things in an image; put them into two calls"
            )
