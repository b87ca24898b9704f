"""The splits of one task: what training may see, what selection may see, and what is sealed."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from csg_ray.storage.ledger import append_to_ledger, read_ledger
from csg_ray.storage.paths import StoragePath

UNLABELLED = -1
IGNORED = 255  # of a pixel in a label map


class Split(Protocol):
    """Images of one domain, read by position; what is known of them is in a `ClassSplit`."""

    @property
    def name(self) -> str:
        """For example `target_val`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class number."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 that tells whether two splits are the same, as hex."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""

    def labelled_classes(self) -> list[int]:
        """The classes that have a label, ascending; reads every label map there is."""


@runtime_checkable
class ClassSplit(Split, Protocol):
    """Images with a class each."""

    @property
    def labels(self) -> Tensor:
        """Class numbers, (N,) int64; -1 where there is no label."""


@runtime_checkable
class SceneSplit(Split, Protocol):
    """Images with a class for every pixel."""

    def label_map(self, index: int) -> NDArray[np.uint8]:
        """Class numbers (H, W) of image number `index`; 255 where a pixel does not count."""


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

    def labelled_classes(self) -> list[int]:
        """The classes that have a label, ascending."""
        return sorted(set(self.labels.tolist()) - {UNLABELLED})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the images, the labels and the class names (not the split's name)."""
        labels = self.labels.to(torch.int64).numpy().astype("<i8")
        return _hash_arrays(self.class_names, self.images, labels)


@dataclass(frozen=True, eq=False)
class ArraySceneSplit:
    """Grey images of equal size with their label maps, held in memory.

    Args:
        name: For example `target_val`.
        images: (N, H, W) uint8.
        label_maps: (N, H, W) uint8 class numbers; 255 where a pixel does not count.
        class_names: One name per class number.
    """

    name: str
    images: NDArray[np.uint8]
    label_maps: NDArray[np.uint8]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        return Image.fromarray(self.images[index]).convert("RGB")

    def label_map(self, index: int) -> NDArray[np.uint8]:
        """Class numbers (H, W) of image number `index`."""
        label_map: NDArray[np.uint8] = self.label_maps[index]
        return label_map

    def labelled_classes(self) -> list[int]:
        """The classes that have a label, ascending."""
        return [int(number) for number in np.unique(self.label_maps) if number != IGNORED]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the images, the label maps and the class names (not the split's name)."""
        return _hash_arrays(self.class_names, self.images, self.label_maps)


def _hash_arrays(
    class_names: tuple[str, ...], images: NDArray[np.uint8], labels: NDArray[Any]
) -> str:
    head = {"shape": images.shape, "classes": class_names}
    digest = hashlib.sha256(json.dumps(head).encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    digest.update(np.ascontiguousarray(labels).tobytes())
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
    """The splits of a task. `target_train` has images only; `target_test` is sealed.

    The published protocol has no target_test, and that of VisDA-17 no source_val either.
    """

    source_train: Split
    source_val: Split | None
    target_val: Split
    target_train: Split | None
    target_test: SealedSplit | None

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class number, the same in every split."""
        return self.source_train.class_names

    @property
    def measured(self) -> tuple[Split, ...]:
        """The splits that are measured after every epoch."""
        return (self.target_val,) if self.source_val is None else (self.source_val, self.target_val)

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
