"""Every training method by its name in `method.name`."""

from __future__ import annotations

from csg_ray.config.run import RunConfig
from csg_ray.methods.asg import ASG
from csg_ray.methods.asg_l2o import ASGL2O
from csg_ray.methods.base import Method
from csg_ray.methods.csg import CSG
from csg_ray.methods.drpc import DRPC
from csg_ray.methods.feature_l2 import FeatureL2
from csg_ray.methods.oracle import Oracle
from csg_ray.methods.self_training import CBST, LRENT, MRKLD
from csg_ray.methods.synaptic_intelligence import SynapticIntelligence
from csg_ray.methods.vanilla import Vanilla
from csg_ray.methods.weight_l2 import WeightL2

METHODS: dict[str, type[Method]] = {
    "vanilla": Vanilla,
    "oracle": Oracle,
    "weight_l2": WeightL2,
    "synaptic_intelligence": SynapticIntelligence,
    "feature_l2": FeatureL2,
    "asg": ASG,
    "asg_l2o": ASGL2O,
    "drpc": DRPC,
    "csg": CSG,
    "cbst": CBST,
    "mrkld": MRKLD,
    "lrent": LRENT,
}


def build_method(config: RunConfig, num_classes: int, steps_per_epoch: int) -> Method:
    """The configured method, seeded by `config.seed`, on the CPU."""
    return METHODS[config.method.name](config, num_classes, steps_per_epoch)
