"""What becomes of an error in a trial: a report to the driver. Free of torch."""

from __future__ import annotations

import traceback
from contextlib import suppress
from typing import Any

import ray

from csg_ray.config.errors import UserError
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import DISK_FULL, write_atomically
from csg_ray.storage.stores import StorageError


def check_sees_study(directory: StoragePath) -> None:
    """Refuse to train on a machine that would write where nobody reads.

    Raises:
        UserError: the trial's directory is not visible from here.
    """
    if not (directory / "params.json").exists():
        raise UserError(
            f"{directory} is not visible from {ray.util.get_node_ip_address()}; put the study on "
            "a file system that all machines share, or on an object store with --storage"
        )


def failure_report(directory: StoragePath, error: Exception) -> dict[str, Any]:
    """The report that hands the reason to the driver.

    Storage that fails pauses the study; all else fails this trial, and is written beside it.
    """
    if isinstance(error, StorageError):
        return {"store": error.filename, "reason": error.strerror}
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return {"disk_full": str(directory)}
    text = "".join(traceback.format_exception(error))
    with suppress(FileNotFoundError):  # on a machine that does not see the study
        write_atomically(directory / "error.txt", text)
    return {"error": f"{type(error).__name__}: {error}"}
