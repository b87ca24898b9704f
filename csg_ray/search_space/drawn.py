"""What a search space may draw, by the ends and choices that stand for all values."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, product

from csg_ray.config.errors import UserError
from csg_ray.config.load import check_name
from csg_ray.config.run import RunConfig
from csg_ray.search_space.domains import Choice, Domain
from csg_ray.search_space.space import SearchSpace


def searched_methods(space: SearchSpace) -> tuple[str, ...]:
    """The methods that the space may draw, each once.

    Raises:
        UserError: one that does not exist, or a range instead of a choice.
    """
    if not isinstance(space.space.get("method.name", Choice(())), Choice):
        raise UserError("space: method.name takes a choice, not a range")
    for name in space.methods:
        check_name("method", name)
    return tuple(dict.fromkeys(space.methods))


def domains_of(space: SearchSpace, method: str) -> dict[str, Domain]:
    """What is searched under one method, its name apart."""
    active = space.active_domains({"method.name": method})
    return {path: domain for path, domain in active.items() if path != "method.name"}


def stand_ins(space: SearchSpace, method: str) -> Iterator[RunConfig]:
    """Configurations that stand for all: every end and choice, and every pair of them.

    Pairs, because a value may be illegal or without effect only together with another one.
    """
    options = [
        [{path: value} for value in domain.ends()]
        for path, domain in domains_of(space, method).items()
    ]
    first = space.complete({"method.name": method})
    yield space.config_for(first)
    for option in chain.from_iterable(options):
        yield space.config_for(first | option)
    for one, other in combinations(options, 2):
        for left, right in product(one, other):
            yield space.config_for(first | left | right)


def drawn_configs(space: SearchSpace, *prefixes: str) -> Iterator[RunConfig]:
    """Every combination of the ends of some searched settings, under every method."""
    for method in searched_methods(space):
        first = space.complete({"method.name": method})
        options = [
            [(path, end) for end in domain.ends()]
            for path, domain in domains_of(space, method).items()
            if path.startswith(prefixes)
        ]
        for chosen in product(*options):
            yield space.config_for(first | dict(chosen))
