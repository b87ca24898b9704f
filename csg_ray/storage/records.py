"""Files that are whole or not there, and the JSON line of every epoch. Free of torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from csg_ray.config.errors import UserError

RESULT_FILE = "result.json"
CHECKPOINT_FILE = "checkpoint.pt"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` whole or not at all; an older one stays until then."""
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _temporary_name(name: str) -> str:
    return f".{name}.tmp"


def remove_checkpoint(directory: Path) -> bool:
    """Remove a training's checkpoint, and what a torn write of one left; False if none was there.

    The records stay.
    """
    doomed = (CHECKPOINT_FILE, _temporary_name(CHECKPOINT_FILE))
    found = [path for path in directory.iterdir() if path.name in doomed]
    for path in found:
        path.unlink(missing_ok=True)
    return bool(found)


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a crash, sees the old file or the new one."""
    with atomic_file(path) as file:
        file.write(text.encode())


def append_result(directory: Path, metrics: dict[str, Any]) -> None:
    """Append one JSON line to the result file and bring it to the disk.

    A torn last line, left by a crash or a full disk, is cut off first.
    """
    line = json.dumps(metrics, allow_nan=False) + "\n"
    path = directory / RESULT_FILE
    cut_torn_line(path)
    with path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_results(directory: Path) -> list[dict[str, Any]]:
    """The reports of one training, in order; a torn last line is left out.

    Raises:
        UserError: a line before the last is not JSON.
    """
    path = directory / RESULT_FILE
    if not path.is_file():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [_parse_line(line, path, number) for number, line in enumerate(lines, start=1)]


def _parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"{path}, line {number} is not JSON; remove that line, or restore the file from a copy"
        ) from error
    return record


def cut_torn_line(path: Path) -> None:
    """Remove what follows the last line feed."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
