"""The losses beside cross-entropy of the methods that CSG is compared with, as plain as possible.

Loops over images, weights, classes and positions; nothing imported from the package.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from plain_csg import Weights, mean_pool, mini_maps


def weight_penalty(encoder: Weights, start: Weights, names: list[str]) -> Tensor:
    """Half the squared distance of the named weights from their start."""
    total = torch.zeros((), dtype=torch.float64)
    for name in names:
        for own, anchor in zip(encoder[name].flatten(), start[name].flatten(), strict=True):
            total = total + (own - anchor) ** 2
    return total / 2


def feature_penalty(encoder: Weights, start: Weights, images: Tensor, stage: int) -> Tensor:
    """The mean over images, channels and positions of the squared distance of two maps."""
    own, reference = mini_maps(encoder, images)[stage], mini_maps(start, images)[stage]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for image, other in zip(own, reference, strict=True):
        for channel, other_channel in zip(image, other, strict=True):
            total = total + ((channel - other_channel) ** 2).sum()
            count += channel.numel()
    return total / count


def proxy_guidance(encoder: Weights, start: Weights, images: Tensor) -> Tensor:
    """The mean over images of the sum over classes of p_o * (ln p_o - ln p)."""
    own, reference = mini_maps(encoder, images)[4], mini_maps(start, images)[4]
    total = torch.zeros((), dtype=torch.float64)
    for image, other in zip(own, reference, strict=True):
        p, p_reference = _classify(start, image), _classify(start, other)
        for own_share, reference_share in zip(p, p_reference, strict=True):
            total = total + reference_share * (torch.log(reference_share) - torch.log(own_share))
    return total / len(images)


def _classify(start: Weights, stage4: Tensor) -> Tensor:
    exponentials = torch.exp(start["fc.weight"] @ mean_pool(stage4) + start["fc.bias"])
    return exponentials / exponentials.sum()


def importance(moves: list[tuple[float, float]], damping: float) -> float:
    """Of one weight, from its moves since the start and the gradients that they followed."""
    lowered = -sum(gradient * move for gradient, move in moves)
    distance = math.fsum(move for _, move in moves)
    return max(0.0, lowered / (distance**2 + damping))
