"""A cluster file against Ray's schema and what `ray up` takes for granted, complaints in words."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from csg_ray.config.errors import UserError, nearest
from csg_ray.config.explain import shown

# What `ray up` asks of a provider beyond the schema; without it, it ends in a traceback.
PROVIDER_KEYS = {
    "aws": ("region",),
    "azure": ("location", "resource_group"),
    "external": ("module",),
    "gcp": ("region", "availability_zone", "project_id"),
    "local": ("head_ip", "worker_ips"),
}
# For a provider that is not Ray's own there are no defaults to fill in.
NO_DEFAULT = (
    "max_workers",
    "available_node_types",
    "file_mounts",
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
AUTODETECTED = ("aws", "external")  # the provider asks the cloud what an instance type holds
_TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "a mapping of settings",
    "string": "text",
}


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """The config as `ray up` completes it before it talks to a cloud.

    Raises:
        UserError: an unknown key, a wrong type, a missing setting; or a Ray that cannot tell.
    """
    try:
        from jsonschema import ValidationError, validate
        from ray import autoscaler
        from ray.autoscaler._private.util import prepare_config, validate_config
    except ImportError as error:
        raise UserError(
            f"this Ray cannot check a cluster file ({error}); install the tested one: "
            "pip install --constraint constraints.txt 'ray[default]'"
        ) from error
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = copy.deepcopy(config)
    try:
        # Once before Ray's own code, which trips over a wrong type, and once after it.
        _fill_in(config)
        validate({key: config[key] for key in config if key != "min_workers"}, schema)
        _check_provider(config)
        _check_head(config)
        _check_what_the_schema_leaves_open(config)
        with _quiet():
            prepared = dict(prepare_config(config))
            validate_config(prepared)
    except ValidationError as error:
        raise UserError(_sentence(error)) from error
    except UserError:
        raise
    except (ValueError, AssertionError) as error:
        raise UserError(" ".join(str(error).split())) from error
    _check_counts(prepared["available_node_types"])
    return prepared


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray tells stdout and its log what it fills in: no news to who checks a file."""
    logger = logging.getLogger("ray.autoscaler")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _fill_in(config: dict[str, Any]) -> None:
    """The one key that the schema asks for and `ray up` finds out by itself."""
    provider, types = config.get("provider"), config.get("available_node_types")
    if isinstance(provider, dict) and isinstance(types, dict):
        for settings in types.values():
            if provider.get("type") in AUTODETECTED and isinstance(settings, dict):
                settings.setdefault("resources", {})


def _check_provider(config: dict[str, Any]) -> None:
    provider = config["provider"]
    kind = str(provider["type"])
    if kind not in PROVIDER_KEYS:
        raise UserError(f"provider.type is '{kind}': {nearest(kind, PROVIDER_KEYS)}")
    if "coordinator_address" in provider:  # it hands out the hosts of a local cluster itself
        return
    for key in PROVIDER_KEYS[kind]:
        if provider.get(key) is None:
            raise UserError(f"provider.{key} is missing; provider {kind} needs it")
    for key in NO_DEFAULT if kind == "external" else ():
        if key not in config:
            raise UserError(f"{key} is missing; provider external has no default for it")


def _check_what_the_schema_leaves_open(config: dict[str, Any]) -> None:
    if not isinstance(least := config.get("min_workers", 0), int):
        raise UserError(f"min_workers must be an integer, not {shown(least)}")
    for remote, local in config.get("file_mounts", {}).items():
        if not isinstance(local, str):
            raise UserError(f"file_mounts.{remote} must be a path, not {shown(local)}")


def _check_head(config: dict[str, Any]) -> None:
    types, head = config.get("available_node_types"), config.get("head_node_type")
    if config["provider"]["type"] == "local":
        # The one type is Ray's own: it stands in the completed file that the head keeps.
        if types and "local.cluster.node" not in types:
            raise UserError(
                "available_node_types is not for provider local, whose hosts are in "
                "provider.head_ip and provider.worker_ips; remove it"
            )
    elif types is not None and head is None:
        raise UserError(f"head_node_type is missing; it must be one of {', '.join(types)}")
    elif types is not None and head not in types:
        raise UserError(f"head_node_type is '{head}': {nearest(str(head), map(str, types))}")


def _check_counts(types: dict[str, Any]) -> None:
    for name, settings in types.items():
        least, most = settings["min_workers"], settings["max_workers"]
        if least > most:
            raise UserError(
                f"available_node_types.{name}.min_workers is {least}, more than its max_workers "
                f"{most}; lower one or raise the other"
            )


def _sentence(error: Any) -> str:
    """A complaint of jsonschema's, without its dump of the schema."""
    path = ".".join(str(part) for part in error.absolute_path)
    allowed, given = error.validator_value, error.instance
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = next(str(key) for key in given if key not in known)
        return f"unknown key '{_join(path, unknown)}': {nearest(unknown, known)}"
    if error.validator == "required":
        return f"{_join(path, next(key for key in allowed if key not in given))} is missing"
    if error.validator == "type":
        kinds = [allowed] if isinstance(allowed, str) else allowed
        return f"{path} must be {' or '.join(_TYPES[kind] for kind in kinds)}, not {shown(given)}"
    if error.validator == "minimum":
        return f"{path} must be at least {allowed}, not {shown(given)}"
    return f"{path}: {' '.join(error.message.split())[:200]}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
