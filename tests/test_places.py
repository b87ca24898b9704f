"""A study and a run find their files from wherever they go on."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml

from csg_ray.cli import main
from csg_ray.cli.running import start_run
from csg_ray.cli.spread import Spread
from csg_ray.config.data import DATA_CONFIGS
from csg_ray.config.errors import UserError
from csg_ray.config.load import load_config, override_config, setting_fields, with_absolute_paths
from csg_ray.config.methods import METHOD_CONFIGS
from csg_ray.config.places import PLACES, absolute
from csg_ray.config.reader import dump_yaml
from csg_ray.config.run import RunConfig
from csg_ray.search_space import SearchSpace, load_search_space, parse_search_space

FOLDERS = {"data.name": "image_folder", "data.source": "PACS/sketch", "data.target": "/PACS/photo"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("setting", "value", "found"),
    [
        ("data.source", "PACS", "{}/PACS"),
        ("data.source", "/data/PACS", "/data/PACS"),
        ("data.source", "~/PACS", "~/PACS"),
        ("data.source", "auto", "{}/auto"),
        ("data.lists", None, None),
        ("data.cache", "auto", "auto"),
        ("data.cache", "off", "off"),
        ("data.cache", "cache", "{}/cache"),
        ("model.weights", "bundled", "bundled"),
        ("model.weights", "w.pt", "{}/w.pt"),
        ("method.start", "runs/csg", "{}/runs/csg"),
        ("method.start", "~/runs/csg", "~/runs/csg"),
        ("method.start", "s3://bucket/runs/csg", "s3://bucket/runs/csg"),
        ("method.stages", "3,4", "3,4"),
    ],
)
def test_relative_paths_become_absolute(setting: str, value: Any, found: Any, here: Path) -> None:
    wanted = found.format(here) if isinstance(found, str) else found
    assert absolute(setting, value) == wanted


def test_every_free_text_is_a_place() -> None:
    texts = {
        path
        for name in DATA_CONFIGS
        for method in METHOD_CONFIGS
        for path, field in setting_fields(method, name).items()
        if field.annotation is str or str in get_args(field.annotation)
    }
    assert texts - {"method.stages", "method.grids"} == set(PLACES)


def test_a_study_keeps_absolute_paths_wherever_they_stand(here: Path) -> None:
    branches: dict[str, Any] = {
        "csg": {"space": {"data.lists": {"choice": ["lists", "/l"]}}},
        "vanilla": {"space": {}},
    }
    space = parse_search_space(
        {
            "study": "s",
            "base": {path: v for path, v in FOLDERS.items() if path != "data.source"},
            "space": {
                "method.name": {"choice": branches},
                "data.source": {"choice": ["PACS/sketch", "/PACS/art"]},
                "train.learning_rate": {"uniform": [0.1, 0.2]},
            },
            "points_to_evaluate": [
                {"method.name": "vanilla", "data.source": "PACS/sketch", "train.learning_rate": 0.1}
            ],
            "search": {"metric": "target_val/hse", "mode": "min"},
        }
    )

    found = space.with_absolute_paths()

    sketch = f"{here}/PACS/sketch"
    mapping = found.to_mapping()
    assert mapping["base"]["data.target"] == "/PACS/photo"
    assert mapping["space"]["data.source"] == {"choice": [sketch, "/PACS/art"]}
    branch = mapping["space"]["method.name"]["choice"]["csg"]["space"]
    assert branch["data.lists"] == {"choice": [f"{here}/lists", "/l"]}
    assert found.first_point()["data.source"] == sketch
    # And it is still a legal study, which reads back as itself.
    assert parse_search_space(mapping).to_mapping() == mapping
    assert found.with_absolute_paths() == found


SPACE: dict[str, Any] = {
    "study": "pets",
    "base": FOLDERS,
    "space": {"method.temperature": {"loguniform": [0.02, 0.5]}},
    "search": {"metric": "target_val/hse", "mode": "min"},
}


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the room that needs Ray: notes what is begun and what goes on, and ends."""
    room = SimpleNamespace(begun=[], restored=[])

    def run_study(space: SearchSpace, *_: object) -> None:
        room.begun.append(space)
        raise UserError("that is enough")

    def restore_study(directory: Path, *_: object) -> None:
        room.restored.append(directory)
        raise UserError("that is enough")

    tuner = SimpleNamespace(run_study=run_study, restore_study=restore_study)
    monkeypatch.setitem(sys.modules, "csg_ray.scale.tuner", tuner)
    monkeypatch.setattr("csg_ray.cli.searching.prepare_study", lambda _: None)
    Path("pets.yaml").write_text(dump_yaml(SPACE))
    return room


@pytest.mark.parametrize("words", [[], ["--resume"]])
def test_a_search_begins_with_absolute_paths(
    scale: SimpleNamespace, words: list[str], here: Path
) -> None:
    assert main(["search", "pets.yaml", *words]) == 2

    (space,) = scale.begun
    assert space.first_config().data.source == f"{here}/PACS/sketch"


@pytest.mark.parametrize("written_relative", [False, True])
def test_the_same_search_goes_on_with_what_it_began(
    scale: SimpleNamespace, written_relative: bool, here: Path
) -> None:
    space = load_search_space(Path("pets.yaml"))
    begun = space if written_relative else space.with_absolute_paths()
    header = {"format": 1, "csg_ray": "0.1.0", "space": begun.to_mapping(), "provenance": {}}
    study = Path("studies/pets")
    (study / "trials").mkdir(parents=True)
    (study / "study.yaml").write_text(yaml.safe_dump(header))

    assert main(["search", "pets.yaml", "--resume"]) == 2
    assert scale.restored == [study]

    assert main(["search", "pets.yaml", "--resume", "--set", "data.source=other"]) == 2
    assert scale.restored == [study]  # those would be other images


def test_a_run_is_begun_with_absolute_paths(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Path] = []
    monkeypatch.setattr("csg_ray.cli.running._run", lambda directory, *_: ran.append(directory))
    monkeypatch.setattr("csg_ray.cli.running.prepare_run", lambda *_, **__: None)
    monkeypatch.setattr("csg_ray.cli.running._provenance", lambda _: {})
    Path("pets.yaml").write_text(dump_yaml(FOLDERS | {"data.cache": "cache"}))

    start_run(Path("pets.yaml"), Path("out"), Path(), Spread(), verbose=False)

    (directory,) = ran
    written = load_config(directory / "run.yaml")
    begun = override_config(
        RunConfig(),
        FOLDERS | {"data.cache": f"{here}/cache", "data.source": f"{here}/PACS/sketch"},
    )
    assert written == begun
    assert with_absolute_paths(written) == written
