"""One Ray Tune run over a StudyDriver, silent unless asked."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune

from csg_ray.scale.adapters import (
    DriverScheduler,
    DriverSearcher,
    DriverStopper,
    StartCallback,
)
from csg_ray.scale.driver import StudyDriver
from csg_ray.scale.resources import Plan
from csg_ray.scale.trainable import train_trial
from csg_ray.search_space import SearchSpace

DIED_PROCESS_RETRIES = 2


@contextmanager
def local_ray(layout: Plan, verbose: bool) -> Iterator[None]:
    """Use the Ray that is there (a test session's, a cluster's), or start one and end it."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {}
    if "RAY_ADDRESS" not in os.environ:
        options = {
            "num_cpus": int(layout.cluster_cpus),
            "num_gpus": int(layout.cluster_gpus),
            # Flat trials need no dashboard; starting it costs seconds and a gigabyte.
            "include_dashboard": False,
        }
    level = logging.INFO if verbose else logging.ERROR
    # Ray's core aborts on SIGTERM (Slurm, Kubernetes) with a C++ trace; ours says how to go on.
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=verbose, logging_level=level, **options)
    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def run_tune(driver: StudyDriver, space: SearchSpace, layout: Plan, verbose: bool) -> None:
    """Run every trial that the driver has left.

    Tune's own files go to a temporary folder that nothing reads again. It is not on the study's
    disk: when that one is full, Tune would print a traceback about its own snapshots.
    """
    os.environ.update(_tune_settings(verbose))
    if not verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
    resources: dict[str, float] = {"cpu": layout.cpus_per_trial}
    if layout.gpus_per_trial:
        resources["gpu"] = layout.gpus_per_trial
    with tempfile.TemporaryDirectory(prefix="csg_ray_") as scratch:
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
                storage_path=scratch,
                stop=DriverStopper(driver),
                callbacks=[StartCallback(driver)],
                failure_config=tune.FailureConfig(max_failures=DIED_PROCESS_RETRIES),
                verbose=1 if verbose else 0,
            ),
        )
        tuner.fit()


def _tune_settings(verbose: bool) -> dict[str, str]:
    """Environment variables: Tune has no arguments for these."""
    return {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials write their own files
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a report may lack a metric
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends at once: plain files restore
        "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": str(int(verbose)),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of a study may be relative
        "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a banner even when it is told not to
    }
