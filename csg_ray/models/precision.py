"""The precision of the encoders' products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "tf32", "bf16"]


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The block in which an encoder's forward pass runs; its backward pass follows by itself.

    `auto` is bfloat16 on a GPU whose hardware has it. On a CPU it never is: many emulate it, at
    hundreds of times the cost.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=_is_bfloat16(precision, device))


@contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """What a GPU does with products of float32: TF32 where `precision` says so, else all digits.

    For a whole training, as it holds for backward passes too.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    chosen = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for backend, earlier in zip(backends, chosen, strict=True):
            backend.fp32_precision = earlier


def _is_bfloat16(precision: Precision, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"
