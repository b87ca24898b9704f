"""A cluster file for `ray up`, read as Ray reads it, without a cloud."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from csg_ray.config.errors import UserError
from csg_ray.config.reader import read_yaml
from csg_ray.scale.cluster_schema import complete
from csg_ray.search_space import ResourcesConfig


@dataclass(frozen=True)
class NodeType:
    """Nodes of one kind: how many there may be, and what one holds (None: the file is silent)."""

    name: str
    max_nodes: int
    cpus: int | None
    gpus: int | None


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file that `ray up` takes.

    Attributes:
        config: the file with Ray's defaults filled in.
        head: the type of the head; `max_nodes` counts the head itself.
        workers: the types of the other nodes.
        max_workers: nodes besides the head, of all types together.
    """

    path: Path
    config: dict[str, Any]
    head: NodeType
    workers: tuple[NodeType, ...]
    max_workers: int

    def largest(self, resources: ResourcesConfig) -> tuple[NodeType, ...] | None:
        """Every node of the cluster when it has grown to its maximum, as types of one node each.

        Where types compete for the last nodes, those that hold more workers of `resources` win.

        Returns:
            None when the file does not say what its nodes hold.
        """
        if any(node.cpus is None for node in (self.head, *self.workers)):
            return None
        ranked = sorted(self.workers, key=lambda node: -workers_on(node, resources))
        others = [node for node in ranked for _ in range(node.max_nodes)]
        return (self.head, *others[: self.max_workers])

    def trials_at_a_time(self, resources: ResourcesConfig) -> int | None:
        """Trials that the fully grown cluster holds; None when the file does not tell.

        Raises:
            UserError: one trial can never fit, with the numbers.
        """
        nodes = self.largest(resources)
        if nodes is None:
            return None
        workers = sum(workers_on(node, resources) for node in nodes)
        if workers < resources.workers_per_trial:
            raise UserError(
                f"{self.path} holds {workers} workers of {resources.cpus_per_worker} CPU and "
                f"{resources.gpus_per_worker:g} GPU when it is fully grown, but "
                f"resources.workers_per_trial is {resources.workers_per_trial}, so no trial can "
                "ever start; raise max_workers, take larger nodes, or ask for less"
            )
        return workers // resources.workers_per_trial


def workers_on(node: NodeType, resources: ResourcesConfig) -> int:
    """Training workers that one node holds; a worker does not span two nodes."""
    from csg_ray.scale.resources import gpu_slots  # loads torch

    assert node.cpus is not None
    slots = gpu_slots(resources, node.gpus or 0)
    return min(node.cpus // resources.cpus_per_worker, slots)


def load_cluster_file(path: Path) -> ClusterFile:
    """Read a cluster file and check what Ray's schema and its launcher ask for.

    Raises:
        UserError: not YAML, an unknown key, a wrong type, a missing setting.
    """
    read_yaml(path)  # for its complaints: Ray takes a key that stands twice
    try:
        # YAML 1.1, as `ray up` reads it.
        config = complete(yaml.safe_load(path.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    nodes = {
        name: NodeType(name, settings["max_workers"], *_holdings(settings["resources"]))
        for name, settings in config["available_node_types"].items()
    }
    head = nodes[config["head_node_type"]]
    # Hosts of the local provider are all of one type, the head's.
    workers = tuple(node for node in nodes.values() if node is not head or node.max_nodes)
    return ClusterFile(
        path=path,
        config=config,
        head=NodeType(head.name, 1, head.cpus, head.gpus),
        workers=workers,
        max_workers=config["max_workers"],
    )


def _holdings(resources: dict[str, int]) -> tuple[int | None, int | None]:
    return (resources.get("CPU"), resources.get("GPU", 0)) if resources else (None, None)
