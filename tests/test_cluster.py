"""Joining a cluster: which machines there are, and what is refused before work starts."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from csg_ray.config.errors import UserError
from csg_ray.scale import cluster as room
from csg_ray.scale.cluster import Cluster, Node, check_shared, find_cluster, local_node, running
from csg_ray.storage.paths import open_path

JOINED = Cluster((Node(1, 0),), "the cluster at 10.0.0.1:6379", joined=True)


def test_without_an_address_it_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = find_cluster()
    assert found == Cluster((local_node(),), "this machine", joined=False)
    assert found.nodes[0].cpus == len(os.sched_getaffinity(0))
    assert 0 < found.nodes[0].memory < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_ray_of_its_own_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without "local", Ray joins what `ray start` has left on the machine, and refuses num_cpus."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with running(Cluster((Node(3, 2),)), verbose=False):
        assert asked["address"] == "local"
        assert (asked["num_cpus"], asked["num_gpus"]) == (3, 2)


def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(**_: Any) -> None:
        raise ConnectionError("ray.init failed\nand more")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(UserError) as caught:
        find_cluster()
    assert str(caught.value) == (
        "RAY_ADDRESS is 10.0.0.1:6379, but no Ray answers there (ray.init failed); start the "
        "cluster, or unset RAY_ADDRESS to use this machine alone"
    )


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Ray whose head alone is up, without CPUs; where `ray up` would leave its file."""
    head = {"Alive": True, "Resources": {"memory": 1e10}}
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(ray, "nodes", lambda: [head])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(room, "BOOTSTRAP_FILE", tmp_path / "ray_bootstrap_config.yaml")
    return tmp_path / "ray_bootstrap_config.yaml"


def test_without_an_autoscaler_what_is_up_counts(joined: Path) -> None:
    assert room._joined() == Cluster((Node(0, 0, 1e10),), "the cluster at 10.0.0.1:6379", True)


def test_machines_that_ray_up_may_start_count(joined: Path) -> None:
    """GPU nodes come from zero: none is up when a study is planned."""
    shutil.copy(Path(__file__).parents[1] / "cluster.yaml", joined)
    nodes = room._joined().nodes
    assert [(node.cpus, node.gpus) for node in nodes] == [(0, 0), *[(8, 1)] * 8]


def test_machines_of_kubernetes_are_told(joined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSG_RAY_GROWS_TO", "3 nodes of 8 CPU and 1 GPU")
    assert room._joined().nodes == (Node(8, 1),) * 3
    monkeypatch.setenv("CSG_RAY_GROWS_TO", "3 GPUs")
    with pytest.raises(UserError, match="is '3 GPUs', but must be like '8 nodes of 8 CPU and 1 GP"):
        room._joined()


def test_a_disk_that_another_machine_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def without(path: str) -> list[str]:
        tried.append(Path(path).exists())
        return ["10.0.0.2"]

    monkeypatch.setattr(room, "_nodes_without", without)
    with pytest.raises(UserError) as caught:
        check_shared(tmp_path / "not" / "yet" / "there", JOINED)
    assert str(caught.value) == (
        f"{tmp_path}/not/yet/there is on a disk that 10.0.0.2 of the cluster at 10.0.0.1:6379 "
        "cannot see; put it on a file system that all machines share, or on an object store with "
        "--storage"
    )
    assert tried == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_uri_and_a_machine_of_ones_own_need_no_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_nodes_without", pytest.fail)
    check_shared(open_path("s3://bucket/study?region=us-east-1"), JOINED)
    check_shared(tmp_path / "s", Cluster((Node(1, 0),)))


# A head that says of itself that it is an older Ray.
OLD_HEAD = """
import sys, ray
ray.__version__ = "2.10.0"
from ray.scripts.scripts import main
sys.argv = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus", "0",
            "--include-dashboard", "false", "--port", sys.argv[1], "--temp-dir", sys.argv[2]]
main()
"""


@pytest.fixture
def old_head(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Ray's sockets have long names, and a socket's path may have 107 letters.
    folder = Path("/tmp") / f"csg-ray-{os.getpid()}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with (tmp_path / "head.txt").open("w") as output:
        head = subprocess.Popen(
            [sys.executable, "-c", OLD_HEAD, str(port), str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment | {"RAY_AUTH_MODE": "disabled"},
            start_new_session=True,
        )
    try:
        yield f"{ray.util.get_node_ip_address()}:{port}"
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait()
        subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_cluster_of_another_version_is_refused(old_head: str, tmp_path: Path) -> None:
    space = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
    environment = os.environ | {"RAY_ADDRESS": old_head, "RAY_AUTH_MODE": "disabled"}
    ran = subprocess.run(
        [sys.executable, "-m", "csg_ray", "search", str(space), "--study", "s"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    (sentence,) = ran.stderr.splitlines()
    assert sentence.startswith(f"csg-ray: the cluster at {old_head} cannot be joined (Version")
    assert "Ray: 2.10.0" in sentence
    assert sentence.endswith("; install the same versions on both sides")
    assert not (tmp_path / "s").exists()
