"""What a setting may hold, in words, and pydantic's complaints in one sentence."""

from __future__ import annotations

from reprlib import Repr
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from csg_ray.config.errors import UserError, nearest

Model = TypeVar("Model", bound=BaseModel)

_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    NoneType: "null",
}


_SHORT = Repr()
_SHORT.maxstring = 80


def shown(value: Any) -> str:
    """A value as a user would write it in YAML, shortened."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return _SHORT.repr(value)


def describe(field: FieldInfo) -> str:
    """What a field may hold: "a number > 0 and <= 100", "one of csg, vanilla"."""
    return _describe(field.annotation, field.metadata)


def accepts(field: FieldInfo, kind: type) -> bool:
    """Whether a field may hold values of this very type."""
    members = [field.annotation]
    if get_origin(field.annotation) in (Union, UnionType):
        members = list(get_args(field.annotation))
    return kind in [get_args(m)[0] if get_origin(m) is Annotated else m for m in members]


def _describe(annotation: Any, metadata: list[Any]) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extras = get_args(annotation)
        return _describe(
            inner, [m for extra in extras for m in getattr(extra, "metadata", [extra])]
        )
    if origin is Literal:
        values = [str(value) for value in get_args(annotation)]
        return f"one of {', '.join(values)}" if len(values) > 1 else f"'{values[0]}'"
    if origin in (Union, UnionType):
        return " or ".join(_describe(member, metadata) for member in get_args(annotation))
    if annotation in _NAMES:
        return f"{_NAMES[annotation]}{_bounds(metadata)}"
    return "a list" if origin is tuple else "a mapping of settings"


def _bounds(metadata: list[Any]) -> str:
    ends: dict[type, Any] = {}
    for item in metadata:
        if isinstance(item, Ge | Gt | Le | Lt):
            ends[type(item)] = getattr(item, type(item).__name__.lower())
    if Ge in ends and Le in ends:
        return f" from {ends[Ge]} to {ends[Le]}"
    signs = {Gt: ">", Ge: ">=", Lt: "<", Le: "<="}
    words = [f"{sign} {ends[kind]}" for kind, sign in signs.items() if kind in ends]
    return f" {' and '.join(words)}" if words else ""


def validate(model: type[Model], settings: dict[Any, Any], prefix: str = "") -> Model:
    """`settings` as a model.

    Args:
        model: its fields say what is allowed.
        settings: setting -> value.
        prefix: put before every path in a message, such as "search.".

    Raises:
        UserError: an unknown setting or a bad value; names the path, the value, what is allowed.
    """
    for name in settings:
        if name not in model.model_fields:
            near = nearest(f"{prefix}{name}", [f"{prefix}{known}" for known in model.model_fields])
            raise UserError(f"unknown setting '{prefix}{name}': {near}")
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise UserError(_sentence(error, model, prefix)) from error


def _sentence(error: ValidationError, model: type[BaseModel], prefix: str) -> str:
    first = error.errors(include_url=False)[0]
    path, field = _locate(model, first["loc"])
    path = f"{prefix}{path}"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        # What is wrong with a whole section names its settings itself.
        whole = not first["loc"] or _section_of(field, str(first["loc"][-1])) is not None
        return message if whole else f"{path} {message}"
    assert field is not None  # whatever is wrong, a field of ours is
    if first["type"] == "missing":
        return f"{path} is missing; it must be {describe(field)}"
    return f"{path} must be {describe(field)}, not {shown(first['input'])}"


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, FieldInfo | None]:
    """The dotted path and the field that an error's location stands for.

    Locations also name members of unions; those are no part of the path.
    """
    names: list[str] = []
    field: FieldInfo | None = None
    current: type[BaseModel] | None = model
    for part in map(str, loc):
        if current is not None and part in current.model_fields:
            names.append(part)
            field = current.model_fields[part]
        current = _section_of(field, part)
    return ".".join(names), field


def _section_of(field: FieldInfo | None, tag: str) -> type[BaseModel] | None:
    """The model that a field holds: the only one, or the one whose name is `tag`."""
    members = [field.annotation, *get_args(field.annotation)] if field else []
    models = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
    named = [m for m in models if len(models) == 1 or m.model_fields["name"].default == tag]
    return named[0] if named else None
