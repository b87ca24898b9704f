"""A whole study: from a search space and an empty directory, or from a study's files."""

from __future__ import annotations

import datetime
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csg_ray.config.errors import UserError
from csg_ray.config.load import installed_version
from csg_ray.config.reader import dump_yaml, read_yaml
from csg_ray.data.load import load_splits
from csg_ray.models.encoders import build_encoder
from csg_ray.results.progress import Progress
from csg_ray.results.provenance import collect_provenance, compare_provenance
from csg_ray.results.study import STUDY_FORMAT, Trial, load_study
from csg_ray.results.table import write_table
from csg_ray.scale.driver import StudyDriver
from csg_ray.scale.lock import StudyLock
from csg_ray.scale.resources import Plan, plan
from csg_ray.search_space import SearchSpace
from csg_ray.training.records import write_atomically

DIED_PROCESS_RETRIES = 2


def run_study(space: SearchSpace, directory: Path, progress: Progress, verbose: bool) -> None:
    """Search `space` in a new study directory.

    Raises:
        UserError: bad input, found before anything is written; or the study was paused.
    """
    layout = plan(space)
    provenance = _provenance(space)
    header = {
        "format": STUDY_FORMAT,
        "csg_ray": installed_version(),
        "created": _now(),
        "space": space.to_mapping(),
        "provenance": provenance,
        "restores": [],
    }
    directory.mkdir(parents=True)
    with StudyLock(directory):
        _write_header(directory, header)
        _drive(space, directory, layout, progress, verbose, trials=())


def restore_study(directory: Path, more: int, progress: Progress, verbose: bool) -> None:
    """Go on with a study from its plain files, with `more` trials on top of its total.

    Raises:
        UserError: not a study, one that is running, one whose data changed, or paused again.
    """
    study = load_study(directory)
    with StudyLock(directory):
        study = load_study(directory)
        header = read_yaml(directory / "study.yaml")
        space = study.space.with_num_trials(study.space.search.num_trials + more)
        layout = plan(space)
        changed = compare_provenance(header["provenance"], _provenance(space))
        _report_changes(directory, changed, progress)
        if more or changed:
            header["space"] = space.to_mapping()
            header["restores"].append({"at": _now(), "more": more, "changed": changed})
            _write_header(directory, header)
        _drive(space, directory, layout, progress, verbose, study.trials)


def _provenance(space: SearchSpace) -> dict[str, Any]:
    config = space.config_for(space.first_point())
    build_encoder(config.model)  # missing weights are found here, not in every trial
    return collect_provenance(load_splits(config.data).fingerprint)


def _report_changes(directory: Path, changed: dict[str, Any], progress: Progress) -> None:
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


def _write_header(directory: Path, header: dict[str, Any]) -> None:
    write_atomically(directory / "study.yaml", dump_yaml(header))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _drive(
    space: SearchSpace,
    directory: Path,
    layout: Plan,
    progress: Progress,
    verbose: bool,
    trials: Sequence[Trial],
) -> None:
    objective = space.objectives[0]
    progress.study_started(
        study=space.study,
        directory=directory,
        num_trials=space.search.num_trials,
        epochs=layout.epochs,
        metric=objective.metric,
        mode=objective.mode,
    )
    driver = StudyDriver(space, directory, progress, trials)
    try:
        if driver.remaining:
            with _local_ray(layout, verbose):
                _tune(driver, space, directory, layout, verbose)
        if driver.halted is None:
            write_table(load_study(directory), directory / "trials.parquet")
    finally:
        progress.study_finished()
    if driver.halted is not None:
        raise OSError(errno.ENOSPC, driver.halted, str(directory))


@contextmanager
def _local_ray(layout: Plan, verbose: bool) -> Iterator[None]:
    """Use the Ray that is there (a test session's, a cluster's), or one of our own."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    here: dict[str, Any] = (
        {}
        if os.environ.get("RAY_ADDRESS")
        else {
            "num_cpus": int(layout.cluster_cpus),
            "num_gpus": int(layout.cluster_gpus),
            # Flat trials need no dashboard; starting it costs seconds and a gigabyte.
            "include_dashboard": False,
        }
    )
    ray.init(
        log_to_driver=verbose,
        logging_level=logging.INFO if verbose else logging.ERROR,
        **here,
    )
    try:
        yield
    finally:
        ray.shutdown()


def _tune(
    driver: StudyDriver, space: SearchSpace, directory: Path, layout: Plan, verbose: bool
) -> None:
    """Run Tune over the driver. Its own files go to a scratch folder that nothing reads again."""
    os.environ.update(
        {
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
            "TUNE_PRINT_ALL_TRIAL_ERRORS": str(int(verbose)),
            "RAY_CHDIR_TO_TRIAL_DIR": "0",
            "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a banner even when it is told not to
        }
    )
    from ray import tune

    from csg_ray.scale.adapters import (
        DriverScheduler,
        DriverSearcher,
        DriverStopper,
        StartCallback,
    )
    from csg_ray.scale.trainable import train_trial

    if not verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
    scratch = directory / ".ray"
    shutil.rmtree(scratch, ignore_errors=True)
    resources: dict[str, float] = {"cpu": layout.cpus_per_trial}
    if layout.gpus_per_trial:
        resources["gpu"] = layout.gpus_per_trial
    tuner = tune.Tuner(
        tune.with_resources(train_trial, resources),
        tune_config=tune.TuneConfig(
            search_alg=DriverSearcher(driver, space),
            scheduler=DriverScheduler(driver),
            num_samples=driver.remaining,
            max_concurrent_trials=layout.concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch.resolve()),
            stop=DriverStopper(driver),
            callbacks=[StartCallback(driver)],
            failure_config=tune.FailureConfig(max_failures=DIED_PROCESS_RETRIES),
            verbose=1 if verbose else 0,
        ),
    )
    tuner.fit()
