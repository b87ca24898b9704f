"""YAML files by the 1.2 core schema: `1e-4` is a number, `on` is a string, no key twice."""

from __future__ import annotations

import re
from typing import Any, Protocol

import yaml

from csg_ray.config.errors import UserError

_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
# Tag, pattern, possible first characters; the first pattern that fits wins.
_SCALARS = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", rf"{_FLOAT}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.0123456789")),
]


class TextFile(Protocol):
    """What is read: a path, on a disk or elsewhere."""

    def read_text(self, encoding: str) -> str:
        """The content; OSError when it cannot be had."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the 1.2 scalars in place of the 1.1 ones."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own protocol
    yaml_constructors = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Quotes every string that a 1.1 or a 1.2 reader would take for something else."""


def _tag(name: str) -> str:
    return f"tag:yaml.org,2002:{name}"


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > 20:
        line = node.start_mark.line + 1
        raise UserError(f"line {line}: a whole number of {len(text)} characters is too large")
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    lines: dict[Any, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"line {line}: a key must be plain text, not a list or a mapping")
        key = loader.construct_object(key_node)
        if key in result:
            raise UserError(
                f"line {line}: the key '{key}' stands twice, first in line {lines[key]}; remove one"
            )
        lines[key] = line
        # Deep, so that an alias inside its own anchor is an error rather than an endless structure.
        result[key] = loader.construct_object(value_node, deep=True)
    return result


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(
        str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan")
    )


def _install() -> None:
    for name, pattern, first in _SCALARS:
        expression = re.compile(rf"^(?:{pattern})$")
        for target in (_Loader, _Dumper):
            target.add_implicit_resolver(_tag(name), expression, first)
    constructors: dict[str, Any] = {
        "null": yaml.SafeLoader.construct_yaml_null,
        "bool": yaml.SafeLoader.construct_yaml_bool,
        "int": _integer,
        "float": _float,
        "str": yaml.SafeLoader.construct_yaml_str,
        "seq": yaml.SafeLoader.construct_yaml_seq,
        "map": _mapping,
    }
    for name, construct in constructors.items():
        _Loader.add_constructor(_tag(name), construct)
    _Loader.yaml_constructors[None] = yaml.SafeLoader.construct_undefined  # any other tag


_install()


def parse_yaml(text: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        UserError: not YAML, or a key stands twice; starts with the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # derived from the safe loader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"line {line}: not YAML ({error.problem})") from error
    except RecursionError as error:
        raise UserError("not YAML that can be read (nested too deeply)") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"not YAML ({reason})") from error


def read_yaml(path: TextFile) -> dict[Any, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: unreadable, not YAML, or not a mapping; names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a UTF-8 text file; give a YAML file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a YAML file") from error
    try:
        value = parse_yaml(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        what = "nothing" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{path} holds {what}; it must hold a mapping of 'key: value' lines")
    return value


def dump_yaml(mapping: dict[str, Any]) -> str:
    """YAML text, keys in the given order, that reads back as the same mapping."""
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
