"""The contract of a training method: what the loop asks of every objective."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from csg_ray.config.errors import UserError
from csg_ray.config.run import ModelConfig, RunConfig
from csg_ray.contrastive.precision import at_least_float32
from csg_ray.data.loader import Batch
from csg_ray.data.splits import IGNORED, DomainSplits, Split
from csg_ray.distributed import rank, shares, sum_over_ranks
from csg_ray.models.deeplab import build_segmentation_head, upsample
from csg_ray.models.encoders import build_encoder
from csg_ray.models.folding import fold_batch_norm
from csg_ray.models.precision import Precision, autocast
from csg_ray.models.resnet import TappedResNet
from csg_ray.seeding import seeded

ENCODER_GROUPS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
TASK_STAGE = 4
# Finite in the float32 of TensorBoard, and far above any loss of a training that works.
LOSS_WORST = 1e9

ParameterGroup = tuple[str, list[nn.Parameter], float]


@dataclass(frozen=True)
class StepOutput:
    """One batch's loss, and scalars to be averaged over the epoch as `train/<name>`."""

    loss: Tensor
    logs: dict[str, Tensor]


@dataclass(frozen=True)
class EpochContext:
    """What a method may use between two epochs."""

    epoch: int
    splits: DomainSplits
    optimizer: Optimizer


