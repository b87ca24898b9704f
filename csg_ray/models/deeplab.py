"""Segmentation heads: the stage-4 map to one logit per class and position."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

SegmentationHead = Literal["aspp_v3", "deeplabv2", "fcn"]

ASPP_V3_DILATIONS = (12, 24, 36)
DEEPLABV2_DILATIONS = (6, 12, 18, 24)


class DeepLabV2Head(nn.Module):
    """The sum of four dilated 3x3 convolutions (Chen et al., DeepLab, TPAMI 2018)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, num_classes, kernel_size=3, padding=dilation, dilation=dilation)
            for dilation in DEEPLABV2_DILATIONS
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, C, h, w) to logits (N, classes, h, w)."""
        return torch.stack([branch(features) for branch in self.branches]).sum(dim=0)


def build_segmentation_head(name: SegmentationHead, channels: int, num_classes: int) -> nn.Module:
    """A head that maps features (N, channels, h, w) to logits (N, num_classes, h, w).

    Args:
        name: `aspp_v3`, the head of the authors' code: a 1x1 and three dilated convolutions beside
            the mean of the map, joined by two more. Its BatchNorm cannot train on one image, whose
            mean is a single value per channel. `deeplabv2`, the head of the paper. `fcn`, two
            convolutions without BatchNorm, for small encoders.
        channels: of the features.
        num_classes: of the task.
    """
    if name == "aspp_v3":
        head: nn.Module = DeepLabHead(channels, num_classes, ASPP_V3_DILATIONS)
        return head
    if name == "deeplabv2":
        return DeepLabV2Head(channels, num_classes)
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, num_classes, kernel_size=1),
    )


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate logits (N, C, h, w) to (N, C, *size), corner positions on corner pixels."""
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=True)
