"""The splits of one task: what training may see, what selection may see, and what is sealed."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from csg_ray.storage.ledger import append_to_ledger, read_ledger
from csg_ray.storage.paths import StoragePath

UNLABELLED = -1


class Split(Protocol):
    """Images of one domain with their labels, read by position."""

    @property
    def name(self) -> str:
        """For example `target_val`."""

    @property
    def labels(self) -> Tensor:
        """Class numbers, (N,) int64; -1 where there is no label."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class number."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, as hex."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Grey images of equal size held in memory.

    Args:
        name: For example `target_val`.
        images: (N, H, W) uint8.
        labels: (N,) int64.
        class_names: One name per class number.
    """

    name: str
    images: NDArray[np.uint8]
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        return Image.fromarray(self.images[index]).convert("RGB")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the images, the labels and the class names (not the split's name)."""
        head = {"shape": self.images.shape, "classes": self.class_names}
        digest = hashlib.sha256(json.dumps(head).encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        digest.update(self.labels.to(torch.int64).numpy().astype("<i8").tobytes())
        return digest.hexdigest()


class SealedSplit:
    """A test split that opens only by writing into a ledger first.

    It keeps no image and no label: only how to load them, and the hash of what will be loaded.

    Args:
        name: For example `target_test`.
        fingerprint: Of the split that `load` returns.
        load: Gives the split; called by `open` alone.
    """

    def __init__(self, name: str, fingerprint: str, load: Callable[[], Split]) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.__load = load

    def open(self, ledger: StoragePath, reason: str) -> tuple[Split, list[dict[str, str]]]:
        """Record the opening, then load.

        Args:
            ledger: JSONL file, created when missing (on a URI an object for each line); the new
                line is there before anything loads.
            reason: Why it is opened, for whoever reads the ledger.

        Returns:
            The split, and the earlier openings of the same content in this ledger.
        """
        earlier = [
            entry for entry in read_ledger(ledger) if entry.get("fingerprint") == self.fingerprint
        ]
        append_to_ledger(
            ledger,
            {
                "fingerprint": self.fingerprint,
                "opened_at": datetime.now(UTC).isoformat(),
                "user": _user(),
                "reason": reason,
            },
        )
        split = self.__load()
        assert split.fingerprint == self.fingerprint
        return split, earlier


@dataclass(frozen=True, eq=False)
class DomainSplits:
    """The five splits of a task. `target_train` has images only; `target_test` is sealed."""

    source_train: Split
    source_val: Split
    target_val: Split
    target_train: Split | None
    target_test: SealedSplit

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class number, the same in every split."""
        return self.source_train.class_names

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the fingerprints of all splits."""
        splits = (
            self.source_train,
            self.source_val,
            self.target_val,
            self.target_train,
            self.target_test,
        )
        parts = [split.fingerprint if split is not None else "none" for split in splits]
        return hashlib.sha256("/".join(parts).encode()).hexdigest()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # Containers run under numbers that have no name.
        return f"uid {os.getuid()}"
