"""docs/settings.md is what the classes of the settings say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from csg_ray.config.data import DATA_CONFIGS
from csg_ray.config.load import setting_fields
from csg_ray.config.methods import METHOD_CONFIGS
from csg_ray.search_space.domains import SAMPLERS
from csg_ray.search_space.settings import ResourcesConfig, SearchConfig

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "settings_reference.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_the_page_is_what_the_script_writes(script: dict[str, Any]) -> None:
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == script["page"](), "run python scripts/settings_reference.py"


def test_every_setting_is_described(script: dict[str, Any]) -> None:
    assert script["undescribed"]() == []


def test_every_setting_and_every_sampler_is_on_the_page() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    paths = {
        path
        for method in METHOD_CONFIGS
        for data in DATA_CONFIGS
        for path in setting_fields(method, data)
    }
    paths |= {f"search.{name}" for name in SearchConfig.model_fields}
    paths |= {f"resources.{name}" for name in ResourcesConfig.model_fields}
    assert len(paths) > 80
    assert not [path for path in sorted(paths | SAMPLERS.keys()) if f"`{path}`" not in page]


def test_what_may_not_be_searched(script: dict[str, Any]) -> None:
    refused = {
        "data.name": "is the task at which trials are compared",
        "data.protocol": "says on which images trials are compared",
        "data.workers": "changes the speed, not the result",
        "data.cache": "changes the speed, not the result",
        "evaluation.batch_size": "changes the speed, not the result",
        "train.epochs": "is the budget at which trials are compared",
    }
    paths = {
        path
        for method in METHOD_CONFIGS
        for data in DATA_CONFIGS
        for path in setting_fields(method, data)
    }
    found = {path: script["refusal"](path) for path in paths}
    assert {path: reason for path, reason in found.items() if reason} == refused
