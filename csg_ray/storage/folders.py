"""What is done alike with folders on a disk and on a URI: list, try out, delete."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from csg_ray.config.errors import UserError
from csg_ray.storage.paths import RemotePath, StoragePath

Item = TypeVar("Item")
Result = TypeVar("Result")


def subfolders(folder: StoragePath) -> list[StoragePath]:
    """The folders directly below, by name; none when `folder` does not exist."""
    if isinstance(folder, RemotePath):
        return [*folder.subfolders()]
    if not folder.exists():
        return []
    return [path for path in sorted(folder.iterdir()) if path.is_dir()]


def remove_tree(folder: StoragePath) -> None:
    """Delete a folder and everything in it.

    Raises:
        FileNotFoundError: it does not exist.
    """
    if isinstance(folder, RemotePath):
        folder.delete_tree()
    else:
        shutil.rmtree(folder)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Fill a new folder, which is there with all that it will hold or not at all.

    Yields:
        A hidden neighbour, empty, that takes the name of `folder` at the end.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    hidden.mkdir()
    try:
        yield hidden
        hidden.rename(folder)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def check_writable(folder: StoragePath) -> None:
    """Refuse a folder in which no file can be made.

    Trying is the only sure way: permission bits say nothing about read-only or full disks, and of
    a store nothing is known before it answers.

    Raises:
        UserError: names the folder and the reason.
    """
    try:
        if isinstance(folder, RemotePath):
            _try_out(folder / f".csg-ray-{secrets.token_hex(8)}")
        else:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".csg-ray-"):
                pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}") from None


def _try_out(path: RemotePath) -> None:
    path.write_bytes(b"written by csg-ray to see whether it can; may be deleted")
    path.read_bytes()
    path.unlink()


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> list[Result]:
    """`function` of every item, in order: a store answers many requests in the time of one."""
    if not items:
        return []
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(function, items))
