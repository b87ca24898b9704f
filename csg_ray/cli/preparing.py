"""`pack`, and the images that other commands decode on first use: what is read, with a bar."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from csg_ray.cli.board import describe_bytes
from csg_ray.cli.guard import say
from csg_ray.config.data import DataConfig, FilesConfig
from csg_ray.config.errors import UserError
from csg_ray.config.load import load_config, override_config
from csg_ray.config.methods import DRPCConfig, SelfTrainingConfig
from csg_ray.config.reader import read_yaml
from csg_ray.config.run import RunConfig
from csg_ray.search_space import SearchSpace, drawn_configs, load_search_space, parse_override

if TYPE_CHECKING:
    from csg_ray.data.file_splits import Images, SplitFiles
    from csg_ray.data.splits import DomainSplits

NAMED = 3  # of the images that are left out
STEPS_SAID = 10  # lines for a split where there is no terminal


def prepare_study(space: SearchSpace) -> None:
    """Load whatever a study may draw of its task's settings, as `prepare_run` does."""
    for config in searched_data(space):
        prepare_data(config)
    check_other_files(space)


def check_other_files(space: SearchSpace) -> None:
    """Refuse files beside the data that some trial could not use: starts, styles, photographs."""
    seen = set()
    for config in drawn_configs(space, "evaluation.", "method.start", "method.styles"):
        files = config.evaluation.reference_images, config.method
        if files not in seen:
            seen.add(files)
            _check_reference_images(config)
            _check_start(config)
            _check_styles(config)


def prepare_run(config: RunConfig, begun: bool = False) -> None:
    """Load a run's data, so that whatever is wrong with them shows before anything starts.

    Args:
        config: of the run.
        begun: it has a checkpoint to go on from, and so needs nothing to start from.
    """
    prepare_data(config.data)
    _check_reference_images(config)
    _check_styles(config)
    if not begun:
        _check_start(config)


def _check_start(config: RunConfig) -> None:
    from csg_ray.data.load import load_splits
    from csg_ray.methods.start import load_start

    if isinstance(config.method, SelfTrainingConfig):
        load_start(config.method.start, config, len(load_splits(config.data).class_names))


def _check_styles(config: RunConfig) -> None:
    from csg_ray.data.load import load_splits
    from csg_ray.data.styled import open_styles

    if isinstance(config.method, DRPCConfig):
        source = load_splits(config.data).source_train
        open_styles(source, config.method.styles, config.method.copies)


def _check_reference_images(config: RunConfig) -> None:
    from csg_ray.data.reference_images import check_reference_classes, load_reference_images
    from csg_ray.models.resnet import IMAGENET_CLASSES, MINI_CLASSES

    if config.evaluation.reference_images is None:
        return
    images = load_reference_images(config.evaluation.reference_images)
    # The classes of other weights are known when a training reads them.
    known = {"bundled": MINI_CLASSES, "imagenet": IMAGENET_CLASSES}
    if config.model.weights in known:
        check_reference_classes(images, known[config.model.weights], config.model)


def searched_data(space: SearchSpace) -> list[DataConfig]:
    """The settings of the task that a study may draw, by their ends; the first point's first."""
    drawn = (config.data for config in drawn_configs(space, "data."))
    return list(dict.fromkeys((space.first_config().data, *drawn)))


def prepare_data(config: DataConfig) -> None:
    """Load a task's splits, decoded into the cache where they are files."""
    from csg_ray.data.checking import check_files
    from csg_ray.data.load import list_files, load_splits

    if isinstance(config, FilesConfig):
        task = list_files(config)
        check_files(task, config)
        # target_test is decoded when it is opened.
        _decode([split for split in task.in_order() if split[0] != "target_test"], config)
        _say_left_out(load_splits(config))
    load_splits(config)


def _say_left_out(splits: DomainSplits) -> None:
    from csg_ray.data.file_splits import FileSceneSplit, FileSplit

    for split in (splits.source_train, splits.source_val, splits.target_train, splits.target_val):
        if isinstance(split, FileSplit | FileSceneSplit) and split.left_out:
            more = ", ..." if len(split.left_out) > NAMED else ""
            say(
                f"note: {len(split.left_out)} images of {split.name} cannot be read and are left "
                f"out ({', '.join(split.left_out[:NAMED])}{more})"
            )


def pack_files(file: Path, settings: list[str]) -> None:
    """Decode every split of the task that a search space or a run config names.

    Args:
        file: of either kind.
        settings: `path=value` words that change it.
    """
    for config in _data_of(file, parse_settings(settings)):
        if not isinstance(config, FilesConfig):
            raise UserError(f"{file}: data.name {config.name} is made on the spot; nothing to pack")
        if config.cache == "off":
            raise UserError(f"{file}: data.cache is off; name a folder, or set it to auto")
        _pack(config)


def _pack(config: FilesConfig) -> None:
    from csg_ray.data.checking import check_files
    from csg_ray.data.file_splits import name_left_out
    from csg_ray.data.load import list_files
    from csg_ray.data.packed_images import PackedImages

    task = list_files(config)
    check_files(task, config)
    decoded = _decode(task.in_order(), config)
    for (name, split), images in zip(task.in_order(), decoded, strict=True):
        assert isinstance(images, PackedImages)  # since the cache is not off
        size = describe_bytes(images.path.stat().st_size)
        left_out = f", {len(images.left_out)} left out" if images.left_out else ""
        print(f"{name:>12}  {len(images.kept)} images{left_out}, {size} in {images.path}")
        for reason in name_left_out(split, images):
            print(f"{'left out':>12}  {reason}")


def _decode(splits: list[tuple[str, SplitFiles]], config: FilesConfig) -> list[Images]:
    """Decode into the cache what is not there yet, and show how far it is."""
    from csg_ray.data.file_splits import decode

    with PackingDisplay() as display:
        return [decode(split, config, partial(display.show, name)) for name, split in splits]


def _data_of(file: Path, overrides: dict[str, Any]) -> list[DataConfig]:
    if "space" in read_yaml(file):
        return searched_data(load_search_space(file, overrides))
    return [override_config(load_config(file), overrides).data]


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """`path=value` words as a mapping; values as in YAML.

    Raises:
        UserError: no `=`, no path, the same path twice, or a value that is not YAML.
    """
    overrides: dict[str, Any] = {}
    for word in settings:
        path, value = parse_override(word)
        if path in overrides:
            raise UserError(f"--set {path} is given twice; keep one")
        overrides[path] = value
    return overrides


class PackingDisplay:
    """A bar for each split on a terminal, some lines everywhere else, nothing if all is there."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._said: dict[str, int] = {}

    def __enter__(self) -> PackingDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, name: str, done: int, total: int) -> None:
        """So many files of a split are decoded."""
        if not sys.stdout.isatty():
            self._say(name, done, total)
            return
        if self._bars is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

            self._bars = Progress(
                "decoding {task.description}",
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                refresh_per_second=2,
            )
            self._bars.start()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done)

    def _say(self, name: str, done: int, total: int) -> None:
        step = STEPS_SAID * done // total
        if step > self._said.get(name, 0):
            self._said[name] = step
            say(f"decoding {name}: {done}/{total} images")
