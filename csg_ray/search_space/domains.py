"""What a searched setting may be: a range of numbers, or a choice. Samplers carry Ray's names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from csg_ray.config.errors import UserError, nearest
from csg_ray.config.explain import shown
from csg_ray.config.load import flatten_settings


@dataclass(frozen=True)
class Float:
    """Numbers from `low` to `high`, on a log scale or in steps."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def contains(self, value: Any) -> bool:
        """Whether a number lies in the range and, with a step, on it."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        on_step = self.step is None or _is_multiple(value - self.low, self.step)
        return self.low <= value <= self.high and on_step

    def ends(self) -> tuple[Any, ...]:
        """The values that stand for all others in checks."""
        return (self.low, self.high)

    def to_mapping(self) -> dict[str, Any]:
        """The sampler as the file writes it."""
        if self.step is not None:
            return {"quniform": [self.low, self.high, self.step]}
        return {"loguniform" if self.log else "uniform": [self.low, self.high]}


@dataclass(frozen=True)
class Integer:
    """Whole numbers from `low` to `high`, both included; the file's upper end is exclusive."""

    low: int
    high: int
    log: bool = False

    def contains(self, value: Any) -> bool:
        """Whether a whole number lies in the range."""
        is_int = isinstance(value, int) and not isinstance(value, bool)
        return is_int and self.low <= value <= self.high

    def ends(self) -> tuple[Any, ...]:
        """The values that stand for all others in checks."""
        return (self.low, self.high)

    def to_mapping(self) -> dict[str, Any]:
        """The sampler as the file writes it."""
        return {"lograndint" if self.log else "randint": [self.low, self.high + 1]}


@dataclass(frozen=True)
class Branch:
    """What comes with one value of a choice: settings fixed then, and settings searched then."""

    base: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Domain] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """One of some values; for `method.name`, each may bring settings of its own."""

    values: tuple[Any, ...]
    branches: dict[Any, Branch] = field(default_factory=dict)

    def branch(self, value: Any) -> Branch:
        """What comes with a value; nothing with a value without a branch."""
        return self.branches.get(value, Branch())

    def contains(self, value: Any) -> bool:
        """Whether this very value is offered."""
        return any(value == known and type(value) is type(known) for known in self.values)

    def ends(self) -> tuple[Any, ...]:
        """The values that stand for all others in checks: here, all."""
        return self.values

    def to_mapping(self) -> dict[str, Any]:
        """The sampler as the file writes it."""
        if not self.branches:
            return {"choice": list(self.values)}
        branches: dict[Any, dict[str, Any]] = {}
        for value, branch in self.branches.items():
            searched = {path: domain.to_mapping() for path, domain in branch.space.items()}
            branches[value] = ({"base": dict(branch.base)} if branch.base else {}) | {
                "space": searched
            }
        return {"choice": branches}


Domain: TypeAlias = Float | Integer | Choice


def parse_space(space: Mapping[Any, Any]) -> dict[str, Domain]:
    """Dotted path -> domain, from the file's `space` or a branch's.

    Raises:
        UserError: an unknown sampler, an empty or inverted range, a bad choice.
    """
    return {path: _parse_domain(f"space: {path}", path, spec) for path, spec in space.items()}


def _parse_domain(where: str, path: Any, spec: Any) -> Domain:
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise UserError(
            f"{where} must be one sampler with its arguments such as {{uniform: [0, 1]}}, "
            f"not {shown(spec)}; a fixed value goes into base"
        )
    ((sampler, arguments),) = spec.items()
    if sampler not in SAMPLERS:
        raise UserError(
            f"{where} has an unknown sampler '{sampler}': {nearest(str(sampler), SAMPLERS)}"
        )
    if isinstance(arguments, Mapping) and sampler == "choice":
        return _parse_branches(where, path, arguments)
    return SAMPLERS[sampler](f"{where}: {sampler}", arguments)


def _numbers(where: str, arguments: Any, form: str, kinds: tuple[type, ...]) -> list[Any]:
    """The arguments of a range, checked: how many, of which type, low before high."""
    what = "whole numbers" if kinds == (int,) else "numbers"
    count = form.count(",") + 1
    fits = isinstance(arguments, list) and len(arguments) == count
    if not fits or not all(type(a) in kinds and math.isfinite(a) for a in arguments):
        raise UserError(f"{where} takes {what} {form}, not {shown(arguments)}")
    low, high = arguments[:2]
    if low > high:
        raise UserError(f"{where} {shown(arguments)} is inverted; write the lower end first")
    if low == high:
        raise UserError(f"{where} {shown(arguments)} is empty; put a single value into base")
    return list(arguments)


