"""The processes that train one model together: their shares of the work, and what they exchange.

A process without a process group is a group of one, for which every function here is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0. Rank 0 alone writes files and talks to the user."""
    return dist.get_rank() if dist.is_initialized() else 0


def shares(total: int) -> list[int]:
    """How `total` things are dealt out: to each rank one run of them, the first ranks one more."""
    each, left = divmod(total, world_size())
    return [each + (number < left) for number in range(world_size())]


def own_share(total: int) -> slice:
    """Which of `total` things are this rank's."""
    sizes = shares(total)
    start = sum(sizes[: rank()])
    return slice(start, start + sizes[rank()])


def gather_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows (N_r, ...) of all ranks, below each other in the order of the ranks.

    Args:
        rows: this rank's; no gradient flows back to the others.
        sizes: N_r of every rank.
    """
    if world_size() == 1:
        return rows
    longest = max(sizes)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = _all_gather(padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_features(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """All ranks' features (N, C) in the order of the ranks, who do not know each other's N.

    Args:
        parts: this rank's, each (N_i, C); possibly none.
        device: where they are.
    """
    if world_size() == 1:
        return torch.cat(list(parts))
    count, width = sum(map(len, parts)), parts[0].shape[1] if parts else 0
    shapes = [shape.tolist() for shape in _all_gather(torch.tensor([count, width], device=device))]
    own = torch.cat([torch.empty(0, max(width for _, width in shapes), device=device), *parts])
    return gather_rows(own, [count for count, _ in shapes])


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor of equal shape on every rank; `values` stays as it is."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def on_rank_zero(make: Callable[[], Value]) -> Value:
    """What `make` returns on rank 0, on every rank; it runs there alone, and the others wait.

    Raises:
        Exception: whatever `make` raised, on every rank, so that none waits for the others.
    """
    if world_size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, device=communication_device())
    value: Value
    value, raised = outcome
    if raised is not None:
        raise raised
    return value


def communication_device() -> torch.device:
    """Where tensors must be to be exchanged: on this rank's GPU with NCCL, else on the CPU."""
    nccl = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def started_by_torchrun() -> bool:
    """Whether `torchrun` started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def torchrun_group() -> Iterator[None]:
    """The process group of a process that `torchrun` started; nothing in any other process."""
    if not started_by_torchrun():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _all_gather(values: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return parts
