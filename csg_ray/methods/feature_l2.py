"""Features held near those of the reference encoder."""

from __future__ import annotations

from typing import ClassVar

import torch

from csg_ray.config.methods import FeatureL2Config
from csg_ray.config.run import RunConfig
from csg_ray.data.loader import Batch
from csg_ray.methods.base import LOSS_WORST, ReferenceMethod, StepOutput


class FeatureL2(ReferenceMethod):
    """Cross-entropy + a * the mean squared distance of the two encoders' maps of the same image.

    The row "Feature l2 distance" of the paper's Table 1, after ROAD (Chen et al., CVPR 2018), which
    compares them on target images. Here they are the source's, so that no target image is seen.
    """

    takes_turns: ClassVar[bool] = True
    worst_logs: ClassVar[dict[str, float]] = {"feature_distance": LOSS_WORST}

    def __init__(self, config: RunConfig, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__(config, num_classes, steps_per_epoch)
        assert isinstance(config.method, FeatureL2Config)
        self.loss_weight = config.method.loss_weight
        self.stages = config.method.stage_numbers()

    def training_loss(self, batch: Batch) -> StepOutput:
        """Cross-entropy of the one view, and the sum of the distances over the stages."""
        maps = self.features(batch.views[0])
        reference = self.reference.maps(batch.views[0])
        # Of every position and channel, so that the weight means the same at every stage.
        distance = torch.stack(
            [(maps[stage] - reference[stage]).square().mean() for stage in self.stages]
        ).sum()
        task = self.task_loss(maps, batch.labels)
        return StepOutput(
            task + self.loss_weight * distance, {"feature_distance": distance.detach()}
        )
