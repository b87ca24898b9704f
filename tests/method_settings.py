"""A legal configuration of every method: the defaults, and what short tests need besides."""

from __future__ import annotations

from typing import Any

from csg_ray.config.methods import METHOD_CONFIGS, MethodConfig

# Of asg_l2o a window short enough that a policy decides within a few steps.
REQUIRED: dict[str, dict[str, Any]] = {"asg_l2o": {"min_window": 1}}


def method_config(name: str, **settings: Any) -> MethodConfig:
    """The method's settings, changed by `settings`."""
    config: Any = METHOD_CONFIGS[name](**{**REQUIRED.get(name, {}), **settings})
    return config  # type: ignore[no-any-return]
