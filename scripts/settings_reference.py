"""Write docs/settings.md: every setting, what it may hold, and whether it may be searched.

    python scripts/settings_reference.py

It is all read off the classes of `csg_ray/config` and `csg_ray/search_space`, so the page is never
edited by hand; `tests/test_settings_reference.py` fails when the two differ.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from csg_ray.config.data import DATA_CONFIGS, measured_splits
from csg_ray.config.effects import HEADS
from csg_ray.config.errors import UserError
from csg_ray.config.explain import accepts, describe, shown
from csg_ray.config.load import KINDS, SECTIONS, override_config, setting_fields
from csg_ray.config.methods import METHOD_CONFIGS
from csg_ray.config.run import SCORES, RunConfig
from csg_ray.search_space import METRICS, parse_search_space
from csg_ray.search_space.domains import SAMPLERS
from csg_ray.search_space.settings import Objective, ResourcesConfig, SearchConfig

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

# Values for the settings that have no default; the tables do not show them.
REQUIRED: dict[str, dict[str, Any]] = {
    "image_folder": {"data.source": "source", "data.target": "target"},
    "visda17": {"data.root": "VisDA-17"},
    "gta5_cityscapes": {
        "data.gta5": "GTA5",
        "data.cityscapes": "Cityscapes",
        "model.name": "resnet50",
        "model.weights": "imagenet",
        "model.head": "aspp_v3",
    },
    "digit_scenes": {"model.head": "fcn"},
    "asg_l2o": {"train.epochs": 2},
    "drpc": {"method.styles": "styles"},
    "cbst": {"method.start": "runs/vanilla", "train.steps_per_epoch": 60},
}
REQUIRED["mrkld"] = REQUIRED["lrent"] = REQUIRED["cbst"]

# Configurations in which something is without effect.
SITUATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("a task of classification", {"augment.implementation": "authors"}),
    (
        "a task of segmentation, method csg",
        {"data.name": "digit_scenes", **REQUIRED["digit_scenes"]},
    ),
    (
        "a task of segmentation, any other method",
        {"data.name": "digit_scenes", **REQUIRED["digit_scenes"], "method.name": "vanilla"},
    ),
    (
        "`augment.implementation: color_jitter`",
        {
            "data.name": "digit_scenes",
            **REQUIRED["digit_scenes"],
            "augment.implementation": "color_jitter",
        },
    ),
    ("`augment.implementation: torchvision`", {"augment.implementation": "torchvision"}),
    ("`augment.num_ops: 0`", {"augment.num_ops": 0}),
    ("a method other than csg and drpc", {"method.name": "vanilla"}),
    ("`method.name: oracle`", {"method.name": "oracle"}),
    ("csg with `method.loss_weight: 0`", {"method.loss_weight": 0.0}),
    ("csg with `method.pooling: mean`", {"method.pooling": "mean"}),
    ("csg with `method.train_projection: false`", {"method.train_projection": False}),
    ("a `model.head` other than mlp", {"model.head": "linear"}),
)

HEAD = """\
# Every setting

Written by `scripts/settings_reference.py` from the classes of [`csg_ray/config`](../csg_ray/config)
and [`csg_ray/search_space`](../csg_ray/search_space). Do not edit it: change a `Field` and run the
script.

A run is a YAML file of these settings, nested (`train: {epochs: 9}`). Everywhere else a setting is
its dotted path: in `base` and `space` of a search-space file, after `--set`, and in every table.
Unknown paths, wrong types and values out of bounds are refused, with the nearest legal one.