class Method(nn.Module):
    """An encoder with a task head and an objective; a new method overrides what differs.

    Attributes:
        num_views: draws of the train transform that `training_loss` wants of every image.
        worst_logs: the names in `StepOutput.logs`, each with what a diverged epoch reports.
        reads_every_step: whether `after_step` must not be called of a step that is skipped. Then a
            GPU is waited for at every step.
        takes_turns: whether its steps may alternate with those of other trainings, which is so when
            they draw from no global generator and the epoch begins with no work of its own.
    """

    num_views = 1
    reads_every_step: ClassVar[bool] = False
    takes_turns: ClassVar[bool] = False
    worst_logs: ClassVar[dict[str, float]] = {}

    def __init__(self, config: RunConfig, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.steps_per_epoch = steps_per_epoch
        self._segments = config.data.task == "segmentation"
        with seeded(config.seed, "encoder"):
            self.encoder = build_encoder(config.model, 8 if self._segments else 32)
        self.head = self.new_head()
        if not config.model.train_batch_norm_affine:
            _freeze_batch_norm_affine(self.encoder)
        if config.model.freeze_batch_norm and config.compute.fold_batch_norm:
            fold_batch_norm(self.encoder)
        if config.compute.channels_last:
            for network in (self.encoder, self.head):
                network.to(memory_format=torch.channels_last)
        self.train()

    def new_head(self) -> nn.Module:
        """The task head as it is before training, the same for the same seed, on the CPU."""
        channels = self.encoder.stage_channels[TASK_STAGE]
        with seeded(self.config.seed, "task_head"):
            return build_task_head(self.config.model, channels, self.num_classes)

    def train(self, mode: bool = True) -> Method:
        """Switch to training mode; frozen BatchNorm keeps its running statistics in any mode."""
        super().train(mode)
        if self.config.model.freeze_batch_norm:
            self.encoder.eval()
        return self

    def features(self, images: Tensor) -> dict[int, Tensor]:
        """Map images (N, 3, H, W) to the encoder's {stage: (N, C_stage, H_stage, W_stage)}."""
        return encoder_maps(self.encoder, images, self.config.compute.precision)

    def classify(self, maps: dict[int, Tensor], size: tuple[int, int]) -> Tensor:
        """Logits from the encoder's maps.

        Args:
            maps: what `features` returned.
            size: (H, W) of the logits of segmentation, the images' own.

        Returns:
            (N, num_classes), or (N, num_classes, H, W) of segmentation.
        """
        if self._segments:
            stage4 = maps[TASK_STAGE]
            with autocast(self.config.compute.precision, stage4.device):
                logits = self.head(stage4)
            return upsample(at_least_float32(logits), size)
        pooled: Tensor = self.head(maps[TASK_STAGE].mean(dim=(2, 3)))
        return pooled

    def predict(self, images: Tensor) -> Tensor:
        """Logits of images (N, 3, H, W): (N, num_classes), of segmentation with (H, W) behind."""
        return self.classify(self.features(images), (images.shape[2], images.shape[3]))

    def task_loss(self, maps: dict[int, Tensor], labels: Tensor) -> Tensor:
        """Cross-entropy, the mean over images, or over the pixels that count.

        Args:
            maps: of the images that the labels belong to.
            labels: (N,), or (N, H, W) of segmentation.
        """
        if not self._segments:
            return functional.cross_entropy(self.classify(maps, (1, 1)), labels)
        logits = self.classify(maps, (labels.shape[1], labels.shape[2]))
        total = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return self.mean_over_ranks(total, (labels != IGNORED).sum())

    def mean_over_ranks(self, total: Tensor, count: Tensor) -> Tensor:
        """A loss that the loop adds up to the mean over all that counts on all ranks.

        Args:
            total: the sum over what counts on this rank, whose images count unlike the others'.
            count: how much that is.
        """
        # The loop weights the losses by the ranks' shares of the images.
        batch_size = self.config.train.batch_size
        share = shares(batch_size)[rank()] / batch_size
        # A batch in which nothing counts has a loss of 0; the mean would be NaN.
        return total / (sum_over_ranks(count).clamp_min(1) * share)

    def training_loss(self, batch: Batch) -> StepOutput:
        """The loss to minimise on one batch of `num_views` views."""
        raise NotImplementedError

    def parameter_groups(self) -> list[ParameterGroup]:
        """(name, trainable parameters, learning-rate factor); each parameter in just one group."""
        backbone_mult = self.config.train.backbone_lr_mult
        groups = [
            (name, _trainable(self.encoder.get_submodule(name)), backbone_mult)
            for name in ENCODER_GROUPS
        ]
        return [*groups, ("head", _trainable(self.head), 1.0)]

    def after_backward(self) -> None:
        """Gradients are there, parameters not yet moved."""

    def after_step(self, optimizer: Optimizer, step: int, total_steps: int) -> None:
        """Step `step` (from 1) of `total_steps` is finished.

        `lr_factor` of the optimizer's groups (named as in `parameter_groups`) is the method's to
        set; it scales the rate of the steps that follow.
        After a gradient that was too large or not finite the parameters have not moved, which only
        the device knows as yet; such a method as cannot go on then says `reads_every_step`.
        """

    def on_epoch_end(self, context: EpochContext) -> None:
        """An epoch is finished, and not yet evaluated."""

    def training_data(self, splits: DomainSplits, epoch: int) -> Split:
        """The images of one epoch (from 1).

        Called at its start, on every rank, also of one that a resumed training begins with: the
        place to prepare what the epoch needs.
        """
        return splits.source_train


class Reference:
    """A frozen encoder that several methods may share, and with it the maps of one batch."""

    def __init__(self, encoder: TappedResNet, precision: Precision) -> None:
        self.encoder = encoder
        self._precision = precision
        self._remembered: dict[int, tuple[Tensor, dict[int, Tensor]]] | None = None

    @torch.no_grad()
    def maps(self, images: Tensor) -> dict[int, Tensor]:
        """Map images (N, 3, H, W) to {stage: (N, C_stage, H_stage, W_stage)}."""
        if self._remembered is None:
            return encoder_maps(self.encoder, images, self._precision)
        if id(images) not in self._remembered:
            # The images are kept, too, so that no other tensor gets their id.
            maps = encoder_maps(self.encoder, images, self._precision)
            self._remembered[id(images)] = images, maps
        return self._remembered[id(images)][1]

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Within it, the maps of one and the same tensor are made once."""
        self._remembered = {}
        try:
            yield
        finally:
            self._remembered = None


class ReferenceMethod(Method):
    """A method that compares with a frozen copy of the encoder as it was before training.

    The copy moves between devices with the method but is hidden from `parameters()` and
    `state_dict()`: it is never trained, and whoever resumes builds it from the same weights. A
    fingerprint in the state makes sure that they are the same.
    """

    def __init__(self, config: RunConfig, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__(config, num_classes, steps_per_epoch)
        reference = copy.deepcopy(self.encoder).eval().requires_grad_(False)
        self._reference_sha256 = _fingerprint(reference)
        fold_batch_norm(reference)
        # No nn.Module itself, so that nn.Module does not register it.
        self.reference = Reference(reference, self.config.compute.precision)

    @property
    def reference_encoder(self) -> TappedResNet:
        """The frozen encoder."""
        return self.reference.encoder

    def share_reference(self, other: ReferenceMethod) -> None:
        """Drop the own copy of the reference encoder for the other's, if they are the same."""
        if self._reference_key == other._reference_key:
            self.reference = other.reference

    @property
    def _reference_key(self) -> tuple[Any, ...]:
        # The same weights make other maps at another output stride.
        device = next(self.reference_encoder.parameters()).device
        config = self.config
        return self._reference_sha256, config.model, config.compute, config.data.task, device

    def trained_with_start(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """The encoder's trained parameters, each with what it was before training."""
        return [
            (own, start)
            for own, start in zip(
                self.encoder.parameters(), self.reference_encoder.parameters(), strict=True
            )
            if own.requires_grad
        ]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ReferenceMethod:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reference_encoder._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def get_extra_state(self) -> str:
        """The fingerprint of the reference encoder, for `state_dict`."""
        return self._reference_sha256

    def set_extra_state(self, state: Any) -> None:
        """Refuse a state that was trained against other reference weights."""
        if state != self._reference_sha256:
            raise UserError(
                "the checkpoint was trained against other reference weights than model.weights "
                f"'{self.config.model.weights}' holds now; put the former weight file back"
            )


def encoder_maps(encoder: nn.Module, images: Tensor, precision: Precision) -> dict[int, Tensor]:
    """An encoder's maps, computed in `precision`, in float32 at least when they are there.

    All that follows is small, and must not be rounded to 16 bits: a temperature of 0.07 multiplies
    what is lost by 14.
    """
    with autocast(precision, images.device):
        maps: dict[int, Tensor] = encoder(images)
    return {stage: at_least_float32(features) for stage, features in maps.items()}


def build_task_head(config: ModelConfig, channels: int, num_classes: int) -> nn.Module:
    """Pooled features (N, channels) to logits (N, num_classes), or maps to maps of logits.

    Initialised as torch does.
    """
    if config.head == "linear":
        return nn.Linear(channels, num_classes)
    if config.head != "mlp":
        return build_segmentation_head(config.head, channels, num_classes)
    return two_layer_head(channels, config.head_width, num_classes)


def two_layer_head(channels: int, hidden: int, out: int) -> nn.Sequential:
    """Linear - ReLU - Linear."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, out))


def _freeze_batch_norm_affine(encoder: nn.Module) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [param for param in module.parameters() if param.requires_grad]


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
