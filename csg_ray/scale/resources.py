"""What a study needs and what there is: checked before anything starts."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass

import torch

from csg_ray.config.data import DigitScenesConfig, DigitsConfig, FilesConfig, TaskConfig
from csg_ray.config.errors import UserError
from csg_ray.config.methods import CSGConfig
from csg_ray.config.run import RunConfig
from csg_ray.data.loader import MAX_AUTO_LOADERS
from csg_ray.methods.base import TASK_STAGE, build_task_head
from csg_ray.methods.csg import MAX_QUEUE_SIZE, check_patch_grid
from csg_ray.models.encoders import build_encoder
from csg_ray.models.resnet import build_resnet
from csg_ray.results.retention import retention_rules
from csg_ray.scale.cluster import Cluster, Node
from csg_ray.scale.fusing import fuse_at_most
from csg_ray.search_space import ResourcesConfig, SearchSpace, drawn_configs

BYTES_PER_NUMBER = 4


# What the processes that steer a nested trial take: its actor, Ray Train's controller and barrier.
DRIVER_BYTES = 1 << 30
# What the process takes that follows a trial in a process of several.
FOLLOWER_BYTES = 256 << 20


@dataclass(frozen=True)
class Workers:
    """How a training is spread: over `minimum` to `maximum` processes, and what each takes."""

    maximum: int
    minimum: int
    cpus: int
    gpus: float


@dataclass(frozen=True)
class Plan:
    """How a study will run. Bytes are of checkpoints, the bulk of a study directory.

    Attributes:
        processes: that train at a time; a trial of several workers counts as one.
        fuse: trials in one process, and with `search.fuse` auto the most that there may be.
        workers: processes that train one trial; with more than one they are a Ray Train run.
        cluster_cpus: of all machines, as `cluster_gpus`.
    """

    trials: int
    epochs: int
    concurrent: int
    processes: int
    fuse: int
    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    cluster_cpus: float
    cluster_gpus: float
    checkpoint_bytes_per_trial: int
    disk_bytes: int


def plan(space: SearchSpace, cluster: Cluster) -> Plan:
    """Lay a study out over the machines of a cluster.

    Raises:
        UserError: one trial can never fit, with the numbers.
    """
    resources, search = space.resources, space.search
    most = min(search.max_concurrent or search.num_trials, search.num_trials)
    processes = min(_trainings_at_a_time(resources, cluster), most)
    # Each trial of a process of several has a small process of its own that follows it.
    followers = sum(int(node.memory // FOLLOWER_BYTES) for node in cluster.nodes)
    concurrent = max(processes, min(processes * fuse_at_most(space), most, followers))
    config = space.config_for(space.first_point())
    _check_batch(space, config)
    per_trial = checkpoint_bytes(config) * search.repeats
    kept = search.keep_checkpoints * len(retention_rules(space.objectives, space.score))
    # Each trial at work has one, and writes its next one beside it.
    checkpoints = min(kept + concurrent, search.num_trials) + concurrent
    return Plan(
        trials=search.num_trials,
        epochs=config.train.epochs,
        concurrent=concurrent,
        processes=processes,
        fuse=math.ceil(concurrent / processes),
        workers=resources.workers_per_trial,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
        cluster_cpus=sum(node.cpus for node in cluster.nodes),
        cluster_gpus=sum(node.gpus for node in cluster.nodes),
        checkpoint_bytes_per_trial=per_trial,
        disk_bytes=per_trial * checkpoints,
    )


def cpus_for_loaders(config: TaskConfig, gpus: int, cluster: Cluster) -> int:
    """Processors of one worker: a training on a GPU waits for its loaders.

    With `data.workers` auto a GPU comes with its share of its machine's processors, as far as
    loaders use them.
    """
    if config.workers != "auto":
        return max(1, config.workers)
    machines = [node for node in cluster.nodes if node.gpus >= gpus]
    if gpus == 0 or not machines or not isinstance(config, FilesConfig):
        return 1
    share = min(int(node.cpus * gpus / node.gpus) for node in machines)
    return min(max(1, share), MAX_AUTO_LOADERS + 1)


def check_workers(workers: Workers, batch_size: int, cluster: Cluster) -> None:
    """Refuse a run that could never start.

    Raises:
        UserError: a worker fits on no machine, not enough of them fit, or the batch is too small.
    """
    check_worker(("data.workers", "--gpus-per-worker"), workers.cpus, workers.gpus, cluster)
    room = workers_that_fit(workers.cpus, workers.gpus, cluster)
    if workers.minimum > room:
        elastic = workers.minimum < workers.maximum
        raise UserError(
            f"--{'min-workers' if elastic else 'workers'} is {workers.minimum}, but {cluster.name} "
            f"holds {room} workers of {workers.cpus:g} CPU and {workers.gpus:g} GPU; set it to at "
            f"most {room}"
        )
    if workers.maximum > batch_size:
        raise UserError(
            f"--workers is {workers.maximum}, more than the {batch_size} images of "
            "train.batch_size; set it to at most that, or raise the batch with --batch-per-worker"
        )


def check_worker(names: tuple[str, str], cpus: float, gpus: float, cluster: Cluster) -> None:
    """Refuse a worker that fits on no machine.

    Args:
        names: the settings or options that ask for the CPUs and for the GPUs.
        cpus: of one worker.
        gpus: of one worker.
        cluster: the machines.

    Raises:
        UserError: no machine has as many CPUs or GPUs.
    """
    for name, kind, needed, there in (
        (names[0], "CPU", cpus, max(node.cpus for node in cluster.nodes)),
        (names[1], "GPU", gpus, max(node.gpus for node in cluster.nodes)),
    ):
        if needed > there:
            where = "" if len(cluster.nodes) == 1 else " on any one machine"
            raise UserError(
                f"{name} is {needed:g}, but {cluster.name} has {there:g} {kind}s"
                f"{where}, so no worker can ever start; set it to at most {there:g}"
            )


def workers_that_fit(cpus: float, gpus: float, cluster: Cluster) -> int:
    """How many workers all machines hold at a time; a worker is never spread over two."""
    return sum(workers_on(node, cpus, gpus) for node in cluster.nodes)


def workers_on(node: Node, cpus: float, gpus: float) -> int:
    """How many workers one machine holds at a time."""
    return min(int(node.cpus // cpus), _gpu_slots(gpus, node.gpus))


def _trainings_at_a_time(resources: ResourcesConfig, cluster: Cluster) -> int:
    cpus, gpus = resources.cpus_per_worker, resources.gpus_per_worker
    names = ("resources.cpus_per_worker", "resources.gpus_per_worker")
    check_worker(names, cpus, gpus, cluster)
    room, needed = workers_that_fit(cpus, gpus, cluster), resources.workers_per_trial
    if needed > room:
        raise UserError(
            f"resources.workers_per_trial is {needed}, but {cluster.name} holds {room} workers of "
            f"{cpus:g} CPU and {gpus:g} GPU, so no trial can ever start; set it to at most {room}"
        )
    if needed == 1:
        return room
    drivers = sum(int(node.memory // DRIVER_BYTES) for node in cluster.nodes)
    if drivers == 0:
        raise UserError(
            f"resources.workers_per_trial is {needed}, and a trial of several workers takes 1 GiB "
            f"of memory to steer, which no machine of {cluster.name} has; set it to 1"
        )
    return min(room // needed, drivers)


def _check_batch(space: SearchSpace, config: RunConfig) -> None:
    """A batch that is dealt out must have an image for every worker."""
    workers = space.resources.workers_per_trial
    sizes = [config.train.batch_size]
    if (searched := space.space.get("train.batch_size")) is not None:
        sizes = [int(end) for end in searched.ends()]
    if workers > min(sizes):
        raise UserError(
            f"resources.workers_per_trial is {workers}, more than the {min(sizes)} images of "
            "train.batch_size; set it to at most that"
        )


def _gpu_slots(share: float, gpus: float) -> int:
    """Workers that a machine's GPUs hold; a fraction of a GPU does not span two of them."""
    if share == 0:
        return sys.maxsize
    return int(gpus // share) if share >= 1 else int(gpus) * int(1 / share + 1e-9)


def checkpoint_bytes(config: RunConfig) -> int:
    """Size of one checkpoint, near enough to plan with: weights, momentum, queues."""
    with torch.device("meta"):
        network = build_resnet(config.model.name, config.model.norm)
        head = build_task_head(config.model, network.stage_channels[TASK_STAGE], num_classes=20)
    trained = itertools.chain(network.parameters(), head.parameters())
    numbers = 2 * sum(parameter.numel() for parameter in trained)
    if isinstance(config.method, CSGConfig):
        method = config.method
        for stage in method.stage_numbers():
            channels = network.stage_channels[stage]
            projection = channels * (channels + 1) + (channels + 1) * method.projection_dim
            numbers += 3 * projection + queue_length(config) * method.projection_dim
    return numbers * BYTES_PER_NUMBER


def queue_length(config: RunConfig) -> int:
    """Keys in one queue, `auto` taken at its upper bound."""
    assert isinstance(config.method, CSGConfig)
    size, train = config.method.queue_size, config.train
    if size != "auto":
        return size
    if train.steps_per_epoch != "auto":
        images = train.steps_per_epoch * train.batch_size
    elif isinstance(config.data, DigitsConfig | DigitScenesConfig):
        images = config.data.num_train
    else:
        return MAX_QUEUE_SIZE  # nobody has listed the files yet
    return min(MAX_QUEUE_SIZE, int(0.43 * images * config.method.patch_grid**2))


def check_models(space: SearchSpace) -> None:
    """Load the weights of every model that the space may draw, and try its grids of patches.

    So no trial has to find out.

    Raises:
        UserError: weights cannot be had or do not fit, or a grid does not divide the maps.
    """
    for model in {config.model for config in drawn_configs(space, "model.")}:
        build_encoder(model)
    shapes = ("model.", "data.image_size", "method.patch_grid", "method.stages")
    for config in drawn_configs(space, *shapes):
        if isinstance(config.method, CSGConfig):
            check_patch_grid(config)
