"""`search`, `check`, `restore` of a study, and how they end."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from csg_ray.cli.board import describe_bytes
from csg_ray.cli.console import watch_search
from csg_ray.cli.guard import command, continued_by, say
from csg_ray.cli.preparing import (
    check_other_files,
    parse_settings,
    prepare_study,
    searched_data,
)
from csg_ray.cli.summary import print_notes, summarise
from csg_ray.config.data import DataConfig, FilesConfig
from csg_ray.config.errors import UserError
from csg_ray.results.export import check_new_directory, first_free
from csg_ray.results.study import load_study
from csg_ray.search_space import Changes, SearchSpace, load_search_space
from csg_ray.storage.paths import StoragePath

if TYPE_CHECKING:
    from csg_ray.data.file_splits import TaskFiles
    from csg_ray.scale.cluster import Cluster
    from csg_ray.scale.resources import Plan

CHECKING = "checking data and weights, then starting Ray ..."


def run_search(
    space_file: Path,
    trials: int | None,
    settings: list[str],
    study: StoragePath | None,
    base: StoragePath,
    verbose: bool,
    log_to: Sequence[str] = (),
) -> None:
    """Search in a new directory - `study`, or a free name in `base`/studies -, then sum up."""
    refuse_missing_trackers(log_to)
    space = load_space(space_file, trials, settings).with_absolute_paths()
    default = base / "studies" / space.study
    directory = study or first_free(default)
    if directory.exists():
        raise _taken(directory)
    check_new_directory(directory)
    say(CHECKING)
    with continued_by(directory, "study.yaml"):
        prepare_study(space)
    while not _search_in(directory, space, verbose, log_to):
        if study is not None:
            raise _taken(directory)
        directory = first_free(default)
    summarise(load_study(directory))


def _search_in(
    directory: StoragePath, space: SearchSpace, verbose: bool, log_to: Sequence[str]
) -> bool:
    """Search in a new directory; False when another search has made it since it was chosen."""
    from csg_ray.scale.tuner import run_study

    try:
        with continued_by(directory, "study.yaml"):
            run_study(space, directory, watch_search(verbose), verbose, log_to)
    except FileExistsError as error:
        if error.filename != str(directory) or not directory.exists():
            raise
        return False
    return True


def _taken(directory: StoragePath) -> UserError:
    return UserError(
        f"{directory} exists; continue it with '{command('restore', directory)}', "
        "or choose another name with --study"
    )


def refuse_missing_trackers(names: Sequence[str]) -> None:
    """Refuse, before anything is written, to log to what is not installed.

    Raises:
        UserError: says how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"there is no {name} here; install it with: pip install 'csg-ray[{name}]'"
            )


def continue_study(
    directory: StoragePath,
    changes: Changes,
    verbose: bool,
    log_to: Sequence[str] = (),
) -> None:
    """Go on with a study, then sum up."""
    refuse_missing_trackers(log_to)
    changes.applied_to(load_study(directory).space)
    say(CHECKING)
    restore(directory, changes, verbose, log_to)


def restore(
    directory: StoragePath, changes: Changes, verbose: bool, log_to: Sequence[str] = ()
) -> None:
    """Go on with a study that was looked at, then sum up."""
    from csg_ray.scale.tuner import restore_study

    with continued_by(directory, "study.yaml"):
        prepare_study(load_study(directory).space)
        restore_study(directory, changes, watch_search(verbose), verbose, log_to)
    summarise(load_study(directory))


def show_plan(space: SearchSpace, space_file: Path, cluster: Cluster) -> None:
    """Print what a search would do and take on a cluster, which may be this machine."""
    from csg_ray.scale.resources import check_models, plan

    layout = plan(space, cluster)
    # The files before the weights, which may have to be downloaded.
    data = [line for config in searched_data(space) for line in data_lines(config)]
    check_models(space)
    check_other_files(space)
    goals = ", ".join(f"{goal.metric} ({goal.mode})" for goal in space.objectives)
    search = space.search
    lines = [
        ("study", f"{space.study}, {len(space.space)} settings searched"),
        *dict.fromkeys(data),
        ("goal", goals),
        (
            "trials",
            f"{layout.trials} of up to {layout.epochs} epochs, "
            f"{len(space.points_to_evaluate)} of them given in the file",
        ),
        *([("budget", space.budget.meaning)] if space.budget else []),
        (
            "search",
            f"{search.sampler} sampler, {search.scheduler} scheduler, "
            f"{search.repeats} training(s) per setting",
        ),
        ("at a time", _describe_processes(space, layout)),
        ("machines", f"{layout.cluster_cpus:g} CPU, {layout.cluster_gpus:g} GPU in all"),
        (
            "disk",
            f"{describe_bytes(layout.disk_bytes)} at most, "
            f"{describe_bytes(layout.checkpoint_bytes_per_trial)} a checkpoint; the best "
            f"{search.keep_checkpoints} by each rule keep theirs",
        ),
    ]
    for name, value in lines:
        print(f"{name:>10}  {value}")
    print_notes(space.notes)
    print(f"{space_file} is valid; nothing was started")


def _describe_processes(space: SearchSpace, layout: Plan) -> str:
    """How many trials at a time, in how many processes of what."""
    if layout.fuse == 1:
        return (
            f"{layout.concurrent} trials, each {layout.workers} worker(s) of "
            f"{layout.cpus_per_worker:g} CPU and {layout.gpus_per_worker:g} GPU"
        )
    auto = space.search.fuse == "auto"
    trials = f"{layout.processes} to {layout.concurrent}" if auto else str(layout.concurrent)
    fused = (
        f"up to {layout.fuse} in each, as is measured first" if auto else f"{layout.fuse} in each"
    )
    return (
        f"{trials} trials in {layout.processes} process(es) of {layout.cpus_per_worker:g} CPU and "
        f"{layout.gpus_per_worker:g} GPU, {fused} (search.fuse)"
    )


def data_lines(config: DataConfig) -> list[tuple[str, str]]:
    """What `check` says of the images, after a look at all of them."""
    if not isinstance(config, FilesConfig):
        return [("data", config.name)]
    from csg_ray.data.checking import check_files
    from csg_ray.data.load import list_files

    task = list_files(config)
    check_files(task, config)
    sizes = ", ".join(f"{len(split)} {name}" for name, split in task.in_order())
    classes = f"{len(task.class_names)} classes"
    return [
        ("data", f"{config.name}, {classes}: {sizes} images"),
        ("cache", _describe_cache(task, config)),
    ]


def _describe_cache(task: TaskFiles, config: FilesConfig) -> str:
    from csg_ray.data.checking import cache_need

    need = cache_need(task, config)
    if need is None:
        return "off: every image is decoded whenever it is used"
    if not need.needed:
        return f"all decoded, in {need.folder}"
    there = f"; decoded already: {', '.join(need.packed)}" if need.packed else ""
    return f"about {describe_bytes(need.needed)} in {need.folder}{there}"


def load_space(space_file: Path, trials: int | None, settings: list[str]) -> SearchSpace:
    """The search space of a file, with what the command line changes.

    Raises:
        UserError: the file, or what is to be changed, is not valid.
    """
    space = load_search_space(space_file, parse_settings(settings))
    return space if trials is None else space.with_num_trials(trials)
