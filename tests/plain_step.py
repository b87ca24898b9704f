"""One step of CSG in float32 as the paper reads, in the operations that one would write first.

Two passes of the encoder (queries with gradient, the attention of the keys without), one of the
frozen reference encoder, all in the layout of the weights as they come, BatchNorm on its own, the
queue cloned before it is read, logits in one matrix. What `benchmarks/training_step.py` measures
the package against, and `tests/test_plain_step.py` holds to it. For images and pixels.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional


class PlainStep(nn.Module):
    """The networks, queues and averages of one training.

    Args:
        encoder: images (N, 3, H, W) to {stage: map}; its BatchNorm stays in evaluation mode.
        head: pooled features of stage 4 to logits, or of segmentation maps to maps.
        projections: of each stage of G, by its number.
        queues: keys (K, D) of each stage.
        patch_grid: patches per side.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        projections: dict[int, nn.Module],
        queues: dict[int, Tensor],
        loss_weight: float,
        temperature: float,
        momentum: float,
        patch_grid: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder.eval()
        self.head = head
        self.projections = nn.ModuleDict({str(key): value for key, value in projections.items()})
        self.reference = copy.deepcopy(encoder).requires_grad_(False)
        self.averages = copy.deepcopy(self.projections).requires_grad_(False)
        self.queues = {stage: queue.clone() for stage, queue in queues.items()}
        self.pointers = dict.fromkeys(queues, 0)
        self.loss_weight, self.temperature, self.momentum = loss_weight, temperature, momentum
        self.patch_grid = patch_grid

    def loss(self, query_images: Tensor, key_images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy + lambda * sum of InfoNCE; the keys are noted for `after_step`."""
        maps = self.encoder(query_images)
        with torch.no_grad():
            attention_maps = self.encoder(key_images)
            reference_maps = self.reference(key_images)
        loss = self._task_loss(maps[4], labels)
        self.keys: dict[int, Tensor] = {}
        for stage, queue in self.queues.items():
            own = self._patches(maps[stage])
            query = self._embed(self.projections[str(stage)], own, own)
            with torch.no_grad():
                key = self._embed(
                    self.averages[str(stage)],
                    self._patches(reference_maps[stage]),
                    self._patches(attention_maps[stage]),
                )
            positive = (query * key).sum(dim=1, keepdim=True)
            negative = query @ queue.clone().detach().T
            logits = torch.cat([positive, negative], dim=1) / self.temperature
            first = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
            loss = loss + self.loss_weight * functional.cross_entropy(logits, first)
            self.keys[stage] = key
        return loss

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the averages, and put the keys in the places of the oldest."""
        pairs = zip(self.averages.parameters(), self.projections.parameters(), strict=True)
        for average, parameter in pairs:
            average.mul_(self.momentum).add_(parameter * (1 - self.momentum))
        for stage, keys in self.keys.items():
            queue, pointer = self.queues[stage], self.pointers[stage]
            places = (pointer + torch.arange(len(keys), device=queue.device)) % len(queue)
            queue[places] = keys
            self.pointers[stage] = (pointer + len(keys)) % len(queue)

    def _task_loss(self, stage4: Tensor, labels: Tensor) -> Tensor:
        if labels.ndim == 1:
            return functional.cross_entropy(self.head(stage4.mean(dim=(2, 3))), labels)
        size = (labels.shape[1], labels.shape[2])
        logits = functional.interpolate(
            self.head(stage4), size, mode="bilinear", align_corners=True
        )
        return functional.cross_entropy(logits, labels, ignore_index=255)

    def _patches(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to its patches, those of all images at one place after the other."""
        grid = self.patch_grid
        rows = features.chunk(grid, dim=2)
        return torch.cat([patch for row in rows for patch in row.chunk(grid, dim=3)])

    def _embed(self, head: nn.Module, values: Tensor, source: Tensor) -> Tensor:
        mean = source.mean(dim=(2, 3), keepdim=True)
        scores = (source * mean).sum(dim=1, keepdim=True)
        weights = scores / scores.sum(dim=(2, 3), keepdim=True)
        embedding: Tensor = head((values * weights).sum(dim=(2, 3)))
        lengths: Tensor = embedding.norm(dim=1, keepdim=True)
        return embedding / lengths
