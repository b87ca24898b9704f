"""`ray up launch/on_premise.yaml` for real, on one machine; needs Linux and root.

    python tests/cluster

Three hosts are made of namespaces, and Ray is started on them over SSH. A training of two workers
runs on two hosts, a study loses one of its hosts, another is refused, `ray down` leaves nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import lab_command, missing_packages, start_hosts, users_of, wait_until, why_not
from ray_cluster import RayCluster
from stages import STAGES

HOSTS = ("head", "worker-1", "worker-2")
LOG_LINES = 25


def run_inside(folder: Path) -> int:
    """Run the stages, as the first process of the lab."""
    try:
        with _timed("start hosts"):
            hosts = start_hosts(folder, HOSTS)
            cluster = RayCluster(folder, hosts)
        for stage in STAGES:
            with _timed(stage.__name__.replace("_", " ")):
                stage(cluster, hosts)
    except Exception as error:
        _show_logs(folder)
        print(f"FAILED: {type(error).__name__}: {error}", flush=True)
        return 1
    return 0


@contextmanager
def _timed(what: str) -> Iterator[None]:
    print(f"{what} ...", flush=True)
    started = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started:.0f} s", flush=True)


def _show_logs(folder: Path) -> None:
    logs = [*folder.glob("*/sshd.log"), *folder.glob("*/tmp/ray/session_2*/logs/monitor.*")]
    logs += sorted((folder / "logs").glob("*.log"), key=lambda log: log.stat().st_mtime)
    for log in logs:
        lines = log.read_text(errors="replace").splitlines()
        print(f"--- {log.relative_to(folder)}", *lines[-LOG_LINES:], sep="\n", flush=True)


def main() -> int:
    """Run everything in a lab made in the folder that is given, and see the lab end."""
    if sys.argv[1:2] == ["--inside"]:
        return run_inside(Path(sys.argv[2]))
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 2
    if packages := missing_packages():
        print(f"first: apt-get install {' '.join(packages)}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if len(sys.argv) > 1:
        return run_lab(Path(sys.argv[1]))
    # Not under /tmp, which every machine has for itself.
    with tempfile.TemporaryDirectory(prefix="csg_ray_cluster_", dir="/var/tmp") as folder:
        return run_lab(Path(folder))


def run_lab(folder: Path) -> int:
    """Run the stages in a new lab; when this returns, nothing of the lab is left."""
    started = time.monotonic()
    inside = [sys.executable, "-u", str(Path(__file__).parent), "--inside", str(folder)]
    lab = subprocess.Popen(lab_command(folder, *inside))
    try:
        code = lab.wait()
    finally:
        lab.kill()
        lab.wait()
        wait_until("no process of the lab is left", lambda: not users_of(folder), seconds=30)
    print(f"{'failed' if code else 'passed'} after {time.monotonic() - started:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
