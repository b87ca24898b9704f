"""What neither Ray's schema nor `ray up` checks: token, mounts, storage, values left to set."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from csg_ray.config.errors import UserError
from csg_ray.scale.cluster_file import ClusterFile
from csg_ray.scale.cluster_versions import check_versions, commands_of

TOKEN = ".ray/auth_token"
NEW_TOKEN = "ray get-auth-token --generate"
_AUTH_MODE = re.compile(r"RAY_AUTH_MODE=(\w+)")
_SHARED = re.compile(r"\b(?:s3|gs|abfss?)://|\bmount\b.*\b(?:nfs4?|efs|lustre|cifs)\b")
_MARK = re.compile(r"^\s*(?:-\s+)?(?P<setting>[^#]*?)\s*#\s*CHANGE:\s*(?P<why>.*?)\s*$")
_PLACEHOLDER = "CHANGE-ME"
# What Ray imports for a provider, and the package that has it.
_LIBRARIES = {
    "aws": ("boto3", "boto3"),
    "csg_ray.scale.spot_provider.SpotFirstProvider": ("boto3", "boto3"),
    "gcp": ("googleapiclient", "google-api-python-client"),
}


def check_cluster_file(cluster: ClusterFile) -> list[str]:
    """Check a cluster file against this machine, offline.

    Returns:
        What would work, but is left to do or to know; a line each.

    Raises:
        UserError: the first thing that would fail, with the fix.
    """
    try:
        _check_mounts(cluster.config["file_mounts"])
        _check_token(cluster.config)
        notes = check_versions(cluster)
    except UserError as error:
        raise UserError(f"{cluster.path}: {error}") from error
    notes += _storage_notes(cluster) + _library_notes(cluster.config["provider"])
    return notes + _marks(cluster.path.read_text(encoding="utf-8"))


def _check_token(config: dict[str, Any]) -> None:
    modes = _auth_modes(config)
    if set(modes.values()) == {"disabled"}:
        return
    if not any(str(remote).endswith(TOKEN) for remote in config["file_mounts"]):
        raise UserError(
            "no token goes to the nodes, so whoever reaches them could run code there; run "
            f"'{NEW_TOKEN}' and add '~/{TOKEN}: ~/{TOKEN}' to file_mounts (or, on a network that "
            "you trust, set RAY_AUTH_MODE=disabled in initialization_commands)"
        )
    for role, mode in modes.items():
        if mode != "token":
            raise UserError(
                f"the token of '{NEW_TOKEN}' is mounted, but RAY_AUTH_MODE is "
                f"{mode or 'not set'} on the {role}; let initialization_commands append "
                "'export RAY_AUTH_MODE=token' to ~/.bashrc"
            )


def _auth_modes(config: dict[str, Any]) -> dict[str, str | None]:
    """The authentication mode that the last command to set one gives the head and the workers."""
    options = (config.get("docker") or {}).get("run_options", [])
    modes: dict[str, str | None] = {}
    for role in ("head", "worker"):
        found = _AUTH_MODE.findall("\n".join([*options, *commands_of(config, role)]))
        modes[role] = found[-1].lower() if found else None
    return modes


def _check_mounts(mounts: dict[str, str]) -> None:
    for remote, local in mounts.items():
        if str(remote).endswith(TOKEN) and not Path(local).expanduser().is_file():
            raise UserError(f"file_mounts: there is no token in {local}; run '{NEW_TOKEN}'")
        if not Path(local).expanduser().exists():
            raise UserError(
                f"file_mounts: {local}, the source of {remote}, does not exist; correct it, or "
                f"call ray up from where it does (this is {Path.cwd()})"
            )


def _storage_notes(cluster: ClusterFile) -> list[str]:
    if cluster.max_workers == 0:
        return []
    storage = (cluster.config.get("metadata") or {}).get("storage")
    commands = commands_of(cluster.config, "head") + commands_of(cluster.config, "worker")
    if any(_SHARED.search(text) for text in [str(storage), *commands]):
        return []
    if storage:
        return [f"metadata.storage is {storage}: the same mount must be on every node"]
    return [
        "no shared storage is named, and trials on other nodes cannot write to the head's disk: "
        "say where studies live (metadata.storage: s3://BUCKET/csg_ray, or a mounted path) and "
        "give it to search as --study"
    ]


def _library_notes(provider: dict[str, Any]) -> list[str]:
    module, package = _LIBRARIES.get(provider.get("module", provider["type"]), ("", ""))
    if not module or find_spec(module) is not None:
        return []
    return [f"ray up needs {package} here: pip install {package}"]


def _marks(text: str) -> list[str]:
    """The lines that a user still has to look at."""
    notes = []
    for number, line in enumerate(text.splitlines(), start=1):
        found = _MARK.match(line)
        if found and found["setting"]:
            notes.append(f"line {number}: {found['setting']} (CHANGE: {found['why']})")
        elif _PLACEHOLDER in line:
            notes.append(f"line {number}: {line.strip()} is a placeholder; set it")
    return notes