- `required`: there is no default.
- *searched by*: the samplers that `space` may give it. *any* is `uniform`, `loguniform`,
  `quniform`, `randint`, `lograndint` or `choice`; see [Samplers](#samplers). Where it says *no*,
  the reason follows.
- The paths under `method` and `data` depend on `method.name` and `data.name`. A path of another
  method or task is refused. All the other sections are legal for all of them.
"""


def page() -> str:
    """The text of docs/settings.md."""
    return "\n".join(_parts()).rstrip() + "\n"


def _parts() -> Iterator[str]:
    """The lines of the page, top to bottom."""
    yield HEAD
    yield from _contents()
    yield "## The run\n"
    yield "Top level.\n"
    yield from _table({"seed": RunConfig.model_fields["seed"]})
    for section in SECTIONS:
        yield from _section(section)
    yield from _without_effect()
    yield from _search_space()


def undescribed() -> list[str]:
    """The settings without a description, which the page cannot explain."""
    missing = [
        path
        for method in METHOD_CONFIGS
        for data in DATA_CONFIGS
        for path, field in setting_fields(method, data).items()
        if not _description(path, field)
    ]
    models: dict[str, type[BaseModel]] = {
        "search": SearchConfig,
        "resources": ResourcesConfig,
        "objectives": Objective,
    }
    for prefix, model in models.items():
        fields: Mapping[str, FieldInfo] = model.model_fields
        missing += [f"{prefix}.{name}" for name, field in fields.items() if not field.description]
    return sorted(set(missing))


def _contents() -> Iterator[str]:
    for section in SECTIONS:
        links = "".join(
            f"{' · ' if number else ': '}[{name}](#{section}-{name})"
            for number, name in enumerate(KINDS.get(section, {}))
        )
        yield f"- [`{section}`](#{section}){links}"
    yield "- [Settings without effect](#settings-without-effect)"
    yield (
        "- [The search-space file](#the-search-space-file): [`search`](#search) · "
        "[`resources`](#resources) · [Samplers](#samplers) · [Metrics](#metrics)"
    )
    yield ""


def _section(section: str) -> Iterator[str]:
    if section not in KINDS:
        model: type[BaseModel] = type(RunConfig.model_fields[section].default)
        yield f"## {section}\n"
        yield _doc(model)
        if section == "model":
            yield from _heads()
        yield from _table(_prefixed(section, model))
        return
    yield f"## {section}\n"
    default = RunConfig.model_fields[section].default.name
    names = ", ".join(f"`{name}`" for name in KINDS[section])
    searched = _searched_by(f"{section}.name", RunConfig.model_fields[section])
    yield f"`{section}.name` is one of {names}; `{default}` unless it is given.\n"
    yield f"Searched by: {searched}.\n"
    for name, kind in KINDS[section].items():
        yield f"### {section}: {name}\n"
        yield _doc(kind)
        if section == "data":
            yield from _about_task(name)
        fields = _prefixed(section, kind)
        del fields[f"{section}.name"]
        if fields:
            yield from _table(fields)
        else:
            yield f"No settings but `{section}.name`.\n"


def _about_task(name: str) -> Iterator[str]:
    task = DATA_CONFIGS[name].task
    config = override_config(RunConfig(), {"data.name": name, **REQUIRED.get(name, {})})
    measured = " and ".join(measured_splits(config.data))
    yield f"A task of {task}: its score is `{SCORES[task]}`."
    yield f"Measured after every epoch: {measured}.\n"


def _heads() -> Iterator[str]:
    for task, heads in HEADS.items():
        yield f"`model.head` for {task}: {', '.join(heads)}.\n"


def _without_effect() -> Iterator[str]:
    yield "## Settings without effect\n"
    yield (
        "A setting may be legal and change nothing. `space` may not search one that is without "
        "effect\nwhatever else is drawn; a run that fixes one is trained as if it were not there.\n"
    )
    yield "| with | these change nothing |"
    yield "|---|---|"
    usual: set[str] = set()
    for words, overrides in SITUATIONS:
        paths = set(override_config(RunConfig(), overrides).inert_settings())
        if not usual:
            usual = paths
        told = paths if paths == usual or "segmentation" in words else paths - usual
        yield f"| {words} | {', '.join(f'`{path}`' for path in sorted(told))} |"
    yield ""


def _search_space() -> Iterator[str]:
    yield "## The search-space file\n"
    yield (
        "| key | what it holds |\n|---|---|\n"
        "| `study` | a name for the folder: at most 100 letters, digits, `-`, `_` and `.` |\n"
        "| `base` | fixed settings: dotted path -> value |\n"
        "| `space` | searched settings: dotted path -> sampler |\n"
        "| `points_to_evaluate` | points tried first, each naming every searched setting |\n"
        "| `search` | how to search |\n"
        "| `resources` | what a trial takes |\n"
    )
    yield "### search\n"
    yield _doc(SearchConfig)
    yield from _table(_prefixed("search", SearchConfig), searched=False)
    yield "Each of `search.objectives` is a mapping of:\n"
    yield from _table(_prefixed("objectives", Objective), searched=False)
    yield "### resources\n"
    yield _doc(ResourcesConfig)
    yield from _table(_prefixed("resources", ResourcesConfig), searched=False)
    yield from _samplers()
    yield "### Metrics\n"
    yield "`search.metric` is one of these; `mean_iou` is of segmentation alone:\n"
    yield ", ".join(f"`{metric}`" for metric in METRICS) + "\n"


# A legal example of each sampler's arguments, and what they mean.
SAMPLER_EXAMPLES: dict[str, tuple[str, str]] = {
    "uniform": ("[0.0, 1.0]", "a number from low to high"),
    "loguniform": ("[0.01, 10.0]", "the same on a logarithmic scale; low above 0"),
    "quniform": ("[0.0, 1.0, 0.25]", "low, low + step, ..., high; both multiples of the step"),
    "randint": ("[0, 25]", "a whole number from low to high - 1"),
    "lograndint": ("[1, 1025]", "the same on a logarithmic scale; low above 0"),
    "choice": ('["4", "3,4"]', "one of at least two values"),
}


def _samplers() -> Iterator[str]:
    yield "### Samplers\n"
    yield "They carry Ray's names. As there, the upper end of whole numbers is exclusive.\n"
    yield "| sampler | example | draws |"
    yield "|---|---|---|"
    for name in SAMPLERS:
        arguments, meaning = SAMPLER_EXAMPLES[name]
        yield f"| `{name}` | `{{{name}: {arguments}}}` | {meaning} |"
    yield ""
    yield (
        "`choice` over `method.name` may be a mapping, name -> `{base: {...}, space: {...}}`: what "
        "is fixed\nand what is searched under that method. `search.sampler: grid` needs `choice` "
        "everywhere.\n"
    )


def _prefixed(section: str, model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {f"{section}.{name}": field for name, field in model.model_fields.items()}


def _table(fields: Mapping[str, FieldInfo], searched: bool = True) -> Iterator[str]:
    columns = ["setting", "may be", "default", "meaning"]
    yield _row([*columns, "searched by"] if searched else columns)
    yield "|" + "---|" * (len(columns) + searched)
    for path, field in fields.items():
        name = path if searched else path.removeprefix("objectives.")
        cells = [f"`{name}`", _values(path, field), _default(field), _description(path, field)]
        yield _row([*cells, _searched_by(path, field)] if searched else cells)
    yield ""


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(path: str, field: FieldInfo) -> str:
    return "a list of objectives" if path == "search.objectives" else describe(field)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default == ():
        return "none"
    value = field.default
    return f"`{value if isinstance(value, str) else shown(value)}`"


def _description(path: str, field: FieldInfo) -> str:
    if path.endswith(".name") and path.split(".")[0] in KINDS:
        return "told by the sections of the page"
    return field.description or ""


def _doc(kind: type[BaseModel]) -> str:
    """A class's docstring without its list of attributes."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:")[0] + "\n"


def _searched_by(path: str, field: FieldInfo) -> str:
    reason = refusal(path)
    if reason is not None:
        return f"no: {reason}"
    if accepts(field, float):
        return "any"
    if accepts(field, int):
        return "`randint`, `lograndint`, `choice`"
    return "`choice`"


@lru_cache
def refusal(path: str) -> str | None:
    """Why a search space refuses to search a setting whatever its values; None if it does not."""
    owners = {
        kind: [
            name for name, model in kinds.items() if path.partition(".")[2] in model.model_fields
        ]
        for kind, kinds in KINDS.items()
        if path.startswith(f"{kind}.")
    }
    base: dict[str, Any] = {}
    for kind, names in owners.items():
        if path != f"{kind}.name":
            base |= {f"{kind}.name": names[0], **REQUIRED.get(names[0], {})}
    base.pop(path, None)
    mapping = {
        "study": "one",
        "base": base,
        "space": {path: {"choice": ["one", "another"]}},
        "search": {"metric": "target_val/hse", "mode": "min"},
    }
    try:
        parse_search_space(mapping)
    except UserError as error:
        # Others are about the two values, which are nothing that the setting may hold.
        message = str(error)
        if message.startswith(f"space: {path} ") and message.endswith("; put it into base"):
            return message.removeprefix(f"space: {path} ").removesuffix("; put it into base")
    return None


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
