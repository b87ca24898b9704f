"""One CSG training step, written as plainly as possible to compare the package with.

Loops over images, patches, positions and queue entries; plain dicts of weights; nothing imported
from the package. Made for float64. The network is the `mini` ResNet with frozen BatchNorm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]

IGNORED_LABEL = 255


@dataclass
class PlainCSG:
    """The settings and the state of one training.

    Attributes:
        reference: weights of the frozen encoder.
        ema_heads: weights of the EMA projection heads, `3.0.weight` for stage 3's first layer.
        queues: the negatives of every stage, the oldest first.
    """

    stages: tuple[int, ...]
    loss_weight: float
    temperature: float
    ema_momentum: float
    reference: Weights
    ema_heads: Weights
    queues: dict[int, list[Tensor]]
    pooling: str = "attention"
    attention_from: str = "encoder"
    detach_attention: bool = False
    patch_grid: int = 1

    def step(
        self, weights: Weights, query_images: Tensor, key_images: Tensor, labels: Tensor
    ) -> Tensor:
        """The loss of one step at these weights; moves the EMA heads and the queues."""
        encoder, heads = part(weights, "encoder"), part(weights, "projection_heads")
        query_maps = mini_maps(encoder, query_images)
        with torch.no_grad():
            for name, average in self.ema_heads.items():
                momentum = self.ema_momentum
                self.ema_heads[name] = momentum * average + (1 - momentum) * heads[name]
            encoder_key_maps = mini_maps(encoder, key_images)
            reference_key_maps = mini_maps(self.reference, key_images)
        loss = task_loss(part(weights, "head"), query_maps[4], labels)
        for stage in self.stages:
            own = patches(query_maps[stage], self.patch_grid)
            sources = [patch.detach() if self.detach_attention else patch for patch in own]
            queries = self._embed(part(heads, str(stage)), own, sources)
            with torch.no_grad():
                values = patches(reference_key_maps[stage], self.patch_grid)
                if self.attention_from == "encoder":
                    sources = patches(encoder_key_maps[stage], self.patch_grid)
                else:
                    sources = values
                keys = self._embed(part(self.ema_heads, str(stage)), values, sources)
            loss = loss + self.loss_weight * self._nce(queries, keys, self.queues[stage])
            size = len(self.queues[stage])
            self.queues[stage] = (self.queues[stage] + keys)[-size:]
        return loss

    def _embed(self, head: Weights, values: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
        embeddings = []
        for value, source in zip(values, sources, strict=True):
            pooled = mean_pool(value) if self.pooling == "mean" else attention_pool(value, source)
            embedding = two_layers(head, pooled)
            embeddings.append(embedding / torch.sqrt((embedding**2).sum()))
        return embeddings

    def _nce(self, queries: list[Tensor], keys: list[Tensor], negatives: list[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for query, key in zip(queries, keys, strict=True):
            positive = torch.exp(torch.dot(query, key) / self.temperature)
            denominator = positive
            for negative in negatives:
                denominator = denominator + torch.exp(torch.dot(query, negative) / self.temperature)
            total = total - torch.log(positive / denominator)
        return total / len(queries)


def part(weights: Weights, name: str) -> Weights:
    """The weights below a name, without it."""
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def positions(features: Tensor) -> list[Tensor]:
    """The vectors (C) at all positions of a map (C, h, w)."""
    _, height, width = features.shape
    return [features[:, row, column] for row in range(height) for column in range(width)]


def mean_pool(value: Tensor) -> Tensor:
    """The mean over positions."""
    vectors = positions(value)
    return torch.stack(vectors).sum(dim=0) / len(vectors)


def attention_pool(value: Tensor, source: Tensor) -> Tensor:
    """The sum of v_ij * s_ij / sum s, with s_ij = <u_ij, mean u>."""
    mean = mean_pool(source)
    scores = [torch.dot(vector, mean) for vector in positions(source)]
    total = torch.stack(scores).sum()
    weighted = [
        score / total * vector for score, vector in zip(scores, positions(value), strict=True)
    ]
    return torch.stack(weighted).sum(dim=0)


def patches(features: Tensor, grid: int) -> list[Tensor]:
    """The patches (C, h / grid, w / grid) of maps (N, C, h, w): by row, then column, then image."""
    images, _, height, width = features.shape
    rows, columns = height // grid, width // grid
    return [
        features[image, :, r * rows : (r + 1) * rows, c * columns : (c + 1) * columns]
        for r in range(grid)
        for c in range(grid)
        for image in range(images)
    ]


def two_layers(head: Weights, vector: Tensor) -> Tensor:
    """Linear - ReLU - Linear of one vector."""
    hidden = torch.relu(head["0.weight"] @ vector + head["0.bias"])
    return head["2.weight"] @ hidden + head["2.bias"]


def task_loss(head: Weights, stage4: Tensor, labels: Tensor) -> Tensor:
    """The loss of the task: labels (N) of images, or (N, H, W) of pixels."""
    if labels.ndim == 1:
        return classification_loss(head, stage4, labels)
    return segmentation_loss(head, stage4, labels)


def classification_loss(head: Weights, stage4: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the two-layer head on the mean of the map."""
    total = torch.zeros((), dtype=torch.float64)
    for features, label in zip(stage4, labels.tolist(), strict=True):
        total = total + cross_entropy(two_layers(head, mean_pool(features)), label)
    return total / len(labels)


