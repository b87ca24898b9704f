"""The watch over losses and gradients, which does not make the processor wait for the GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# On a GPU the numbers of so many steps are read at once: each reading waits until it has caught up.
STEPS_BETWEEN_READS = 50


class DivergedError(Exception):
    """The training cannot go on; the message says what happened."""


class StepGuard:
    """Decides on the device which steps are skipped, and reads later what was decided.

    Args:
        max_gradient_norm: a larger norm, or one that is not a number, skips the step.
        max_skipped_steps: so many skipped in a row end the training.
        device: where losses and norms are.
        read_every: steps between two readings; a divergence is found out at the next one.

    Attributes:
        skipped_in_a_row: of the steps read so far.
    """

    def __init__(
        self,
        max_gradient_norm: float,
        max_skipped_steps: int,
        device: torch.device,
        read_every: int,
    ) -> None:
        self.skipped_in_a_row = 0
        self._max_gradient_norm = max_gradient_norm
        self._max_skipped_steps = max_skipped_steps
        self._seen = torch.zeros(read_every, 2, device=device)
        self._unread = 0
        self._skipped = 0

    def judge(self, loss: Tensor, norm: Tensor, step: int) -> Tensor:
        """Note step number `step`; 1.0 if it is to be skipped, else 0.0, a float32 scalar.

        Raises:
            DivergedError: as of `read`.
        """
        self._seen[self._unread] = torch.stack([loss, norm])
        self._unread += 1
        # Written so that a norm that is NaN is refused too.
        usable = (norm <= self._max_gradient_norm) & loss.isfinite()
        if self._unread == len(self._seen):
            self._read(step)
        return (~usable).float()

    def take_skipped(self, step: int) -> int:
        """How many steps were skipped since the last call, `step` being the latest.

        Raises:
            DivergedError: a loss was not finite, or too many steps in a row were skipped.
        """
        self._read(step)
        skipped, self._skipped = self._skipped, 0
        return skipped

    def take_over(self, skipped: int, in_a_row: int) -> None:
        """Count steps that were judged elsewhere: those skipped, and those of them at the end."""
        self._skipped += skipped
        self.skipped_in_a_row = in_a_row

    def _read(self, step: int) -> None:
        seen = self._seen[: self._unread].tolist()
        first = step - len(seen) + 1
        self._unread = 0
        for number, (loss, norm) in enumerate(seen, start=first):
            if not math.isfinite(loss):
                raise DivergedError(f"the loss is {loss} at step {number}")
            if norm <= self._max_gradient_norm:
                self.skipped_in_a_row = 0
                continue
            self._skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= self._max_skipped_steps:
                raise DivergedError(
                    f"{self.skipped_in_a_row} gradients in a row were unusable at step {number}"
                )