def _positive(where: str, arguments: list[Any]) -> None:
    if arguments[0] <= 0:
        raise UserError(f"{where} {shown(arguments)} must start above 0, the scale is a logarithm")


def _uniform(where: str, arguments: Any) -> Float:
    low, high = _numbers(where, arguments, "[low, high]", (int, float))
    return Float(float(low), float(high))


def _loguniform(where: str, arguments: Any) -> Float:
    numbers = _numbers(where, arguments, "[low, high]", (int, float))
    _positive(where, numbers)
    return Float(float(numbers[0]), float(numbers[1]), log=True)


def _quniform(where: str, arguments: Any) -> Float:
    low, high, step = _numbers(where, arguments, "[low, high, step]", (int, float))
    if step <= 0 or step > high - low:
        raise UserError(
            f"{where} {shown(arguments)} needs a step > 0 and <= {high - low}, not {step}"
        )
    # Ray rounds to multiples of the step, Optuna counts steps from low: equal only like this.
    if not (_is_multiple(low, step) and _is_multiple(high, step)):
        raise UserError(f"{where} {shown(arguments)} needs ends that are multiples of {step}")
    return Float(float(low), float(high), step=float(step))


def _randint(where: str, arguments: Any) -> Integer:
    low, high = _numbers(where, arguments, "[low, high]", (int,))
    return _integer(where, low, high)


def _integer(where: str, low: int, high: int, log: bool = False) -> Integer:
    if high - low == 1:
        raise UserError(
            f"{where} [{low}, {high}] holds {low} alone, the upper end is exclusive; "
            "widen it, or put the value into base"
        )
    return Integer(low, high - 1, log)


def _lograndint(where: str, arguments: Any) -> Integer:
    numbers = _numbers(where, arguments, "[low, high]", (int,))
    _positive(where, numbers)
    return _integer(where, numbers[0], numbers[1], log=True)


def _choice(where: str, arguments: Any) -> Choice:
    if not isinstance(arguments, list):
        raise UserError(f"{where} takes a list of values, not {shown(arguments)}")
    for value in arguments:
        if isinstance(value, list | Mapping):
            text = ",".join(str(part) for part in value)
            what = "list" if isinstance(value, list) else "mapping"
            raise UserError(
                f"{where} has the {what} {shown(value)} as a value; "
                f'write it as a string such as "{text}"'
            )
    return _several(where, Choice(tuple(arguments)))


def _several(where: str, choice: Choice) -> Choice:
    if len(choice.values) < 2:
        raise UserError(
            f"{where} {shown(list(choice.values))} needs at least two values; "
            "put a single value into base"
        )
    return choice


def _parse_branches(where: str, path: Any, branches: Mapping[Any, Any]) -> Choice:
    if path != "method.name":
        raise UserError(f"{where}: only method.name may have branches; write choice as a list")
    parsed = {
        value: _parse_branch(f"{where}: branch '{value}'", branch)
        for value, branch in branches.items()
    }
    return _several(f"{where}: choice", Choice(tuple(parsed), parsed))


def _parse_branch(where: str, branch: Any) -> Branch:
    content = {} if branch is None else branch
    if not isinstance(content, Mapping) or not set(content) <= {"base", "space"}:
        raise UserError(
            f"{where} must be {{base: {{...}}, space: {{...}}}}, either left out, "
            f"not {shown(branch)}"
        )
    parts: dict[str, Mapping[Any, Any]] = {}
    for key, what in (("base", "fixed"), ("space", "searched")):
        parts[key] = {} if content.get(key) is None else content[key]
        if not isinstance(parts[key], Mapping):
            raise UserError(
                f"{where}: {key} must be a mapping of {what} settings, not {shown(parts[key])}"
            )
    base = flatten_settings(parts["base"])
    if "method.name" in (base | dict(parts["space"])):
        raise UserError(f"{where} gives method.name again; remove it there")
    return Branch(base, parse_space(parts["space"]))


def _is_multiple(value: float, step: float) -> bool:
    return math.isclose(value / step, round(value / step), rel_tol=0, abs_tol=1e-6)


SAMPLERS: dict[str, Callable[[str, Any], Domain]] = {
    "uniform": _uniform,
    "loguniform": _loguniform,
    "quniform": _quniform,
    "randint": _randint,
    "lograndint": _lograndint,
    "choice": _choice,
}


def grid_size(space: Mapping[str, Domain]) -> int:
    """The number of combinations of a space of choices, those of the branches included."""
    size = 1
    for domain in space.values():
        assert isinstance(domain, Choice)  # the loader refuses a grid over ranges
        size *= sum(grid_size(domain.branch(value).space) for value in domain.values)
    return size
