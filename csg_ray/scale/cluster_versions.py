"""The versions that a cluster file asks for, against those of this client."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from csg_ray.config.errors import UserError
from csg_ray.scale.cluster_file import ClusterFile

OLDEST_PYTHON = (3, 11)
_IMAGE = re.compile(
    r"(?:^|/)ray(?:-ml|-llm)?:(?P<ray>\d+\.\d+\.\d+)?[^-]*"
    r"(?:-py(?P<major>\d)(?P<minor>\d+))?(?:-(?P<device>cpu|gpu|cu(?P<cuda>\d+)))?(?:-\w+)?$"
)
_RAY_PIN = re.compile(r"(?:^|[\s'\"])ray(?:\[[\w,\s-]+\])?\s*==\s*([\d.]+\w*)")
_RAY_WHEEL = re.compile(r"\bray-(\d[\w.]*)-cp(\d)(\d+)-")
_PYTHON = re.compile(r"\bpython\s*={0,2}\s*(\d)\.(\d+)")
_TORCH_INDEX = re.compile(r"/whl/cu(\d+)")
_FILE_OPTION = re.compile(r"(?:\s-[cr]|--constraints?|--requirements?)[\s=]+(\S+)")


@dataclass(frozen=True)
class Asked:
    """A version that a cluster file asks for, and where."""

    where: str
    of: str
    version: str


def commands_of(config: dict[str, Any], role: str) -> list[str]:
    """Every shell command that sets up and starts the `head`, or a `worker`."""
    names = ("initialization_commands", f"{role}_setup_commands", f"{role}_start_ray_commands")
    own = [
        command
        for settings in config["available_node_types"].values()
        for name in names
        for command in settings.get(name, [])
    ]
    return [command for name in names for command in config[name]] + own


def check_versions(cluster: ClusterFile) -> list[str]:
    """Compare what the nodes get with what this client has.

    Returns:
        What differs without harm, a line each.

    Raises:
        UserError: another Ray, a Python too old, an image without CUDA on nodes with GPUs.
    """
    _check_images(cluster)
    asked = list(_asked(cluster.config))
    client = version("ray")
    for item in asked:
        if item.of == "Ray" and client not in (item.version, f"{item.version}.0"):
            raise UserError(
                f"{item.where} asks for Ray {item.version}, but this client has {client}, and a "
                f"study wants one version everywhere; ask for {client} there, or install "
                f"{item.version} here"
            )
    notes = []
    if not any(item.of == "Ray" for item in asked):
        notes.append(f"no command or image pins Ray; pin ray=={client}, the client's")
    return notes + _python_notes(asked) + _cuda_notes(asked)


def _images(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted path, image) for every image that the file names."""
    docker = config.get("docker") or {}
    for name in ("image", "head_image", "worker_image"):
        if docker.get(name):
            yield f"docker.{name}", docker[name]
    for node, settings in config["available_node_types"].items():
        image = (settings.get("docker") or {}).get("worker_image")
        if image:
            yield f"available_node_types.{node}.docker.worker_image", image


def _check_images(cluster: ClusterFile) -> None:
    docker = cluster.config.get("docker") or {}
    for node in cluster.workers:
        own = cluster.config["available_node_types"][node.name].get("docker") or {}
        image = own.get("worker_image") or docker.get("worker_image") or docker.get("image") or ""
        found = _IMAGE.search(image)
        if node.gpus and found and found["device"] in (None, "cpu"):
            raise UserError(
                f"the nodes '{node.name}' have {node.gpus} GPU, but {image} is an image for CPUs; "
                "take the one whose tag ends in -gpu"
            )


def _asked(config: dict[str, Any]) -> Iterator[Asked]:
    """The versions of Ray, Python and CUDA in images, commands and constraint files."""
    ray_in_image = False
    for where, image in _images(config):
        found = _IMAGE.search(image)
        if found and found["ray"]:
            ray_in_image = True
            yield Asked(where, "Ray", found["ray"])
        if found and found["major"]:
            yield Asked(where, "Python", f"{found['major']}.{found['minor']}")
        if found and found["cuda"]:
            yield Asked(where, "CUDA", _dotted(found["cuda"]))
    for command in dict.fromkeys(commands_of(config, "head") + commands_of(config, "worker")):
        if not (ray_in_image and command.startswith("which ray ||")):  # Ray's own default
            yield from _asked_by(command, config["file_mounts"])


def _asked_by(command: str, mounts: dict[str, str]) -> Iterator[Asked]:
    where = f"'{command if len(command) <= 60 else command[:57] + '...'}'"
    for number in _RAY_PIN.findall(command):
        yield Asked(where, "Ray", number)
    for number, major, minor in _RAY_WHEEL.findall(command):
        yield Asked(where, "Ray", number)
        yield Asked(where, "Python", f"{major}.{minor}")
    for major, minor in _PYTHON.findall(command):
        yield Asked(where, "Python", f"{major}.{minor}")
    for digits in _TORCH_INDEX.findall(command):
        yield Asked(where, "CUDA", _dotted(digits))
    for remote in _FILE_OPTION.findall(command):
        local = _source(remote, mounts)
        if local is not None and local.is_file():
            lines = local.read_text(encoding="utf-8").splitlines()
            for number in (number for line in lines for number in _RAY_PIN.findall(line)):
                yield Asked(str(local), "Ray", number)


def _dotted(digits: str) -> str:
    """CUDA 12.1 for the 121 of a tag."""
    return f"{digits[:2]}.{digits[2:] or '0'}"


def _source(remote: str, mounts: dict[str, str]) -> Path | None:
    """The local file that a mount brings to `remote`."""
    for target, source in mounts.items():
        if PurePosixPath(remote).is_relative_to(target):
            return Path(source).expanduser() / PurePosixPath(remote).relative_to(target)
    return None


def _python_notes(asked: Sequence[Asked]) -> list[str]:
    pythons = [item for item in asked if item.of == "Python"]
    for item in pythons:
        if tuple(int(part) for part in item.version.split(".")) < OLDEST_PYTHON:
            raise UserError(
                f"{item.where} asks for Python {item.version}, but csg_ray needs 3.11 or newer"
            )
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    return [
        f"{item.where} asks for Python {item.version}, this client has {here}: fine for jobs, "
        "whose driver runs on the head, not for ray.init from here"
        for item in pythons
        if item.version != here
    ]


def _cuda_notes(asked: Sequence[Asked]) -> list[str]:
    cuda = [item for item in asked if item.of == "CUDA"]
    if not cuda:
        return []
    import torch  # takes seconds, and few files ask for a CUDA

    here = torch.version.cuda
    return [
        f"{item.where} asks for CUDA {item.version}, torch here was built for {here}: torch "
        "brings its own libraries, but the node's driver must be new enough for them"
        for item in cuda
        if here is not None and item.version != here
    ]