def segmentation_loss(head: Weights, stage4: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the `fcn` head over the pixels that have a label."""
    _, height, width = labels.shape
    hidden = functional.conv2d(stage4, head["0.weight"], head["0.bias"], padding=1)
    logits = functional.conv2d(torch.relu(hidden), head["2.weight"], head["2.bias"])
    rows = interpolation(logits.shape[2], height)
    columns = interpolation(logits.shape[3], width)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for image, image_labels in zip(logits, labels.tolist(), strict=True):
        scores = rows @ image @ columns.T
        for row in range(height):
            for column in range(width):
                label = image_labels[row][column]
                if label != IGNORED_LABEL:
                    total = total + cross_entropy(scores[:, row, column], label)
                    count += 1
    return total / max(count, 1)


def interpolation(size: int, new_size: int) -> Tensor:
    """Weights (new_size, size) of linear interpolation with the end points kept."""
    weights = torch.zeros(new_size, size, dtype=torch.float64)
    for new in range(new_size):
        place = new * (size - 1) / (new_size - 1)
        for old in range(size):
            weights[new, old] = max(0.0, 1 - abs(place - old))
    return weights


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    """-log of the probability of the label."""
    exponentials = torch.exp(logits)
    return -torch.log(exponentials[label] / exponentials.sum())


def mini_maps(weights: Weights, images: Tensor) -> dict[int, Tensor]:
    """The maps of the four stages of `mini`."""
    features = functional.conv2d(images, weights["conv1.weight"], stride=2, padding=1)
    features = torch.relu(frozen_batch_norm(part(weights, "bn1"), features))
    maps = {}
    for stage, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
        features = residual_block(part(weights, f"layer{stage}.0"), features, stride)
        features = residual_block(part(weights, f"layer{stage}.1"), features, 1)
        maps[stage] = features
    return maps


def residual_block(block: Weights, features: Tensor, stride: int) -> Tensor:
    """Two 3x3 convolutions beside the shortcut."""
    out = functional.conv2d(features, block["conv1.weight"], stride=stride, padding=1)
    out = torch.relu(frozen_batch_norm(part(block, "bn1"), out))
    out = functional.conv2d(out, block["conv2.weight"], padding=1)
    out = frozen_batch_norm(part(block, "bn2"), out)
    if "downsample.0.weight" in block:
        features = functional.conv2d(features, block["downsample.0.weight"], stride=stride)
        features = frozen_batch_norm(part(block, "downsample.1"), features)
    return torch.relu(out + features)


def frozen_batch_norm(norm: Weights, features: Tensor) -> Tensor:
    """BatchNorm by its running statistics."""
    deviation = torch.sqrt(norm["running_var"] + 1e-5)
    scale, shift, mean = norm["weight"] / deviation, norm["bias"], norm["running_mean"]
    per_channel = (1, -1, 1, 1)
    return (features - mean.view(per_channel)) * scale.view(per_channel) + shift.view(per_channel)
