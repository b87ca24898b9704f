"""`--workers` and its relatives: how a run is spread, checked first and said out loud."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from csg_ray.cli.guard import say
from csg_ray.config.errors import UserError
from csg_ray.config.load import override_config, own_settings
from csg_ray.config.run import RunConfig
from csg_ray.distributed import started_by_torchrun
from csg_ray.storage.paths import StoragePath

if TYPE_CHECKING:
    from csg_ray.scale.cluster import Cluster
    from csg_ray.scale.resources import Workers


@dataclass(frozen=True)
class Spread:
    """The options as they were given; None where one was not.

    Attributes:
        workers: processes, at most; None: the run stays in this process.
        min_workers: with fewer the training waits; as many as `workers` unless given.
        gpus_per_worker: 1 where there are GPUs, else 0, unless given.
        batch_per_worker: images of each worker; the batch and the learning rate grow with them.
    """

    workers: int | None = None
    min_workers: int | None = None
    gpus_per_worker: int | None = None
    batch_per_worker: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if self.workers is None and given:
            option = "--" + next(iter(given)).replace("_", "-")
            raise UserError(f"{option} needs --workers; say how many")
        if self.min_workers is not None and self.min_workers > (self.workers or 0):
            raise UserError(
                f"--min-workers is {self.min_workers}, more than --workers {self.workers}; "
                "it must be at most that"
            )

    def over(self, run: Mapping[str, Any]) -> Spread:
        """These options, or where there are none those that the run began with."""
        if self.workers is not None:
            return self
        return Spread(**(run.get("workers") or {}))

    def to_mapping(self) -> dict[str, Any]:
        """What `over` reads; the batch is in the configuration itself by then."""
        if self.workers is None:
            return {}
        given = asdict(replace(self, batch_per_worker=None))
        return {"workers": {name: value for name, value in given.items() if value is not None}}

    def rescale(self, config: RunConfig) -> RunConfig:
        """The configuration with the batch that `batch_per_worker` asks for.

        The learning rate grows with the batch (linear scaling rule, Goyal et al. 2017).
        """
        if self.batch_per_worker is None:
            return config
        assert self.workers is not None
        batch = self.batch_per_worker * self.workers
        rate = config.train.learning_rate * batch / config.train.batch_size
        say(
            f"train.batch_size {config.train.batch_size} -> {batch}, train.learning_rate "
            f"{config.train.learning_rate:g} -> {rate:g} (linear scaling rule)"
        )
        return override_config(config, {"train.batch_size": batch, "train.learning_rate": rate})


def refuse_both_launchers(spread: Spread) -> None:
    """Under torchrun the processes are there already."""
    if started_by_torchrun() and spread.workers is not None:
        raise UserError("--workers starts processes with Ray, and torchrun has; leave one out")


def check_spread(config: RunConfig, directory: StoragePath, spread: Spread) -> None:
    """Refuse, before anything is written, what the machines cannot do.

    Raises:
        UserError: too many workers, CPUs or GPUs, too small a batch, or a directory that other
            machines do not see.
    """
    if spread.workers is None:
        return
    from csg_ray.scale.cluster import check_shared, find_cluster
    from csg_ray.scale.resources import check_workers

    cluster = find_cluster()
    check_workers(_workers(spread, config, cluster), config.train.batch_size, cluster)
    check_shared(directory, cluster)


def train_spread(
    config: RunConfig,
    directory: StoragePath,
    spread: Spread,
    known_epochs: int,
    show: Callable[[Mapping[str, Any]], None],
    verbose: bool,
) -> None:
    """Train on several workers, and show every epoch."""
    from csg_ray.scale.cluster import find_cluster, running

    cluster = find_cluster(verbose)
    workers = _workers(spread, config, cluster)
    fewest = "" if workers.minimum == workers.maximum else f"{workers.minimum} to "
    say(
        f"{fewest}{workers.maximum} workers of {workers.cpus:g} CPU and {workers.gpus:g} GPU on "
        f"{cluster.name} share each batch of {config.train.batch_size} images; learning rate "
        f"{config.train.learning_rate:g}, as for one worker"
    )
    with running(cluster, verbose):
        from csg_ray.scale.trainer import train_with_workers

        job = {
            "directory": str(directory.resolve()),
            "settings": own_settings(config),
            "config": config.model_dump(),
            "repeats": 1,
            "threads": workers.cpus,
        }
        train_with_workers(job, directory.name, workers, show, known_epochs, say)


def _workers(spread: Spread, config: RunConfig, cluster: Cluster) -> Workers:
    """The options with what was not given filled in."""
    from csg_ray.scale.resources import Workers, cpus_for_loaders

    assert spread.workers is not None
    has_gpus = any(node.gpus >= 1 for node in cluster.nodes)
    gpus = int(has_gpus) if spread.gpus_per_worker is None else spread.gpus_per_worker
    return Workers(
        maximum=spread.workers,
        minimum=spread.min_workers or spread.workers,
        cpus=cpus_for_loaders(config.data, gpus, cluster),
        gpus=gpus,
    )
