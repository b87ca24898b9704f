"""Automated Synthetic-to-Real Generalization (Chen et al., ICML 2020): its proxy guidance."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from csg_ray.config.methods import ASGConfig, ASGL2OConfig
from csg_ray.config.run import RunConfig
from csg_ray.contrastive.precision import at_least_float32
from csg_ray.data.loader import Batch
from csg_ray.methods.base import LOSS_WORST, TASK_STAGE, ReferenceMethod, StepOutput


class ASG(ReferenceMethod):
    """Cross-entropy + lambda * KL between what both encoders say about the pre-training classes.

    The classifier of the pre-training task stays frozen, and both encoders share it; so the trained
    one must keep seeing what it saw in photographs.
    """

    takes_turns: ClassVar[bool] = True
    worst_logs: ClassVar[dict[str, float]] = {"kl": LOSS_WORST}

    def __init__(self, config: RunConfig, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__(config, num_classes, steps_per_epoch)
        assert isinstance(config.method, ASGConfig | ASGL2OConfig)
        self.loss_weight = config.method.loss_weight

    def training_loss(self, batch: Batch) -> StepOutput:
        """CE + lambda * KL(reference || trained), the mean over the images of the one view."""
        images = batch.views[0]
        maps = self.features(images)
        own = self._log_probabilities(maps[TASK_STAGE])
        with torch.no_grad():
            reference = self._log_probabilities(self.reference.maps(images)[TASK_STAGE])
        kl = functional.kl_div(own, reference, reduction="batchmean", log_target=True)
        task = self.task_loss(maps, batch.labels)
        return StepOutput(task + self.loss_weight * kl, {"kl": kl.detach()})

    def _log_probabilities(self, stage4: Tensor) -> Tensor:
        """Of the pre-training classes, (N, classes)."""
        logits = self.reference_encoder.pretraining_logits(stage4)
        return functional.log_softmax(at_least_float32(logits), dim=1)
