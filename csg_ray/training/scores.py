"""What a trained method says of images: in one pass, mirrored too, or window by window."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from csg_ray.config.run import RunConfig
from csg_ray.methods.base import TASK_STAGE, Method

WINDOW_STRIDE = 5 / 6  # of the window's side; as the authors' evaluation is configured


class Scores(NamedTuple):
    """Of N images.

    Attributes:
        values: whose argmax is the prediction, (N, classes), of segmentation (N, classes, H, W).
        embeddings: pooled stage-4 features, (N, C).
        finite: whether every logit was, a scalar of bool.
    """

    values: Tensor
    embeddings: Tensor
    finite: Tensor


def score(method: Method, images: Tensor, config: RunConfig) -> Scores:
    """Run a method in evaluation mode over images (N, 3, H, W).

    With `evaluation.flip` the values are averages over an image and its mirror image: of sigmoids
    in classification (method of CSG for VisDA-17), of softmax in segmentation.
    """
    whole = _score(method, images, config)
    if not config.evaluation.flip:
        return whole
    mirrored = _score(method, images.flip(3), config).values
    if config.data.task == "classification":
        return whole._replace(values=whole.values.sigmoid() + mirrored.sigmoid())
    values = whole.values.softmax(dim=1) + mirrored.flip(3).softmax(dim=1)
    return whole._replace(values=values)


def _score(method: Method, images: Tensor, config: RunConfig) -> Scores:
    window = config.evaluation.window
    if config.data.task == "segmentation" and window is not None:
        return _score_windows(method, images, window)
    maps = method.features(images)
    logits = method.classify(maps, (images.shape[2], images.shape[3]))
    return Scores(logits, maps[TASK_STAGE].mean(dim=(2, 3)), logits.isfinite().all())


def _score_windows(method: Method, images: Tensor, side: int) -> Scores:
    """Log of the softmax, averaged over the windows that show a pixel; embeddings over windows."""
    count, _, height, width = images.shape
    total = images.new_zeros(count, method.num_classes, height, width)
    shown = images.new_zeros(height, width)
    embeddings, finite = [], []
    for top in window_starts(height, side):
        for left in window_starts(width, side):
            part = (..., slice(top, top + side), slice(left, left + side))
            maps = method.features(images[part])
            size = (min(side, height), min(side, width))
            logits = method.classify(maps, size)
            total[part] += logits.softmax(dim=1)
            shown[part] += 1
            embeddings.append(maps[TASK_STAGE].mean(dim=(2, 3)))
            finite.append(logits.isfinite().all())
    mean = torch.stack(embeddings).mean(dim=0)
    return Scores((total / shown).log(), mean, torch.stack(finite).all())


def window_starts(length: int, side: int) -> list[int]:
    """Where windows of `side` begin so that they cover `length`; the last one ends with it."""
    last = max(length - side, 0)
    stride = math.ceil(side * WINDOW_STRIDE)
    return [*range(0, last, stride), last]
