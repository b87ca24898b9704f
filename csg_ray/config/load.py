"""Run configurations from files and mappings, and one setting changed by its dotted path."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from csg_ray.config.data import DATA_CONFIGS
from csg_ray.config.errors import UserError, nearest
from csg_ray.config.explain import shown, validate
from csg_ray.config.methods import METHOD_CONFIGS, Section
from csg_ray.config.places import PLACES, absolute
from csg_ray.config.reader import TextFile, read_yaml
from csg_ray.config.run import RunConfig

SECTIONS = tuple(name for name in RunConfig.model_fields if name != "seed")
# The sections whose settings depend on their own name.
KINDS: dict[str, Mapping[str, type[Section]]] = {"method": METHOD_CONFIGS, "data": DATA_CONFIGS}


def load_config(path: str | TextFile) -> RunConfig:
    """The run configuration in a YAML file: plain, nested, as `csg-ray export` writes it.

    More keys may stand at the top: `csg_ray`, the version that wrote the file; `provenance`, which
    says where the settings come from, and `workers`, how a run is spread, are not read here.

    Raises:
        UserError: unreadable, not YAML, an unknown setting, a bad value, or a newer version's file.
    """
    mapping = read_yaml(Path(path) if isinstance(path, str) else path)
    try:
        if "space" in mapping:
            raise UserError("this is a search space, not a run; start it with csg-ray search")
        _refuse_newer(mapping.pop("csg_ray", installed_version()))
        for key in ("provenance", "workers"):
            mapping.pop(key, None)
        return override_config(RunConfig(), flatten_settings(mapping))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def config_to_mapping(config: RunConfig) -> dict[str, Any]:
    """What `load_config` reads back: the version that writes it, then every setting, nested."""
    return {"csg_ray": installed_version(), **config.model_dump()}


def override_config(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """A copy with some settings changed.

    Another `method.name` or `data.name` starts from the defaults of that method or task: the
    settings of the old one go.

    Args:
        config: stays as it is.
        overrides: dotted path -> value.

    Raises:
        UserError: an unknown path, a wrong type, a value out of bounds.
    """
    mapping = config.model_dump()
    names = {"method": config.method.name, "data": config.data.name}
    for kind, old in list(names.items()):
        name = overrides.get(f"{kind}.name", old)
        check_name(kind, name)
        if name != old:
            mapping[kind] = {"name": name}
            names[kind] = name
    for path, value in overrides.items():
        if path not in setting_fields(**names):
            raise UserError(unknown_setting(path, **names))
        section, _, setting = path.rpartition(".")
        (mapping[section] if section else mapping)[setting] = value
    return validate(RunConfig, mapping)


def own_settings(config: RunConfig) -> dict[str, Any]:
    """What sets a run apart: its method, its task, and every setting that is not their default."""
    names = {"method.name": config.method.name, "data.name": config.data.name}
    # Of each field by itself: many a task or method cannot be had with nothing but defaults.
    changed = {
        path: value
        for path, field in setting_fields(*names.values()).items()
        if (value := get_setting(config, path)) != field.get_default(call_default_factory=True)
    }
    return names | changed


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same run with the files that its settings name found from this folder."""
    settings = setting_fields(config.method.name, config.data.name)
    found = {path: absolute(path, get_setting(config, path)) for path in PLACES if path in settings}
    return override_config(config, found)


def check_name(kind: str, name: Any) -> None:
    """Refuse the name of a method or a task that does not exist.

    Raises:
        UserError: names those that do.
    """
    if not isinstance(name, str) or name not in KINDS[kind]:
        raise UserError(f"{kind}.name must be one of {', '.join(KINDS[kind])}, not {shown(name)}")


@lru_cache
def setting_fields(method: str, data: str) -> dict[str, FieldInfo]:
    """Every legal dotted path of a run with this method on this task, and its field."""
    fields = {"seed": RunConfig.model_fields["seed"]}
    named = {"method": METHOD_CONFIGS[method], "data": DATA_CONFIGS[data]}
    for section in SECTIONS:
        model = named.get(section) or type(RunConfig.model_fields[section].default)
        fields |= {f"{section}.{name}": field for name, field in model.model_fields.items()}
    return fields


def get_setting(config: RunConfig, path: str) -> Any:
    """The value at a dotted path."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def flatten_settings(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """Dotted path -> value, from nested sections, dotted keys, or a mixture.

    Raises:
        UserError: a section that is not a mapping, a setting given in both ways.
    """
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        settings = {key: value}
        if key in SECTIONS:
            if not isinstance(value, Mapping):
                raise UserError(f"{key} must be a mapping of settings, not {shown(value)}")
            settings = {f"{key}.{name}": inner for name, inner in value.items()}
        for path, inner in settings.items():
            if path in flat:
                raise UserError(f"{path} is given twice, nested and dotted; remove one")
            flat[path] = inner
    return flat


def unknown_setting(path: Any, method: str, data: str, others: Iterable[str] = ()) -> str:
    """The sentence about an illegal path: another method's, a whole group, or a slip.

    Args:
        path: the illegal path.
        method: whose settings are legal.
        data: the task whose settings are legal.
        others: legal paths that are no settings of a run.
    """
    kind, _, setting = str(path).partition(".")
    owners = [name for name, model in KINDS.get(kind, {}).items() if setting in model.model_fields]
    if owners:
        current = {"method": method, "data": data}[kind]
        return (
            f"{path} is a setting of {kind} {', '.join(owners)}, but {kind}.name is {current}; "
            f"remove it, or set {kind}.name to {owners[0] if len(owners) == 1 else 'one of those'}"
        )
    legal = [*setting_fields(method, data), *others]
    group = str(path).partition(".")[0]
    siblings = [known for known in legal if known.startswith(f"{group}.")]
    if path == group and siblings:
        return f"'{path}' is a group of settings; name one of {', '.join(siblings)}"
    if siblings or get_close_matches(str(path), legal, n=1, cutoff=0.5):
        return f"unknown setting '{path}': {nearest(str(path), siblings or legal)}"
    groups = dict.fromkeys(re.sub(r"\..*", ".*", known) for known in legal)
    return f"unknown setting '{path}': allowed are {', '.join(groups)}"


@lru_cache
def installed_version() -> str:
    """The version of csg_ray; from pyproject.toml where the source tree is not installed."""
    try:
        return version("csg-ray")
    except PackageNotFoundError:
        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        return str(tomllib.loads(text)["project"]["version"])


def _refuse_newer(written_by: Any) -> None:
    installed = installed_version()
    if not isinstance(written_by, str) or not re.match(r"\d+(\.\d+)*", written_by):
        raise UserError(f"csg_ray must be a version such as '{installed}', not {shown(written_by)}")
    if _release(written_by) > _release(installed):
        raise UserError(
            f"written by csg_ray {written_by}, newer than the installed {installed}; update csg_ray"
        )


def _release(text: str) -> list[int]:
    """The numbers at the start of a version, without zeros at the end: 0.1.0rc1 -> [0, 1]."""
    found = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers
