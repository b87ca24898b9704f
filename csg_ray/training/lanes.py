"""The trainings of several trials, advanced together one epoch at a time."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch

from csg_ray.config.errors import UserError
from csg_ray.config.run import RunConfig
from csg_ray.data.splits import DomainSplits
from csg_ray.distributed import on_rank_zero, world_size
from csg_ray.methods.base import LOSS_WORST, ReferenceMethod
from csg_ray.metrics import HSE_WORST
from csg_ray.seeding import sub_seed
from csg_ray.storage.checkpoint import config_differences, load_checkpoint, save_checkpoint
from csg_ray.storage.paths import StoragePath
from csg_ray.training.evaluate import worst_metrics
from csg_ray.training.guard import DivergedError
from csg_ray.training.loop import REFERENCE_ACCURACY, Metrics, Training
from csg_ray.training.pictures import Pictures
from csg_ray.training.stacked import stack_key, stacked
from csg_ray.training.turns import Outcomes, in_turn, run_epoch_together

logger = logging.getLogger(__name__)

# How a group takes its steps.
Way = Literal["in_turn", "stacked"]

# Metrics that come with their deviation over repeats, and the deviation after a divergence.
DEVIATIONS = {
    "mean_class_accuracy": 1.0,
    "mean_iou": 1.0,
    **{name: HSE_WORST[name] for name in ("hse", "hse_power1", "hse_power2")},
    REFERENCE_ACCURACY: 1.0,
}


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch of a lane; good until its next one begins.

    Attributes:
        metrics: flat, finite, the same keys every time.
        save_checkpoint: writes a checkpoint to a path.
        pictures: what can be drawn of repeat 0; None after a divergence.
    """

    metrics: Metrics
    save_checkpoint: Callable[[StoragePath], None]
    pictures: Pictures | None


class Lane:
    """One trial's training among those trained together: its repeats, the epochs finished.

    Attributes:
        trainings: the repeats; none of a lane that has diverged before.
        epoch: how many are finished.
        finished: whether there is nothing left to train: all epochs are done, or the lane has
            diverged or failed.
    """

    def __init__(
        self,
        config: RunConfig,
        splits: DomainSplits,
        device: torch.device,
        repeats: int = 1,
        resume_from: StoragePath | None = None,
    ) -> None:
        """Build the trainings.

        Args:
            config: the whole training; its seed is that of repeat 0.
            splits: of `config.data`.
            device: where it trains.
            repeats: seeds trained in lockstep; the metrics are means over them.
            resume_from: a checkpoint of the same configuration to go on from.

        Raises:
            UserError: weights cannot be had, or the checkpoint is not of this training.
        """
        state = on_rank_zero(lambda: _load_state(resume_from, config, repeats))
        self.config = config
        self.trainings: list[Training] = []
        self.epoch = 0 if state is None else int(state["epoch"])
        diverged = state is not None and bool(state["metrics"]["diverged"])
        self.finished = diverged or self.epoch >= config.train.epochs
        if diverged:
            return
        for number in range(repeats):
            training = Training(_repeat(config, number), splits, device)
            if state is not None:
                training.load_state_dict(state["repeats"][number])
            self.trainings.append(training)

    def close_epoch(self, outcomes: Outcomes) -> EpochReport | Exception:
        """Count an epoch as finished; a repeat that has diverged or failed ends the lane.

        Args:
            outcomes: of the repeats, up to the first that has raised something.
        """
        ran = [training for training in self.trainings if training in outcomes]
        results = [outcomes[training] for training in ran]
        raised = [result for result in results if isinstance(result, Exception)]
        if raised and not isinstance(raised[0], DivergedError):
            self.finished = True
            return raised[0]
        self.epoch += 1
        if raised:
            logger.info("diverged in epoch %d: %s", self.epoch, raised[0])
            metrics = _worst(self.trainings)
        else:
            metrics = _summarise([result for result in results if isinstance(result, dict)])
        self.finished = bool(raised) or self.epoch >= self.config.train.epochs
        cost = {"workers": world_size(), "seconds": sum(training.seconds for training in ran)}
        metrics = {"epoch": self.epoch, **metrics, "diverged": int(bool(raised)), **cost}
        pictures = None if raised else Pictures(self.trainings[0])
        return EpochReport(metrics, self._checkpoint_writer(metrics), pictures)

    def _checkpoint_writer(self, metrics: Metrics) -> Callable[[StoragePath], None]:
        def write(path: StoragePath) -> None:
            state = {
                "config": self.config.model_dump(),
                "epoch": int(metrics["epoch"]),
                "metrics": metrics,
                "repeats": [training.state_dict() for training in self.trainings],
            }
            save_checkpoint(path, state)

        return write


