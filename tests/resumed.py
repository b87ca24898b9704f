"""A training that goes on from its state after an epoch, beside one that never stopped."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from csg_ray.config.run import RunConfig
from csg_ray.data.splits import DomainSplits
from csg_ray.training.loop import Training


def assert_resumes_to_the_bit(config: RunConfig, splits: DomainSplits) -> None:
    """The second epoch of both: metrics and weights. target_val is as small as source_val."""
    small: Any = splits.source_val
    splits = replace(splits, target_val=replace(small, name="target_val"))
    whole, resumed = (Training(config, splits, torch.device("cpu")) for _ in range(2))
    whole.run_epoch(1)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    first, second = whole.run_epoch(2), resumed.run_epoch(2)
    for metrics in (first, second):
        del metrics["images_per_second"]
    assert first == second
    there, here = whole.method.state_dict(), resumed.method.state_dict()
    weights = {name: value for name, value in there.items() if isinstance(value, Tensor)}
    assert all(here[name].equal(value) for name, value in weights.items())
