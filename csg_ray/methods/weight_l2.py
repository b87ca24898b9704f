"""Weights held near the pre-trained ones."""

from __future__ import annotations

from typing import ClassVar

import torch

from csg_ray.config.methods import WeightL2Config
from csg_ray.config.run import RunConfig
from csg_ray.data.loader import Batch
from csg_ray.methods.base import LOSS_WORST, ReferenceMethod, StepOutput


class WeightL2(ReferenceMethod):
    """Cross-entropy + (a/2) * ||theta - theta_0||^2 over the encoder's weights, BatchNorm's too.

    The row "Weight l2 distance" of the paper's Table 1. It cites elastic weight consolidation
    (Kirkpatrick et al., PNAS 2017), whose importances it leaves out.
    """

    takes_turns: ClassVar[bool] = True
    worst_logs: ClassVar[dict[str, float]] = {"squared_distance": LOSS_WORST}

    def __init__(self, config: RunConfig, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__(config, num_classes, steps_per_epoch)
        assert isinstance(config.method, WeightL2Config)
        self.loss_weight = config.method.loss_weight

    def training_loss(self, batch: Batch) -> StepOutput:
        """Cross-entropy of the one view, and the pull to the start."""
        task = self.task_loss(self.features(batch.views[0]), batch.labels)
        distance = torch.stack(
            [(own - start).square().sum() for own, start in self.trained_with_start()]
        ).sum()
        logs = {"squared_distance": distance.detach()}
        return StepOutput(task + self.loss_weight / 2 * distance, logs)