class LaneGroup:
    """Lanes advanced together, one epoch at a time; each lane is at an epoch of its own.

    They share what is the same: images, and the reference encoder with what it makes of them. In
    turn, each lane's numbers are to the bit those that it would have alone; stacked, where lanes
    are alike enough for it (`stack_key`), up to rounding.
    """

    def __init__(self, how: Way = "in_turn") -> None:
        self._how = how
        self._lanes: dict[str, Lane] = {}

    def add(self, name: str, lane: Lane) -> None:
        """Let a lane take part from the next epoch on."""
        assert name not in self._lanes
        self._lanes[name] = lane
        trainings = [training for each in self._lanes.values() for training in each.trainings]
        methods = [one.method for one in trainings if isinstance(one.method, ReferenceMethod)]
        for newer, method in enumerate(methods):
            for older in methods[:newer]:
                method.share_reference(older)

    def remove(self, name: str) -> None:
        """Let a lane go; what it has learnt stays with it."""
        del self._lanes[name]

    def run_epoch(self, names: Collection[str] | None = None) -> dict[str, EpochReport | Exception]:
        """Train one more epoch of each lane, or of each named one, that is not finished.

        Returns:
            The report of each, or what has ended it other than a divergence.
        """
        named = self._lanes if names is None else names
        lanes = {name: self._lanes[name] for name in named if not self._lanes[name].finished}
        outcomes = self._run_stacked(lanes.values()) if self._how == "stacked" else {}
        for number in range(max((len(lane.trainings) for lane in lanes.values()), default=0)):
            self._run_in_turn(lanes.values(), number, outcomes)
        return {name: lane.close_epoch(outcomes) for name, lane in lanes.items()}

    def _run_stacked(self, lanes: Collection[Lane]) -> Outcomes:
        """Those of all repeats that can be stacked; the others are left out."""
        alike: dict[object, dict[Training, int]] = {}
        for lane in lanes:
            for training in lane.trainings:
                if (key := stack_key(training)) is not None:
                    alike.setdefault(key, {})[training] = lane.epoch + 1
        outcomes: Outcomes = {}
        for epochs in alike.values():
            if len(epochs) > 1:
                outcomes |= _run_stack(epochs)
        return outcomes

    def _run_in_turn(self, lanes: Collection[Lane], number: int, outcomes: Outcomes) -> None:
        """Repeat `number` of the lanes that have one, and none that has raised something yet."""
        epochs = {
            lane.trainings[number]: lane.epoch + 1
            for lane in lanes
            if len(lane.trainings) > number
            and lane.trainings[number] not in outcomes
            and not any(isinstance(outcomes.get(each), Exception) for each in lane.trainings)
        }
        together = {each: epoch for each, epoch in epochs.items() if each.method.takes_turns}
        outcomes |= run_epoch_together(together, in_turn)
        for training, epoch in epochs.items():
            if training not in together:
                outcomes |= run_epoch_together({training: epoch}, in_turn)


def _run_stack(epochs: dict[Training, int]) -> Outcomes:
    """Nothing where the joint step fails: one by one the guilty training fails alone."""
    try:
        return run_epoch_together(epochs, stacked)
    except Exception as error:
        logger.warning("%d trainings cannot be stacked, and take turns: %s", len(epochs), error)
        return {}


def _repeat(config: RunConfig, number: int) -> RunConfig:
    """The configuration of one repeat; repeat 0 is the configuration itself."""
    if number == 0:
        return config
    seed = sub_seed(config.seed, f"repeat/{number}") % 2**32
    return config.model_copy(update={"seed": seed})


def _summarise(repeats: list[Metrics]) -> Metrics:
    """Means over the repeats, and the sample deviation of the metrics that are compared."""
    metrics: Metrics = {}
    for name in repeats[0]:
        values = [repeat[name] for repeat in repeats]
        metrics[name] = statistics.fmean(values)
        if len(values) > 1 and {name, name.rpartition("/")[2]} & DEVIATIONS.keys():
            metrics[f"{name}_std"] = statistics.stdev(values)
    return metrics


def _worst(trainings: list[Training]) -> Metrics:
    """The report of a diverged epoch: the keys of a good one, the worst finite values."""
    training = trainings[0]
    logs = {"loss": LOSS_WORST, **training.method.worst_logs}
    metrics = {f"train/{name}": value for name, value in logs.items()}
    metrics["train/skipped_steps"] = float(max(each.guard.skipped_in_a_row for each in trainings))
    metrics["images_per_second"] = 0.0
    for split in training.splits.measured:
        for name, value in worst_metrics(split, training.config.data.task).items():
            metrics[f"{split.name}/{name}"] = value
            if len(trainings) > 1 and name in DEVIATIONS:
                metrics[f"{split.name}/{name}_std"] = DEVIATIONS[name]
    if training.config.evaluation.reference_images is not None:
        metrics[REFERENCE_ACCURACY] = 0.0
        if len(trainings) > 1:
            metrics[f"{REFERENCE_ACCURACY}_std"] = DEVIATIONS[REFERENCE_ACCURACY]
    return metrics


def _load_state(path: StoragePath | None, config: RunConfig, repeats: int) -> dict[str, Any] | None:
    """A checkpoint that is known to belong to this training, if there is one to go on from."""
    if path is None:
        return None
    state = load_checkpoint(path)
    differences = config_differences(state["config"], config)
    if len(state["repeats"]) != repeats:
        differences.append(f"repeats {len(state['repeats'])} there, {repeats} here")
    if differences:
        raise UserError(
            f"{path} is a checkpoint of another training: {'; '.join(differences)}; "
            "resume with the same settings, or start anew"
        )
    return state
