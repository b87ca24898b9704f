"""What the pages in docs/ name exists: links, anchors, functions, settings, commands, options.

The worked examples of extending.md are run as they stand there.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydantic import create_model

from csg_ray.cli.app import app
from csg_ray.config import data as data_module
from csg_ray.config import methods as methods_module
from csg_ray.config.data import DATA_CONFIGS
from csg_ray.config.load import KINDS, SECTIONS, setting_fields
from csg_ray.config.methods import METHOD_CONFIGS
from csg_ray.config.reader import parse_yaml
from csg_ray.config.run import RunConfig, TrainConfig
from csg_ray.data.load import MADE_HERE, load_splits
from csg_ray.methods import METHODS
from csg_ray.search_space import parse_search_space
from csg_ray.search_space.settings import ResourcesConfig, SearchConfig
from csg_ray.training.loop import fit

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
SETTING = re.compile(rf"`((?:{'|'.join([*SECTIONS, 'search', 'resources'])})\.[a-z_]+)(?:`|[:=])")
OPERATORS = {"|", "||", "&", "&&", ";", ">", ">>"}


def fences(page: Path, *languages: str) -> list[str]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [code for language, code in found if language in languages]


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@lru_cache
def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        again = next(n for n in range(100) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{again}" if again else slug)
    return found


@lru_cache
def names_in(file: Path) -> set[str]:
    """Functions, classes, `Class.method`s and what is assigned at the top of a Python file."""
    names: set[str] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body:
        names |= set(_defined(node))
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for inner in node.body for name in _defined(inner)}
    return names


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    yield from (target.id for target in targets if isinstance(target, ast.Name))


@EVERY_PAGE
def test_relative_links_and_anchors_exist(page: Path) -> None:
    broken = []
    for _, target in LINK.findall(prose(page)):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        inside = file.exists() and file.is_relative_to(ROOT)
        if not inside or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@EVERY_PAGE
def test_linked_names_are_in_their_files(page: Path) -> None:
    missing = []
    for text, target in LINK.findall(prose(page)):
        name = text.strip("`")
        if target.endswith(".py") and re.fullmatch(r"[A-Za-z_][\w.]*", name):
            file = (page.parent / target).resolve()
            if not file.is_file() or name not in names_in(file):
                missing.append(f"{name} in {target}")
    assert not missing


@EVERY_PAGE
def test_settings_exist(page: Path) -> None:
    known = {
        path
        for method in METHOD_CONFIGS
        for data in DATA_CONFIGS
        for path in setting_fields(method, data)
    }
    known |= {f"{kind}.name" for kind in KINDS}
    known |= {f"search.{name}" for name in SearchConfig.model_fields}
    known |= {f"resources.{name}" for name in ResourcesConfig.model_fields}
    strangers = set(SETTING.findall(prose(page))) - known - set(_settings_of_examples())
    assert not strangers


def _settings_of_examples() -> list[str]:
    """`data.num_images` and the like, which the worked examples add."""
    code = "\n".join(fences(ROOT / "docs" / "extending.md", "python"))
    names = re.findall(r"^    (\w+): \w+ = Field", code, re.M)
    return [f"{kind}.{name}" for kind in KINDS for name in names]


def _words(line: str) -> list[str]:
    """What a shell line passes to `csg-ray`, up to an operator; empty where it is not called."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    called = next((n for n, word in enumerate(words) if word.endswith("csg-ray")), None)
    if called is None:
        return []
    rest = words[called + 1 :]
    return rest[: next((n for n, word in enumerate(rest) if word in OPERATORS), len(rest))]


def _block_commands(page: Path) -> Iterator[list[str]]:
    """Every call of csg-ray in a block of commands; with prompts only what follows one."""
    for block in fences(page, "bash", "console"):
        lines = block.replace("\\\n", " ").splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in prompted or lines:
            if (words := _words(line)) and not re.search(r"csg-ray[^\s]+/", line):
                yield words


def _group() -> Any:
    return typer.main.get_command(app)


