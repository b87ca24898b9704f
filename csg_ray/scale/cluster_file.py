"""A cluster file for `ray up`, read as Ray reads it, without a cloud."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from csg_ray.config.errors import UserError
from csg_ray.config.reader import read_yaml
from csg_ray.scale.cluster_schema import complete

if TYPE_CHECKING:
    from csg_ray.scale.cluster import Node


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

    def grown(self) -> tuple[Node, ...] | None:
        """The machines at the maximum; None when the file does not say what they hold.

        Where types compete for the last places, those with more GPUs, then CPUs, win.
        """
        from csg_ray.scale.cluster import Node  # loads torch

        if any(kind.cpus is None for kind in (self.head, *self.workers)):
            return None
        head, *others = (
            [Node(kind.cpus or 0, kind.gpus or 0)] * kind.max_nodes
            for kind in (self.head, *self.workers)
        )
        ranked = sorted(itertools.chain(*others), key=lambda node: (-node.gpus, -node.cpus))
        return (*head, *ranked[: self.max_workers])


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
