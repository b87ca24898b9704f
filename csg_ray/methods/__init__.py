"""Every training method by its name in `method.name`."""

from __future__ import annotations

from csg_ray.config.run import RunConfig
from csg_ray.methods.base import Method
from csg_ray.methods.csg import CSG
from csg_ray.methods.vanilla import Vanilla

METHODS: dict[str, type[Method]] = {"vanilla": Vanilla, "csg": CSG}


def build_method(config: RunConfig, num_classes: int, steps_per_epoch: int) -> Method:
    """The configured method, seeded by `config.seed`, on the CPU."""
    return METHODS[config.method.name](config, num_classes, steps_per_epoch)
