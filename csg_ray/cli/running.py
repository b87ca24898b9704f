"""`train` and `restore` of a run: one training, in this process or spread over workers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from csg_ray.cli.board import describe_scores
from csg_ray.cli.guard import command, continued_by, fail, say
from csg_ray.cli.preparing import prepare_run
from csg_ray.cli.spread import Spread, check_spread, refuse_both_launchers, train_spread
from csg_ray.cli.summary import print_notes
from csg_ray.config.data import has_sealed_split
from csg_ray.config.errors import UserError
from csg_ray.config.load import (
    config_to_mapping,
    load_config,
    own_settings,
    with_absolute_paths,
)
from csg_ray.config.reader import read_yaml
from csg_ray.config.run import RunConfig
from csg_ray.distributed import on_rank_zero, rank, torchrun_group
from csg_ray.results.export import check_new_directory, first_free, write_config
from csg_ray.results.provenance import collect_provenance, compare_provenance
from csg_ray.scale.lock import lock_directory
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import CHECKPOINT_FILE, read_results

if TYPE_CHECKING:
    from csg_ray.training.pictures import Pictures

RUN_FILE = "run.yaml"
DIVERGED = 1


def start_run(
    config_file: StoragePath,
    out: StoragePath | None,
    base: StoragePath,
    spread: Spread,
    verbose: bool,
) -> None:
    """Train a run config in a new directory: `out`, or a free name in `base`/runs."""
    refuse_both_launchers(spread)
    with torchrun_group():
        directory = on_rank_zero(lambda: _begin(config_file, out, base, spread))
        _run(directory, spread, verbose)


def _begin(
    config_file: StoragePath, out: StoragePath | None, base: StoragePath, spread: Spread
) -> StoragePath:
    """Check everything that can be checked, then make the run's directory and its description."""
    config = with_absolute_paths(load_config(config_file))
    exported = read_yaml(config_file).get("provenance")
    wanted = out or base / "runs" / config_file.name.removesuffix(config_file.suffix)
    if wanted == out and wanted.exists():
        raise _taken(wanted)
    check_new_directory(wanted)
    config = spread.rescale(config)
    check_spread(config, wanted, spread)
    with continued_by(wanted, RUN_FILE):
        prepare_run(config)
    provenance = _provenance(config) | {"config": str(config_file)}
    if exported:
        provenance["exported"] = exported
    directory = _make_directory(wanted, given=out is not None)
    mapping = config_to_mapping(config) | spread.to_mapping() | {"provenance": provenance}
    with continued_by(directory, RUN_FILE):
        write_config(mapping, directory / RUN_FILE)
    return directory


def _make_directory(wanted: StoragePath, given: bool) -> StoragePath:
    """Make the run's directory; a default name that is taken by now gives way to the next one."""
    directory = wanted if given else first_free(wanted)
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        if given:
            raise _taken(directory) from None
        return _make_directory(wanted, given)
    return directory


def _taken(directory: StoragePath) -> UserError:
    return UserError(
        f"{directory} exists; continue it with '{command('restore', directory)}', "
        "or choose another name with --out"
    )


def continue_run(directory: StoragePath, more: int, spread: Spread, verbose: bool) -> None:
    """Go on with a run from its checkpoint, on as many workers as before unless told."""
    if more:
        raise UserError(f"{directory} is a run, and --more is for studies; leave it out")
    refuse_both_launchers(spread)
    with torchrun_group():
        spread = on_rank_zero(lambda: spread.over(read_yaml(directory / RUN_FILE)))
        if on_rank_zero(lambda: _has_ended(directory)):
            return
        on_rank_zero(lambda: _check_unchanged(directory, spread))
        _run(directory, spread, verbose)


def _has_ended(directory: StoragePath) -> bool:
    config, results = load_config(directory / RUN_FILE), read_results(directory)
    if not results or (
        results[-1]["epoch"] < config.train.epochs and not results[-1].get("diverged")
    ):
        return False
    print(f"run {directory} has already ended at epoch {int(results[-1]['epoch'])}")
    _sum_up(directory, results[-1])
    return True


