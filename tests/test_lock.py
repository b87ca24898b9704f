"""One driver a study: taken, refused, taken over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from csg_ray.config.errors import UserError
from csg_ray.scale.lock import StudyLock


def test_a_second_driver_is_refused_and_the_lock_is_let_go(tmp_path: Path) -> None:
    with StudyLock(tmp_path):
        with pytest.raises(UserError, match=f"being run by process {os.getpid()}"):
            StudyLock(tmp_path).__enter__()
        assert (tmp_path / "driver.lock").exists()
    assert not (tmp_path / "driver.lock").exists()
    with StudyLock(tmp_path):
        pass


def owner(**changes: object) -> str:
    record = {"pid": 1, "host": socket.gethostname(), "started": "x", "heartbeat": time.time()}
    return json.dumps(record | changes)


def test_a_dead_process_of_this_host_is_taken_over_at_once(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "driver.lock").write_text(owner(pid=gone.pid))
    with StudyLock(tmp_path):
        assert json.loads((tmp_path / "driver.lock").read_text())["pid"] == os.getpid()


def test_a_reused_process_id_is_not_mistaken_for_the_owner(tmp_path: Path) -> None:
    (tmp_path / "driver.lock").write_text(owner(pid=os.getpid(), started="an earlier time"))
    with StudyLock(tmp_path):
        pass


def test_another_host_counts_by_its_heartbeat(tmp_path: Path) -> None:
    lock = tmp_path / "driver.lock"
    lock.write_text(owner(host="elsewhere", pid=7))
    with pytest.raises(UserError, match="process 7 on elsewhere"):
        StudyLock(tmp_path).__enter__()
    lock.write_text(owner(host="elsewhere", heartbeat=time.time() - 120))
    with StudyLock(tmp_path):
        pass


@pytest.mark.parametrize("torn", ["", '{"pid": 12'])
def test_a_torn_lock_is_taken_over(tmp_path: Path, torn: str) -> None:
    (tmp_path / "driver.lock").write_text(torn)
    with StudyLock(tmp_path):
        pass
