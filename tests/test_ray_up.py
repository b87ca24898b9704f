"""launch/on_premise.yaml: what is marked in it, and `ray up` of it on hosts made of namespaces."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_file import change_marked
from lab import missing_packages, users_of, wait_until, why_not
from ray_cluster import marked_values

ROOT = Path(__file__).parents[1]
SCRIPT = [sys.executable, "-u", str(ROOT / "tests" / "cluster")]


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key in value for k, v in flatten(value[key], f"{path}/{key}").items()}
    return {path: value}


def test_only_marked_values_change() -> None:
    text = "a: old   # CHANGE: yours\nb: old\n- old --flag  # CHANGE: also yours\n# old, CHANGE\n"
    changed = change_marked(text, {"a: old": "a: new", "old --flag": "new --flag"})
    assert changed == "a: new\nb: old\n- new --flag\n# old, CHANGE\n"


@pytest.mark.parametrize(
    "values", [{}, {"old": "new", "other": "x"}, {"old": "new", "o": "x"}], ids=str
)
def test_marks_and_values_must_match(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="marked line"):
        change_marked("a: old  # CHANGE: yours\nb: other\n", values)


def test_the_shipped_file_marks_all_that_hosts_differ_in() -> None:
    text = (ROOT / "launch" / "on_premise.yaml").read_text()
    changed = change_marked(text, marked_values(Path("/lab"), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]))
    before, after = flatten(yaml.safe_load(text)), flatten(yaml.safe_load(changed))
    assert {path for path in before | after if before.get(path) != after.get(path)} == {
        "/metadata/storage",
        "/provider/head_ip",
        "/provider/worker_ips",
        "/auth/ssh_user",
        "/auth/ssh_private_key",
        "/setup_commands",
    }
    assert after["/provider/worker_ips"] == ["10.0.0.2", "10.0.0.3"]


@pytest.fixture
def able() -> None:
    """Skips without root and namespaces. With both, what is missing can be installed: it fails."""
    if reason := why_not():
        pytest.skip(reason)
    if packages := missing_packages():
        pytest.fail(f"make cluster-tools, or: apt-get install {' '.join(packages)}")


@pytest.fixture
def lab_folder() -> Iterator[Path]:
    """Where a lab can be: not under /tmp, which every machine has for itself."""
    folder = Path(tempfile.mkdtemp(prefix="csg_ray_cluster_", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_a_cluster_comes_up_works_loses_a_host_and_goes(able: None, lab_folder: Path) -> None:
    with subprocess.Popen([*SCRIPT, str(lab_folder)]) as rehearsal:
        try:
            assert rehearsal.wait() == 0
        finally:
            rehearsal.terminate()
    assert not users_of(lab_folder)


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_stops_it_nothing_is_left(
    able: None, lab_folder: Path, number: signal.Signals
) -> None:
    with subprocess.Popen([*SCRIPT, str(lab_folder)], stdout=subprocess.PIPE) as rehearsal:
        assert rehearsal.stdout is not None
        while b"bring up" not in rehearsal.stdout.readline():  # the hosts are there by then
            assert rehearsal.poll() is None
        assert len(users_of(lab_folder)) > 3
        rehearsal.send_signal(number)
    wait_until("no process of the lab is left", lambda: not users_of(lab_folder), seconds=30)