@EVERY_PAGE
def test_commands_in_blocks_can_be_parsed(page: Path) -> None:
    wrong = []
    for name, *arguments in _block_commands(page):
        command = _group().commands.get(name)
        if command is None:
            wrong.append(f"no command {name}")
            continue
        try:
            command.make_context(name, list(arguments))
        except click.ClickException as error:
            wrong.append(f"{name} {' '.join(arguments)}: {error.format_message()}")
        except Exception as error:  # typer may bring a click of its own
            wrong.append(f"{name} {' '.join(arguments)}: {error}")
    assert not wrong


@EVERY_PAGE
def test_commands_in_the_text_exist_with_their_options(page: Path) -> None:
    wrong = []
    for inline in re.findall(r"`([^`\n]*csg-ray [^`\n]*)`", prose(page)):
        words = _words(inline)
        if not words or words[0].startswith("-"):
            continue
        command = _group().commands.get(words[0])
        if command is None:
            wrong.append(f"no command {words[0]}")
            continue
        known = {option for param in command.params for option in param.opts} | {"--help"}
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        wrong += [f"{words[0]} has no {option}" for option in options if option not in known]
    assert not wrong


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    named = {target for _, target in LINK.findall(index)}
    assert {page.name for page in PAGES} - {"README.md"} <= named


@EVERY_PAGE
def test_python_compiles_and_yaml_is_yaml(page: Path) -> None:
    for code in fences(page, "python"):
        compile(code, page.name, "exec")
    for text in fences(page, "yaml"):
        assert parse_yaml(text) is not None


def _example(path: str) -> str:
    """The block of extending.md that begins with the comment `# path`."""
    blocks = fences(ROOT / "docs" / "extending.md", "python")
    (found,) = [block for block in blocks if re.match(rf"# {re.escape(path)}[:\n]", block)]
    return found


def _run(path: str, names: dict[str, Any]) -> dict[str, Any]:
    """Execute an example as if it stood in its file, beside `names`."""
    namespace = {"__name__": path.removesuffix(".py").replace("/", "."), **names}
    exec(compile(_example(path), path, "exec", dont_inherit=True), namespace)
    return namespace


def test_the_method_of_the_example_trains_on_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    method = _run("csg_ray/config/methods.py", vars(methods_module))["L2LogitsConfig"]
    data = _run("csg_ray/config/data.py", vars(data_module))["BarsConfig"]
    monkeypatch.setattr(methods_module, "L2LogitsConfig", method, raising=False)
    monkeypatch.setattr(data_module, "BarsConfig", data, raising=False)
    monkeypatch.setitem(METHODS, "l2_logits", _run("csg_ray/methods/l2_logits.py", {})["L2Logits"])
    monkeypatch.setitem(MADE_HERE, "bars", _run("csg_ray/data/bars.py", {})["load_bars"])
    # The two unions with one member more, which the page has as a change of a line.
    run = create_model(
        "Run", __base__=RunConfig, data=(data, data()), method=(method, method(loss_weight=0.1))
    )
    config = run(
        data=data(num_images=64),
        train=TrainConfig(epochs=1, batch_size=16, learning_rate=0.03),
    )
    reports: list[dict[str, float]] = []
    fit(config, lambda metrics, *_: reports.append(metrics))
    (report,) = reports
    assert report["diverged"] == 0
    assert report["train/loss"] > 0.1 * report["train/squared_logit"] > 0
    assert set(report) >= {"source_val/hse", "target_val/class_accuracy/diagonal"}

    splits = load_splits(config.data)
    assert splits.target_train is not None
    assert splits.target_train.labelled_classes() == []
    assert splits.target_test is not None
    assert splits.target_test.fingerprint != splits.target_val.fingerprint


@pytest.mark.parametrize(
    "text",
    [text for page in PAGES for text in fences(page, "yaml") if re.search("^study:", text, re.M)],
)
def test_search_spaces_in_the_pages_are_valid(text: str) -> None:
    parse_search_space(parse_yaml(text))
