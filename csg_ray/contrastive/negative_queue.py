"""The memory of past keys that serve as negatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class NegativeQueue(nn.Module):
    """The last `size` keys, oldest overwritten first (MoCo's queue; CSG, Sec. 3.2).

    Starts full of random unit vectors, the same for the same seed on every device and process.
    The state dict holds all of it, so that a resumed training goes on bit by bit.

    Attributes:
        pointer: where the next key goes.
        num_filled: how many entries are real keys by now, at most `size`.
        num_skipped: non-finite keys refused so far.
    """

    keys: Tensor

    def __init__(self, dim: int, size: int, seed: int = 0) -> None:
        """Make a queue of `size` keys of length `dim`; `seed` draws the vectors it starts with."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(size, dim, generator=generator, dtype=torch.float32)
        self.register_buffer("keys", functional.normalize(start, dim=1))
        self.size = size
        # Plain numbers: a tensor on the GPU would have to be waited for at every step.
        self.pointer = 0
        self.num_filled = 0
        self.num_skipped = 0

    @property
    def negatives(self) -> Tensor:
        """The keys (size, dim), no copy: enqueue only after the backward pass of what used them."""
        return self.keys

    @torch.no_grad()
    def enqueue(self, keys: Tensor, known_finite: bool = False) -> None:
        """Replace the oldest entries by keys (B, dim), B of any size; skip non-finite rows.

        With `known_finite` they are not looked at, which would wait for the device.
        """
        if not known_finite:
            finite = keys.isfinite().all(dim=1)
            self.num_skipped += len(keys) - int(finite.sum())
            keys = keys[finite]
        start = (self.pointer + max(len(keys) - self.size, 0)) % self.size
        newest = keys[-self.size :]
        before_end = min(len(newest), self.size - start)
        self.keys[start : start + before_end] = newest[:before_end]
        self.keys[: len(newest) - before_end] = newest[before_end:]
        self.pointer = (self.pointer + len(keys)) % self.size
        self.num_filled = min(self.num_filled + len(keys), self.size)

    def get_extra_state(self) -> Tensor:
        """The numbers beside the keys, as a tensor so that the state dict holds nothing else."""
        return torch.tensor([self.pointer, self.num_filled, self.num_skipped])

    def set_extra_state(self, state: Tensor) -> None:
        """Take back what `get_extra_state` returned."""
        self.pointer, self.num_filled, self.num_skipped = state.tolist()
