"""Search spaces: which settings a study searches, where, and how; from YAML, checked at once."""

from __future__ import annotations

from csg_ray.search_space.budget import NO_BUDGET, Budget
from csg_ray.search_space.changes import Changes
from csg_ray.search_space.domains import Choice, Domain, Float, Integer
from csg_ray.search_space.drawn import drawn_configs
from csg_ray.search_space.parse import load_search_space, parse_override, parse_search_space
from csg_ray.search_space.settings import METRICS, Objective, ResourcesConfig, SearchConfig
from csg_ray.search_space.space import SearchSpace

__all__ = [
    "METRICS",
    "NO_BUDGET",
    "Budget",
    "Changes",
    "Choice",
    "Domain",
    "Float",
    "Integer",
    "Objective",
    "ResourcesConfig",
    "SearchConfig",
    "SearchSpace",
    "drawn_configs",
    "load_search_space",
    "parse_override",
    "parse_search_space",
]
