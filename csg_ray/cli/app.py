"""The commands. Each imports what it needs when it runs, so that the quick ones stay quick."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from csg_ray.cli.guard import GuardedGroup
from csg_ray.config.errors import UserError
from csg_ray.storage.paths import StoragePath, open_path

app = typer.Typer(
    cls=GuardedGroup,
    help="Search the hyperparameters of Contrastive Syn-to-Real Generalization with Ray.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class ImageFormat(StrEnum):
    """What pictures are written as."""

    png = "png"
    svg = "svg"


class Selection(StrEnum):
    """The selection rules, for `--by`."""

    target_val = "target_val"
    source_val = "source_val"
    hse = "hse"


class Tracker(StrEnum):
    """Where a search can log beside its own files, for `--log-to`."""

    mlflow = "mlflow"
    wandb = "wandb"


SpaceFile = Annotated[
    Path, typer.Argument(metavar="SPACE_FILE", help="Search-space YAML.", show_default=False)
]
# Text: a Path would make s3:/ of s3://.
StudyFolder = Annotated[
    str, typer.Argument(metavar="STUDY", help="Study directory or URI.", show_default=False)
]
Trials = Annotated[int | None, typer.Option(min=1, help="Trials in all; the file's otherwise.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a setting of the file; repeatable."),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="2h|16cpuh|4gpuh",
        help="End when so much time has passed, or CPUs or GPUs were busy so long.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the logs of every process.")]
Base = Annotated[
    str | None, typer.Option("--storage", metavar="URI", help="Where to put it instead of here.")
]
LogTo = Annotated[
    list[Tracker] | None,
    typer.Option("--log-to", help="Log there, too; repeatable. Set up by its own environment."),
]
By = Annotated[
    Selection | None, typer.Option("--by", help="Selection rule; what the study searched for.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from csg_ray.config.load import installed_version

        typer.echo(installed_version())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def search(  # noqa: PLR0913 - an argument for every option
    space_file: SpaceFile,
    trials: Trials = None,
    budget: Budget = None,
    settings: Settings = None,
    study: Annotated[
        str | None,
        typer.Option(help="New directory or URI; otherwise studies/NAME, studies/NAME-2, ..."),
    ] = None,
    storage: Base = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study if it is there already.")
    ] = False,
    log_to: LogTo = None,
    verbose: Verbose = False,
) -> None:
    """Run a search; end with the best trial and the next commands."""
    if resume:
        from csg_ray.cli.resuming import search_or_resume as begin
    else:
        from csg_ray.cli.searching import run_search as begin

    new, base = _new_place("--study", study, storage)
    changed = _with_budget(settings, budget)
    begin(space_file, trials, changed, new, base, verbose, _names(log_to))


def _with_budget(settings: list[str] | None, budget: str | None) -> list[str]:
    """What is changed of a file; --budget is short for one of them, and wins."""
    return (settings or []) + ([] if budget is None else [f"search.budget={budget}"])


def _names(trackers: list[Tracker] | None) -> list[str]:
    return [tracker.value for tracker in trackers or []]


def _new_place(
    option: str, name: str | None, storage: str | None
) -> tuple[StoragePath | None, StoragePath]:
    """The place that the user named, if any, and the base of those that are found a name for."""
    if name is not None and storage is not None:
        raise UserError(f"{option} and --storage exclude each other; give one")
    return None if name is None else open_path(name), open_path(storage or ".")


@app.command()
def pack(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Search space or run config.", show_default=False),
    ],
    settings: Settings = None,
) -> None:
    """Decode the images of a task once, for all trials and workers of this machine."""
    from csg_ray.cli.preparing import pack_files

    pack_files(file, settings or [])


@app.command()
def check(
    space_file: Annotated[
        Path | None,
        typer.Argument(metavar="[SPACE_FILE]", help="Search-space YAML.", show_default=False),
    ] = None,
    trials: Trials = None,
    budget: Budget = None,
    settings: Settings = None,
    cluster: Annotated[
        Path | None, typer.Option(metavar="CLUSTER.yaml", help="Cluster file of ray up.")
    ] = None,
) -> None:
    """Validate a search-space file, a cluster file, or one against the other; start nothing."""
    from csg_ray.cli.checking import check_files

    check_files(space_file, trials, _with_budget(settings, budget), cluster)


Workers = Annotated[int | None, typer.Option(min=1, help="Train on so many processes with Ray.")]
MinWorkers = Annotated[
    int | None, typer.Option(min=1, help="Go on with as few, and with more when there are.")
]
GpusPerWorker = Annotated[
    int | None, typer.Option(min=0, help="GPUs of each; 1 where there are any.")
]


@app.command()
def restore(  # noqa: PLR0913 - an argument for every option
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="Study or run.", show_default=False)
    ],
    more: Annotated[int, typer.Option(min=0, help="Trials on top of the study's total.")] = 0,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="2h|16cpuh|4gpuh|none",
            help="A new budget, from now on; what is left of the study's otherwise.",
        ),
    ] = None,
    fuse: Annotated[
        str | None,
        typer.Option(
            metavar="auto|K", help="Trials that one process trains from now on (search.fuse)."
        ),
    ] = None,
    workers: Workers = None,
    min_workers: MinWorkers = None,
    gpus_per_worker: GpusPerWorker = None,
    log_to: LogTo = None,
    verbose: Verbose = False,
) -> None:
    """Continue a study or run that was stopped, or give a study more trials.

    A run goes on with any number of workers: its numbers do not depend on them.
    """
    from csg_ray.cli.spread import Spread

    place = open_path(directory)
    spread = Spread(workers, min_workers, gpus_per_worker)
    if (place / "run.yaml").is_file():
        from csg_ray.cli.running import continue_run

        for option, given in (("--log-to", log_to), ("--budget", budget), ("--fuse", fuse)):
            if given:
                raise UserError(f"{directory} is a run, and {option} is for studies; leave it out")
        continue_run(place, more, spread, verbose)
    else:
        from csg_ray.cli.searching import continue_study
        from csg_ray.search_space import Changes

        if workers is not None:
            raise UserError(f"{directory} is a study, and --workers is for runs; leave it out")
        count = int(fuse) if fuse and fuse.isdecimal() else fuse
        continue_study(place, Changes(more, budget, count), verbose, _names(log_to))


@app.command()
def best(
    study: StudyFolder,
    top: Annotated[
        int | None, typer.Option(min=1, help="How many trials; 5, or 3 to be trained again.")
    ] = None,
    by: By = None,
    rerun_seeds: Annotated[
        int | None,
        typer.Option(min=2, help="Train them again over so many new seeds, then name the winner."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Show the best trials of a study, finished or not, and what each selection rule picks."""
    rule = by.value if by else None
    if rerun_seeds is None:
        from csg_ray.cli.inspecting import show_best

        show_best(open_path(study), top or 5, rule)
    else:
        from csg_ray.cli.rerunning import rerun_best

        rerun_best(open_path(study), top or 3, rule, rerun_seeds, verbose)


