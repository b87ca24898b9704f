"""`check`: a search-space file, a cluster file, or one against the other."""

from __future__ import annotations

from pathlib import Path

from csg_ray.cli.searching import load_space, show_plan
from csg_ray.config.errors import UserError
from csg_ray.scale.cluster_checks import check_cluster_file
from csg_ray.scale.cluster_file import ClusterFile, NodeType, load_cluster_file
from csg_ray.search_space import SearchSpace


def check_files(
    space_file: Path | None, trials: int | None, settings: list[str], cluster_file: Path | None
) -> None:
    """Print what a search would take, and what is left to do before `ray up`."""
    if cluster_file is None:
        if space_file is None:
            raise UserError("nothing to check; give a SPACE_FILE, or --cluster CLUSTER.yaml")
        from csg_ray.scale.cluster import find_cluster

        show_plan(load_space(space_file, trials, settings), space_file, find_cluster())
        return
    cluster = load_cluster_file(cluster_file)
    notes = check_cluster_file(cluster)
    if space_file is not None:
        notes += _check_space(cluster, load_space(space_file, trials, settings), space_file)
    _show_cluster(cluster, notes)


def _check_space(cluster: ClusterFile, space: SearchSpace, space_file: Path) -> list[str]:
    """Show the plan on the fully grown cluster; what cannot be told offline is returned."""
    from csg_ray.scale.cluster import Cluster

    nodes = cluster.grown()
    if nodes is None:
        return [
            f"{cluster.path} does not say what its nodes hold: whether a trial of {space_file} "
            "fits shows when they are up"
        ]
    show_plan(space, space_file, Cluster(nodes, f"the cluster of {cluster.path}"))
    return []


def _show_cluster(cluster: ClusterFile, notes: list[str]) -> None:
    storage = (cluster.config.get("metadata") or {}).get("storage", "not named")
    lines = [
        ("cluster", f"{cluster.config['cluster_name']}, {_provider(cluster)}"),
        ("head", _holds(cluster.head)),
        *(
            ("workers", f"up to {n.max_nodes} '{n.name}', each {_holds(n)}")
            for n in cluster.workers
        ),
        ("at most", f"{cluster.max_workers} workers in all"),
        ("storage", storage),
        *(("to do", note) for note in notes),
    ]
    for name, value in lines:
        print(f"{name:>10}  {value}")
    print(f"{cluster.path} is valid; nothing was started")


def _provider(cluster: ClusterFile) -> str:
    provider = cluster.config["provider"]
    return f"provider {provider.get('module', provider['type'])}"


def _holds(node: NodeType) -> str:
    if node.cpus is None:
        return "what its machine has"
    return f"{node.cpus} CPU and {node.gpus} GPU"
