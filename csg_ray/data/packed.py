"""Decode once: the cache of decoded images that all trials and workers of a node share.

A cache is one file, named by a hash of what went into it, so that a changed file makes a new one.
It appears under that name when it is whole. One process builds it while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from csg_ray.config.errors import UserError
from csg_ray.data.files import FileList, UnreadableImageError, reading
from csg_ray.data.packed_images import PackedImages, open_packed
from csg_ray.data.packing import (
    Progress,
    check_limit,
    scaled_size,
    temporary_path,
    write_packed,
)
from csg_ray.storage.folders import check_writable

FORMAT = 1  # raise it when what is stored, or how a file is decoded, changes
SAMPLED = 500
MAX_ROWS = 128
BATCH_BYTES = 64 * 2**20


def pack(
    files: FileList,
    folder: Path,
    shorter_side: int | None,
    max_unreadable: float,
    on_progress: Progress,
) -> PackedImages:
    """The decoded images of `files`: opened where they are packed already, else built.

    Args:
        files: What to read.
        folder: Where the caches are, on a disk of this node; made if it is missing.
        shorter_side: Images with a larger shorter side are scaled down to it; None keeps all.
        max_unreadable: The share of images that may be missing or damaged; those are left out.
        on_progress: Called while building, with the number of files that are done, and of all.

    Raises:
        UserError: More images are unreadable, a label map is missing, damaged or of another size
            than its image, `folder` cannot be written to, or there is too little room.
    """
    path = _cache_path(files, folder, shorter_side)
    packed = open_packed(path)
    if packed is None:
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Free again when its holder dies, so that a process that waits takes over.
        with FileLock(_lock_path(path)):
            packed = open_packed(path)
            if packed is None:
                packed = _build(files, path, shorter_side, max_unreadable, on_progress)
    check_limit(files, packed.left_out, max_unreadable, len(files))
    return packed


def is_packed(files: FileList, folder: Path, shorter_side: int | None) -> bool:
    """Whether `pack` would find these images in `folder`."""
    return open_packed(_cache_path(files, folder, shorter_side)) is not None


def packed_bytes(files: FileList, shorter_side: int | None) -> int:
    """About how many bytes the decoded images take, by the sizes of up to 500 of them."""
    bytes_per_pixel = 4 if files.label_maps else 3
    spaced = np.linspace(0, len(files) - 1, min(len(files), SAMPLED)).astype(int)
    found = []
    for position in spaced.tolist():
        path = files.root / files.images[position]
        try:
            with reading(path), Image.open(path) as image:
                width, height = scaled_size(image.size, shorter_side)
        except UnreadableImageError:
            continue  # packing counts and names it
        found.append(width * height * bytes_per_pixel)
    return sum(found) * len(files) // max(1, len(found))


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        UserError: It names the setting, the folder and the reason.
    """
    existing = _existing(folder)
    if not existing.is_dir():
        raise UserError(
            f"data.cache {folder} cannot be made, since {existing} is a file; name another folder, "
            "or set it to off"
        )
    try:
        check_writable(existing)
    except UserError as error:
        raise UserError(f"data.cache: {error}; name another folder, or set it to off") from error


def check_room(files: FileList, folder: Path, needed: int) -> None:
    """Refuse when the disk of `folder` has less room than the `needed` bytes.

    Raises:
        UserError: It names both sizes.
    """
    free = shutil.disk_usage(_existing(folder)).free
    if needed > free:
        raise UserError(
            f"the decoded images of {files.root} take about {needed / 1e9:.3g} GB, and {folder} "
            f"has {free / 1e9:.3g} GB free: set data.cache to a folder with more room or to off, "
            "or limit data.max_side"
        )


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _build(
    files: FileList,
    path: Path,
    shorter_side: int | None,
    max_unreadable: float,
    on_progress: Progress,
) -> PackedImages:
    """Write the cache; the caller holds its lock."""
    _remove_leftovers(path)
    needed = packed_bytes(files, shorter_side)
    check_room(files, path.parent, needed)
    mean_bytes = needed // max(1, len(files))
    rows_per_batch = min(MAX_ROWS, max(1, BATCH_BYTES // max(1, mean_bytes)))
    write_packed(files, path, shorter_side, max_unreadable, rows_per_batch, on_progress)
    packed = open_packed(path)
    assert packed is not None
    return packed


def _remove_leftovers(path: Path) -> None:
    """Remove what builders that were killed have left, of this cache and of others."""
    temporary_path(path).unlink(missing_ok=True)
    for leftover in path.parent.glob(temporary_path(Path("*.arrow")).name):
        other = path.with_name(leftover.name.removeprefix(".").removesuffix(".tmp"))
        if other == path:
            continue
        try:
            with FileLock(_lock_path(other), blocking=False):
                leftover.unlink(missing_ok=True)
        except Timeout:
            continue  # its builder lives


def _cache_path(files: FileList, folder: Path, shorter_side: int | None) -> Path:
    return folder / f"{_key(files, shorter_side)}.arrow"


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _key(files: FileList, shorter_side: int | None) -> str:
    """SHA-256 over the names, sizes and times of all files and how they are decoded."""
    reader = _identity(files.read_labels) if files.read_labels is not None else None
    head = {"format": FORMAT, "shorter_side": shorter_side, "read_labels": reader}
    digest = hashlib.sha256(json.dumps(head).encode())
    for names in (files.images, files.label_maps):
        digest.update(f"{len(names)} files\n".encode())
        for name in names:
            digest.update(f"{name}\0{_version(f'{files.root}/{name}')}\n".encode())
    return digest.hexdigest()


def _version(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of 100,000 files takes seconds
    except OSError:
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}"


def _identity(reader: Any) -> str:
    """What tells how labels are read, the same in every process."""
    if isinstance(reader, partial):
        settings = sorted(reader.keywords.items())
        return f"{_identity(reader.func)} {reader.args!r} {settings!r}"
    name = getattr(reader, "__qualname__", None)
    return f"{reader.__module__}.{name}" if name is not None else repr(reader)
