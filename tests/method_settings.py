"""A legal configuration of every method: the defaults, and something for what has none."""

from __future__ import annotations

from typing import Any

from csg_ray.config.methods import METHOD_CONFIGS, MethodConfig

REQUIRED: dict[str, dict[str, Any]] = {}


def method_config(name: str, **settings: Any) -> MethodConfig:
    """The method's settings, changed by `settings`."""
    config: Any = METHOD_CONFIGS[name](**{**REQUIRED.get(name, {}), **settings})
    return config  # type: ignore[no-any-return]
