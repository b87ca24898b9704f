"""One Ray Tune run over a StudyDriver, silent unless asked."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from ray import tune
from ray.tune import Callback

from csg_ray.scale.adapters import (
    DriverScheduler,
    DriverSearcher,
    DriverStopper,
    StartCallback,
)
from csg_ray.scale.driver import StudyDriver
from csg_ray.scale.lane_actors import LeaveCallback, lane_workers
from csg_ray.scale.lane_trial import follow_lane
from csg_ray.scale.reclaim import reclaiming
from csg_ray.scale.resources import DRIVER_BYTES, FOLLOWER_BYTES, Plan
from csg_ray.scale.trainable import train_trial
from csg_ray.search_space import SearchSpace
from csg_ray.training.lanes import Way


def run_tune(
    driver: StudyDriver,
    space: SearchSpace,
    layout: Plan,
    verbose: bool,
    trackers: Sequence[Callback] = (),
    way: Way = "in_turn",
) -> None:
    """Run every trial that the driver has left, and tell the trackers.

    Where `layout.fuse` is above 1 so many trials at a time are trained in one process, in that way.

    Tune's own files go to a temporary folder that nothing reads again. It is not on the study's
    disk: when that one is full, Tune would print a traceback about its own snapshots.
    """
    os.environ.update(_tune_settings(verbose))
    if not verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
    nested = layout.workers > 1
    trainable: Callable[..., None] = train_trial
    callbacks: list[Callback] = [StartCallback(driver), *trackers]
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="csg_ray_"))
        if nested:
            stack.enter_context(reclaiming())
        if layout.fuse > 1:
            workers = stack.enter_context(lane_workers(layout, way))
            trainable = tune.with_parameters(follow_lane, workers=workers)
            callbacks.append(LeaveCallback(workers))
        tuner = tune.Tuner(
            tune.with_resources(trainable, _resources_of_a_trial(layout)),
            tune_config=tune.TuneConfig(
                search_alg=DriverSearcher(driver, space),
                scheduler=DriverScheduler(driver),
                num_samples=driver.remaining,
                max_concurrent_trials=layout.concurrent,
                reuse_actors=not nested,  # a nested trial's process ends with its workers
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                stop=DriverStopper(driver),
                callbacks=callbacks,
                # Without limit: the driver says when a trial is given up.
                failure_config=tune.FailureConfig(max_failures=-1),
                verbose=1 if verbose else 0,
            ),
        )
        tuner.fit()


def _resources_of_a_trial(layout: Plan) -> dict[str, float]:
    """What Tune reserves: all of a flat trial, but of any other one only what steers or follows it.

    The share of those that train it is reserved by Ray Train, or by the process that trains several
    trials. Its own mostly waits, so it takes memory but no CPU: with one, two workers would never
    fit on two CPUs.
    """
    if layout.workers > 1:
        return {"cpu": 0, "memory": DRIVER_BYTES}
    if layout.fuse > 1:
        return {"cpu": 0, "memory": FOLLOWER_BYTES}
    resources: dict[str, float] = {"cpu": layout.cpus_per_worker}
    if layout.gpus_per_worker:
        resources["gpu"] = layout.gpus_per_worker
    return resources


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
