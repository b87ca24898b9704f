"""The Ray cluster on the lab's machines, handled as its user would: `ray up`, `exec`, `down`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster_file import change_marked
from lab import ROOT, Host

SCRIPTS = Path(sys.executable).parent
RAY = str(SCRIPTS / "ray")
LIST_NODES = """
import ray, time
ray.init(log_to_driver=False, logging_level="ERROR")
while len(addresses := {n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}) < %d:
    time.sleep(0.2)
print("nodes:", *sorted(addresses))
"""


def marked_values(folder: Path, addresses: Sequence[str]) -> dict[str, str]:
    """What the lab's machines need in the place of the values that launch/on_premise.yaml marks."""
    head, *workers = addresses
    return {
        "/mnt/csg_ray": str(folder / "storage"),
        "192.0.2.10": head,
        "[192.0.2.11, 192.0.2.12]": f"[{', '.join(workers)}]",
        "ubuntu": "root",
        "~/.ssh/id_ed25519": str(folder / "ssh_key"),
        "python3.11": sys.executable,
    }


class RayCluster:
    """Runs the client's commands; what each prints goes to a file of its own in `logs`.

    Args:
        folder: the lab's.
        hosts: the head first.
    """

    def __init__(self, folder: Path, hosts: Sequence[Host]) -> None:
        self.storage = folder / "storage"
        self.logs = folder / "logs"
        self.logs.mkdir()
        self._file = folder / "on_premise.yaml"
        self._environment = {
            "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "TERM": "dumb",  # `ray exec` asks for a terminal; no live tables in the logs
        }
        text = (ROOT / "launch" / "on_premise.yaml").read_text()
        values = marked_values(folder, [host.address for host in hosts])
        self._file.write_text(change_marked(text, values))

    def up(self, seconds: float) -> None:
        """Make a token and start Ray; returns when the head is up, the workers come later."""
        self._run("token", [RAY, "get-auth-token", "--generate"], 60)
        self._run("up", [RAY, "up", "--yes", str(self._file)], seconds)

    def down(self, seconds: float) -> None:
        """Stop Ray; returns when the head has stopped."""
        self._run("down", [RAY, "down", "--yes", str(self._file)], seconds)

    def nodes(self, count: int, seconds: float) -> list[str]:
        """The addresses of the nodes, once so many have joined."""
        printed = self.on_head("nodes", f"python -c '{LIST_NODES % count}'", seconds)
        (line,) = (line for line in printed.splitlines() if line.startswith("nodes: "))
        return line.split()[1:]

    def on_head(self, name: str, command: str, seconds: float, fails: bool = False) -> str:
        """Run a command on the head to its end; what it printed.

        Raises:
            RuntimeError: it failed, or if `fails`, it did not.
            TimeoutError: it takes longer than `seconds`.
        """
        return self._run(name, self._exec(command), seconds, fails)

    def start_on_head(self, name: str, command: str) -> subprocess.Popen[bytes]:
        """Start a command on the head."""
        return self._start(name, self._exec(command))

    def submit(self, name: str, space: str, study: Path, *options: str) -> subprocess.Popen[bytes]:
        """Start a search as a job on the head; the process follows it to its end."""
        command = ["launch/submit.sh", str(self._file), space, str(study), *options]
        return self._start(name, command)

    def stranger(self, address: str, seconds: float) -> str:
        """What Ray tells a client that has no token."""
        command = [RAY, "health-check", "--address", f"{address}:6379"]
        return self._run("stranger", command, seconds, fails=True)

    def _exec(self, command: str) -> list[str]:
        return [RAY, "exec", str(self._file), command]

    def _start(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.logs / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,  # the file's mounts are relative to the project's folder
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _run(self, name: str, command: Sequence[str], seconds: float, fails: bool = False) -> str:
        code = finish(self._start(name, command), name, seconds)
        if (code != 0) != fails:
            raise RuntimeError(f"{name} ended with exit code {code}")
        return (self.logs / f"{name}.log").read_text(errors="replace")


def finish(process: subprocess.Popen[bytes], name: str, seconds: float) -> int:
    """Wait for a process; its exit code.

    Raises:
        TimeoutError: it takes longer than `seconds`; it is killed.
    """
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise TimeoutError(f"not within {seconds:g} s: {name}") from None
