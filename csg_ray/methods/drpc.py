"""Domain randomisation and pyramid consistency (Yue et al., ICCV 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from csg_ray.config.methods import DRPCConfig
from csg_ray.config.run import RunConfig
from csg_ray.contrastive.precision import at_least_float32
from csg_ray.data.loader import Batch
from csg_ray.data.splits import DomainSplits, Split
from csg_ray.data.styled import StyledSplit, open_styles
from csg_ray.methods.base import LOSS_WORST, Method, StepOutput


class DRPC(Method):
    """Cross-entropy on an image and its stylised copies + a * how far their features are apart.

    The features are maps averaged over the cells of a pyramid of grids, and pulled to their mean
    over the versions of the image. Yue et al. released no code; the squared distance, the weight,
    the stages and the grids are choices made here. Their copies come from image-to-image
    translation in the styles of ImageNet classes; here they are whatever the folder holds.
    """

    takes_turns: ClassVar[bool] = True
    worst_logs: ClassVar[dict[str, float]] = {"inconsistency": LOSS_WORST}

    def __init__(self, config: RunConfig, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__(config, num_classes, steps_per_epoch)
        assert isinstance(config.method, DRPCConfig)
        self.settings = config.method
        self.num_views = 1 + config.method.copies
        self._styled: StyledSplit | None = None

    def training_data(self, splits: DomainSplits, epoch: int) -> Split:
        """The source, each image with its copies."""
        if self._styled is None:
            method = self.settings
            self._styled = open_styles(splits.source_train, method.styles, method.copies)
        return self._styled

    def training_loss(self, batch: Batch) -> StepOutput:
        """Mean cross-entropy over all versions, and their inconsistency."""
        versions = len(batch.views)
        maps = self.features(torch.cat(batch.views))
        labels = batch.labels.repeat(versions, *[1] * (batch.labels.ndim - 1))
        inconsistency = torch.stack(
            [
                pyramid_inconsistency(maps[stage], versions, self.settings.grid_sizes())
                for stage in self.settings.stage_numbers()
            ]
        ).sum()
        loss = self.task_loss(maps, labels) + self.settings.loss_weight * inconsistency
        return StepOutput(loss, {"inconsistency": inconsistency.detach()})


def pyramid_inconsistency(features: Tensor, versions: int, grids: tuple[int, ...]) -> Tensor:
    """The mean squared distance of pooled features from their mean over versions of an image.

    Args:
        features: (V * N, C, H, W), all images in one version after the other.
        versions: V.
        grids: cells per side at each level of the pyramid; the levels add up.
    """
    total = features.new_zeros((), dtype=at_least_float32(features).dtype)
    for grid in grids:
        pooled = functional.adaptive_avg_pool2d(at_least_float32(features), grid)
        pooled = pooled.view(versions, -1, *pooled.shape[1:])
        total = total + (pooled - pooled.mean(dim=0)).square().mean()
    return total
