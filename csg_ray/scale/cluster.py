"""The Ray that a study or run uses: a cluster that is joined, or one on this machine."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from csg_ray.config.errors import UserError
from csg_ray.storage.paths import RemotePath, StoragePath

# What is left for tasks and actors beside Ray's object store, as Ray itself counts.
MEMORY_SHARE = 0.6
BOOTSTRAP_FILE = Path.home() / "ray_bootstrap_config.yaml"
_GROWS_TO = re.compile(r"(\d+) nodes of (\d+) CPU and (\d+) GPU")


@dataclass(frozen=True)
class Node:
    """What one machine offers to trials: CPUs, GPUs, bytes of memory."""

    cpus: float
    gpus: float
    memory: float = float(sys.maxsize)


@dataclass(frozen=True)
class Cluster:
    """The machines there are, or can be when they are started on demand.

    Attributes:
        name: for messages.
        joined: whether it is there already; if not, Ray is started on this machine when needed.
    """

    nodes: tuple[Node, ...]
    name: str = "this machine"
    joined: bool = False


def find_cluster(verbose: bool = False) -> Cluster:
    """The cluster that RAY_ADDRESS names, joined from now on; else this machine, still without Ray.

    Raises:
        UserError: the cluster cannot be reached, runs another Ray or Python, or wants a token.
    """
    wanted = os.environ.get("RAY_ADDRESS", "local")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return _joined()
    if wanted == "local":
        return Cluster((local_node(),))
    _join(wanted, verbose)
    return _joined()


def local_node() -> Node:
    """The CPUs that this process may use, the visible GPUs, and memory."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it, macOS has not
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MEMORY_SHARE
    return Node(cpus, torch.cuda.device_count(), memory)


@contextmanager
def running(cluster: Cluster, verbose: bool) -> Iterator[None]:
    """Ray, for as long as the block takes: the joined one, or one that begins and ends here."""
    import ray

    if ray.is_initialized():
        yield
        return
    (node,) = cluster.nodes
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _init(
        verbose,
        address="local",  # else Ray joins whatever `ray start` has left on this machine
        num_cpus=int(node.cpus),
        num_gpus=int(node.gpus),
        include_dashboard=False,  # nothing here asks it; it costs seconds and a gigabyte
    )
    try:
        yield
    finally:
        ray.shutdown()


def check_shared(directory: StoragePath, cluster: Cluster) -> None:
    """Refuse a local directory that another machine of the cluster does not see.

    Args:
        directory: of the study or run; its nearest folder that exists is tried.
        cluster: the one that was joined.

    Raises:
        UserError: a machine does not see it.
    """
    if not cluster.joined or isinstance(directory, RemotePath):
        return
    above = next(folder for folder in directory.absolute().parents if folder.is_dir())
    with tempfile.NamedTemporaryFile(dir=above, prefix=".csg-ray-") as probe:
        blind = _nodes_without(probe.name)
    if blind:
        raise UserError(
            f"{directory} is on a disk that {', '.join(blind)} of {cluster.name} cannot see; put "
            "it on a file system that all machines share, or on an object store with --storage"
        )


def _nodes_without(path: str) -> list[str]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Not a function of this module: every machine would import torch for it.
    look = ray.remote(num_cpus=0)(os.path.exists)
    asked = {
        node["NodeManagerAddress"]: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(path)
        for node in ray.nodes()
        if node["Alive"]
    }
    return [address for address, found in asked.items() if not ray.get(found)]


def _join(address: str, verbose: bool) -> None:
    if _has_token():  # Ray looks for it by itself only where it starts a cluster
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        # Elsewhere the variables of this process are not set: there, too, trials stay in the folder
        # that they were started in.
        settings = {"env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0"}}
        _init(verbose, address=address, runtime_env=settings)
    except (ConnectionError, TimeoutError, ValueError) as error:
        raise UserError(
            f"RAY_ADDRESS is {address}, but no Ray answers there ({_first_line(error)}); start "
            "the cluster, or unset RAY_ADDRESS to use this machine alone"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"the cluster at {address} cannot be joined ({_reason(error)}); install the same "
            "versions on both sides"
        ) from error


def _has_token() -> bool:
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


def _init(verbose: bool, **options: Any) -> None:
    import ray

    level = logging.INFO if verbose else logging.ERROR
    # Ray's core aborts on SIGTERM (Slurm, Kubernetes) with a C++ trace; ours says how to go on.
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=verbose, logging_level=level, **options)
    signal.signal(signal.SIGTERM, handler)


def nodes_up() -> tuple[Node, ...]:
    """The machines that are in the running Ray now."""
    import ray

    return tuple(
        _node(node["Resources"]) for node in ray.nodes() if node["Alive"] and node["Resources"]
    )


def _joined() -> Cluster:
    import ray

    address = ray.get_runtime_context().gcs_address
    nodes = _nodes_on_demand() or nodes_up()
    return Cluster(nodes, f"the cluster at {address}", joined=True)


def _node(resources: dict[str, float]) -> Node:
    memory = resources.get("memory", float(sys.maxsize))
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0), memory)


def _nodes_on_demand() -> tuple[Node, ...]:
    """Every machine that an autoscaler may have up at a time, as far as it can be known.

    Ray itself tells nobody. `ray up` leaves the cluster's file on the head; where there is no such
    file (KubeRay), the environment says it: CSG_RAY_GROWS_TO="8 nodes of 8 CPU and 1 GPU".

    Raises:
        UserError: CSG_RAY_GROWS_TO is not of that form.
    """
    if BOOTSTRAP_FILE.is_file():
        from csg_ray.scale.cluster_file import load_cluster_file

        return load_cluster_file(BOOTSTRAP_FILE).grown() or ()
    wanted = os.environ.get("CSG_RAY_GROWS_TO")
    if wanted is None:
        return ()
    found = _GROWS_TO.fullmatch(wanted)
    if found is None:
        raise UserError(
            f"CSG_RAY_GROWS_TO is '{wanted}', but must be like '8 nodes of 8 CPU and 1 GPU'"
        )
    count, cpus, gpus = map(int, found.groups())
    return (Node(cpus, gpus),) * count


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _reason(error: Exception) -> str:
    """Ray's message on one line."""
    return " ".join(str(error).split())
