"""Pseudo-labels and losses of self-training, as plain as possible; nothing from the package."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def thresholds(probabilities: list[list[float]], share: float) -> list[float]:
    """By class, the confidence at rank floor(share * n_k) of the n_k predicted so; else 1."""
    found = []
    for number in range(len(probabilities[0])):
        confidences = sorted(
            (max(row) for row in probabilities if row.index(max(row)) == number), reverse=True
        )
        rank = math.floor(share * len(confidences))
        found.append(confidences[rank - 1] if rank else 1.0)
    return found


def hard_label(probabilities: list[float], least: list[float]) -> int | None:
    """The class with the largest P / t, if that reaches 1."""
    over = [p / t for p, t in zip(probabilities, least, strict=True)]
    # A sample reaches its own threshold, whatever the last digit.
    return over.index(max(over)) if max(over) >= 1 - 1e-12 else None


def soft_label(probabilities: list[float], least: list[float], alpha: float) -> list[float] | None:
    """y ~ (P / t)^(1 / alpha), if sum(-y ln P + alpha y ln y) < sum(-y ln t)."""
    powers = [(p / t) ** (1 / alpha) for p, t in zip(probabilities, least, strict=True)]
    label = [power / sum(powers) for power in powers]
    left = sum(
        -y * math.log(p) + alpha * y * math.log(y)
        for y, p in zip(label, probabilities, strict=True)
        if y > 0
    )
    right = sum(-y * math.log(t) for y, t in zip(label, least, strict=True))
    return label if left < right else None


def loss(
    logits: list[Tensor], labels: list[list[float] | None], of_target: list[bool], alpha: float
) -> Tensor:
    """Mean cross-entropy over what has a label, + alpha * the mean of -(1/K) sum ln P over its
    target part.

    Args:
        logits: of every image or pixel, (K,).
        labels: shares of the classes; None where nothing counts.
        of_target: which are of the target.
        alpha: of MRKLD; 0 for the others.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    spread, kept = torch.zeros((), dtype=torch.float64), 0
    for scores, label, target in zip(logits, labels, of_target, strict=True):
        if label is None:
            continue
        logs = scores - torch.log(torch.exp(scores).sum())
        count += 1
        for share, log in zip(label, logs, strict=True):
            total = total - share * log
        if target:
            kept += 1
            spread = spread - logs.sum() / len(logs)
    return total / max(count, 1) + alpha * spread / max(kept, 1)
