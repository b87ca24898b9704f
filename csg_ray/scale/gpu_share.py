"""A share of a GPU that holds: a trial that needs more than its own fails alone.

To Ray a fraction of a GPU is a number that decides who is started where. The memory is not divided,
so that one trial too many would take its neighbours with it.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from typing import Protocol

import torch

from csg_ray.config.errors import UserError

logger = logging.getLogger(__name__)

# What a process takes of the GPU beside its tensors: CUDA's context and loaded kernels.
CONTEXT_BYTES = 640 << 20
GIB = 1 << 30
ATTEMPTS = 3
WAIT_SECONDS = 60.0


class Gpu(Protocol):
    """The memory of one GPU, as one process sees it; all numbers are bytes."""

    def total(self) -> int:
        """Of the whole GPU."""

    def free(self) -> int:
        """What no process holds."""

    def held(self) -> int:
        """What this process holds for its tensors."""

    def limit(self, size: int) -> None:
        """Let this process's tensors never hold more."""

    def release(self) -> None:
        """Give back what this process holds but does not use."""


class CurrentGpu:
    """The GPU that torch uses in this process."""

    def total(self) -> int:
        """Bytes of the whole GPU."""
        return torch.cuda.mem_get_info()[1]

    def free(self) -> int:
        """Bytes that no process holds."""
        return torch.cuda.mem_get_info()[0]

    def held(self) -> int:
        """Bytes that torch holds, used or cached."""
        return torch.cuda.memory_reserved()

    def limit(self, size: int) -> None:
        """Let torch raise OutOfMemoryError beyond `size` bytes."""
        torch.cuda.set_per_process_memory_fraction(size / self.total())

    def release(self) -> None:
        """Empty torch's cache."""
        gc.collect()
        torch.cuda.empty_cache()


def train_within(
    share: float,
    train: Callable[[], None],
    gpu: Gpu,
    wait_seconds: float = WAIT_SECONDS,
) -> None:
    """Train on `share` of a GPU.

    Args:
        share: 0 or a whole number: nothing is guarded; else the part of one GPU.
        train: may be called again after it ran out of memory; goes on from its checkpoint.
        gpu: whose memory it is.
        wait_seconds: for another process to give its memory back, at each attempt.

    Raises:
        UserError: the training needs more than its share, or others hold more than theirs.
    """
    if share == int(share):
        train()
        return
    for attempt in range(1, ATTEMPTS + 1):
        size = claim(share, gpu, wait_seconds)
        free = gpu.free()
        try:
            train()
        except torch.OutOfMemoryError as error:
            _raise_if_too_large(share, size, gpu, error)
            logger.warning("no GPU memory left (%s free); attempt %d", _gib(free), attempt)
            continue
        return
    raise UserError(
        f"this trial's {_gib(size)} (resources.gpus_per_worker {share:g}) were not free on the GPU "
        f"at {ATTEMPTS} attempts: another process holds more than its share; end it, or lower "
        "search.max_concurrent"
    )


def claim(share: float, gpu: Gpu, wait_seconds: float = WAIT_SECONDS) -> int:
    """Bind this process to a part of one GPU; how many bytes its tensors may hold from now on.

    Args:
        share: more than 0 and less than 1.
        gpu: whose memory it is.
        wait_seconds: for another process to give its memory back.

    Raises:
        UserError: CUDA itself takes more.
    """
    size = int(share * gpu.total()) - CONTEXT_BYTES
    if size <= 0:
        raise UserError(
            f"resources.gpus_per_worker is {share:g}, which is {_gib(size + CONTEXT_BYTES)} of "
            f"this GPU's memory, less than CUDA itself takes ({_gib(CONTEXT_BYTES)}); raise it"
        )
    gpu.release()
    _wait_for(size, gpu, wait_seconds)
    gpu.limit(size)
    return size


def _wait_for(size: int, gpu: Gpu, seconds: float) -> None:
    """Wait until `size` bytes are free: a trial that was just stopped may still hold them."""
    deadline = time.monotonic() + seconds
    while gpu.free() + gpu.held() < size and time.monotonic() < deadline:
        time.sleep(min(1.0, seconds / 10))


def _raise_if_too_large(share: float, size: int, gpu: Gpu, error: Exception) -> None:
    """Raise when it was the trial's own limit that was reached, which no second attempt moves."""
    if gpu.held() + gpu.free() < size:  # the GPU ended before the share did
        return
    raise UserError(
        f"the training needs more than its share of the GPU: resources.gpus_per_worker {share:g} "
        f"is {_gib(size)} of memory; raise it, or lower train.batch_size"
    ) from error


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
