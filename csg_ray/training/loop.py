"""The training loop: plain PyTorch, in one process or several, and no idea who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from csg_ray.config.run import RunConfig
from csg_ray.data.epoch import steps_per_epoch, train_batches
from csg_ray.data.file_splits import FileSplit
from csg_ray.data.load import load_splits
from csg_ray.data.loader import Batch, Batches
from csg_ray.data.reference_images import check_reference_classes, load_reference_images
from csg_ray.data.splits import DomainSplits
from csg_ray.distributed import on_rank_zero, rank, shares, sum_over_ranks, world_size
from csg_ray.methods import build_method
from csg_ray.methods.base import EpochContext
from csg_ray.models.precision import float32_products
from csg_ray.seeding import rng_state, seed_everything, set_rng_state
from csg_ray.storage.paths import StoragePath
from csg_ray.training.evaluate import measure_split, reference_accuracy
from csg_ray.training.guard import STEPS_BETWEEN_READS, DivergedError, StepGuard
from csg_ray.training.optim import build_optimizer, schedule_learning_rate, step_unless
from csg_ray.training.pictures import Pictures
from csg_ray.training.spread import spread
from csg_ray.training.turns import in_turn, run_epoch_together

Metrics = dict[str, float]
OnEpochEnd = Callable[[Metrics, Callable[[StoragePath], None], Pictures | None], None]

REFERENCE_ACCURACY = "reference_task/accuracy"


class Training:
    """One training from one seed, advanced one epoch at a time.

    Several of them can take turns: each keeps its own state of every random generator.

    Attributes:
        batches: those of the last epoch.
        images_key: equal for trainings whose `batches` are the same.
        confusion: (K, K) counts on target_val after the last epoch; rows are labels.
        log_sums: what the steps of the epoch have logged, added up.
        seconds: that the epoch has cost; `training_seconds` of them went into its steps.
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
        every_step = device.type == "cpu" or self.method.reads_every_step
        self.guard = StepGuard(
            config.train.max_gradient_norm,
            config.train.max_skipped_steps,
            device,
            read_every=1 if every_step else STEPS_BETWEEN_READS,
        )
        self.batches: Batches
        self.images_key: tuple[Any, ...]
        self.confusion: torch.Tensor
        self.log_sums: dict[str, torch.Tensor] = {}
        self.seconds = self.training_seconds = 0.0
        self._rng = rng_state()

    @property
    def total_steps(self) -> int:
        """The steps of all epochs."""
        return self.steps_per_epoch * self.config.train.epochs

    @contextmanager
    def own_generators(self) -> Iterator[None]:
        """Within it, the global generators go on from where this training left them."""
        set_rng_state(self._rng)
        try:
            yield
        finally:
            self._rng = rng_state()

    def run_epoch(self, epoch: int) -> Metrics:
        """Train epoch number `epoch` (from 1), then measure what the splits have to be measured on.

        Raises:
            DivergedError: the loss, too many gradients in a row, or the logits are not finite.
        """
        outcome = run_epoch_together({self: epoch}, in_turn)[self]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def begin_epoch(self, epoch: int) -> None:
        """Prepare the batches of epoch number `epoch`."""
        config = self.config
        split = self.method.training_data(self.splits, epoch)
        num_views = self.method.num_views
        self.batches = train_batches(split, config, num_views, epoch, self.device)
        sizes = (config.train.batch_size, config.train.steps_per_epoch)
        images = (id(split), config.data, config.augment, num_views)
        self.images_key = (config.seed, epoch, *sizes, *images)
        self.log_sums = {}

    def train_on(self, batch: Batch) -> None:
        """Take a step on a batch, which is on the device."""
        with float32_products(self.config.compute.precision):
            logs = self._train_step(batch)
        for name, value in logs.items():
            known = name in self.log_sums
            self.log_sums[name] = self.log_sums[name] + value if known else value.double()

    def end_epoch(self, epoch: int) -> Metrics:
        """The metrics of the steps that were taken, and of the splits as they are now.

        Raises:
            DivergedError: a loss was not finite, gradients were not, or logits are not.
        """
        metrics = self._training_metrics()
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
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything a bitwise resume needs, in types that `weights_only` loading accepts."""
        return {
            "seed": self.config.seed,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "skipped_in_a_row": self.guard.skipped_in_a_row,
            "rng": self._rng,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        # Fused kernels walk through memory: a buffer must lie there as its parameter does.
        for param, kept in self.optimizer.state.items():
            if (buffer := kept.get("momentum_buffer")) is not None:
                kept["momentum_buffer"] = torch.empty_like(param).copy_(buffer)
        self.step = state["step"]
        self.guard.skipped_in_a_row = state["skipped_in_a_row"]
        self._rng = state["rng"]

    def _load_reference_images(self) -> FileSplit | None:
        folder = self.config.evaluation.reference_images
        if folder is None:
            return None
        images = load_reference_images(folder)
        num_classes = self.method.encoder.num_pretraining_classes
        check_reference_classes(images, num_classes, self.config.model)
        return images

    def _training_metrics(self) -> Metrics:
        skipped = self.guard.take_skipped(self.step)
        steps = len(self.batches)
        sums = torch.stack(list(self.log_sums.values())) * self._share
        totals = sum_over_ranks(sums).tolist()
        means = {name: total / steps for name, total in zip(self.log_sums, totals, strict=True)}
        metrics = {f"train/{name}": value for name, value in means.items()}
        metrics["train/skipped_steps"] = float(skipped)
        images = steps * self.config.train.batch_size
        metrics["images_per_second"] = images / self.training_seconds
        return metrics

    def _train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One step; its logs."""
        schedule_learning_rate(self.optimizer, self.config.train, self.step, self.total_steps)
        output = self._training_loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages over the ranks; so weighted, that is the gradient of the whole batch's mean.
        torch.autograd.backward(output.loss * (self._share * world_size()))
        self.method.after_backward()
        self.step += 1
        skip = self._judge(output.loss.detach() * self._share)
        if not (self.method.reads_every_step and bool(skip)):
            step_unless(skip, self.optimizer)
            self.method.after_step(self.optimizer, self.step, self.total_steps)
        return {"loss": output.loss.detach(), **output.logs}

    def _judge(self, loss: torch.Tensor) -> torch.Tensor:
        """1.0 if the step is to be skipped.

        The loss is summed over the ranks, and DDP has made their gradients equal, so that all of
        them decide alike.
        """
        gradients = [param.grad for param in self.method.parameters() if param.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return self.guard.judge(sum_over_ranks(loss), norm, self.step)


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
    # Lanes are made of trainings.
    from csg_ray.training.lanes import Lane, LaneGroup

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lane = Lane(config, load_splits(config.data), device, repeats, resume_from)
    group = LaneGroup()
    group.add("only", lane)
    while not lane.finished:
        report = group.run_epoch()["only"]
        if isinstance(report, Exception):
            raise report
        tell = partial(on_epoch_end, report.metrics, report.save_checkpoint, report.pictures)
        on_rank_zero(tell)
