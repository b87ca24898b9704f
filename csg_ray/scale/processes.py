"""Who owns a lock: a process, its host, and whether it can be seen to have ended."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """This process, as other processes find it in a lock."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "machine": _machine(),
        "started": _start_of(os.getpid()),
    }


def describe(owner: Mapping[str, Any]) -> str:
    """The owner, in words."""
    return f"process {owner['pid']} on {owner['host']}"


def has_ended(owner: Mapping[str, Any]) -> bool:
    """Whether the process is known to have ended; False where nothing is known.

    A process of the same number that started at another time is another process.
    """
    here = _machine()
    return (
        here is not None
        and owner["machine"] == here
        and owner["started"] != _start_of(owner["pid"])
    )


def _machine() -> str | None:
    """The boot of this machine and the numbering of its processes; None where it has no /proc.

    Not the name of the host: containers may share one, and number their processes each anew.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """When a process started, in ticks since the boot; None when there is none (any more)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
