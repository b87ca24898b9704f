"""From feature maps to embeddings: pooling, patches, normalisation, and the EMA of a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from csg_ray.config.errors import UserError
from csg_ray.contrastive.precision import at_least_float32

# Larger than usual: the gradient through a zero embedding is divided by it, and 1e12 times the
# upstream gradient destroys the weights in one step.
NORMALISE_EPS = 1e-6
_ATTENTION_EPS = 1e-12


def normalise(embeddings: Tensor) -> Tensor:
    """Scale the rows of (N, D) to length 1, in float32 at least; a zero row stays zero."""
    return functional.normalize(at_least_float32(embeddings), dim=1, eps=NORMALISE_EPS)


def attention_weights(features: Tensor) -> Tensor:
    """The attention of A-pool: how much each position agrees with the mean (CSG, Sec. 3.4).

    Position ij weighs <u_ij, mean u>, scaled to sum to 1. Where that sum is 0 (a map without any
    activation) all positions weigh the same. Always in float32 at least, as the products overflow
    float16.

    Args:
        features: u, (N, C, H, W). Negative values count as 0.

    Returns:
        (N, H, W).
    """
    number, _, height, width = features.shape
    with torch.autocast(features.device.type, enabled=False):
        attention = at_least_float32(features).flatten(start_dim=2).clamp_min(0)
        scores = attention.mean(dim=2, keepdim=True).mT @ attention
        total = scores.sum(dim=2, keepdim=True)
        usable = total > _ATTENTION_EPS
        # The inner where keeps 0 / 0 out of the backward pass, where it would be NaN again.
        weights = torch.where(
            usable, scores / torch.where(usable, total, 1.0), 1.0 / (height * width)
        )
        return weights.view(number, height, width)


def attention_pool(features: Tensor, attention_from: Tensor | None = None) -> Tensor:
    """A-pool: the mean over positions, weighted by `attention_weights` (CSG, Sec. 3.4).

    The gradient flows through the attention too; pass a detached `attention_from` to stop it.

    Args:
        features: (N, C, H, W).
        attention_from: the map whose attention it is, of the same shape, or the features
            themselves.

    Returns:
        (N, C).
    """
    source = features if attention_from is None else attention_from
    assert source.shape == features.shape
    weights = attention_weights(source).flatten(start_dim=1).unsqueeze(1)
    with torch.autocast(features.device.type, enabled=False):
        values = at_least_float32(features).flatten(start_dim=2)
        return (values @ weights.mT).squeeze(2)


def split_patches(features: Tensor, grid: int) -> Tensor:
    """Cut maps into a grid of patches, each an anchor of the dense loss (CSG, Eq. 6).

    Patch-major: patch (row, column) of map n is at (row * grid + column) * N + n.

    Args:
        features: (N, C, H, W).
        grid: patches per side.

    Returns:
        (N * grid * grid, C, H / grid, W / grid).

    Raises:
        UserError: the grid does not divide both sides of the maps.
    """
    number, channels, height, width = features.shape
    if height % grid or width % grid:
        raise UserError(
            f"method.patch_grid is {grid}, which does not divide maps of {height}x{width}; "
            "choose a grid that divides both sides, or another image size"
        )
    rows, columns = height // grid, width // grid
    cells = features.reshape(number, channels, grid, rows, grid, columns)
    return cells.permute(2, 4, 0, 1, 3, 5).reshape(-1, channels, rows, columns)


@torch.no_grad()
def update_ema(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Set the target's parameters to momentum * target + (1 - momentum) * source, in place.

    Buffers are left alone.
    """
    averages: list[Tensor] = list(target.parameters())
    parameters: list[Tensor] = list(source.parameters())
    # A step of 1e-3 is below the resolution of 16-bit floats: the average would never move.
    assert all(torch.finfo(average.dtype).bits >= 32 for average in averages)
    torch._foreach_lerp_(averages, parameters, 1 - momentum)
