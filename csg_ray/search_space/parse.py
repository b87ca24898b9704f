"""Search-space files: YAML -> SearchSpace, with settings changed from the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from csg_ray.config.errors import UserError, nearest
from csg_ray.config.explain import shown
from csg_ray.config.load import SECTIONS, flatten_settings, unknown_setting
from csg_ray.config.reader import parse_yaml, read_yaml
from csg_ray.config.run import RunConfig
from csg_ray.search_space.checks import check_space
from csg_ray.search_space.domains import parse_space
from csg_ray.search_space.points import parse_points
from csg_ray.search_space.settings import (
    ResourcesConfig,
    SearchConfig,
    parse_resources,
    parse_search,
)
from csg_ray.search_space.space import SearchSpace

_KEYS = ("study", "base", "space", "points_to_evaluate", "search", "resources")
_STUDY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def load_search_space(path: str | Path, overrides: Mapping[str, Any] | None = None) -> SearchSpace:
    """The search space in a YAML file.

    Args:
        path: the file.
        overrides: path -> value; config paths go to `base`, `search.*`, `resources.*` and `study`
            to their places.

    Raises:
        UserError: anything that would stop the study later; see `parse_search_space`.
    """
    mapping = read_yaml(Path(path))
    for target, value in (overrides or {}).items():
        _override(mapping, target, value)
    return parse_search_space(mapping)


def parse_override(text: str) -> tuple[str, Any]:
    """`train.epochs=3` -> ("train.epochs", 3); the value is read as YAML.

    Raises:
        UserError: no equals sign, no path, or not YAML.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set {text}: write path=value, such as train.epochs=3")
    try:
        return path.strip(), parse_yaml(value)
    except UserError as error:
        raise UserError(f"--set {text}: {error}") from error


def parse_search_space(mapping: Mapping[Any, Any]) -> SearchSpace:
    """A checked SearchSpace from the content of a file.

    Every path, every end of a range and every choice is tried against RunConfig.

    Raises:
        UserError: whatever is wrong first: path, value, what is allowed, what to do.
    """
    for key in mapping:
        if key not in _KEYS:
            raise UserError(f"unknown key '{key}': {nearest(str(key), _KEYS)}")
    domains = parse_space(_section(mapping, "space"))
    if not domains:
        raise UserError("space searches nothing; name a setting, or train one with csg-ray train")
    space = SearchSpace(
        study=_study(mapping),
        base=flatten_settings(_section(mapping, "base")),
        space=domains,
        points_to_evaluate=(),
        search=parse_search(_section(mapping, "search")),
        resources=parse_resources(_section(mapping, "resources")),
    )
    space = check_space(space)
    points = mapping.get("points_to_evaluate")
    parsed = parse_points(space, [] if points is None else points)
    return replace(space, points_to_evaluate=parsed).check_num_trials().check_budget()


def _section(mapping: Mapping[Any, Any], key: str) -> dict[Any, Any]:
    section = mapping.get(key)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise UserError(f"{key} must be a mapping of settings, not {shown(section)}")
    return dict(section)


def _study(mapping: Mapping[Any, Any]) -> str:
    name = mapping.get("study")
    if not isinstance(name, str) or not _STUDY.fullmatch(name):
        raise UserError(
            "study must be a name for a folder: at most 100 letters, digits, '-', '_' and '.', "
            f"a letter or digit first, not {shown(name)}"
        )
    return name


def _override(mapping: dict[Any, Any], path: str, value: Any) -> None:
    """Put one setting into the section that it belongs to."""
    section, _, name = path.partition(".")
    if path == "study":
        mapping["study"] = value
    elif section in ("search", "resources") and name:
        mapping[section] = _section(mapping, section) | {name: value}
    elif (section in SECTIONS and name) or path == "seed":
        mapping["base"] = flatten_settings(_section(mapping, "base")) | {path: value}
    else:
        others = ["study", *(f"search.{field}" for field in SearchConfig.model_fields)]
        others += [f"resources.{field}" for field in ResourcesConfig.model_fields]
        default = RunConfig()
        raise UserError(unknown_setting(path, default.method.name, default.data.name, others))
