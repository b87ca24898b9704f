"""Plain fine-tuning on the source: the baseline."""

from __future__ import annotations

from typing import ClassVar

from csg_ray.data.loader import Batch
from csg_ray.methods.base import Method, StepOutput


class Vanilla(Method):
    """Cross-entropy on the source alone."""

    takes_turns: ClassVar[bool] = True

    def training_loss(self, batch: Batch) -> StepOutput:
        """Cross-entropy of the one view."""
        return StepOutput(self.task_loss(self.features(batch.views[0]), batch.labels), {})
