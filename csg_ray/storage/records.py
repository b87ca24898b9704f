"""Files that are whole or not there, and the record of every epoch. Free of torch.

In a folder the epochs are the lines of one file. On a URI, where nothing can be appended, each is
an object of its own: a growing object written anew would let a trial that was given up, but lives
on somewhere, erase what its successor has recorded.
"""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

from csg_ray.config.errors import UserError
from csg_ray.storage.folders import in_parallel
from csg_ray.storage.paths import RemotePath, StoragePath

# Error numbers of a disk, or a quota, without room.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
RESULT_FILE = "result.json"
RESULT_FOLDER = "results"  # on a URI
CHECKPOINT_FILE = "checkpoint.pt"
THREADS = 8

_EPOCH = re.compile(r"(\d+)\.json")


def write_whole(path: StoragePath, content: bytes | memoryview) -> None:
    """Write `content` so that a reader, or a crash, sees the old file or the new one."""
    if isinstance(path, RemotePath):
        path.write_bytes(content)
        return
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _temporary_name(name: str) -> str:
    return f".{name}.tmp"


def remove_checkpoint(directory: StoragePath) -> bool:
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


def write_atomically(path: StoragePath, text: str) -> None:
    """As `write_whole`, for text."""
    write_whole(path, text.encode())


def read_json(path: StoragePath) -> Any:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON.
    """
    if isinstance(path, RemotePath):
        return path.read_json()
    return json.loads(path.read_text(encoding="utf-8"))


def append_result(directory: StoragePath, metrics: dict[str, Any]) -> None:
    """Record one epoch and bring it to the disk, or to the store.

    A torn last line, left by a crash or a full disk, is cut off first.
    """
    text = json.dumps(metrics, allow_nan=False) + "\n"
    if isinstance(directory, RemotePath):
        name = f"{int(metrics['epoch']):06d}.json"
        write_atomically(directory / RESULT_FOLDER / name, text)
        return
    cut_torn_line(directory)
    with (directory / RESULT_FILE).open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_results(directory: StoragePath) -> list[dict[str, Any]]:
    """The reports of one training, in order; a torn last line is left out.

    Raises:
        UserError: a line before the last, or an object, is not JSON.
    """
    if isinstance(directory, RemotePath):
        objects = in_parallel(_read_object, _epoch_objects(directory), THREADS)
        return [record for record in objects if record is not None]
    path = directory / RESULT_FILE
    if not path.is_file():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [_parse_line(line, path, number) for number, line in enumerate(lines, start=1)]


def forget_results(directory: StoragePath, epoch: int) -> None:
    """Drop the reports of `epoch` and of later ones, which are trained again."""
    if isinstance(directory, RemotePath):
        for path in _epoch_objects(directory):
            if _epoch_of(path) >= epoch:
                path.unlink(missing_ok=True)
        return
    records = read_results(directory)
    kept = [record for record in records if record["epoch"] < epoch]
    if len(kept) < len(records):
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(directory / RESULT_FILE, lines)


def cut_torn_line(directory: StoragePath) -> None:
    """Remove what follows the last line feed; an object is never torn."""
    if isinstance(directory, RemotePath) or not (directory / RESULT_FILE).is_file():
        return
    path = directory / RESULT_FILE
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _epoch_objects(directory: RemotePath) -> list[RemotePath]:
    names = (directory / RESULT_FOLDER).iterdir()
    return sorted((path for path in names if _EPOCH.fullmatch(path.name)), key=_epoch_of)


def _epoch_of(path: RemotePath) -> int:
    return int(path.name.removesuffix(".json"))


def _read_object(path: RemotePath) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = path.read_json()
    except FileNotFoundError:  # forgotten since it was listed: that epoch is being trained again
        return None
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON; remove that object, or restore it from a copy"
        ) from error
    return record


def _parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"{path}, line {number} is not JSON; remove that line, or restore the file from a copy"
        ) from error
    return record
