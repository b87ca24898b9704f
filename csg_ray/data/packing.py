"""Decode a list of files into one Arrow file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from csg_ray.config.errors import UserError
from csg_ray.data.files import FileList, UnreadableImageError
from csg_ray.data.packed_images import COLUMNS, HEAD, LABELS, LEFT_OUT
from csg_ray.storage.records import DISK_FULL

MAX_THREADS = 8
NAMED = 3  # of the unreadable files, in the message

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Row:
    """One decoded file, or the reason why there is none."""

    size: tuple[int, int] | None = None
    pixels: bytes | None = None
    labels: bytes | None = None
    reason: str = ""


def write_packed(
    files: FileList,
    path: Path,
    shorter_side: int | None,
    max_unreadable: float,
    rows_per_batch: int,
    on_progress: Progress,
) -> None:
    """Decode all of `files` into `path`, which appears when it is whole and on the disk.

    Args:
        files: What to read.
        path: Of the new file. Nothing else may write `temporary_path(path)` meanwhile.
        shorter_side: Larger images are scaled down to it; None keeps all as they are.
        max_unreadable: The share of images that may be left out.
        rows_per_batch: Images that are held in memory at once.
        on_progress: Called with the number of files that are done, and that of all.

    Raises:
        UserError: More images are unreadable, a label map does not fit its image, or the disk is
            full. There is no new file then.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as sink:
            schema = _schema(files, rows_per_batch)
            left_out: dict[int, str] = {}
            with pa.ipc.new_file(sink, schema) as writer:
                for first, rows in _decoded(files, shorter_side, rows_per_batch):
                    done = first + len(rows)
                    left_out |= {
                        position: row.reason
                        for position, row in enumerate(rows, start=first)
                        if row.reason
                    }
                    check_limit(files, left_out, max_unreadable, done)
                    writer.write_batch(_batch(rows, schema))
                    on_progress(done, len(files))
                writer.write_batch(_batch([], schema), {LEFT_OUT: json.dumps(left_out)})
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise UserError(
                f"{path.parent} ran full while the images of {files.root} were packed: free some "
                "space, or set data.cache to another folder or to off"
            ) from error
        raise


def temporary_path(path: Path) -> Path:
    """Where the file is while it is being written."""
    return path.with_name(f".{path.name}.tmp")


def check_limit(
    files: FileList, left_out: dict[int, str], max_unreadable: float, done: int
) -> None:
    """Refuse when more than floor(`max_unreadable` N) of N images are left out.

    Raises:
        UserError: It names the count among the first `done` images, and some of the files.
    """
    # 0.29 of 100 is 29, though 0.29 * 100 is a little less.
    allowed = math.floor(max_unreadable * len(files) + 1e-6)
    if len(left_out) <= allowed:
        return
    named = [f"{files.images[position]} {left_out[position]}" for position in sorted(left_out)]
    more = ", ..." if len(named) > NAMED else ""
    raise UserError(
        f"{len(left_out)} of the first {done} images in {files.root} cannot be read "
        f"({', '.join(named[:NAMED])}{more}), and data.max_unreadable {max_unreadable:g} lets "
        f"{allowed} of {len(files)} be left out: restore the files, or raise it"
    )


def scaled_size(size: tuple[int, int], shorter_side: int | None) -> tuple[int, int]:
    """(width, height) after scaling down to `shorter_side`, if that is smaller."""
    shorter = min(size)
    if shorter_side is None or shorter <= shorter_side:
        return size
    width, height = size
    return int(shorter_side * width / shorter), int(shorter_side * height / shorter)


def _decoded(
    files: FileList, shorter_side: int | None, rows_per_batch: int
) -> Iterator[tuple[int, list[_Row]]]:
    """Batches of rows in the order of the list, each with the position of its first."""
    read = partial(_read, files, shorter_side)
    # Pillow's decoders let other threads run. Order and content do not depend on their number.
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        for first in range(0, len(files), rows_per_batch):
            positions = range(first, min(first + rows_per_batch, len(files)))
            yield first, list(threads.map(read, positions))


def _read(files: FileList, shorter_side: int | None, position: int) -> _Row:
    try:
        image = files.image(position)
    except UnreadableImageError as error:
        return _Row(reason=error.reason)
    size = scaled_size(image.size, shorter_side)
    labels = None
    if files.label_maps:
        label_map = _read_label_map(files, position, image.size)
        labels = label_map.tobytes()
        if size != image.size:
            resized = Image.fromarray(label_map).resize(size, Image.Resampling.NEAREST)
            labels = resized.tobytes()
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return _Row(size, image.tobytes(), labels)


def _read_label_map(files: FileList, position: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A label map, which must be whole: a wrong one is a mistake, where a lost image is noise."""
    image = files.root / files.images[position]
    try:
        label_map = files.label_map(position)
    except UnreadableImageError as error:
        raise UserError(
            f"{error.path}, the label map of {image}, {error.reason}: restore it, or take the "
            "image out of the list"
        ) from error
    height, width = label_map.shape
    if (width, height) != size:
        raise UserError(
            f"the label map {files.root / files.label_maps[position]} has {width} x {height} "
            f"pixels, but its image {image} has {size[0]} x {size[1]}: give each image its own "
            "label map"
        )
    return label_map


def _schema(files: FileList, rows_per_batch: int) -> Any:
    head = {"num_files": len(files), "rows_per_batch": rows_per_batch}
    columns = (*COLUMNS, LABELS) if files.label_maps else COLUMNS
    return pa.schema(columns, metadata={HEAD: json.dumps(head)})


def _batch(rows: list[_Row], schema: Any) -> Any:
    values = {
        "height": [row.size and row.size[1] for row in rows],
        "width": [row.size and row.size[0] for row in rows],
        "pixels": [row.pixels for row in rows],
        "labels": [row.labels for row in rows],
    }
    arrays = [pa.array(values[field.name], field.type) for field in schema]
    return pa.record_batch(arrays, schema=schema)
