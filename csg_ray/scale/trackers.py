"""MLflow and Weights & Biases beside a study's own files, through Ray's callbacks for them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from csg_ray.scale.adapters import metrics_of

Tell = Callable[[str], None]

# Unless the user's environment says otherwise. A server that is away must not keep a search
# waiting: MLflow would try for minutes, at every epoch.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
QUIET = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
}


def build_trackers(
    names: Sequence[str], study: str, tell: Tell, verbose: bool
) -> list[TrackerCallback]:
    """One callback for each name, `mlflow` or `wandb`.

    Where they log is what their own environment variables say (MLFLOW_TRACKING_URI, WANDB_MODE,
    WANDB_ENTITY, ...); the experiment, or project, is called like the study unless these name
    another.

    Args:
        names: of the trackers.
        study: the study's name.
        tell: called with one sentence when a tracker fails.
        verbose: show what the trackers print and log.
    """
    for variable, value in (PATIENCE if verbose else PATIENCE | QUIET).items():
        os.environ.setdefault(variable, value)
    build = {"mlflow": _build_mlflow, "wandb": _build_wandb}
    return [
        TrackerCallback(name, lambda name=name: build[name](study, verbose), tell)  # type: ignore[misc]
        for name in dict.fromkeys(names)
    ]


class ShownTrial:
    """What Ray's logger callbacks read of a trial; the config is the searched settings alone."""

    def __init__(self, trial: Trial) -> None:
        self.trial_id = str(trial.trial_id)
        self.local_path = trial.local_path
        self.experiment_dir_name = trial.experiment_dir_name
        self.config = dict(trial.config["params"])
        self._name = str(trial.config["id"])

    def __str__(self) -> str:
        return self._name


class TrackerCallback(Callback):
    """One of Ray's logger callbacks; the first time that it fails is the last time it is called.

    Left alone, an exception in a callback ends the trial, or the whole search.

    Args:
        name: of the tracker.
        build: makes Ray's callback.
        tell: called with one sentence when it fails.
    """

    def __init__(self, name: str, build: Callable[[], LoggerCallback], tell: Tell) -> None:
        self._name = name
        self._build = build
        self._tell = tell
        self._logger: LoggerCallback | None = None
        self._shown: dict[str, ShownTrial] = {}

    def __getstate__(self) -> dict[str, Any]:
        # As of the driver: Tune pickles it into a file that nothing here reads.
        return {}

    def setup(self, *args: Any, **info: Any) -> None:
        """Connect."""

        def connect() -> None:
            logger = self._build()
            logger.setup(*args, **info)
            self._logger = logger

        self._try(connect)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Begin a run; a trial whose process was replaced goes on in its own."""
        shown = self._shown.setdefault(trial.trial_id, ShownTrial(trial))
        self._call(lambda logger: logger.log_trial_start(shown))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Log one epoch."""
        if "epoch" in result:
            shown = self._shown[trial.trial_id]
            self._call(lambda logger: logger.log_trial_result(iteration, shown, _epoch(result)))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """End the run."""
        self._end(trial, failed="error" in (trial.last_result or {}))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """End the run of a trial whose process died."""
        self._end(trial, failed=True)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Wait for what is not yet uploaded."""
        self._call(lambda logger: logger.on_experiment_end(trials, **info))

    def _end(self, trial: Trial, failed: bool) -> None:
        shown = self._shown.get(trial.trial_id)
        if shown is not None:
            self._call(lambda logger: logger.log_trial_end(shown, failed=failed))

    def _call(self, action: Callable[[Any], None]) -> None:
        logger = self._logger
        if logger is not None:
            self._try(lambda: action(logger))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._logger = None
            reason = shorten(str(error) or type(error).__name__, 600)
            self._tell(f"{self._name} takes nothing more of this search, which goes on: {reason}")


def _epoch(result: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of an epoch under names that every tracker takes, and its number as the step."""
    metrics = {re.sub(r"[^\w/. -]", "_", name): v for name, v in metrics_of(dict(result)).items()}
    return metrics | {"training_iteration": int(metrics["epoch"])}


def _build_mlflow(study: str, verbose: bool) -> LoggerCallback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    if not verbose:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", study)
    return MLflowLoggerCallback(experiment_name=name)


def _build_wandb(study: str, verbose: bool) -> LoggerCallback:
    from ray.air.integrations.wandb import WandbLoggerCallback

    class Wandb(WandbLoggerCallback):
        """Ray's, with the user's environment in its actors, and their failures brought back."""

        def setup(self, *args: Any, **kwargs: Any) -> None:
            super().setup(*args, **kwargs)
            variables = {k: v for k, v in os.environ.items() if k.startswith("WANDB_")}
            node = ray.get_runtime_context().get_node_id()
            options: dict[str, Any] = {
                "num_cpus": 0,
                "runtime_env": {"env_vars": variables},
                "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
            }
            actor: Any = ray.remote(**options)(self._logger_actor_cls)
            self._remote_logger_class = actor

        def _cleanup_logging_actor(self, trial: Any) -> None:
            future = self._trial_logging_futures[trial]
            ended, _ = ray.wait([future], timeout=0)
            super()._cleanup_logging_actor(trial)
            ray.get(ended)  # raises what stopped it

    # Where wandb itself would put its files: the actors run in Tune's folder, which is removed.
    folder = os.environ.get("WANDB_DIR") or str(Path.cwd())
    project = os.environ.get("WANDB_PROJECT", study)
    return Wandb(project=project, group=os.environ.get("WANDB_RUN_GROUP", study), dir=folder)