@app.command()
def report(
    study: StudyFolder,
    out: Annotated[
        str | None, typer.Option(metavar="FILE.html", help="New file; STUDY/report.html otherwise.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New directory for each figure as a picture.")
    ] = None,
    image_format: Annotated[
        ImageFormat, typer.Option("--format", help="Of the pictures.")
    ] = ImageFormat.png,
) -> None:
    """Write one page about a study, with its figures; it opens without a network."""
    from csg_ray.cli.reporting import write_report

    write_report(open_path(study), open_path(out) if out else None, images, image_format.value)


@app.command()
def compare(
    directories: Annotated[
        list[str], typer.Argument(metavar="DIR ...", help="Studies and runs.", show_default=False)
    ],
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="New directory or URI for the same in files.")
    ] = None,
) -> None:
    """Put the methods of studies and runs side by side, beside what was published."""
    from csg_ray.cli.comparing import show_comparison

    show_comparison([open_path(each) for each in directories], open_path(out) if out else None)


@app.command()
def export(
    study: StudyFolder,
    out: Annotated[str, typer.Argument(metavar="OUT.yaml", help="New file.", show_default=False)],
    trial: Annotated[str | None, typer.Option(help="Trial id; the best otherwise.")] = None,
    by: By = None,
) -> None:
    """Write a trial as a run config, with its provenance."""
    from csg_ray.cli.inspecting import export_trial

    export_trial(open_path(study), open_path(out), trial, by.value if by else None)


@app.command()
def train(
    config_file: Annotated[
        str, typer.Argument(metavar="CONFIG.yaml", help="Run config.", show_default=False)
    ],
    out: Annotated[
        str | None,
        typer.Option(help="New directory or URI; otherwise runs/NAME, runs/NAME-2, ..."),
    ] = None,
    storage: Base = None,
    workers: Workers = None,
    min_workers: MinWorkers = None,
    gpus_per_worker: GpusPerWorker = None,
    batch_per_worker: Annotated[
        int | None, typer.Option(min=1, help="Images of each; scales the learning rate, too.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Train one run config, in this process or on --workers.

    The workers share each batch of train.batch_size, so the result is that of one. Under torchrun
    its processes do.
    """
    from csg_ray.cli.running import start_run
    from csg_ray.cli.spread import Spread

    spread = Spread(workers, min_workers, gpus_per_worker, batch_per_worker)
    new, base = _new_place("--out", out, storage)
    start_run(open_path(config_file), new, base, spread, verbose)


@app.command()
def evaluate(
    directory: Annotated[
        str, typer.Argument(metavar="STUDY|RUN", help="Study or run.", show_default=False)
    ],
) -> None:
    """Open the sealed target_test once, for the picks of all selection rules."""
    from csg_ray.cli.inspecting import evaluate_on_test

    evaluate_on_test(open_path(directory))


@app.command()
def dashboard(
    directories: Annotated[
        list[str], typer.Argument(metavar="DIR ...", help="Studies.", show_default=False)
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open optuna-dashboard on studies, finished or running."""
    from csg_ray.cli.dashboard import show_dashboard

    show_dashboard([open_path(each) for each in directories], host, port)


@app.command()
def figures(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN ...",
            help="Runs; studies, for their best trial; STUDY:ID, for one trial.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="New folder; otherwise figures, figures-2, ..."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, max=24, help="How many images to show, the same for all models.")
    ] = 8,
    image_format: Annotated[
        ImageFormat, typer.Option("--format", help="Of the pictures.")
    ] = ImageFormat.png,
) -> None:
    """Draw what models see: features on the sphere, attention, Grad-CAM or segmentation.

    All models are shown the images of target_val of the first one.
    """
    from csg_ray.cli.drawing import draw_figures

    draw_figures(places, open_path(out) if out else None, images, image_format.value)
