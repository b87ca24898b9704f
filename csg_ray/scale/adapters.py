"""Ray Tune's three doors - searcher, scheduler, stopper - onto one StudyDriver."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from csg_ray.config.errors import UserError
from csg_ray.scale.driver import LiveTrial, StudyDriver, disk_full
from csg_ray.search_space import SearchSpace
from csg_ray.storage.stores import StorageError


class DriverSearcher(Searcher):
    """Gives Tune the driver's next trial as the config of `train_trial`."""

    def __init__(self, driver: StudyDriver, space: SearchSpace) -> None:
        super().__init__()
        self._driver = driver
        self._space = space
        self._ids: dict[str, str] = {}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Nothing to set: metric and mode are the search space's."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's assignment; FINISHED when there is none."""
        trial = self._driver.next_trial()
        if trial is None:
            return Searcher.FINISHED  # type: ignore[return-value]
        self._ids[trial_id] = trial.id
        return self._assignment(trial)

    def _assignment(self, trial: LiveTrial) -> dict[str, Any]:
        return {
            "id": trial.id,
            "directory": str(self._driver.trial_directory(trial.id).resolve()),
            "params": trial.params,
            "config": self._space.config_for(trial.params).model_dump(),
            "repeats": self._space.search.repeats,
            "workers": self._space.resources.workers_per_trial,
            "cpus": self._space.resources.cpus_per_worker,
            "gpus": self._space.resources.gpus_per_worker,
            "known_epochs": trial.results[-1]["epoch"] if trial.results else 0,
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Close the trial; a process that died too often counts as failed."""
        message = (result or {}).get("error")
        if error and message is None:
            message = "its process died"
        self._driver.finish(self._ids[trial_id], message)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's plain files hold it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class DriverScheduler(FIFOScheduler):
    """Asks the driver after each report whether the trial goes on."""

    def __init__(self, driver: StudyDriver) -> None:
        super().__init__()
        self._driver = driver

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """STOP a trial that the driver cuts, or that cannot write; else CONTINUE."""
        if "disk_full" in result:
            self._driver.halt(disk_full(result["disk_full"]))
            return TrialScheduler.STOP
        if "store" in result:
            self._driver.halt(StorageError(result["reason"], result["store"]))
            return TrialScheduler.STOP
        if "no_memory" in result:
            self._driver.halt(UserError(result["no_memory"]))
            return TrialScheduler.STOP
        if "error" in result or "epoch" not in result:
            return TrialScheduler.CONTINUE
        stops = self._driver.report(trial.config["id"], metrics_of(result))
        return TrialScheduler.STOP if stops else TrialScheduler.CONTINUE


class DriverStopper(Stopper):
    """Ends the Tune run once the driver has halted."""

    def __init__(self, driver: StudyDriver) -> None:
        self._driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never for a single trial."""
        return False

    def stop_all(self) -> bool:
        """True once the study is halted."""
        return self._driver.halted is not None


class StartCallback(Callback):
    """Tells the driver when a trial's process has started, and Tune when not to start it again."""

    def __init__(self, driver: StudyDriver) -> None:
        self._driver = driver

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Pending turns into running; a last try is marked as such."""
        last_try = self._driver.started(trial.config["id"])
        trial.max_failures = 0 if last_try else -1


def metrics_of(result: dict[str, Any]) -> dict[str, Any]:
    """What the loop reported, without the keys that Tune adds."""
    plain = ("epoch", "diverged", "workers", "images_per_second", "seconds")
    return {
        key: value
        for key, value in result.items()
        if key in plain or key.startswith(("train/", "source_val/", "target_val/"))
    }
