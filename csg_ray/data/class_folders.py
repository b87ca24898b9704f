"""Trees of class folders: which classes there are, which images, and how they are split."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from csg_ray.config.errors import UserError
from csg_ray.data.file_splits import SplitFiles
from csg_ray.data.files import FileList
from csg_ray.seeding import sub_seed


@dataclass(frozen=True)
class LabelledFiles:
    """Images below a root, each with a class number.

    Attributes:
        root: the folder that the paths are relative to.
        images: POSIX paths.
        labels: as many class numbers.
    """

    root: Path
    images: tuple[str, ...]
    labels: tuple[int, ...]

    def pick(self, positions: list[int]) -> SplitFiles:
        """Some of the images, in the order of `positions`."""
        files = FileList(self.root, tuple(self.images[position] for position in positions))
        return SplitFiles(files, tuple(self.labels[position] for position in positions))


def list_folders(root: Path, setting: str) -> list[str]:
    """The names of the class folders below `root`, sorted.

    Args:
        root: holds a folder for each class.
        setting: the setting that names it, for messages.

    Raises:
        UserError: there is no such folder, or none in it.
    """
    if not root.is_dir():
        raise UserError(f"{setting}: the folder {root} does not exist; correct the path")
    with os.scandir(root) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UserError(f"{setting}: {root} holds no folder; it needs one for each class")
    return names


def list_images(root: Path, class_names: tuple[str, ...]) -> LabelledFiles:
    """All images below the class folders, sorted by path within a class.

    Raises:
        UserError: a class without an image.
    """
    images: list[str] = []
    labels: list[int] = []
    for number, name in enumerate(class_names):
        found = sorted(_images_below(root / name, name))
        if not found:
            raise UserError(
                f"the class '{name}' has no image in {root / name}; fill the folder, or remove it "
                "wherever classes are matched"
            )
        images += found
        labels += [number] * len(found)
    return LabelledFiles(root, tuple(images), tuple(labels))


def split_by_share(
    files: LabelledFiles,
    class_names: tuple[str, ...],
    shares: Mapping[str, float],
    rest: str,
    seed: int,
) -> dict[str, SplitFiles]:
    """Disjoint parts of every class, in random order.

    Args:
        files: the images of a domain.
        class_names: one name per class number.
        shares: the part of every class that each split gets, rounded, at least one image of it.
        rest: the split that gets what is left.
        seed: fixes the parts.

    Raises:
        UserError: a class with fewer images than there are splits.
    """
    parts: dict[str, list[int]] = {name: [] for name in (*shares, rest)}
    by_class: dict[int, list[int]] = {number: [] for number in range(len(class_names))}
    for position, label in enumerate(files.labels):
        by_class[label].append(position)
    for number, positions in by_class.items():
        name = class_names[number]
        if len(positions) < len(parts):
            raise UserError(
                f"the class '{name}' has {len(positions)} images in {files.root}, too few for "
                f"{', '.join(parts)}; add some, or take the class out of source and target"
            )
        order = torch.randperm(len(positions), generator=_generator(seed, f"split/{name}"))
        left = [positions[place] for place in order.tolist()]
        for split, share in shares.items():
            kept_back = len(parts) - list(parts).index(split) - 1
            count = max(1, min(round(share * len(positions)), len(left) - kept_back))
            parts[split] += left[:count]
            left = left[count:]
        parts[rest] += left
    # So that the place of an unlabelled image says nothing of its class.
    return {name: files.pick(shuffled(part, seed, name)) for name, part in parts.items()}


def shuffled(positions: list[int], seed: int, name: str) -> list[int]:
    """The positions in an order that is fixed by the seed and the name."""
    order = torch.randperm(len(positions), generator=_generator(seed, f"order/{name}"))
    return [positions[place] for place in order.tolist()]


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sub_seed(seed, name))


def _images_below(folder: Path, prefix: str) -> list[str]:
    found: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}/{entry.name}"
            if entry.is_dir():
                found += _images_below(folder / entry.name, path)
            elif entry.name.lower().endswith(IMG_EXTENSIONS):
                found.append(path)
    return found
