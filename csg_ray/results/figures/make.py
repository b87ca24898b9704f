"""From trained models to a folder of figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from matplotlib.figure import Figure

from csg_ray.config.errors import UserError
from csg_ray.config.run import RunConfig
from csg_ray.data.load import load_splits
from csg_ray.methods.base import Method
from csg_ray.results.figures.densities import draw_features
from csg_ray.results.figures.images import ShownImage, choose_images, read_images
from csg_ray.results.figures.models import TrainedModel, short_names
from csg_ray.results.figures.observe import ModelName, Observation, observe
from csg_ray.results.figures.panels import draw_attention, draw_grad_cam, draw_segmentation
from csg_ray.results.figures.style import figure_style
from csg_ray.storage.folders import whole_folder
from csg_ray.training.evaluate import load_trained

FileFormat = Literal["png", "svg"]
_DOTS_PER_INCH = 200


@dataclass(frozen=True)
class Observed:
    """What all models make of the same images.

    Attributes:
        references: the encoders before any training, one for each that the models started from.
        models: in the order in which they were given.
        images: those of target_val of the first model that are shown.
    """

    references: tuple[Observation, ...]
    models: tuple[Observation, ...]
    images: tuple[ShownImage, ...]
    class_names: tuple[str, ...]


def observe_models(
    models: Sequence[TrainedModel], num_images: int, on_progress: Callable[[str], None]
) -> Observed:
    """Run all models over target_val of the first one.

    Only target_val is read, never target_test.

    Args:
        models: at least one, all of one task.
        num_images: to look at closely, at most.
        on_progress: told what is being looked at.

    Raises:
        UserError: classes that differ, data or weights that cannot be had or have changed.
    """
    splits = [load_splits(model.config.data) for model in models]
    for model, own in zip(models, splits, strict=True):
        _check_classes(models[0], splits[0].class_names, model, own.class_names)
        if model.data_sha256 not in (None, own.fingerprint):
            raise UserError(
                f"the data of {model.given} have changed since it was trained; bring the former "
                "data back"
            )
    split, names = splits[0].target_val, splits[0].class_names
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    indices = choose_images(split, num_images)

    def look(name: ModelName, method: Method, config: RunConfig, trained: bool) -> Observation:
        where = f"{name.method} {name.place}".rstrip()
        on_progress(f"{where}: {len(split)} images of target_val")
        return observe(name, method.to(device), config, split, indices, trained)

    references = tuple(
        look(_reference_name(config), Method(config, len(names), 1), config, trained=False)
        for config in _starts(models)
    )
    observed = []
    for model, own, place in zip(models, splits, short_names(models), strict=True):
        # Of several repeats the first one.
        state = {**model.state, "repeats": model.state["repeats"][:1]}
        (method,) = load_trained(model.config, own, state, device)
        name = ModelName(model.config.method.name, place)
        observed.append(look(name, method, model.config, trained=True))
    images = read_images(split, indices, models[0].config)
    return Observed(references, tuple(observed), tuple(images), names)


def draw(observed: Observed, task: str, remarks: Sequence[str]) -> dict[str, Figure]:
    """The figures by name; `remarks` stand below each."""
    images, names = observed.images, observed.class_names
    everyone = (*observed.references, *observed.models)
    figures = {
        "features": draw_features(everyone, remarks),
        "attention": draw_attention(images, names, everyone, remarks),
    }
    if task == "classification":
        return figures | {"grad_cam": draw_grad_cam(images, names, observed.models, remarks)}
    rows = [
        (each.name, each.task.score, each.task.predictions)
        for each in observed.models
        if each.task is not None
    ]
    return figures | {"segmentation": draw_segmentation(images, names, rows, remarks)}


def write_figures(
    observed: Observed, task: str, remarks: Sequence[str], out: Path, file_format: FileFormat
) -> list[str]:
    """Draw into a new folder, all figures or none.

    Returns:
        The names of the files.
    """
    with whole_folder(out) as folder, figure_style():
        for name, figure in draw(observed, task, remarks).items():
            save_figure(figure, folder / f"{name}.{file_format}")
        return sorted(path.name for path in folder.iterdir())


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's ending; equal figures are equal files."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, dpi=_DOTS_PER_INCH, facecolor="white", metadata=metadata)


def _check_classes(
    first: TrainedModel, wanted: tuple[str, ...], other: TrainedModel, names: tuple[str, ...]
) -> None:
    if names == wanted:
        return
    differ = f"{len(names)} and {len(wanted)} of them"
    if len(names) == len(wanted):
        pairs = zip(names, wanted, strict=True)
        differ = "'{}' and '{}'".format(*next(pair for pair in pairs if pair[0] != pair[1]))
    raise UserError(
        f"{other.given} and {first.given} have other classes ({differ}), so they cannot be shown "
        "the same images; put them into two calls"
    )


def _starts(models: Sequence[TrainedModel]) -> list[RunConfig]:
    """A configuration for each encoder that the models started from."""
    starts: dict[tuple[str, ...], RunConfig] = {}
    for model in models:
        encoder = model.config.model
        key: tuple[str, ...] = (encoder.name, encoder.weights, encoder.norm)
        if encoder.weights == "none":  # drawn by its seed
            key = (*key, str(model.config.seed))
        starts.setdefault(key, model.config)
    return list(starts.values())


def _reference_name(config: RunConfig) -> ModelName:
    encoder = config.model
    kind = encoder.name if encoder.norm == "batch" else f"{encoder.name} {encoder.norm}"
    return ModelName("reference encoder", f"{kind}, weights {Path(encoder.weights).name}")
