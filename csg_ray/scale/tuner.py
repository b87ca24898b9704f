"""A whole study: from a search space and an empty directory, or from a study's files."""

from __future__ import annotations

import datetime
import errno
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csg_ray.config.errors import UserError
from csg_ray.config.load import installed_version
from csg_ray.config.reader import dump_yaml, read_yaml
from csg_ray.data.load import load_splits
from csg_ray.results.cost import Meter, spent_before
from csg_ray.results.progress import Progress
from csg_ray.results.provenance import collect_provenance, compare_provenance
from csg_ray.results.study import STUDY_FORMAT, Study, load_study
from csg_ray.results.table import write_table
from csg_ray.scale.claims import ClaimLock
from csg_ray.scale.cluster import Cluster, check_shared, find_cluster, running
from csg_ray.scale.driver import StudyDriver
from csg_ray.scale.lock import StudyLock, lock_directory
from csg_ray.scale.resources import Plan, check_models, plan
from csg_ray.search_space import NO_BUDGET, Changes, SearchSpace
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import write_atomically


@dataclass(frozen=True)
class _Means:
    """With what a search is run, and where it logs beside its own files."""

    cluster: Cluster
    layout: Plan
    log_to: Sequence[str]
    verbose: bool


def run_study(
    space: SearchSpace,
    directory: StoragePath,
    progress: Progress,
    verbose: bool,
    log_to: Sequence[str] = (),
) -> None:
    """Search `space` in a new study directory.

    Args:
        space: what is searched.
        directory: the study's.
        progress: told of every change.
        verbose: show the logs of every process.
        log_to: trackers besides the study's own files: mlflow, wandb.

    Raises:
        UserError: bad input, found before anything is written; or the study was paused.
    """
    cluster = find_cluster(verbose)
    layout = plan(space, cluster)
    check_shared(directory, cluster)
    provenance = _provenance(space)
    header = {
        "format": STUDY_FORMAT,
        "csg_ray": installed_version(),
        "created": _now(),
        "space": space.to_mapping(),
        "provenance": provenance,
        "restores": [],
    }
    with _created(directory, header, progress) as lock:
        means = _Means(cluster, layout, log_to, verbose)
        _drive(load_study(directory), means, progress, lock)


@contextmanager
def _created(
    directory: StoragePath, header: dict[str, Any], progress: Progress
) -> Iterator[StudyLock | ClaimLock]:
    """A new study with its header in it, and the lock on it.

    Raises:
        FileExistsError: there is something of that name.
    """
    if isinstance(directory, Path):
        _create(directory, header)
    with lock_directory(directory, progress.message) as lock:
        if not isinstance(directory, Path):
            # Nothing can be renamed there, and one object is whole by itself: it is the lock that
            # keeps two searches apart.
            if (directory / "study.yaml").is_file():
                raise FileExistsError(errno.EEXIST, "it exists", str(directory))
            _write_header(directory, header)
        yield lock


def _create(directory: Path, header: dict[str, Any]) -> None:
    """Make the study's directory with its header in it, whole or not at all.

    Raises:
        FileExistsError: there is something of that name.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _write_header(staged, header)
        staged.chmod(0o755)
        if directory.exists():
            raise FileExistsError(errno.EEXIST, "it exists", str(directory))
        try:
            staged.rename(directory)
        except OSError as error:  # somebody else's came first
            raise FileExistsError(errno.EEXIST, "it exists", str(directory)) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def restore_study(
    directory: StoragePath,
    changes: Changes,
    progress: Progress,
    verbose: bool,
    log_to: Sequence[str] = (),
) -> None:
    """Go on with a study from its plain files.

    Args:
        directory: the study's.
        changes: what is another way from now on.
        progress: as in `run_study`, and so are `verbose` and `log_to`.
        verbose: see `progress`.
        log_to: see `progress`.

    Raises:
        UserError: not a study, one that is running, one whose data changed, one whose budget is
            spent, or paused again.
    """
    study = load_study(directory)
    with lock_directory(directory, progress.message) as lock:
        study = load_study(directory)
        header = read_yaml(directory / "study.yaml")
        space = changes.applied_to(study.space)
        if study.budget_spent and changes.budget is None:
            raise _spent(study)
        cluster = find_cluster(verbose)
        layout = plan(space, cluster)
        check_shared(directory, cluster)
        changed = compare_provenance(header["provenance"], _provenance(space))
        _report_changes(directory, changed, progress)
        # The time on the wall is that of the sessions, so that with a budget each is noted.
        if space != study.space or changed or changes.budget or space.budget:
            header["space"] = space.to_mapping()
            given = {"budget": changes.budget} if changes.budget else {}
            header.setdefault("restores", []).append(
                {"at": _now(), "more": changes.more, "changed": changed} | given
            )
            header.pop("budget_spent", None)
            _write_header(directory, header)
        means = _Means(cluster, layout, log_to, verbose)
        _drive(load_study(directory), means, progress, lock)


def _spent(study: Study) -> UserError:
    budget = study.space.search.budget
    return UserError(
        f"the budget of {budget} of study {study.directory} is spent; give it a new one with "
        f"--budget {budget}, or lift it with --budget {NO_BUDGET}"
    )


def _provenance(space: SearchSpace) -> dict[str, Any]:
    check_models(space)
    return collect_provenance(load_splits(space.config_for(space.first_point()).data).fingerprint)


def _report_changes(directory: StoragePath, changed: dict[str, Any], progress: Progress) -> None:
    if "data_sha256" in changed:
        raise UserError(
            f"the data of study {directory} has changed since it began "
            f"({_arrow(changed['data_sha256'])}); its trials would not compare, so bring the data "
            "back or start a new study"
        )
    for name, difference in changed.items():
        progress.message(f"changed since the study began: {name}: {_arrow(difference)}")


def _arrow(difference: dict[str, Any]) -> str:
    return f"{difference['was']} -> {difference['is']}"


def _write_header(directory: StoragePath, header: dict[str, Any]) -> None:
    write_atomically(directory / "study.yaml", dump_yaml(header))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _drive(study: Study, means: _Means, progress: Progress, lock: StudyLock | ClaimLock) -> None:
    space, directory = study.space, study.directory
    objective = space.objectives[0]
    meter = Meter(space.budget, space.resources, spent_before(study))
    progress.study_started(
        study=space.study,
        directory=directory,
        num_trials=space.search.num_trials,
        epochs=means.layout.epochs,
        metric=objective.metric,
        mode=objective.mode,
        meter=meter,
    )
    driver = StudyDriver(space, directory, progress, study.trials, meter)
    lock.when_lost(driver.halt)
    try:
        if driver.remaining:
            # Ray is imported only when there is work for it.
            from csg_ray.scale.fusing import find_fusing
            from csg_ray.scale.trackers import build_trackers
            from csg_ray.scale.tune_run import run_tune

            trackers = build_trackers(means.log_to, space.study, progress.message, means.verbose)
            with running(means.cluster, means.verbose):
                fusing = find_fusing(space, means.layout.fuse)
                if space.search.fuse == "auto":
                    progress.message(fusing.reason)
                layout = plan(space.with_fuse(fusing.count), means.cluster)
                run_tune(driver, space, layout, means.verbose, trackers, fusing.way)
            driver.collect_checkpoints()
        if driver.halted is None:
            if driver.out_of_budget:
                header = read_yaml(directory / "study.yaml")
                _write_header(directory, header | {"budget_spent": _now()})
            write_table(load_study(directory), directory / "trials.parquet")
    finally:
        progress.study_finished()
    if driver.halted is not None:
        raise driver.halted
