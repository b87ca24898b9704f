"""Where a number comes from: versions, code, data, host; and what changed since."""

from __future__ import annotations

import hashlib
import platform
import socket
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from csg_ray.config.load import installed_version

_PACKAGE = Path(__file__).resolve().parents[1]
_DISTRIBUTIONS = ("torch", "torchvision", "ray", "optuna")


def collect_provenance(data_fingerprint: str) -> dict[str, Any]:
    """What a result depends on besides its configuration.

    Args:
        data_fingerprint: of all splits, as `DomainSplits.fingerprint` gives it.

    Returns:
        versions, git (commit and dirty; None outside a checkout), code_sha256, data_sha256, host.
    """
    return {
        "versions": collect_versions(),
        "git": _git_state(_PACKAGE),
        "code_sha256": hash_code(_PACKAGE),
        "data_sha256": data_fingerprint,
        "host": socket.gethostname(),
    }


def collect_versions() -> dict[str, str | None]:
    """Installed versions, read without importing the packages; None for one that is not there."""
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "csg_ray": installed_version(),
    }
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def hash_code(package: Path) -> str:
    """One hash over names and contents of the Python files of a package."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def compare_provenance(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What differs, as {"versions.torch": {"was": ..., "is": ...}}; empty when nothing does."""
    before, after = _flatten(old), _flatten(new)
    return {
        key: {"was": before.get(key), "is": after.get(key)}
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _git_state(package: Path) -> dict[str, Any] | None:
    # An installed copy may lie inside some other project's checkout: it must be tracked there.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
