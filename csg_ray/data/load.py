"""From `data.name` to the splits of that task."""

from __future__ import annotations

from functools import lru_cache

from csg_ray.config.data import DataConfig, DigitsConfig
from csg_ray.data.digits.task import load_digit_splits
from csg_ray.data.splits import DomainSplits


@lru_cache(maxsize=4)
def load_splits(config: DataConfig) -> DomainSplits:
    """The splits of the configured task, made once per process and settings."""
    assert isinstance(config, DigitsConfig)
    return load_digit_splits(config)
