"""Warm-start points: complete, inside the space, each once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csg_ray.config.errors import UserError, nearest
from csg_ray.config.explain import shown
from csg_ray.config.load import flatten_settings, get_setting, override_config
from csg_ray.search_space.domains import Choice, Domain, Float
from csg_ray.search_space.space import SearchSpace


def parse_points(space: SearchSpace, points: Any) -> tuple[dict[str, Any], ...]:
    """The points with every value as the sampler would draw it.

    Raises:
        UserError: an incomplete point, one outside the space, one twice.
    """
    if not isinstance(points, list):
        raise UserError(f"points_to_evaluate must be a list of points, not {shown(points)}")
    parsed: list[dict[str, Any]] = []
    for number, point in enumerate(points, start=1):
        where = f"points_to_evaluate, point {number}"
        parsed.append(_parse_point(where, space, point))
        if parsed[-1] in parsed[:-1]:
            earlier = parsed.index(parsed[-1]) + 1
            raise UserError(f"{where} is the same as point {earlier}; remove one")
    return tuple(parsed)


def _parse_point(where: str, space: SearchSpace, point: Any) -> dict[str, Any]:
    if not isinstance(point, Mapping):
        raise UserError(f"{where} must be a mapping of searched settings, not {shown(point)}")
    try:
        given = flatten_settings(point)
        active = _active(space, given)
        _check_names(space, given, active)
        values = {path: _value(space, path, active[path], given) for path in active}
        space.config_for(values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return values


def _active(space: SearchSpace, given: dict[str, Any]) -> dict[str, Domain]:
    """The settings that a point must name; all that are searched unless it picks a branch."""
    names = space.space.get("method.name")
    if names is None:
        return space.space
    if "method.name" not in given:
        raise UserError("method.name is missing; a point names every searched setting")
    if not names.contains(given["method.name"]):
        raise UserError(_outside("method.name", names, given["method.name"]))
    return space.active_domains(given)


def _check_names(space: SearchSpace, given: dict[str, Any], active: dict[str, Domain]) -> None:
    for path in given:
        if path in space.base:
            raise UserError(f"{path} is fixed in base; take it out of the point")
        if path in space.branch_paths() and path not in active:
            raise UserError(
                f"{path} is not searched under method {given['method.name']}; remove it"
            )
        if path not in active:
            raise UserError(f"{path} is not searched: {nearest(str(path), active)}")
    missing = [path for path in active if path not in given]
    if missing:
        raise UserError(f"{', '.join(missing)} is missing; a point names every searched setting")


def _value(space: SearchSpace, path: str, domain: Domain, given: dict[str, Any]) -> Any:
    value = given[path]
    if isinstance(domain, Choice) and path != "method.name":
        method = {name: given[name] for name in given if name == "method.name"}
        config = space.config_for(space.complete(method))
        value = get_setting(override_config(config, {path: value}), path)
    if not domain.contains(value):
        raise UserError(_outside(path, domain, given[path]))
    return float(value) if isinstance(domain, Float) else value


def _outside(path: str, domain: Domain, value: Any) -> str:
    ((sampler, arguments),) = domain.to_mapping().items()
    options = shown(list(arguments))
    return f"{path} {shown(value)} lies outside {sampler} {options}; change the point or the space"