def _check_unchanged(directory: StoragePath, spread: Spread) -> None:
    """Refuse other data, and say what else has changed."""
    config = load_config(directory / RUN_FILE)
    check_spread(config, directory, spread)
    with continued_by(directory, RUN_FILE):
        prepare_run(config, begun=(directory / CHECKPOINT_FILE).is_file())
    old = read_yaml(directory / RUN_FILE).get("provenance") or {}
    changed = compare_provenance({**old, "config": None, "exported": None}, _provenance(config))
    if "data_sha256" in changed:
        raise UserError(
            f"the data of run {directory} have changed since it began; bring the former data back, "
            "or start a new run"
        )
    for name, difference in changed.items():
        print(f"changed since the run began: {name}: {difference['was']} -> {difference['is']}")


def _provenance(config: RunConfig) -> dict[str, Any]:
    from csg_ray.data.load import load_splits

    return collect_provenance(load_splits(config.data).fingerprint)


def _run(directory: StoragePath, spread: Spread, verbose: bool) -> None:
    """Train to the end; rank 0 keeps the files and talks to the user."""
    if verbose:
        logging.basicConfig(level=logging.INFO)
    config = on_rank_zero(lambda: load_config(directory / RUN_FILE))
    if rank() > 0:  # rank 0 hands it the checkpoint and takes the reports
        from csg_ray.training.loop import fit

        fit(config, lambda *_: None)
        return
    known = len(read_results(directory))
    with (
        continued_by(directory, RUN_FILE),
        lock_directory(directory, say) as lock,
        _EpochDisplay(config.train.epochs, known) as display,
    ):

        def check_lock() -> None:
            if lock.lost is not None:
                raise lock.lost

        def show(metrics: Mapping[str, Any]) -> None:
            check_lock()
            display.show(metrics)

        if spread.workers is None:
            _fit(config, directory, check_lock, display.show)
        else:
            train_spread(config, directory, spread, known, show, verbose)
    _sum_up(directory, read_results(directory)[-1])


def _fit(
    config: RunConfig,
    directory: StoragePath,
    check_lock: Callable[[], None],
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    """Train in this process, which may be the first of several that torchrun started."""
    from csg_ray.training.loop import fit
    from csg_ray.training.recorder import EpochRecorder

    checkpoint = directory / CHECKPOINT_FILE
    recorder = EpochRecorder(directory, own_settings(config), config.train.epochs)

    def on_epoch_end(
        metrics: dict[str, float],
        save_checkpoint: Callable[[StoragePath], None],
        pictures: Pictures | None,
    ) -> None:
        check_lock()  # whoever took the run over writes its files now
        recorder(metrics, save_checkpoint, pictures)
        show(metrics)

    try:
        fit(config, on_epoch_end, resume_from=checkpoint if checkpoint.is_file() else None)
    finally:
        recorder.close()


def _sum_up(directory: StoragePath, last: Mapping[str, Any]) -> None:
    if last.get("diverged"):
        fail(f"run {directory} diverged in epoch {int(last['epoch'])}", DIVERGED)
    print(f"run {directory}: {describe_scores(last)} on target_val")
    config = load_config(directory / RUN_FILE)
    print_notes(config.notes)
    if has_sealed_split(config.data):
        print(f"next: {command('evaluate', directory)}")


def _workers(metrics: Mapping[str, Any]) -> str:
    count = int(metrics.get("workers", 1))
    return f" ({count} workers)" if count > 1 else ""


class _EpochDisplay:
    """A progress bar on a terminal, a line an epoch everywhere else."""

    def __init__(self, epochs: int, finished: int) -> None:
        self._epochs = epochs
        self._bar: Any = None
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

            self._bar = Progress(
                "epoch",
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                "{task.description}",
                refresh_per_second=2,
            )
            self._task = self._bar.add_task("", total=epochs, completed=finished)

    def __enter__(self) -> _EpochDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, metrics: Mapping[str, Any]) -> None:
        """One more epoch is finished."""
        epoch = int(metrics["epoch"])
        if self._bar is not None:
            self._bar.update(self._task, completed=epoch, description=describe_scores(metrics))
        else:
            say(f"epoch {epoch}/{self._epochs}: {describe_scores(metrics)}{_workers(metrics)}")
