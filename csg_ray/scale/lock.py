"""One driver a study: a lock file with owner and heartbeat."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from csg_ray.config.errors import UserError
from csg_ray.training.records import write_atomically

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class StudyLock:
    """Context manager that owns `driver.lock` in a study.

    A lock is stale when its process on this host is gone, or, for another host, when its heartbeat
    is older than `STALE_SECONDS`. A stale lock is taken over.

    Raises:
        UserError: another driver is running.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "driver.lock"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> StudyLock:
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            self._refuse_if_alive()
            self._write()
        else:
            os.close(descriptor)
            self._write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _refuse_if_alive(self) -> None:
        try:
            owner = json.loads(self._path.read_text())
        except (ValueError, FileNotFoundError):
            return  # its owner died between creating and filling it, or has just let go
        if _is_alive(owner):
            raise UserError(
                f"study {self._path.parent} is being run by process {owner['pid']} on "
                f"{owner['host']}; wait for it or stop it first"
            )

    def _write(self) -> None:
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": _start_time(os.getpid()),
            "heartbeat": time.time(),
        }
        write_atomically(self._path, json.dumps(owner))

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._write()
            except OSError:
                continue  # a full disk must not end the thread; the next beat may succeed


def _is_alive(owner: dict[str, Any]) -> bool:
    if owner["host"] != socket.gethostname():
        return bool(time.time() - owner["heartbeat"] < STALE_SECONDS)
    return bool(_start_time(owner["pid"]) == owner["started"])


def _start_time(pid: int) -> str | None:
    """When a process of this host started, or None if it is gone; guards against reused ids."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _ps_start_time(pid)
    state, *fields = stat.rsplit(")", 1)[1].split()
    return None if state == "Z" else fields[18]


def _ps_start_time(pid: int) -> str | None:
    """`_start_time` where there is no /proc (macOS)."""
    import subprocess

    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found or None
