"""What a study needs and what there is: checked before anything starts."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass

import torch

from csg_ray.config.errors import UserError
from csg_ray.config.methods import CSGConfig
from csg_ray.config.run import RunConfig
from csg_ray.models.encoders import build_encoder
from csg_ray.models.resnet import build_resnet
from csg_ray.search_space import ResourcesConfig, SearchSpace

BYTES_PER_NUMBER = 4


@dataclass(frozen=True)
class Plan:
    """How a study will run. Bytes are of checkpoints, the bulk of a study directory."""

    trials: int
    epochs: int
    concurrent: int
    cpus_per_trial: float
    gpus_per_trial: float
    cluster_cpus: float
    cluster_gpus: float
    checkpoint_bytes_per_trial: int
    disk_bytes: int


def local_resources() -> tuple[int, int]:
    """CPUs this process may use, and visible GPUs."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it, macOS has not
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return cpus, torch.cuda.device_count()


def plan(space: SearchSpace, cpus: float | None = None, gpus: float | None = None) -> Plan:
    """Lay a study out over the CPUs and GPUs there are (this machine's unless given).

    Raises:
        UserError: one trial can never fit, with the numbers.
    """
    local_cpus, local_gpus = local_resources()
    cpus = local_cpus if cpus is None else cpus
    gpus = local_gpus if gpus is None else gpus
    resources = space.resources
    if resources.workers_per_trial > 1:
        raise UserError(
            f"resources.workers_per_trial is {resources.workers_per_trial}: trials over several "
            "workers are not in this version yet; set it to 1"
        )
    for kind, needed, there in (
        ("cpu", resources.cpus_per_worker, cpus),
        ("gpu", resources.gpus_per_worker, gpus),
    ):
        if needed > there:
            raise UserError(
                f"resources.{kind}s_per_worker is {needed:g}, but there are {there:g} "
                f"{kind.upper()}s in all, so no trial can ever start; set it to at most {there:g}"
            )
    concurrent = min(int(cpus // resources.cpus_per_worker), gpu_slots(resources, gpus))
    search = space.search
    concurrent = min(concurrent, search.max_concurrent or concurrent, search.num_trials)
    config = space.config_for(space.first_point())
    per_trial = checkpoint_bytes(config) * search.repeats
    return Plan(
        trials=search.num_trials,
        epochs=config.train.epochs,
        concurrent=max(1, concurrent),
        cpus_per_trial=resources.cpus_per_worker,
        gpus_per_trial=resources.gpus_per_worker,
        cluster_cpus=cpus,
        cluster_gpus=gpus,
        checkpoint_bytes_per_trial=per_trial,
        disk_bytes=per_trial * search.num_trials,
    )


def gpu_slots(resources: ResourcesConfig, gpus: float) -> int:
    """Trials that the GPUs hold at a time; a fraction of a GPU does not span two of them."""
    share = resources.gpus_per_worker
    if share == 0:
        return sys.maxsize
    return int(gpus // share) if share >= 1 else int(gpus) * int(1 / share + 1e-9)


def checkpoint_bytes(config: RunConfig) -> int:
    """Size of one checkpoint, near enough to plan with: weights, momentum, queues."""
    with torch.device("meta"):
        network = build_resnet(config.model.name, config.model.norm)
    numbers = 2 * sum(parameter.numel() for parameter in network.parameters())
    if isinstance(config.method, CSGConfig):
        method = config.method
        for stage in method.stage_numbers():
            channels = network.stage_channels[stage]
            head = channels * (channels + 1) + (channels + 1) * method.projection_dim
            numbers += 3 * head + queue_length(config) * method.projection_dim
    return numbers * BYTES_PER_NUMBER


def queue_length(config: RunConfig) -> int:
    """Keys in one queue, `auto` taken at its upper bound."""
    assert isinstance(config.method, CSGConfig)
    size = config.method.queue_size
    if size == "auto":
        return min(65536, int(0.43 * config.data.num_train * config.method.patch_grid**2))
    return size


def check_weights(space: SearchSpace) -> None:
    """Load the weights of every model that the space may draw, so that no trial has to find out.

    Raises:
        UserError: weights cannot be had, or do not fit.
    """
    models = {path: d for path, d in space.space.items() if path.startswith("model.")}
    first = space.first_point()
    drawn = itertools.product(*([(p, end) for end in d.ends()] for p, d in models.items()))
    for model in {space.config_for(first | dict(choice)).model for choice in drawn}:
        build_encoder(model)
