"""EC2 nodes for `ray up`: spot first, on demand where AWS has none to spare.

`cluster.yaml` names the class here as its node provider. Ray alone asks for spot for ever: its
autoscaler ranks node types by priority, but a request that AWS refuses does not lower the rank.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)

# EC2's error codes for "no such spot instance now": no capacity, no quota, a price too low.
SPOT_REFUSALS = (
    "InsufficientInstanceCapacity",
    "UnfulfillableCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
)


class SpotFirstProvider(AWSNodeProvider):
    """Ray's AWS provider; a spot request that is refused is made again on demand."""

    def create_node(self, node_config: dict[str, Any], tags: Any, count: int) -> dict[str, Any]:
        """Instances by their id; on-demand ones when there is no spot capacity."""
        try:
            return dict(super().create_node(node_config, tags, count))
        except NodeLaunchException as refusal:
            if "InstanceMarketOptions" not in node_config or refusal.category not in SPOT_REFUSALS:
                raise
            logger.warning("no spot instance (%s); asking for on-demand", refusal.category)
        on_demand = {k: v for k, v in node_config.items() if k != "InstanceMarketOptions"}
        return dict(super().create_node(on_demand, tags, count))
