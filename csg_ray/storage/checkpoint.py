"""Checkpoints: the resumable state of one training, in one file that is whole or not there."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

from csg_ray.config.errors import UserError
from csg_ray.config.run import RunConfig
from csg_ray.storage.paths import StoragePath
from csg_ray.storage.records import write_whole

FORMAT = 1
# Settings, by how their paths begin, that change none of the numbers, or their rounding alone.
FREE_SETTINGS = ("data.workers", "compute.")


def save_checkpoint(path: StoragePath, state: dict[str, Any]) -> None:
    """Write `state` atomically: a full disk raises OSError and leaves the older file whole."""
    # Through memory: torch's own writer hides the errno of a full disk in a RuntimeError.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_whole(path, buffer.getbuffer())


def load_checkpoint(path: StoragePath) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Raises:
        UserError: the file is missing, damaged, no checkpoint, or of a newer format.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"the checkpoint {path} does not exist") from None
    return parse_checkpoint(content, str(path))


def parse_checkpoint(content: bytes, origin: str) -> dict[str, Any]:
    """The state in the bytes of a checkpoint file; `origin` names it in errors.

    Raises:
        UserError: damaged, no checkpoint, or of a newer format.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{origin} is not a readable checkpoint ({reason})") from error
    if not isinstance(state, dict) or "format" not in state:
        raise UserError(f"{origin} is not a checkpoint of csg_ray")
    if state["format"] > FORMAT:
        raise UserError(
            f"{origin} has checkpoint format {state['format']}, this version reads formats up to "
            f"{FORMAT}; install a newer csg_ray"
        )
    return state


def config_differences(saved: dict[str, Any], config: RunConfig) -> list[str]:
    """What differs between a checkpoint's configuration and the present one, path by path.

    When data, model or method are others, only that is said.
    """
    there, here = _flatten(saved), _flatten(config.model_dump())
    paths = [
        path
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path) and not path.startswith(FREE_SETTINGS)
    ]
    paths = [path for path in paths if path.endswith(".name")] or paths
    return [f"{path} {there.get(path)!r} there, {here.get(path)!r} here" for path in paths]


def _flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
