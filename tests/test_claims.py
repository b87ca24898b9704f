"""One process a study on a URI: refused, let go by the dead, taken from the silent, raced for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from csg_ray.config.errors import UserError
from csg_ray.scale import claims
from csg_ray.scale.claims import ClaimLock
from csg_ray.scale.processes import has_ended, this_process
from csg_ray.storage.paths import RemotePath
from s3_server import S3Server, let_pass

STALE = 2.0
HOLD = f"""
import sys, time
from csg_ray.config.errors import UserError
from csg_ray.scale import claims
from csg_ray.scale.lock import lock_directory
from csg_ray.storage.paths import open_path
claims.HEARTBEAT_SECONDS, claims.POLL_SECONDS, claims.STALE_SECONDS = 0.1, 0.1, {STALE}
print("ready", flush=True)
sys.stdin.readline()
try:
    with lock_directory(open_path(sys.argv[1]), print) as lock:
        print("owned", flush=True)
        while lock.lost is None:
            time.sleep(0.05)
        raise lock.lost
except UserError as error:
    print(error, flush=True)
"""
ELSEWHERE = {"pid": 7, "host": "elsewhere", "machine": "other", "started": "1"}


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(claims, "STALE_SECONDS", STALE)


class Holder:
    """A process that takes the lock when told to, and says what comes of it."""

    def __init__(self, folder: RemotePath) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def next_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def verdict(self) -> str:
        while " has a claim on " in (line := self.next_line()):
            pass
        return line

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def owner(uri: RemotePath) -> Iterator[Holder]:
    """Another process on this machine that owns the lock."""
    holder = Holder(uri)
    holder.go()
    assert [holder.next_line(), holder.next_line()] == ["ready\n", "owned\n"]
    yield holder
    holder.end()


def put_claim(folder: RemotePath, name: str, **record: Any) -> RemotePath:
    path = folder / "driver.lock" / f"{name}.json"
    path.write_bytes(json.dumps({"owns": True, "took": [], **ELSEWHERE, **record}).encode())
    return path


@contextlib.contextmanager
def beating(folder: RemotePath, name: str, **record: Any) -> Iterator[None]:
    """A claim of another machine that is kept fresh."""
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(0.1):
            put_claim(folder, name, beats=(beats := beats + 1), **record)

    put_claim(folder, name, beats=0, **record)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def claims_in(folder: RemotePath) -> list[RemotePath]:
    return list((folder / "driver.lock").iterdir())


def lock(folder: RemotePath, said: list[str] | None = None) -> ClaimLock:
    return ClaimLock(folder, ([] if said is None else said).append)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 8
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_owner_is_refused_and_the_lock_is_let_go(uri: RemotePath) -> None:
    with lock(uri):
        [path] = claims_in(uri)
        record = path.read_json()
        assert (record["pid"], record["host"]) == (os.getpid(), socket.gethostname())
        assert record["owns"] is True
        said: list[str] = []
        with pytest.raises(UserError, match=f"being run by process {os.getpid()} on .*stop it"):
            lock(uri, said).__enter__()
        assert said[0].startswith(f"process {os.getpid()} on {socket.gethostname()} has a claim on")
        assert claims_in(uri) == [path], "the refused one has withdrawn its claim"
    assert claims_in(uri) == []
    with lock(uri):
        pass


@pytest.mark.timeout(60)
@pytest.mark.parametrize("buried", [True, False])
def test_a_killed_owner_of_this_machine_leaves_nothing_in_the_way(
    uri: RemotePath, owner: Holder, monkeypatch: pytest.MonkeyPatch, buried: bool
) -> None:
    monkeypatch.setattr(claims, "STALE_SECONDS", 1000.0)
    owner.process.kill()
    if buried:
        owner.process.wait()
    else:  # what Linux calls a zombie
        os.waitid(os.P_PID, owner.process.pid, os.WEXITED | os.WNOWAIT)
    said: list[str] = []
    with lock(uri, said):
        assert said == []
        assert len(claims_in(uri)) == 1


def test_a_claim_of_elsewhere_that_stays_silent_is_taken(uri: RemotePath) -> None:
    old = put_claim(uri, "0")
    said: list[str] = []
    began = time.monotonic()
    with lock(uri, said):
        assert time.monotonic() - began >= STALE
        [path] = claims_in(uri)
        assert path != old
        assert path.read_json()["took"] == [old.name]
    [sentence] = said
    assert sentence.startswith(f"process 7 on elsewhere has a claim on {uri}; waiting up to 2 s")


def test_a_claim_of_elsewhere_that_beats_is_left_alone(uri: RemotePath) -> None:
    with beating(uri, "0"):
        with pytest.raises(UserError, match="is being run by process 7 on elsewhere"):
            lock(uri).__enter__()
        assert [path.name for path in claims_in(uri)] == ["0.json"]


@pytest.mark.timeout(30)
def test_of_two_that_wait_the_smaller_name_stays(uri: RemotePath) -> None:
    with beating(uri, "0", owns=False), pytest.raises(UserError, match="process 7 on elsewhere"):
        lock(uri).__enter__()
    (uri / "driver.lock" / "0.json").unlink()
    waiting = lock(uri)
    thread = threading.Thread(target=waiting.__enter__)
    with beating(uri, "z", owns=False):
        thread.start()
        thread.join(STALE + 0.5)
        assert thread.is_alive(), "it waits for the other one to give way"
    (uri / "driver.lock" / "z.json").unlink()
    thread.join()
    [path] = claims_in(uri)
    assert path.read_json()["owns"] is True
    waiting.__exit__(None, None, None)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("left", [False, True])
def test_of_many_that_race_one_wins(uri: RemotePath, left: bool) -> None:
    if left:
        put_claim(uri, "0")
    racers = [Holder(uri) for _ in range(3)]
    assert [racer.next_line() for racer in racers] == ["ready\n"] * 3
    for racer in racers:
        racer.go()
    said = [racer.verdict() for racer in racers]
    for racer in racers:
        racer.end()
    assert said.count("owned\n") == 1, said
    assert sum("is being run by" in line for line in said) == 2, said


@pytest.mark.timeout(60)
def test_an_owner_that_slept_too_long_finds_its_successor_and_stops(
    uri: RemotePath, owner: Holder
) -> None:
    owner.process.send_signal(signal.SIGSTOP)
    with lock(uri):
        owner.process.send_signal(signal.SIGCONT)
        assert f"{uri} was taken over by process {os.getpid()} on" in owner.next_line()
        assert owner.process.wait() == 0
        assert len(claims_in(uri)) == 1


def test_whoever_asked_is_told_of_the_loss(uri: RemotePath) -> None:
    told: list[UserError] = []
    with lock(uri) as owner:
        owner.when_lost(told.append)
        [path] = claims_in(uri)
        put_claim(uri, "successor", took=[path.name])
        wait_until(lambda: bool(told))
        assert owner.lost is told[0]
        assert "was taken over by process 7 on elsewhere" in str(told[0])
        late: list[UserError] = []
        owner.when_lost(late.append)
        assert late == told
    assert [path.name for path in claims_in(uri)] == ["successor.json"]


def test_a_claim_that_somebody_deleted_is_lost(uri: RemotePath) -> None:
    with lock(uri) as owner:
        [path] = claims_in(uri)

        # Again and again: a beat on its way may bring it back.
        def lost() -> bool:
            path.unlink(missing_ok=True)
            return owner.lost is not None

        wait_until(lost)


def test_a_store_that_is_away_for_a_while_costs_nothing(s3: S3Server, uri: RemotePath) -> None:
    with lock(uri) as owner:
        refused: list[str] = []

        def refuse(request: str) -> str:
            refused.append(request)
            return "403 AccessDenied"

        s3.fault = refuse
        wait_until(lambda: len(refused) >= 3)
        s3.fault = let_pass
        [path] = claims_in(uri)
        before = path.read_json()["beats"]
        wait_until(lambda: path.read_json()["beats"] > before)
        assert owner.lost is None


def test_who_has_ended_is_known_on_this_machine_alone() -> None:
    here = this_process()
    assert not has_ended(here)
    assert has_ended({**here, "started": "1"}), "another process has its number now"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert has_ended({**here, "pid": gone.pid})
    assert not has_ended({**here, "pid": gone.pid, "machine": "other"})
