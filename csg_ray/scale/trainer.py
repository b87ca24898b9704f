"""One training spread over workers by Ray Train, followed through the files that it writes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from csg_ray.config.errors import UserError
from csg_ray.scale.cluster import Cluster, nodes_up
from csg_ray.scale.resources import Workers, workers_that_fit
from csg_ray.scale.worker import NodeAddressTorchConfig, train_worker
from csg_ray.storage.paths import RemotePath, StoragePath, open_path
from csg_ray.storage.records import DISK_FULL, read_results
from csg_ray.storage.stores import StorageError

logger = logging.getLogger(__name__)

# Failures of workers that no finished epoch lies between.
MAX_FAILURES_IN_A_ROW = 3
# Looking costs nothing on a disk, and a request on an object store.
POLL_SECONDS = 0.5
REMOTE_POLL_SECONDS = 3.0
RESIZE_SECONDS = 60.0
SHORTAGE_SECONDS = 30.0


class WorkersLostError(UserError):
    """The workers failed too often; the message says how."""


def train_with_workers(
    job: dict[str, Any],
    name: str,
    workers: Workers,
    on_epoch: Callable[[dict[str, Any]], None],
    known_epochs: int = 0,
    tell: Callable[[str], None] = logger.info,
) -> None:
    """Train until the last epoch, through losses of workers and nodes.

    The workers keep the files; this process reads each finished epoch there and passes it on. So
    there is no queue between the two that could fill up, and nothing to lose when either dies.

    Args:
        job: as `train_worker` takes it.
        name: of the run, for Ray's own logs and tables.
        workers: how many, and what each takes.
        on_epoch: gets the line of every epoch after `known_epochs`, in order.
        known_epochs: epochs that whoever asks has seen.
        tell: gets a sentence when workers were lost, or are waited for.

    Raises:
        UserError: as in `fit`.
        OSError: the disk is full, or the store fails.
        WorkersLostError: workers failed `MAX_FAILURES_IN_A_ROW` times without an epoch between.
    """
    directory = open_path(job["directory"])
    poll = REMOTE_POLL_SECONDS if isinstance(directory, RemotePath) else POLL_SECONDS
    failures = 0
    while True:
        before = known_epochs
        attempt = _Attempt(job, name, workers)
        shortage = _Shortage(workers, tell)
        while attempt.running:
            known_epochs = _pass_on(directory, known_epochs, on_epoch)
            shortage.look()
            attempt.wait(poll)
        known_epochs = _pass_on(directory, known_epochs, on_epoch)
        if attempt.error is None:
            return
        _raise_unless_lost(attempt.error)
        failures = failures + 1 if known_epochs == before else 1
        if failures >= MAX_FAILURES_IN_A_ROW:
            raise WorkersLostError(
                f"its workers failed {failures} times in a row without a finished epoch: "
                f"{_last_line(attempt.error)}"
            ) from attempt.error
        tell(f"workers were lost; going on after epoch {known_epochs}")
        logger.info("what was lost: %s", attempt.error)


def _pass_on(directory: StoragePath, known: int, on_epoch: Callable[[dict[str, Any]], None]) -> int:
    for line in read_results(directory):
        if line["epoch"] > known:
            known = int(line["epoch"])
            on_epoch(line)
    return known


class _Shortage:
    """Says now and then that there is no room for the workers; Ray itself just waits."""

    def __init__(self, workers: Workers, tell: Callable[[str], None]) -> None:
        self._workers = workers
        self._tell = tell
        self._next_look = time.monotonic() + SHORTAGE_SECONDS

    def look(self) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + SHORTAGE_SECONDS
        cluster = Cluster(nodes_up())
        room = workers_that_fit(self._workers.cpus, self._workers.gpus, cluster)
        if room < self._workers.minimum:
            self._tell(f"waiting for machines: room for {room} of {self._workers.minimum} workers")


class _Attempt:
    """One Ray Train run in a thread of its own, as `fit` blocks until it ends."""

    def __init__(self, job: dict[str, Any], name: str, workers: Workers) -> None:
        self.error: Exception | None = None
        self._trainer = _build_trainer(job, name, workers)
        # A daemon: whoever is stopped must not wait for it.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:
            self.error = error


class _Trainer(TorchTrainer):
    def _create_default_callbacks(self) -> list[Any]:
        """Without the cleaner of placement groups, and without a change of folder.

        The cleaner is a process per run that asks the dashboard, for ever where there is none, and
        misses a group that is still pending. A run that is not a trial ends with its job, and Ray
        removes its group then; those of trials are `reclaim`'s. In another folder a relative path
        of the configuration would lead nowhere.
        """
        kept = super()._create_default_callbacks()
        unwanted = ("PlacementGroupCleanerCallback", "WorkingDirectorySetupCallback")
        return [each for each in kept if type(each).__name__ not in unwanted]


def _build_trainer(job: dict[str, Any], name: str, workers: Workers) -> TorchTrainer:
    resources: dict[str, float] = {"CPU": workers.cpus}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    elastic = workers.minimum < workers.maximum
    return _Trainer(
        train_worker,
        train_loop_config=job,
        torch_config=NodeAddressTorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=(workers.minimum, workers.maximum) if elastic else workers.maximum,
            use_gpu=workers.gpus > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=name,
            # Scratch that nothing reads again: the workers write to the directory themselves.
            storage_path=ray._private.worker._global_node.get_session_dir_path(),  # type: ignore[attr-defined]
            # Lost workers are `train_with_workers`' to replace: it knows whether there was
            # progress, and which errors no second attempt would mend.
            failure_config=FailureConfig(max_failures=0),
        ),
    )


def _raise_unless_lost(error: Exception) -> None:
    """Raise what no second attempt would mend; return when a process, a node, or the net died."""
    if not isinstance(error, TrainingFailedError):
        raise error
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)  # Ray wraps it to keep the traceback
        no_room = isinstance(cause, OSError) and cause.errno in DISK_FULL
        if isinstance(cause, UserError | StorageError) or no_room:
            raise cause from error


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]
