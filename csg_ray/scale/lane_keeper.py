"""The lanes of one process, one for each of its trials, and the files that these keep."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from typing import Any

import torch

from csg_ray.config.run import RunConfig
from csg_ray.data.load import load_splits
from csg_ray.scale.failures import check_sees_study, failure_report
from csg_ray.scale.gpu_share import CurrentGpu, claim
from csg_ray.scale.lane_trial import Joined, Report
from csg_ray.storage.paths import StoragePath, open_path
from csg_ray.storage.records import CHECKPOINT_FILE, read_results
from csg_ray.training.lanes import EpochReport, Lane, LaneGroup, Way
from csg_ray.training.recorder import EpochRecorder

logger = logging.getLogger(__name__)


class LaneKeeper:
    """Trains the lanes and records each epoch, as a trial in a process of its own does.

    All of it happens in the thread that calls: torch's random generators are the process's.

    Args:
        cpus: threads of torch.
        gpus: the share of a GPU that all lanes have together.
        how: as `LaneGroup` takes it.
    """

    def __init__(self, cpus: int, gpus: float, how: Way) -> None:
        torch.set_num_threads(cpus)
        self._gpus = gpus
        self._claimed = False
        self._group = LaneGroup(how)
        self._trials: dict[str, tuple[StoragePath, EpochRecorder]] = {}

    def join(self, assignment: dict[str, Any]) -> Joined:
        """Give a trial its lane, from its checkpoint if there is one.

        Args:
            assignment: as `train_trial` takes it.
        """
        directory = open_path(assignment["directory"])
        try:
            check_sees_study(directory)
            self._claim_share()
            lane = self._open(assignment, directory)
            reports = read_results(directory)
        except Exception as error:
            _end_if_broken(error)
            report = _failure(directory, error, len(self._trials) + 1)
            joined = Joined([report], finished=True)
        else:
            known = assignment["known_epochs"]
            unknown = [report for report in reports if report["epoch"] > known]
            joined = Joined(unknown, lane.finished)
        if joined.finished:
            self.leave(assignment["id"])
        return joined

    def leave(self, name: str) -> None:
        """Let go of a trial's lane; nothing where there is none."""
        if name in self._trials:
            _, recorder = self._trials.pop(name)
            recorder.close()
            self._group.remove(name)

    def train(self, names: Collection[str]) -> dict[str, Report]:
        """One more epoch of each of these trials; the report of each to the driver.

        A trial whose report has no epoch has failed, and has no lane any more.
        """
        try:
            ended = self._group.run_epoch(names)
        except Exception as error:
            ended = dict.fromkeys(names, error)
        for outcome in ended.values():
            _end_if_broken(outcome)
        present = len(self._trials)
        return {name: self._settle(name, ended[name], present) for name in names}

    def _claim_share(self) -> None:
        if not self._claimed and self._gpus != int(self._gpus):
            claim(self._gpus, CurrentGpu())
        self._claimed = True

    def _open(self, assignment: dict[str, Any], directory: StoragePath) -> Lane:
        name = assignment["id"]
        self.leave(name)
        config = RunConfig.model_validate(assignment["config"])
        # Before the checkpoint is looked for: it repairs what a crash has left.
        recorder = EpochRecorder(directory, assignment["params"], config.train.epochs)
        checkpoint = directory / CHECKPOINT_FILE
        try:
            lane = Lane(
                config,
                load_splits(config.data),
                torch.device("cuda" if torch.cuda.is_available() else "cpu"),
                assignment["repeats"],
                checkpoint if checkpoint.exists() else None,
            )
            self._group.add(name, lane)
        except BaseException:
            recorder.close()
            raise
        self._trials[name] = (directory, recorder)
        return lane

    def _settle(self, name: str, ended: EpochReport | Exception, present: int) -> Report:
        directory, recorder = self._trials[name]
        try:
            if isinstance(ended, Exception):
                raise ended
            recorder(ended.metrics, ended.save_checkpoint, ended.pictures)
        except Exception as error:
            self.leave(name)
            return _failure(directory, error, present)
        return dict(ended.metrics)


def _end_if_broken(outcome: object) -> None:
    """End the process after an error that leaves its GPU useless: every later call would fail, too.

    Its trials then take it for lost, and go on from their checkpoints, each alone at first.
    """
    if isinstance(outcome, torch.AcceleratorError):
        logger.error("the GPU of this process cannot be used any more: %s", outcome)
        os._exit(1)


def _failure(directory: StoragePath, error: Exception, present: int) -> Report:
    """What the driver is told; that several trials need too much is no fault of any one."""
    if isinstance(error, torch.OutOfMemoryError) and present > 1:
        return {
            "no_memory": f"{present} trials in one process (search.fuse) need more memory than "
            "its GPU, or its share of one, has; continue with csg-ray restore and "
            f"--fuse {present // 2}"
        }
    return failure_report(directory, error)
