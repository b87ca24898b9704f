"""The training loop: plain PyTorch, in one process or several, and no idea who listens."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from csg_ray.config.errors import UserError
from csg_ray.config.run import RunConfig
from csg_ray.data.epoch import steps_per_epoch, train_batches
from csg_ray.data.file_splits import FileSplit
from csg_ray.data.load import load_splits
from csg_ray.data.loader import Batch, Batches
from csg_ray.data.reference_images import check_reference_classes, load_reference_images
from csg_ray.data.splits import DomainSplits
from csg_ray.distributed import on_rank_zero, rank, shares, sum_over_ranks, world_size
from csg_ray.methods import build_method
from csg_ray.methods.base import LOSS_WORST, EpochContext
from csg_ray.metrics import HSE_WORST
from csg_ray.seeding import rng_state, seed_everything, set_rng_state, sub_seed
from csg_ray.storage.checkpoint import config_differences, load_checkpoint, save_checkpoint
from csg_ray.storage.paths import StoragePath
from csg_ray.training.evaluate import measure_split, reference_accuracy, worst_metrics
from csg_ray.training.optim import build_optimizer, schedule_learning_rate
from csg_ray.training.pictures import Pictures
from csg_ray.training.spread import spread

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
OnEpochEnd = Callable[[Metrics, Callable[[StoragePath], None], Pictures | None], None]

# Metrics that come with their deviation over repeats, and the deviation after a divergence.
DEVIATIONS = {
    "mean_class_accuracy": 1.0,
    "mean_iou": 1.0,
    **{name: HSE_WORST[name] for name in ("hse", "hse_power1", "hse_power2")},
    (REFERENCE_ACCURACY := "reference_task/accuracy"): 1.0,
}


class DivergedError(Exception):
    """The training cannot go on; the message says what happened."""


class Training:
    """One training from one seed, advanced one epoch at a time.

    Several of them can take turns: each keeps its own state of every random generator.

    Attributes:
        batches: those of the last epoch.
        confusion: (K, K) counts on target_val after the last epoch; rows are labels.
    """

    def __init__(self, config: RunConfig, splits: DomainSplits, device: torch.device) -> None:
        seed_everything(config.seed)
        self.config = config
        self.splits = splits
        self.device = device
        batch_size = config.train.batch_size
        self.steps_per_epoch = steps_per_epoch(len(splits.source_train), config.train)
        self.method = build_method(config, len(splits.class_names), self.steps_per_epoch).to(device)
        self._reference_images = self._load_reference_images()
        self._training_loss = spread(self.method, config)
        self.optimizer = build_optimizer(self.method, config.train)
        self._share = shares(batch_size)[rank()] / batch_size
        self.step = 0
        self.skipped_in_a_row = 0
        self.batches: Batches
        self.confusion: torch.Tensor
        self._rng = rng_state()

    def run_epoch(self, epoch: int) -> Metrics:
        """Train epoch number `epoch` (from 1), then measure what the splits have to be measured on.

        Raises:
            DivergedError: the loss, too many gradients in a row, or the logits are not finite.
        """
        set_rng_state(self._rng)
        metrics = self._train_epoch(epoch)
        self.method.on_epoch_end(EpochContext(epoch, self.splits, self.optimizer))
        for split in self.splits.measured:
            evaluation = measure_split(self.method, split, self.config, self.device)
            if not evaluation.finite:
                raise DivergedError(f"non-finite logits on {split.name} after epoch {epoch}")
            metrics |= {f"{split.name}/{key}": v for key, v in evaluation.metrics.items()}
            if split is self.splits.target_val:
                self.confusion = evaluation.confusion.counts
        if self._reference_images is not None:
            metrics[REFERENCE_ACCURACY] = reference_accuracy(
                self.method, self._reference_images, self.config, self.device
            )
        self._rng = rng_state()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything a bitwise resume needs, in types that `weights_only` loading accepts."""
        return {
            "seed": self.config.seed,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "skipped_in_a_row": self.skipped_in_a_row,
            "rng": self._rng,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self._rng = state["rng"]

    def _load_reference_images(self) -> FileSplit | None:
        folder = self.config.evaluation.reference_images
        if folder is None:
            return None
        images = load_reference_images(folder)
        num_classes = self.method.encoder.num_pretraining_classes
        check_reference_classes(images, num_classes, self.config.model)
        return images

    def _train_epoch(self, epoch: int) -> Metrics:
        config = self.config
        split = self.method.training_data(self.splits, epoch)
        batches = train_batches(split, config, self.method.num_views, epoch, self.device)
        self.batches = batches
        sums: dict[str, torch.Tensor] = {}
        skipped = 0
        started = time.perf_counter()
        for batch in batches.share_of_each():
            logs, stepped = self._train_step(batch.to(self.device))
            skipped += not stepped
            for name, value in logs.items():
                sums[name] = sums[name] + value if name in sums else value.double()
        totals = sum_over_ranks(torch.stack(list(sums.values())) * self._share).tolist()
        means = {name: total / len(batches) for name, total in zip(sums, totals, strict=True)}
        metrics = {f"train/{name}": value for name, value in means.items()}
        metrics["train/skipped_steps"] = float(skipped)
        images = len(batches) * config.train.batch_size
        metrics["images_per_second"] = images / (time.perf_counter() - started)
        return metrics

    def _train_step(self, batch: Batch) -> tuple[dict[str, torch.Tensor], bool]:
        """One step; its logs, and whether the parameters moved."""
        total_steps = self.steps_per_epoch * self.config.train.epochs
        schedule_learning_rate(self.optimizer, self.config.train, self.step, total_steps)
        output = self._training_loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages over the ranks; so weighted, that is the gradient of the whole batch's mean.
        torch.autograd.backward(output.loss * (self._share * world_size()))
        self.method.after_backward()
        self.step += 1
        if stepped := self._is_healthy(output.loss.detach() * self._share):
            self.optimizer.step()
            self.method.after_step(self.optimizer, self.step, total_steps)
        return {"loss": output.loss.detach(), **output.logs}, stepped

    def _is_healthy(self, loss: torch.Tensor) -> bool:
        """Whether the gradients may be used; reads loss and norm in one wait for the device.

        The loss is summed over the ranks, and DDP has made their gradients equal, so that all of
        them decide alike.
        """
        parameters = self.method.parameters()
        gradients = [param.grad for param in parameters if param.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        loss_value, norm_value = torch.stack([sum_over_ranks(loss), norm]).tolist()
        if not math.isfinite(loss_value):
            raise DivergedError(f"the loss is {loss_value} at step {self.step}")
        # Written so that a norm that is NaN is refused too.
        if norm_value <= self.config.train.max_gradient_norm:
            self.skipped_in_a_row = 0
            return True
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.config.train.max_skipped_steps:
            raise DivergedError(
                f"{self.skipped_in_a_row} gradients in a row were unusable at step {self.step}"
            )
        return False


def fit(
    config: RunConfig,
    on_epoch_end: OnEpochEnd,
    resume_from: StoragePath | None = None,
    repeats: int = 1,
) -> None:
    """Train, and report after every epoch.

    In a process group its ranks train one model together, each on its share of every batch of
    `train.batch_size`: the numbers are those of one process, whatever their number. Rank 0 alone
    reads the checkpoint and reports.

    Args:
        config: the whole training; its seed is that of repeat 0.
        on_epoch_end: called with the epoch's metrics (flat, finite, the same keys every time), a
            function that writes a checkpoint to a path, and what can be drawn of repeat 0 (None
            after a divergence).
        resume_from: a checkpoint of the same configuration to go on from.
        repeats: seeds trained in lockstep; the metrics are means over them.

    Raises:
        UserError: weights or data cannot be had, or the checkpoint is not of this training.
    """
    state = on_rank_zero(lambda: _load_state(resume_from, config, repeats))
    if state is not None and state["metrics"]["diverged"]:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    splits = load_splits(config.data)
    trainings = [Training(_repeat(config, number), splits, device) for number in range(repeats)]
    finished = 0
    if state is not None:
        for training, saved in zip(trainings, state["repeats"], strict=True):
            training.load_state_dict(saved)
        finished = state["epoch"]
    for epoch in range(finished + 1, config.train.epochs + 1):
        metrics = _run_epoch(trainings, epoch)
        write = _checkpoint_writer(config, trainings, metrics)
        pictures = None if metrics["diverged"] else Pictures(trainings[0])
        on_rank_zero(partial(on_epoch_end, metrics, write, pictures))
        if metrics["diverged"]:
            return


def _repeat(config: RunConfig, number: int) -> RunConfig:
    """The configuration of one repeat; repeat 0 is the configuration itself."""
    if number == 0:
        return config
    seed = sub_seed(config.seed, f"repeat/{number}") % 2**32
    return config.model_copy(update={"seed": seed})


def _run_epoch(trainings: list[Training], epoch: int) -> Metrics:
    """Advance every repeat by one epoch; one that diverges ends them all.

    `seconds` is what the epoch has cost: training and measuring, all repeats, on each worker.
    """
    started, diverged = time.perf_counter(), 0
    try:
        metrics = _summarise([training.run_epoch(epoch) for training in trainings])
    except DivergedError as error:
        logger.info("diverged in epoch %d: %s", epoch, error)
        metrics, diverged = _worst(trainings), 1
    cost = {"workers": world_size(), "seconds": time.perf_counter() - started}
    return {"epoch": epoch, **metrics, "diverged": diverged, **cost}


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
    metrics["train/skipped_steps"] = float(max(each.skipped_in_a_row for each in trainings))
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


def _checkpoint_writer(
    config: RunConfig, trainings: list[Training], metrics: Metrics
) -> Callable[[StoragePath], None]:
    def write(path: StoragePath) -> None:
        state = {
            "config": config.model_dump(),
            "epoch": int(metrics["epoch"]),
            "metrics": metrics,
            "repeats": [training.state_dict() for training in trainings],
        }
        save_checkpoint(path, state)

    return write


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
