from __future__ import annotations

import math
import random
import string
from pathlib import Path
from typing import Any

import pytest
import yaml

from csg_ray.config import UserError
from csg_ray.config.reader import dump_yaml, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 0.0001),
        ("1E5", 100000.0),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("12", 12),
        ("-3", -3),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("'1e-4'", "1e-4"),
        ("3,4", "3,4"),
        ("e5", "e5"),
        ("[1e-2, on, {a: .5}]", [0.01, "on", {"a": 0.5}]),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("<<: 1", {"<<": 1}),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, expected: Any) -> None:
    value = parse_yaml(text)
    assert value == expected
    assert type(value) is type(expected)


def test_nan() -> None:
    assert math.isnan(parse_yaml(".nan"))


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("a: 1\nb: 2\na: 3", ["line 3", "'a' stands twice", "first in line 1", "remove one"]),
        ("x:\n  a: 1\n  a: 1", ["line 3", "'a' stands twice", "first in line 2"]),
        ("- {k: 1, k: 2}", ["line 1", "'k' stands twice"]),
        ("1: a\n1.0: b", ["line 2", "stands twice"]),
        ("a: [1,\nb: 2", ["line 2", "not YAML"]),
        ("a: 1\n b: 2", ["line 2", "not YAML"]),
        ("a: !thing 1", ["line 1", "not YAML", "!thing"]),
        ("!!python/object/apply:os.getcwd []", ["line 1", "not YAML"]),
        ("!!int x", ["not YAML", "'x'"]),
        ("a: &a {b: *a}", ["line 1", "not YAML", "recursive"]),
        ("a: &a [*a]", ["line 1", "not YAML", "recursive"]),
        ("[" * 1000, ["not YAML", "too deeply"]),
        ("a: \x01", ["not YAML"]),
        ("a: 1\n---\nb: 2", ["line 2", "not YAML"]),
        ("[1, 2]: 3", ["line 1", "a key must be plain text"]),
        (f"a: {'9' * 5000}", ["line 1", "5000 characters", "too large"]),
    ],
)
def test_bad_text_is_one_sentence(text: str, fragments: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_bad_files(tmp_path: Path) -> None:
    binary = tmp_path / "weights.pt"
    binary.write_bytes(b"\x80\x02\xff\xfe")
    empty = tmp_path / "empty.yaml"
    empty.touch()
    several = tmp_path / "list.yaml"
    several.write_text("- 1\n")
    twice = tmp_path / "twice.yaml"
    twice.write_text("seed: 1\nseed: 2\n")
    for path, fragment in [
        (tmp_path / "absent.yaml", "No such file"),
        (tmp_path, "Is a directory"),
        (binary, "not a UTF-8 text file"),
        (empty, "holds nothing"),
        (several, "holds a list; it must hold a mapping"),
        (twice, "line 2"),
    ]:
        with pytest.raises(UserError) as caught:
            read_yaml(path)
        assert str(path) in str(caught.value)
        assert fragment in str(caught.value)


def _random_value(generator: random.Random, depth: int) -> Any:
    kinds = ["int", "float", "word", "odd", "bool", "none"] + ["list", "dict"] * (depth > 0)
    kind = generator.choice(kinds)
    if kind == "list":
        return [_random_value(generator, depth - 1) for _ in range(generator.randrange(4))]
    if kind == "dict":
        return {
            f"k{index}": _random_value(generator, depth - 1)
            for index in range(generator.randrange(4))
        }
    return {
        "int": generator.randrange(-(10**12), 10**12),
        "float": generator.gauss(0, 1) * 10.0 ** generator.randrange(-30, 30),
        "word": "".join(generator.choices(string.printable[:95], k=generator.randrange(8))),
        "odd": generator.choice(
            [
                "1e-4",
                "on",
                "0o17",
                "3,4",
                "4",
                "null",
                "",
                "~",
                ".5",
                "5.",
                "010",
                "1_0",
                "2026-01-01",
            ]
        ),
        "bool": generator.random() < 0.5,
        "none": None,
    }[kind]


def test_what_is_dumped_reads_back() -> None:
    generator = random.Random(0)
    for _ in range(200):
        mapping = {"root": _random_value(generator, 3)}
        text = dump_yaml(mapping)
        assert parse_yaml(text) == mapping
        # A reader of YAML 1.1, such as plain PyYAML, sees the same.
        assert yaml.safe_load(text) == mapping
