"""Self-training from a trained run: CBST and its two confidence-regularised forms.

They see images of the target, without labels, and so stand apart from all other methods.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from csg_ray.config.errors import UserError
from csg_ray.config.methods import LRENTConfig, MRKLDConfig, SelfTrainingConfig
from csg_ray.config.run import RunConfig
from csg_ray.contrastive.precision import at_least_float32
from csg_ray.data.epoch import eval_batches
from csg_ray.data.loader import Batch
from csg_ray.data.mixture import ClassMixture, SceneMixture
from csg_ray.data.splits import IGNORED, UNLABELLED, DomainSplits, Split
from csg_ray.distributed import gather_features, sum_over_ranks
from csg_ray.methods.base import TASK_STAGE, Method, StepOutput, encoder_maps
from csg_ray.methods.pseudo_labels import class_thresholds, hard_labels, soft_labels
from csg_ray.methods.start import load_start
from csg_ray.models.deeplab import upsample
from csg_ray.seeding import sub_seed

PIXEL_STRIDE = 4  # of the pixels that the thresholds are taken from, in each direction


class CBST(Method):
    """Class-balanced self-training (Zou et al., ECCV 2018), a round in every epoch.

    At the start of an epoch the method predicts all of `target_train`, and takes for each class
    the confidence that the share of that round reaches (`class_thresholds`). The epoch then draws
    from a random part of the source and from the target: cross-entropy on both, over what is
    labelled or kept. Everything follows from the weights at the epoch's start, so that nothing of
    it has to be saved.

    An image's label is made once a round. A pixel's is made by the network of the round's start on
    the very crop that is trained on; published are labels of the whole image, which for thousands
    of them would fill a disk.
    """

    worst_logs: ClassVar[dict[str, float]] = {"kept_share": 0.0}

    def __init__(self, config: RunConfig, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__(config, num_classes, steps_per_epoch)
        assert isinstance(config.method, SelfTrainingConfig)
        self.settings: SelfTrainingConfig = config.method
        self._log_thresholds = torch.zeros(num_classes)
        # The images from here on in the split of the round are the target's; before a round begins
        # there is none.
        self._first_target = 2**62
        self._image_labels = torch.zeros(0, num_classes)
        self._kept_share = torch.zeros(())
        # In a tuple, so that nn.Module does not register them.
        self._round: tuple[nn.Module, nn.Module] = (self.encoder, self.head)

    def training_data(self, splits: DomainSplits, epoch: int) -> Split:
        """The images of a round: a part of the source, and of the target what is kept."""
        target = splits.target_train
        if target is None:
            raise UserError(
                f"method {self.config.method.name} trains on target images without labels, and the "
                "task has no target_train; name its images in a list, or give it a share"
            )
        if epoch == 1:  # later the file may be gone, and nobody needs it
            self.load_state_dict(load_start(self.settings.start, self.config, self.num_classes))
        settings, earlier = self.settings, epoch - 1
        source_share = min(
            settings.source_share + earlier * settings.source_share_step, settings.source_share_max
        )
        target_share = min(
            settings.target_share + earlier * settings.target_share_step, settings.target_share_max
        )
        source_positions = self._draw_source(len(splits.source_train), source_share, epoch)
        self._first_target = len(source_positions)
        if self._segments:
            self._begin_pixel_round(target, target_share)
            everything = np.arange(len(target), dtype=np.int64)
            return SceneMixture(splits.source_train, target, source_positions, everything)
        kept = self._begin_image_round(target, target_share)
        return ClassMixture(splits.source_train, target, source_positions, kept)

    def training_loss(self, batch: Batch) -> StepOutput:
        """Cross-entropy over source and kept target, each label of them weighing the same."""
        images = batch.views[0]
        logits = self.classify(self.features(images), (images.shape[2], images.shape[3]))
        logits = at_least_float32(logits)
        labels, counted = self._known_labels(batch.labels)
        target_labels, kept = self._target_labels(batch)
        each = (-1, *[1] * (kept.ndim - 1))
        of_target = (batch.indices >= self._first_target).view(each).expand_as(kept)
        labels = torch.where(of_target.unsqueeze(1), target_labels, labels)
        counted = torch.where(of_target, kept, counted)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        loss = self.mean_over_ranks((losses * counted).sum(), counted.sum())
        loss = loss + self._regularisation(logits, of_target & kept)
        return StepOutput(loss, {"kept_share": self._log_kept(of_target, kept)})

    def _labels_of(self, log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (N, K, ...) of target images or pixels, and which are kept, (N, ...)."""
        return hard_labels(log_probabilities, self._log_thresholds)

    def _regularisation(self, logits: Tensor, kept: Tensor) -> Tensor:
        """What is added to the cross-entropy for the kept images or pixels of the target."""
        return logits.new_zeros(())

    def _draw_source(self, count: int, share: float, epoch: int) -> NDArray[np.int64]:
        generator = torch.Generator().manual_seed(sub_seed(self.config.seed, f"source/{epoch}"))
        order: NDArray[np.int64] = torch.randperm(count, generator=generator).numpy()
        return order[: max(1, round(share * count))]

    @torch.no_grad()
    def _begin_image_round(self, target: Split, share: float) -> NDArray[np.int64]:
        """Label the target's images; the positions of those that are kept."""
        # The ranks' parts follow each other in the order of the split.
        log_probabilities = gather_features(list(self._predict(target)), self._device)
        confidences, predictions = log_probabilities.max(dim=1)
        self._log_thresholds = class_thresholds(confidences, predictions, self.num_classes, share)
        labels, kept = self._labels_of(log_probabilities)
        self._image_labels = labels[kept]
        self._kept_share = kept.double().mean()
        positions: NDArray[np.int64] = kept.nonzero().flatten().cpu().numpy()
        return positions

    @torch.no_grad()
    def _begin_pixel_round(self, target: Split, share: float) -> None:
        """Take the thresholds from the target's pixels, and keep the network that made them."""
        parts = []
        for log_probabilities in self._predict(target):
            sampled = log_probabilities[:, :, ::PIXEL_STRIDE, ::PIXEL_STRIDE]
            confidences, predictions = sampled.max(dim=1)
            parts.append(torch.stack([confidences.flatten(), predictions.flatten()], dim=1))
        confidences, predictions = gather_features(parts, self._device).unbind(dim=1)
        self._log_thresholds = class_thresholds(confidences, predictions, self.num_classes, share)
        network = copy.deepcopy((self.encoder, self.head))
        for part in network:
            part.eval().requires_grad_(False)
        self._round = network

    def _predict(self, target: Split) -> Iterator[Tensor]:
        """Ln P (B, K, ...) of this rank's part of the target, batch by batch."""
        was_training = self.training
        self.eval()
        for batch in eval_batches(target, self.config, self._device).share_of_all():
            images = batch.views[0].to(self._device)
            probabilities = at_least_float32(self.predict(images)).softmax(dim=1)
            if self.config.evaluation.flip:
                mirrored = at_least_float32(self.predict(images.flip(3))).softmax(dim=1)
                mirrored = mirrored.flip(3) if self._segments else mirrored
                probabilities = (probabilities + mirrored) / 2
            yield probabilities.log()
        self.train(was_training)

    def _known_labels(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot labels (N, K, ...) of the source, and which of them count."""
        counted = (labels != IGNORED) & (labels != UNLABELLED)
        one_hot = functional.one_hot(labels.clamp(0, self.num_classes - 1), self.num_classes)
        return one_hot.movedim(-1, 1), counted

    @torch.no_grad()
    def _target_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Labels (N, K, ...) as if every image were of the target, and which are kept."""
        if self._segments:
            encoder, head = self._round
            images = batch.views[0]
            size = (images.shape[2], images.shape[3])
            maps = encoder_maps(encoder, images, self.config.compute.precision)
            logits = upsample(head(maps[TASK_STAGE]), size)
            return self._labels_of(functional.log_softmax(at_least_float32(logits), dim=1))
        kept = torch.ones_like(batch.indices, dtype=torch.bool)
        if len(self._image_labels) == 0:
            return torch.zeros(len(kept), self.num_classes, device=kept.device), ~kept
        return self._image_labels[(batch.indices - self._first_target).clamp_min(0)], kept

    def _log_kept(self, of_target: Tensor, kept: Tensor) -> Tensor:
        """The share of target images that were kept in this round, or of pixels in this batch."""
        if not self._segments:
            return self._kept_share
        total = sum_over_ranks(of_target.sum()).clamp_min(1)
        return sum_over_ranks((of_target & kept).sum()) / total

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device


class MRKLD(CBST):
    """CBST + alpha * KL(uniform || P) of what is kept, up to a constant (Zou et al., ICCV 2019)."""

    def _regularisation(self, logits: Tensor, kept: Tensor) -> Tensor:
        """Alpha * the mean over the kept of -(1/K) * sum_k ln P_k."""
        assert isinstance(self.settings, MRKLDConfig)
        divergence = -functional.log_softmax(logits, dim=1).mean(dim=1)
        total = (divergence * kept).sum()
        return self.settings.smoothness * self.mean_over_ranks(total, kept.sum())


class LRENT(CBST):
    """CBST with soft labels, whose entropy is rewarded (Zou et al., ICCV 2019)."""

    def _labels_of(self, log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Soft labels (N, K, ...) of target images or pixels, and which are kept, (N, ...)."""
        assert isinstance(self.settings, LRENTConfig)
        return soft_labels(log_probabilities, self._log_thresholds, self.settings.smoothness)
