"""Pseudo-labels of self-training: thresholds by class, and the labels that clear them.

Everywhere the classes are dimension 1: (N, K) of images, (N, K, H, W) of pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def class_thresholds(
    log_confidences: Tensor, predictions: Tensor, num_classes: int, share: float
) -> Tensor:
    """Ln t_k of CBST (Zou et al., ECCV 2018, Alg. 2): the share of each class that is kept.

    In logarithms throughout, so that whoever sets a threshold also reaches it.

    Args:
        log_confidences: (M,) ln P of the predicted classes, of images or pixels.
        predictions: (M,) predicted classes.
        num_classes: K.
        share: p; of the n_k predicted as class k the floor(p * n_k) most confident are kept.

    Returns:
        (K,) the least that is kept; 0, the logarithm of 1, where none is.
    """
    thresholds = log_confidences.new_zeros(num_classes)
    for number in range(num_classes):
        own = log_confidences[predictions == number]
        kept = math.floor(share * len(own))
        if kept > 0:
            thresholds[number] = own.topk(kept).values[-1]
    return thresholds


def hard_labels(log_probabilities: Tensor, log_thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """The class that exceeds its threshold most, and whether it reaches it (CBST, Eq. 6).

    Args:
        log_probabilities: (N, K, ...) ln P.
        log_thresholds: (K,) ln t.

    Returns:
        One-hot labels (N, K, ...), and which are kept, (N, ...) bool.
    """
    most, label = _over(log_probabilities, log_thresholds).max(dim=1)
    one_hot = torch.zeros_like(log_probabilities).scatter_(1, label.unsqueeze(1), 1.0)
    return one_hot, most >= 0


def soft_labels(
    log_probabilities: Tensor, log_thresholds: Tensor, smoothness: float
) -> tuple[Tensor, Tensor]:
    """Labels with the entropy of LRENT (Zou et al., ICCV 2019, Table 1).

    y minimises sum_k y_k (ln t_k - ln P_k + alpha ln y_k): y_k ~ (P_k / t_k)^(1 / alpha). It is
    kept if that minimum, -alpha ln sum_k (P_k / t_k)^(1 / alpha), is below the 0 of no label. In
    logarithms, as the power overflows for small alpha.

    Args:
        log_probabilities: (N, K, ...) ln P.
        log_thresholds: (K,) ln t.
        smoothness: alpha.

    Returns:
        Labels (N, K, ...) that sum to 1, and which are kept, (N, ...) bool.
    """
    scaled = _over(log_probabilities, log_thresholds) / smoothness
    # Equality is a class at its threshold beside others too small for the sum to show.
    return scaled.softmax(dim=1), scaled.logsumexp(dim=1) >= 0


def _over(log_probabilities: Tensor, log_thresholds: Tensor) -> Tensor:
    """Ln (P_k / t_k)."""
    per_class = (1, -1, *[1] * (log_probabilities.ndim - 2))
    return log_probabilities - log_thresholds.view(per_class)
