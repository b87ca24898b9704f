"""One process a directory: taken, refused, let go by the dead, raced for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csg_ray.config.errors import UserError
from csg_ray.scale.lock import StudyLock

HOLD = """
import sys, time
from pathlib import Path
from csg_ray.config.errors import UserError
from csg_ray.scale.lock import StudyLock
folder, start = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0, start - time.time()))
try:
    with StudyLock(folder):
        print("owned", flush=True)
        time.sleep(60)
except UserError as error:
    print(error, flush=True)
"""


def hold(folder: Path, start: float = 0.0) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLD, str(folder), str(start)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_second_owner_is_refused_and_the_lock_is_let_go(tmp_path: Path) -> None:
    with StudyLock(tmp_path):
        with pytest.raises(UserError, match=f"being run by process {os.getpid()}"):
            StudyLock(tmp_path).__enter__()
        owner = json.loads((tmp_path / "driver.lock").read_text())
        assert owner == {"pid": os.getpid(), "host": socket.gethostname()}
    assert not (tmp_path / "driver.lock").exists()
    with StudyLock(tmp_path):
        pass


def test_a_killed_owner_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    owner = hold(tmp_path)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "owned\n"
    with pytest.raises(UserError, match=f"process {owner.pid} on"):
        StudyLock(tmp_path).__enter__()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    with StudyLock(tmp_path):
        pass


@pytest.mark.parametrize("left", ["", '{"pid": 1}', None])
def test_of_many_that_race_one_wins(tmp_path: Path, left: str | None) -> None:
    if left is not None:
        (tmp_path / "driver.lock").write_text(left)
    racers = [hold(tmp_path, start=time.time() + 1) for _ in range(4)]
    said = [racer.stdout.readline() for racer in racers if racer.stdout is not None]
    for racer in racers:
        racer.kill()
        racer.communicate()
    assert said.count("owned\n") == 1, said
    assert sum("being run by" in line for line in said) == 3, said


def test_another_host_counts_by_its_heartbeat(tmp_path: Path) -> None:
    lock = tmp_path / "driver.lock"
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(UserError, match="process 7 on elsewhere"):
        StudyLock(tmp_path).__enter__()
    assert json.loads(lock.read_text())["pid"] == 7
    os.utime(lock, (time.time() - 120, time.time() - 120))
    with StudyLock(tmp_path):
        pass


def test_the_heartbeat_touches_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csg_ray.scale.lock.HEARTBEAT_SECONDS", 0.05)
    with StudyLock(tmp_path):
        lock = tmp_path / "driver.lock"
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 5
        while lock.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("torn", ["", '{"pid": 12', "{}", "[]", "3"])
def test_a_torn_or_foreign_file_is_taken_over(tmp_path: Path, torn: str) -> None:
    (tmp_path / "driver.lock").write_text(torn)
    with StudyLock(tmp_path):
        pass
