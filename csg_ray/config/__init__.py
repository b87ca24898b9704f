"""Run configurations: what they hold, how they are read, how one setting is changed.

The names below are looked up on first use, so that a command which only needs `UserError` starts
without pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from csg_ray.config.errors import UserError

if TYPE_CHECKING:
    from csg_ray.config.load import load_config, override_config
    from csg_ray.config.run import RunConfig

__all__ = ["RunConfig", "UserError", "load_config", "override_config"]

_HOMES = {
    "RunConfig": "csg_ray.config.run",
    "load_config": "csg_ray.config.load",
    "override_config": "csg_ray.config.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
