"""Seeds: one number per purpose, derived by name, and the state of every generator."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def sub_seed(seed: int, name: str) -> int:
    """A seed of its own for one purpose: a hash of (seed, name), in [0, 2**63).

    A new random thing with a new name leaves the draws of all others as they were (DomainBed).
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(sub_seed(seed, "python"))
    np.random.seed(sub_seed(seed, "numpy") % 2**32)  # noqa: TID251, NPY002 - libraries draw from it
    torch.manual_seed(sub_seed(seed, "torch"))


def rng_state() -> dict[str, Any]:
    """The state of the global generators, in types that `weights_only` loading accepts."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    state: dict[str, Any] = {
        "python": (version, list(words), gauss),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),  # type: ignore[attr-defined]
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        # The current device's alone: a resume may find more devices, or fewer.
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the global generators back to what `rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Draw from torch's CPU generator with a seed of its own; it is put back afterwards."""
    before = torch.get_rng_state()
    # Not torch.manual_seed, which would seed the CUDA generators as well.
    torch.default_generator.manual_seed(sub_seed(seed, name))
    try:
        yield
    finally:
        torch.set_rng_state(before)
