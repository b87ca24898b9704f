"""One process a directory: a lock that the system lets go of when its owner dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from csg_ray.config.errors import UserError
from csg_ray.scale.claims import ClaimLock
from csg_ray.storage.paths import RemotePath, StoragePath

LOCK_FILE = "driver.lock"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class BeingRunError(UserError):
    """Somebody else is at work in the directory."""


def lock_directory(directory: StoragePath, say: Callable[[str], None]) -> StudyLock | ClaimLock:
    """The lock of a study or a run, wherever that is; `say` is told when it has to wait."""
    if isinstance(directory, RemotePath):
        return ClaimLock(directory, say)
    return StudyLock(directory)


class StudyLock:
    """Context manager that owns the lock of a study or a run.

    On one host the kernel decides (`flock`), so a killed owner never leaves a lock behind. A file
    system shared by hosts may not carry that over, so the owner also touches the file: a lock of
    another host counts as long as its last touch is younger than `STALE_SECONDS`.

    Raises:
        BeingRunError: somebody else is at work there; nothing was changed.
    """

    lost: UserError | None = None  # as in `ClaimLock`; the kernel takes no lock away

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK_FILE
        self._file: TextIO | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> StudyLock:
        self._file = self._acquire()
        try:
            self._refuse_another_host(self._file)
            owner = {"pid": os.getpid(), "host": socket.gethostname()}
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(owner))
            self._file.flush()
        except BaseException:
            self._file.close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._stop.set()
        self._thread.join()
        # Removed while it is still held, so that nobody can own a file that has no name any more
        # without noticing (see `_acquire`).
        self._path.unlink(missing_ok=True)
        self._file.close()

    def when_lost(self, tell: Callable[[UserError], None]) -> None:
        """As in `ClaimLock`; it cannot happen here."""

    def _acquire(self) -> TextIO:
        while True:
            file = self._path.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = _parse(file.read())
                file.close()
                raise self._refusal(owner) from None
            if self._is_still_there(file):
                return file
            file.close()  # its last owner has just removed it: what was locked is a nameless file

    def _is_still_there(self, file: TextIO) -> bool:
        try:
            return os.fstat(file.fileno()).st_ino == self._path.stat().st_ino
        except FileNotFoundError:
            return False

    def _refuse_another_host(self, file: TextIO) -> None:
        file.seek(0)
        owner = _parse(file.read())
        age = time.time() - os.fstat(file.fileno()).st_mtime
        if owner.get("host", socket.gethostname()) != socket.gethostname() and age < STALE_SECONDS:
            raise self._refusal(owner)

    def _refusal(self, owner: dict[str, Any]) -> BeingRunError:
        who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
        return BeingRunError(
            f"{self._path.parent} is being run by {who}; wait for it or stop it first"
        )

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            os.utime(self._path)


def _parse(text: str) -> dict[str, Any]:
    """The owner; empty when its process died, or has not got to it, before it was written."""
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) and {"pid", "host"} <= owner.keys() else {}
