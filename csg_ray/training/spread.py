"""One method trained by several processes: the loss whose gradients they average."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from csg_ray.config.errors import UserError
from csg_ray.config.run import RunConfig
from csg_ray.data.loader import Batch
from csg_ray.distributed import communication_device, world_size
from csg_ray.methods.base import Method, StepOutput

_PARAMETERS = inspect.signature(DistributedDataParallel).parameters
# The same thing under its name since torch 2.14, and before.
_KEEP_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in _PARAMETERS
    else {"broadcast_buffers": False}
)


class _TrainingLoss(nn.Module):
    """`training_loss` as a forward pass, which is where DDP prepares its averaging."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> StepOutput:
        return self.method.training_loss(batch)


def spread(method: Method, config: RunConfig) -> Callable[[Batch], StepOutput]:
    """The method's training loss; among several ranks its backward pass averages the gradients.

    BatchNorm that is not frozen takes its statistics over the batches of all ranks (GPUs only).

    Raises:
        UserError: there are more workers than images in a batch, or BatchNorm that is not frozen
            on several workers without GPUs.
    """
    loss = _TrainingLoss(method)
    workers = world_size()
    if workers == 1:
        return loss
    device = communication_device()
    if workers > config.train.batch_size:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}, fewer images than the {workers} "
            "workers; raise it, or take fewer workers"
        )
    if not config.model.freeze_batch_norm:
        _refuse_on_cpus(device, "model.freeze_batch_norm is false", "set it to true")
        method.encoder = nn.SyncBatchNorm.convert_sync_batchnorm(method.encoder)  # type: ignore[no-untyped-call]
    if any(isinstance(module, nn.BatchNorm2d) for module in method.head.modules()):
        head = f"model.head is {config.model.head}, which has BatchNorm that is trained"
        _refuse_on_cpus(device, head, "set it to deeplabv2 or fcn")
        method.head = nn.SyncBatchNorm.convert_sync_batchnorm(method.head)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(
        loss,
        device_ids=None if device.type == "cpu" else [torch.cuda.current_device()],
        gradient_as_bucket_view=True,
        # The queues are equal on every rank already, and BatchNorm is frozen or synchronised.
        **_KEEP_BUFFERS,
    )


def _refuse_on_cpus(device: torch.device, reason: str, remedy: str) -> None:
    if device.type == "cpu":
        raise UserError(
            f"{reason}, but on CPUs several workers cannot share BatchNorm's statistics; "
            f"{remedy}, or train with one worker"
        )
