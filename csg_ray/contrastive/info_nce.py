"""The contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from csg_ray.contrastive.precision import at_least_float32


def info_nce(query: Tensor, key: Tensor, negatives: Tensor, temperature: float | Tensor) -> Tensor:
    """InfoNCE: cross-entropy of each query's own key against the negatives (CSG, Eq. 3).

    Row n of `key` is the positive of row n of `query`; every row of `negatives` is a negative of
    all of them. Always in float32 at least: a temperature of 0.07 multiplies the rounding of a
    bfloat16 product by 14, and 65,537 equal terms overflow float16.

    Args:
        query: (N, D) unit vectors.
        key: (N, D) unit vectors.
        negatives: (K, D) unit vectors. Must not change in place before the backward pass.
        temperature: tau, a number or a tensor without dimensions.

    Returns:
        The mean over the N queries, a scalar.
    """
    with torch.autocast(query.device.type, enabled=False):
        scaled = at_least_float32(query) / temperature
        positive = (scaled * at_least_float32(key)).sum(dim=1)
        rest = torch.logsumexp(scaled @ at_least_float32(negatives).T, dim=1)
        # -log(e^p / (e^p + e^r)) = softplus(r - p): no (N, 1 + K) copy of the logits, and a loss
        # near zero keeps its digits.
        return functional.softplus(rest - positive).mean()
