"""Contrastive Syn-to-Real Generalization (Chen et al., ICLR 2021)."""

from __future__ import annotations

import copy
import logging
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from csg_ray.config.methods import CSGConfig
from csg_ray.config.run import RunConfig
from csg_ray.contrastive.embedding import (
    attention_pool,
    normalise,
    split_patches,
    update_ema,
)
from csg_ray.contrastive.info_nce import info_nce
from csg_ray.contrastive.negative_queue import NegativeQueue
from csg_ray.data.loader import Batch
from csg_ray.distributed import gather_rows, shares, world_size
from csg_ray.methods.base import (
    LOSS_WORST,
    ParameterGroup,
    ReferenceMethod,
    StepOutput,
    two_layer_head,
)
from csg_ray.models.resnet import build_resnet
from csg_ray.seeding import seeded, sub_seed

logger = logging.getLogger(__name__)

MAX_QUEUE_SIZE = 65536
# The keys of an epoch of VisDA-17, for which 65,536 were published: 4,762 batches of 32.
VISDA_EPOCH_KEYS = 152_384


class CSG(ReferenceMethod):
    """Cross-entropy plus InfoNCE between the encoder and the frozen reference encoder.

    At every stage of G the encoder's embedding of an image (the query) is pulled to the reference's
    embedding of the same image (the key) and pushed from the keys of earlier images.
    """

    takes_turns: ClassVar[bool] = True
    worst_logs: ClassVar[dict[str, float]] = {"nce": LOSS_WORST, "queue_fill": 0.0}

    def __init__(self, config: RunConfig, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__(config, num_classes, steps_per_epoch)
        assert isinstance(config.method, CSGConfig)
        method = config.method
        self.settings = method
        self.loss_weight = method.loss_weight
        self.temperature = method.temperature
        self.ema_momentum = method.ema_momentum
        self.num_views = 2 if config.draws_two_views else 1
        check_patch_grid(config)
        keys_per_step = config.train.batch_size * method.patch_grid**2
        self.queue_size = _queue_size(method.queue_size, keys_per_step, steps_per_epoch)
        self._first_queue = str(method.stage_numbers()[0])
        self.projection_heads = nn.ModuleDict()
        self.queues = nn.ModuleDict()
        for stage in method.stage_numbers():
            channels = self.encoder.stage_channels[stage]
            with seeded(config.seed, f"projection_head/{stage}"):
                self.projection_heads[str(stage)] = two_layer_head(
                    channels, channels, method.projection_dim
                )
            self.queues[str(stage)] = NegativeQueue(
                method.projection_dim,
                self.queue_size,
                sub_seed(config.seed, f"queue/{stage}"),
            )
        # Without this their gradients would pile up unseen, and count in the gradient's norm.
        self.projection_heads.requires_grad_(method.train_projection)
        self.ema_projection_heads = copy.deepcopy(self.projection_heads).requires_grad_(False)
        self._pending_keys: dict[str, Tensor] = {}

    def training_loss(self, batch: Batch) -> StepOutput:
        """CE + lambda * sum over G of InfoNCE (Eq. 4 and 5); the new keys wait for `after_step`."""
        task, nce, self._pending_keys = self.loss_parts(batch, self.temperature)
        fill = self._queue(self._first_queue).num_filled / self.queue_size
        logs = {"nce": nce.detach(), "queue_fill": nce.new_full((), fill)}
        return StepOutput(task + self.loss_weight * nce, logs)

    def loss_parts(
        self, batch: Batch, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """CE, the sum over G of InfoNCE, and by stage the new keys; nothing is changed."""
        maps = self.features(batch.views[0])
        task = self.task_loss(maps, batch.labels)
        keys = self._keys(batch.views[-1], maps)
        nce = torch.stack(
            [
                info_nce(self._query(stage, maps), key, self._negatives(stage), temperature)
                for stage, key in keys.items()
            ]
        ).sum()
        return task, nce, keys

    def parameter_groups(self) -> list[ParameterGroup]:
        """The encoder's and the task head's groups, and one of all trained projection heads."""
        groups = super().parameter_groups()
        if self.settings.train_projection:
            projections = list(self.projection_heads.parameters())
            groups.append(("projection_heads", projections, 1.0))
        return groups

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, step: int, total_steps: int) -> None:
        """Move the EMA projection heads, and let the waiting keys into the queues.

        After a skipped step too: the keys are the reference's, and as good as any.
        """
        if self.settings.train_projection:
            update_ema(self.ema_projection_heads, self.projection_heads, self.ema_momentum)
        for stage, keys in self._pending_keys.items():
            # A key that is not finite makes the loss NaN, and that ends the training.
            self._queue(stage).enqueue(self._keys_of_all_ranks(keys), known_finite=True)
        self._pending_keys = {}

    def _keys_of_all_ranks(self, keys: Tensor) -> Tensor:
        """The keys of the whole batch in the order that one process would make them.

        So every rank's queue holds the same keys. They are patch-major (`split_patches`), hence the
        images' axis goes first for the exchange.
        """
        if world_size() == 1:
            return keys
        patches = self.settings.patch_grid**2
        per_image = keys.view(patches, -1, keys.shape[1]).transpose(0, 1)
        whole = gather_rows(per_image, shares(self.config.train.batch_size))
        return whole.transpose(0, 1).flatten(0, 1)

    def _query(self, stage: str, maps: dict[int, Tensor]) -> Tensor:
        """Queries (N * grid^2, D) of unit length, with gradient through features and attention."""
        own = self._patches(maps[int(stage)])
        source = own.detach() if self.settings.detach_attention else own
        return normalise(self.projection_heads[stage](self._pool(own, source)))

    @torch.no_grad()
    def _keys(self, images: Tensor, query_maps: dict[int, Tensor]) -> dict[str, Tensor]:
        """Keys (N * grid^2, D) of unit length by stage, without gradient."""
        reference_maps = self.reference.maps(images)
        attention_maps = reference_maps
        if self.settings.pooling == "attention" and self.settings.attention_from == "encoder":
            # The attention is the encoder's view of the very image the key is made of.
            attention_maps = query_maps if self.num_views == 1 else self._untracked_maps(images)
        keys = {}
        for stage, head in self.ema_projection_heads.items():
            reference = self._patches(reference_maps[int(stage)])
            attention = self._patches(attention_maps[int(stage)])
            keys[stage] = normalise(head(self._pool(reference, attention)))
        return keys

    def _untracked_maps(self, images: Tensor) -> dict[int, Tensor]:
        """The encoder's maps; BatchNorm that is not frozen counts the query's view only."""
        was_training = self.encoder.training
        self.encoder.eval()
        maps = self.features(images)
        self.encoder.train(was_training)
        return maps

    def _patches(self, features: Tensor) -> Tensor:
        grid = self.settings.patch_grid
        return features if grid == 1 else split_patches(features, grid)

    def _pool(self, features: Tensor, attention_from: Tensor) -> Tensor:
        if self.settings.pooling == "mean":
            return features.mean(dim=(2, 3))
        return attention_pool(features, attention_from)

    def _queue(self, stage: str) -> NegativeQueue:
        queue = self.queues[stage]
        assert isinstance(queue, NegativeQueue)
        return queue

    def _negatives(self, stage: str) -> Tensor:
        return self._queue(stage).negatives


def check_patch_grid(config: RunConfig) -> None:
    """Refuse a grid of patches that does not divide the maps, before the first step.

    Raises:
        UserError: names the grid and the size of the maps.
    """
    assert isinstance(config.method, CSGConfig)
    grid, side = config.method.patch_grid, config.data.image_size
    if grid == 1:
        return
    stride: Literal[8, 32] = 8 if config.data.task == "segmentation" else 32
    with torch.device("meta"):  # where a network computes shapes alone
        encoder = build_resnet(config.model.name, config.model.norm, output_stride=stride)
        maps = encoder(torch.zeros(1, 3, side, side))
    for stage in config.method.stage_numbers():
        split_patches(maps[stage], grid)


def _queue_size(size: int | str, keys_per_step: int, steps_per_epoch: int) -> int:
    """The number of negatives.

    `auto` is whole steps, as large a part of the epoch as published for VisDA-17 (0.43) and at most
    as many: shorter than an epoch, so that no image is its own negative.
    """
    if isinstance(size, int):
        epoch_keys = keys_per_step * steps_per_epoch
        if size > epoch_keys:
            logger.warning(
                "method.queue_size %d is more than the %d keys of an epoch, so that an image meets "
                "its own older key as a negative; auto chooses a shorter queue",
                size,
                epoch_keys,
            )
        return size
    steps = min(
        MAX_QUEUE_SIZE // keys_per_step, steps_per_epoch * MAX_QUEUE_SIZE // VISDA_EPOCH_KEYS
    )
    return max(1, steps) * keys_per_step
