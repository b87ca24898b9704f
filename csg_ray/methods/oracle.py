"""The pre-trained encoder as it is, under a new head."""

from __future__ import annotations

from typing import ClassVar

from csg_ray.config.run import RunConfig
from csg_ray.data.loader import Batch
from csg_ray.methods.base import Method, StepOutput


class Oracle(Method):
    """Cross-entropy on the source, which reaches the head alone.

    The row "Oracle on ImageNet" of the paper's Table 1: what it says of the encoder's features is
    what they are worth before any synthetic image has changed them.
    """

    takes_turns: ClassVar[bool] = True

    def __init__(self, config: RunConfig, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__(config, num_classes, steps_per_epoch)
        self.encoder.requires_grad_(False)

    def training_loss(self, batch: Batch) -> StepOutput:
        """Cross-entropy of the one view."""
        return StepOutput(self.task_loss(self.features(batch.views[0]), batch.labels), {})
