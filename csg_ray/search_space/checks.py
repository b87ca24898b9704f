"""What a search space must satisfy against RunConfig, before anything starts."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

from pydantic.fields import FieldInfo

from csg_ray.config.data import DATA_CONFIGS, PublishedConfig
from csg_ray.config.errors import UserError
from csg_ray.config.explain import accepts, describe, shown
from csg_ray.config.load import (
    check_name,
    get_setting,
    override_config,
    setting_fields,
    unknown_setting,
)
from csg_ray.config.run import RunConfig
from csg_ray.search_space.domains import Choice, Domain, Float
from csg_ray.search_space.drawn import domains_of, searched_methods, stand_ins
from csg_ray.search_space.settings import check_fuse
from csg_ray.search_space.space import SearchSpace

_SPEED_ONLY = ("data.workers", "data.cache", "evaluation.batch_size")


def check_space(space: SearchSpace) -> SearchSpace:
    """The same space, its choices as RunConfig holds them ("4,3" -> "3,4"), once all is checked.

    Raises:
        UserError: whatever is wrong first.
    """
    _check_task(space)
    methods = searched_methods(space)
    _check_base(space, methods)
    for path, domain in space.space.items():
        _check_shared_path(space, path, domain, methods)
    for method in methods:
        _check_branch(space, method)
    variants = {method: list(stand_ins(space, method)) for method in methods}
    _check_effects(space, variants)
    _check_objectives(space)
    _check_search(space, list(chain.from_iterable(variants.values())))
    return _normalised(space, variants)


def _check_task(space: SearchSpace) -> None:
    if "data.name" in space.space:
        raise UserError(
            "space: data.name is the task at which trials are compared; put it into base"
        )
    if "data.protocol" in space.space:
        raise UserError(
            "space: data.protocol says on which images trials are compared; put it into base"
        )
    check_name("data", space.base.get("data.name", RunConfig().data.name))


def _check_base(space: SearchSpace, methods: tuple[str, ...]) -> None:
    for path in space.base:
        if not any(path in setting_fields(method, space.data_name) for method in methods):
            raise UserError(unknown_setting(path, methods[0], space.data_name))
        if any(path in space.active_domains({"method.name": method}) for method in methods):
            raise UserError(
                f"{path} is searched in space and fixed in base (or by --set); remove one"
            )


def _check_shared_path(
    space: SearchSpace, path: str, domain: Domain, methods: tuple[str, ...]
) -> None:
    """A setting searched under every method must exist in every method."""
    data = space.data_name
    having = [method for method in methods if path in setting_fields(method, data)]
    if not having:
        raise UserError(f"space: {unknown_setting(path, methods[0], data)}")
    if len(having) < len(methods):
        raise UserError(
            f"space: {path} is no setting of every method that is searched; "
            f"move it into the branch {having[0]} of method.name"
        )
    _check_field(path, domain, setting_fields(methods[0], data)[path])


def _check_branch(space: SearchSpace, method: str) -> None:
    branch = space.branch(method)
    fields = setting_fields(method, space.data_name)
    for path in (*branch.base, *branch.space):
        if path not in fields:
            unknown = unknown_setting(path, method, space.data_name)
            raise UserError(f"space: branch {method}: {unknown}")
    for path in branch.base:
        if path in space.active_domains({"method.name": method}):
            raise UserError(
                f"space: {path} is fixed in branch {method} and searched there; remove one"
            )
        if path == "train.epochs" or path.startswith(("data.", "evaluation.")):
            raise UserError(
                f"space: branch {method} fixes {path}, which must be the same in all trials; "
                "put it into base"
            )
    for path, domain in branch.space.items():
        if path in space.space:
            raise UserError(f"space: {path} is searched in branch {method} and outside; remove one")
        _check_field(path, domain, fields[path])


def _check_field(path: str, domain: Domain, field: FieldInfo) -> None:
    if isinstance(domain, Float) and accepts(field, int) and not accepts(field, float):
        (sampler,) = domain.to_mapping()
        raise UserError(
            f"space: {path} must be {describe(field)}, but {sampler} draws fractions; use randint"
        )
    if path in _SPEED_ONLY:
        raise UserError(f"space: {path} changes the speed, not the result; put it into base")
    if path == "train.epochs":
        raise UserError(
            "space: train.epochs is the budget at which trials are compared; put it into base"
        )


def _check_effects(space: SearchSpace, variants: dict[str, list[RunConfig]]) -> None:
    """Refuse a searched setting that is without effect whatever the others are."""
    reasons: dict[str, list[str | None]] = {}
    for method, configs in variants.items():
        inert = [config.inert_settings() for config in configs]
        for path in domains_of(space, method):
            reasons.setdefault(path, []).extend(settings.get(path) for settings in inert)
    for path, found in reasons.items():
        if None not in found:
            raise UserError(
                f"space: {path} has no effect, because {found[0]}; take it out of space"
            )


def _lacks_source_val(space: SearchSpace) -> bool:
    task = DATA_CONFIGS[space.data_name]
    published = space.base.get("data.protocol") == "published"
    return published and issubclass(task, PublishedConfig) and not task.published_source_val


def _check_objectives(space: SearchSpace) -> None:
    """What is optimised must be measured on this task."""
    for goal in space.objectives:
        split, _, name = goal.metric.partition("/")
        if name == "mean_iou" and space.score != name:
            raise UserError(
                f"search.metric {goal.metric} is of segmentation, but data.name {space.data_name} "
                f"is a task of classification; use {split}/{space.score}"
            )
        if split == "source_val" and _lacks_source_val(space):
            raise UserError(
                f"search.metric {goal.metric} is not measured: with data.protocol published no "
                "source_val is held out; set it to sealed, or use a metric of target_val"
            )


def _check_search(space: SearchSpace, configs: list[RunConfig]) -> None:
    search = space.search
    paths = {path for m in searched_methods(space) for path in domains_of(space, m)}
    if search.repeats > 1 and "seed" in paths:
        raise UserError(
            f"search.repeats {search.repeats} trains with several seeds, so seed cannot be "
            "searched; take it out of space"
        )
    check_fuse(search, space.resources)
    epochs = configs[0].train.epochs  # never searched, so the same in all
    if search.scheduler == "asha" and search.grace_period > epochs:
        raise UserError(
            f"search.grace_period must be at most train.epochs, {epochs}, not {search.grace_period}"
        )
    for method in searched_methods(space):
        for path, domain in domains_of(space, method).items():
            if search.sampler == "grid" and not isinstance(domain, Choice):
                (sampler,) = domain.to_mapping()
                raise UserError(
                    f"search.sampler grid needs choice everywhere, but {path} has {sampler}; "
                    "write a choice, or take sampler tpe"
                )


def _normalised(space: SearchSpace, variants: dict[str, list[RunConfig]]) -> SearchSpace:
    """Choice values as RunConfig holds them, each once."""
    methods = list(variants)
    domains: dict[str, Domain] = {}
    for path, domain in space.space.items():
        domains[path] = _normalised_domain(path, domain, variants[methods[0]][0])
        if isinstance(domain, Choice) and domain.branches:
            branches = {
                method: replace(
                    branch,
                    space={
                        inner: _normalised_domain(inner, choice, variants[method][0])
                        for inner, choice in branch.space.items()
                    },
                )
                for method, branch in domain.branches.items()
            }
            domains[path] = replace(domain, branches=branches)
    return replace(space, space=domains)


def _normalised_domain(path: str, domain: Domain, config: RunConfig) -> Domain:
    if not isinstance(domain, Choice):
        return domain
    values: list[Any] = []
    for given in domain.values:
        value = given
        if path != "method.name":  # a method may have settings without a default
            value = get_setting(override_config(config, {path: given}), path)
        if value in values:
            earlier = domain.values[values.index(value)]
            raise UserError(
                f"space: {path}: choice has {shown(earlier)} and {shown(given)}, "
                "which are the same; remove one"
            )
        values.append(value)
    return replace(domain, values=tuple(values))
