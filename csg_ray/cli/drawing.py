"""`figures`: what trained models see, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from csg_ray.cli.guard import say
from csg_ray.cli.summary import STAMP, print_notes
from csg_ray.config.errors import UserError
from csg_ray.results.export import check_new_directory, first_free
from csg_ray.results.figures.models import TrainedModel, find_models, short_names
from csg_ray.results.selection import SCORE_NAMES
from csg_ray.storage.paths import RemotePath, StoragePath

if TYPE_CHECKING:
    from csg_ray.results.figures.make import FileFormat, Observed

DEFAULT_FOLDER = Path("figures")


def draw_figures(
    places: Sequence[str], out: StoragePath | None, num_images: int, file_format: FileFormat
) -> None:
    """Draw the figures of runs and studies into a new folder: `out`, or a free name here."""
    folder = first_free(DEFAULT_FOLDER) if out is None else _checked(out)
    models = find_models(places)
    # Torch and matplotlib take seconds, and a wrong directory is told without them.
    from csg_ray.results.figures.make import observe_models, write_figures

    observed = observe_models(models, num_images, say)
    task = models[0].config.data.task
    files = write_figures(observed, task, describe(models), folder, file_format)
    _print_scores(observed, models)
    for remark in remarks(models):
        print(remark)
    print_notes(_notes(models))
    print(f"written to {folder}: {', '.join(files)}")


def _checked(out: StoragePath) -> Path:
    if isinstance(out, RemotePath):
        raise UserError(f"{out} is a URI, and figures go into a folder here; give a local --out")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists and is not overwritten; choose another name")
    check_new_directory(out)
    return out


def describe(models: Sequence[TrainedModel]) -> list[str]:
    """What the small print below each figure says."""
    data = models[0].config.data.name
    return [f"Images: target_val of {data}.", *remarks(models), *_notes(models)]


def remarks(models: Sequence[TrainedModel]) -> list[str]:
    """What has to be said about each model besides its name."""
    told = []
    for model, place in zip(models, short_names(models), strict=True):
        epochs = model.config.train.epochs
        about = []
        if model.epoch < epochs:
            about.append(f"after {model.epoch} of {epochs} epochs")
        if model.repeats > 1:
            about.append(f"the first of {model.repeats} repeats")
        if model.selected_with_target_labels:
            about.append(STAMP)
        if about:
            told.append(f"{model.config.method.name} {place}: {', '.join(about)}")
    return told


def _notes(models: Sequence[TrainedModel]) -> list[str]:
    return list(dict.fromkeys(note for model in models for note in model.config.notes))


def _print_scores(observed: Observed, models: Sequence[TrainedModel]) -> None:
    word = SCORE_NAMES[models[0].config.score]
    for each in (*observed.references, *observed.models):
        score = f", {word} {each.task.score:.3f}" if each.task is not None else ""
        print(f"{each.name.method} ({each.name.place}): HSE {each.energy:.3f}{score}")
