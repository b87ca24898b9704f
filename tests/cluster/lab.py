"""Machines made of namespaces: each has its own network, name, processes, /tmp and home.

All of them live inside one outer set of namespaces, the lab, whose first process is the script that
runs them. When that process ends, however it ends, the kernel ends every other process in the lab,
and with them go namespaces, interfaces and mounts. The machine around it never sees any of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

ROOT = Path(__file__).parents[2]
ISOLATE = Path(__file__).with_name("isolate.sh")
UNSHARE = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
CLIENT = "client"
NETWORK = "10.77.0"
# What Ray sees of a machine: small ones, or Ray would start a process for every real CPU on each.
RESOURCES = {"CPU": 1, "object_store_memory": 100_000_000}
PACKAGES = {"ip": "iproute2", "ssh": "openssh-client", "sshd": "openssh-server", "rsync": "rsync"}
SSHD_CONFIG = """\
HostKey {folder}/ssh_key
AuthorizedKeysFile {folder}/ssh_key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
PrintLastLog no
PrintMotd no
"""


def why_not() -> str | None:
    """What this machine lacks and no package would mend; None if nothing."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs Linux and root"
    tried = subprocess.run([*UNSHARE, "--net", "true"], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def missing_packages() -> list[str]:
    """Debian packages that have to be installed first."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [package for tool, package in PACKAGES.items() if not shutil.which(tool, path=path)]


def lab_command(folder: Path, *command: str) -> list[str]:
    """The command that runs `command` as the first process of a new lab, on the client's machine.

    The lab ends with whoever starts it.

    Args:
        folder: an empty folder outside /tmp, which every machine has for itself.
        command: what the client runs.
    """
    (folder / "home").mkdir()
    _write_etc(folder / "etc")
    _write_environment(folder)
    (folder / "storage").mkdir()
    isolate = _isolate(folder / CLIENT)
    return ["setpriv", "--pdeathsig", "KILL", *UNSHARE, "--net", *isolate, *command]


def _isolate(folder: Path) -> list[str]:
    for name in ("tmp", "home", "hidden"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    keep = ":".join({str(ROOT), sys.prefix, sys.base_prefix})
    return ["sh", str(ISOLATE), folder.name, str(folder), keep]


def _write_etc(folder: Path) -> None:
    """A root whose home is the machine's own, no name service, an account that is not locked."""
    folder.mkdir()
    root = f"root:x:0:0:root:{folder.parent / 'home'}:/bin/bash"
    passwd = Path("/etc/passwd").read_text()
    (folder / "passwd").write_text(re.sub(r"^root:.*$", root, passwd, flags=re.MULTILINE))
    (folder / "shadow").write_text("root:*:::::::\n")
    (folder / "hosts").write_text("127.0.0.1 localhost\n")
    (folder / "resolv.conf").touch()


def _write_environment(folder: Path) -> None:
    """A virtual environment with this one's packages and, of the project, each machine's copy."""
    environment = folder / "venv"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    packages = sysconfig.get_path("purelib", vars={"base": str(environment)})
    paths = [folder / "home" / "csg_ray", sysconfig.get_path("purelib")]
    (Path(packages) / "host.pth").write_text("".join(f"{path}\n" for path in paths))
    for name, module in (("ray", "ray.scripts.scripts"), ("csg-ray", "csg_ray.cli")):
        script = environment / "bin" / name
        script.write_text(f"#!{python}\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        script.chmod(0o755)
    shutil.copy(ROOT / "constraints.txt", environment)


@dataclass
class Host:
    """One machine with an SSH server."""

    name: str
    address: str
    folder: Path
    init: subprocess.Popen[bytes] = field(repr=False)

    def commands(self) -> list[str]:
        """The command lines of what runs on it, but for its SSH server."""
        pids = _output("ip", "netns", "pids", self.name).split()
        commands = [_command_line(pid) for pid in pids if int(pid) != self.init.pid]
        return [command for command in commands if command and not command.startswith("sshd: ")]

    def power_off(self) -> None:
        """Stop everything on it, cut off first, so that nobody is told."""
        _output("ip", "link", "delete", f"to-{self.name}")
        self.init.send_signal(signal.SIGKILL)
        self.init.wait()


def start_hosts(folder: Path, names: Sequence[str]) -> list[Host]:
    """Start machines, and join them and the client by a bridge; to be called inside the lab."""
    _output("ip", "link", "set", "lo", "up")
    _output("ip", "link", "add", "bridge", "type", "bridge")
    _output("ip", "address", "add", f"{NETWORK}.1/24", "dev", "bridge")
    _output("ip", "link", "set", "bridge", "up")
    _output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ssh_key"))
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
    addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=10)}
    with (folder / "etc" / "hosts").open("a") as file:
        file.writelines(f"{address} {name}\n" for name, address in addresses.items())
    return [_start(name, address, folder / name) for name, address in addresses.items()]


def _start(name: str, address: str, folder: Path) -> Host:
    link, inside = f"to-{name}", ["ip", "-n", name]
    _output("ip", "netns", "add", name)
    _output("ip", "link", "add", link, "type", "veth", "peer", "eth0", "netns", name)
    _output("ip", "link", "set", link, "master", "bridge", "up")
    _output(*inside, "link", "set", "lo", "up")
    _output(*inside, "address", "add", f"{address}/24", "dev", "eth0")
    _output(*inside, "link", "set", "eth0", "up")
    # Ray takes the address that a packet to the internet would leave from.
    _output(*inside, "route", "add", "default", "via", f"{NETWORK}.1")
    isolate = _isolate(folder)
    _furnish(folder / "home", folder.parent / "venv")
    sshd = [str(shutil.which("sshd")), "-D", "-e"]  # it wants to be called by its whole path
    config = ["-f", str(folder.parent / "sshd_config")]
    with (folder / "sshd.log").open("wb") as log:
        init = subprocess.Popen(
            ["ip", "netns", "exec", name, *UNSHARE, *isolate, *sshd, *config],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return Host(name, address, folder, init)


def _furnish(home: Path, environment: Path) -> None:
    """What was on the host before Ray: the project's environment, and how large the host is."""
    (home / "csg_ray").mkdir()
    (home / "csg_ray" / ".venv").symlink_to(environment)
    (home / ".bashrc").write_text(f"export RAY_OVERRIDE_RESOURCES='{json.dumps(RESOURCES)}'\n")


def wait_until(what: str, condition: Callable[[], Result], seconds: float) -> Result:
    """What `condition` returns, once that is true.

    Raises:
        TimeoutError: it is not within `seconds`.
    """
    end = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.2)
    return result


def users_of(folder: Path) -> list[str]:
    """Processes that see the lab's mounts, hence all of the lab's, as whoever is outside counts."""
    users = []
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            if str(folder) in mounts.read_text():
                users.append(mounts.parent.name)
        except OSError:  # it has just ended
            continue
    return users


def _command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return ""


def _output(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ran.stderr.strip()}")
    return ran.stdout
