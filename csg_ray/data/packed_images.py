"""Decoded images in one Arrow file, mapped into memory and so shared by all processes of a node.

A row for every file of the list, in its order; a file that was left out has none but null values.
All record batches but the last have equally many rows, so that a position finds its batch at once.
The last is empty and carries the reasons of what was left out, which are known at the end alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

COLUMNS = (
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("pixels", pa.large_binary()),
)
LABELS = ("labels", pa.large_binary())
HEAD = b"csg_ray"  # of the schema's metadata
LEFT_OUT = b"left_out"  # of the last batch's metadata


@dataclass(frozen=True, eq=False)
class PackedImages:
    """The images of a `FileList`, by the same positions, without decoding.

    It can be pickled: the copy maps the file anew, when it first reads from it.

    Attributes:
        path: the Arrow file.
        num_files: N, the length of the list.
        rows_per_batch: of each record batch but the last ones.
        left_out: position -> reason, of the images that could not be read.
    """

    path: Path
    num_files: int
    rows_per_batch: int
    left_out: dict[int, str]

    def __len__(self) -> int:
        return self.num_files

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    @property
    def kept(self) -> NDArray[np.int64]:
        """The positions whose images are here, ascending."""
        return np.delete(np.arange(self.num_files), list(self.left_out))

    def image(self, position: int) -> Image.Image:
        """The image at `position`, one of `kept`, RGB."""
        batch, row = self._locate(position)
        size = (batch["width"][row].as_py(), batch["height"][row].as_py())
        pixels = batch["pixels"][row].as_buffer()
        return Image.frombuffer("RGB", size, pixels, "raw", "RGB", 0, 1)

    def label_map(self, position: int) -> NDArray[np.uint8]:
        """Class numbers (H, W) of the image at `position`, one of `kept`; read-only."""
        batch, row = self._locate(position)
        shape = (batch["height"][row].as_py(), batch["width"][row].as_py())
        # Arrow does not say that the map is read-only: a write would kill the process.
        labels = memoryview(batch["labels"][row].as_buffer()).toreadonly()
        return np.frombuffer(labels, np.uint8).reshape(shape)

    def _locate(self, position: int) -> tuple[dict[str, Any], int]:
        number, row = divmod(position, self.rows_per_batch)
        batch = self._batches.get(number)
        if batch is None:
            found = self._reader.get_batch(number)
            # Arrow looks a column's name up in the schema, which takes longer than all the rest.
            batch = dict(zip(found.schema.names, found.columns, strict=True))
            self._batches[number] = batch
        return batch, row

    @cached_property
    def _reader(self) -> Any:
        return pa.ipc.open_file(pa.memory_map(str(self.path)))

    @cached_property
    def _batches(self) -> dict[int, dict[str, Any]]:
        return {}


def open_packed(path: Path) -> PackedImages | None:
    """What is in `path`; None if there is no such file, or it is damaged (cut off, say)."""
    if not path.is_file():
        return None
    mapped = pa.memory_map(str(path))
    try:
        reader = pa.ipc.open_file(mapped)
        head = json.loads(reader.schema.metadata[HEAD])
        _, metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        left_out = json.loads(metadata[LEFT_OUT])
    # Arrow says OSError, too, of content; what it decodes of a damaged end may lack our metadata.
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
    return PackedImages(
        path=path,
        num_files=head["num_files"],
        rows_per_batch=head["rows_per_batch"],
        left_out={int(position): reason for position, reason in left_out.items()},
    )
