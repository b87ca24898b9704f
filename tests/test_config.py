from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import yaml

import csg_ray.config
from csg_ray.config import RunConfig, UserError, load_config, override_config
from csg_ray.config.load import (
    config_to_mapping,
    flatten_settings,
    get_setting,
    installed_version,
    setting_fields,
)
from csg_ray.config.methods import METHOD_CONFIGS, CSGConfig, VanillaConfig
from csg_ray.config.reader import dump_yaml
from csg_ray.config.run import ModelConfig, TrainConfig
from method_settings import method_config

METHOD_NAMES = ", ".join(METHOD_CONFIGS)


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(dump_yaml(content))
    return path


def test_published_defaults() -> None:
    method = RunConfig().method
    assert isinstance(method, CSGConfig)
    assert (method.loss_weight, method.temperature, method.ema_momentum) == (0.1, 0.07, 0.999)
    assert method.stage_numbers() == (3, 4)
    assert RunConfig().augment.magnitude == 6


def test_every_path_is_a_field_and_every_field_a_path() -> None:
    for method in METHOD_CONFIGS:
        train = TrainConfig(steps_per_epoch=3)
        config = RunConfig(method=method_config(method), train=train)
        assert flatten_settings(config.model_dump()) == {
            path: get_setting(config, path) for path in setting_fields(method, "digits")
        }


def test_override_changes_that_setting_alone() -> None:
    before = RunConfig()
    after = override_config(before, {"method.temperature": 0.5, "train.epochs": 3, "seed": 7})
    expected = before.model_dump()
    expected["method"]["temperature"] = 0.5
    expected["train"]["epochs"] = 3
    expected["seed"] = 7
    assert after.model_dump() == expected
    assert before == RunConfig()


@pytest.mark.parametrize(
    ("path", "given", "held"),
    [
        ("augment.magnitude", 6, 6.0),
        ("method.stages", 4, "4"),
        ("method.stages", "4, 3", "3,4"),
        ("method.queue_size", 128, 128),
        ("method.queue_size", "auto", "auto"),
        ("train.warmup_steps", 0, 0),
    ],
)
def test_accepted_spellings(path: str, given: Any, held: Any) -> None:
    value = get_setting(override_config(RunConfig(), {path: given}), path)
    assert value == held
    assert type(value) is type(held)


def test_another_method_drops_the_old_settings() -> None:
    csg = override_config(RunConfig(), {"method.temperature": 0.5})
    vanilla = override_config(csg, {"method.name": "vanilla", "train.epochs": 2})
    assert vanilla.method == VanillaConfig()
    back = override_config(vanilla, {"method.name": "csg", "method.loss_weight": 2})
    assert back.method == CSGConfig(loss_weight=2.0)
    assert back.train.epochs == 2


def test_the_same_method_keeps_its_settings() -> None:
    csg = override_config(RunConfig(), {"method.temperature": 0.5})
    same = override_config(csg, {"method.name": "csg", "method.stages": "4"})
    assert same.method == CSGConfig(temperature=0.5, stages="4")


BAD_OVERRIDES: list[tuple[dict[Any, Any], str]] = [
    (
        {"method.temprature": 0.1},
        "unknown setting 'method.temprature': did you mean 'method.temperature'?",
    ),
    ({"trian.epochs": 1}, "unknown setting 'trian.epochs': did you mean 'train.epochs'?"),
    ({"epochs": 1}, "unknown setting 'epochs': did you mean 'train.epochs'?"),
    (
        {"zzz": 1},
        "unknown setting 'zzz': allowed are "
        "seed, data.*, model.*, method.*, augment.*, train.*, compute.*, evaluation.*",
    ),
    ({5: 1}, "unknown setting '5': allowed are seed"),
    ({"augment": {}}, "'augment' is a group of settings; name one of augment.implementation, "),
    ({"method.name": "cgs"}, f"method.name must be one of {METHOD_NAMES}, not 'cgs'"),
    ({"method.name": ["csg"]}, f"method.name must be one of {METHOD_NAMES}, not ['csg']"),
    (
        {"method.name": "vanilla", "method.temperature": 0.1},
        "method.temperature is a setting of method csg, but method.name is vanilla; "
        "remove it, or set method.name to csg",
    ),
    ({"method.temperature": -1}, "method.temperature must be a number > 0 and <= 100, not -1"),
    (
        {"method.temperature": "0.1"},
        "method.temperature must be a number > 0 and <= 100, not '0.1'",
    ),
    ({"method.temperature": True}, "method.temperature must be a number > 0 and <= 100, not true"),
    ({"method.temperature": None}, "method.temperature must be a number > 0 and <= 100, not null"),
    ({"train.learning_rate": float("nan")}, "train.learning_rate must be a number > 0 and <= 100"),
    ({"train.momentum": 1.0}, "train.momentum must be a number >= 0 and < 1, not 1.0"),
    ({"train.max_gradient_norm": float("inf")}, "must be a number > 0, not inf"),
    ({"augment.magnitude": "6"}, "augment.magnitude must be a number from 0 to 30, not '6'"),
    ({"train.epochs": True}, "train.epochs must be an integer from 1 to 100000, not true"),
    ({"train.epochs": 3.0}, "train.epochs must be an integer from 1 to 100000, not 3.0"),
    ({"train.epochs": 0}, "train.epochs must be an integer from 1 to 100000, not 0"),
    ({"train.epochs": {"a": 1}}, "train.epochs must be an integer from 1 to 100000, not {'a': 1}"),
    ({"method.queue_size": 0}, "method.queue_size must be an integer >= 1 or 'auto', not 0"),
    ({"train.warmup_steps": "many"}, "must be an integer >= 0 or 'auto', not 'many'"),
    ({"model.freeze_batch_norm": 1}, "model.freeze_batch_norm must be true or false, not 1"),
    ({"model.weights": 3}, "model.weights must be text, not 3"),
    (
        {"data.name": "visda"},
        "data.name must be one of digits, digit_scenes, image_folder, visda17, gta5_cityscapes",
    ),
    ({"augment.views": "both"}, "augment.views must be one of independent, shared, not 'both'"),
    ({"method.stages": "3,5"}, "method.stages must be different stages out of 1, 2, 3, 4"),
    ({"method.stages": [3, 4]}, "method.stages must be stage numbers such as '3,4', not [3, 4]"),
    ({"method.stages": True}, "method.stages must be stage numbers such as '3,4', not True"),
    ({"model.name": "resnet18"}, "set model.weights to imagenet, none, or the path of a file"),
]


@pytest.mark.parametrize(
    ("overrides", "sentence"), BAD_OVERRIDES, ids=lambda value: str(value)[:40]
)
def test_bad_overrides_are_one_sentence(overrides: dict[Any, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        override_config(RunConfig(), overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(UserError) as caught:
        override_config(RunConfig(), {"train.epochs": ["x" * 1000] * 1000})
    assert len(str(caught.value)) < 700


def test_a_file_reads_back(tmp_path: Path) -> None:
    config = override_config(
        RunConfig(), {"method.temperature": 1e-05, "method.stages": "4", "model.weights": "1e5"}
    )
    mapping = config_to_mapping(config)
    assert mapping["csg_ray"] == installed_version()
    assert load_config(_write(tmp_path / "run.yaml", mapping)) == config
    mapping["provenance"] = {"study": "digits", "anything": [1, {"at": "all"}]}
    assert load_config(_write(tmp_path / "run.yaml", mapping)) == config


def test_a_short_file_takes_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train:\n  learning_rate: 1e-2\naugment.magnitude: 12\n")
    expected = override_config(RunConfig(), {"train.learning_rate": 0.01, "augment.magnitude": 12})
    assert load_config(str(path)) == expected


@pytest.mark.parametrize("version", ["0.0.1", "0.1.0", "0.1", "0.1.0.post1"])
def test_files_of_this_version_and_older_ones_load(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csg_ray.config.load.installed_version", lambda: "0.1.0")
    assert load_config(_write(tmp_path / "run.yaml", {"csg_ray": version})) == RunConfig()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"csg_ray": "0.1.1"},
            "written by csg_ray 0.1.1, newer than the installed 0.1.0; update csg_ray",
        ),
        ({"csg_ray": "0.10.0"}, "newer than the installed 0.1.0"),
        ({"csg_ray": "1"}, "newer than the installed 0.1.0"),
        # A newer version may hold settings that this one does not know: the version comes first.
        ({"csg_ray": "9.0", "unheard": 1}, "newer than the installed 0.1.0"),
        ({"csg_ray": 0.2}, "csg_ray must be a version such as '0.1.0', not 0.2"),
        ({"csg_ray": "new"}, "csg_ray must be a version such as '0.1.0', not 'new'"),
        ({"study": "digits"}, "unknown setting 'study'"),
        (
            {"study": "digits", "space": {}},
            "a search space, not a run; start it with csg-ray search",
        ),
        ({"train": None}, "train must be a mapping of settings, not null"),
        ({"train": 5}, "train must be a mapping of settings, not 5"),
        ({"train": {"epoch": 5}}, "unknown setting 'train.epoch': did you mean 'train.epochs'?"),
        ({"train": {"epochs": "5"}}, "train.epochs must be an integer from 1 to 100000, not '5'"),
        ({"train": {"epochs": 5}, "train.epochs": 6}, "train.epochs is given twice"),
        (
            {"provenance": {}, "method": {"name": "asg?"}},
            f"method.name must be one of {METHOD_NAMES}",
        ),
    ],
    ids=str,
)
def test_bad_files_name_the_file(
    content: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csg_ray.config.load.installed_version", lambda: "0.1.0")
    path = _write(tmp_path / "run.yaml", content)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert sentence in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "absent.yaml")
    twice = tmp_path / "twice.yaml"
    twice.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(UserError, match="line 2: the key 'seed' stands twice"):
        load_config(twice)


def test_version_of_a_source_tree_is_that_of_pyproject(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("csg_ray.config.load.version", absent)
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'version = "{installed_version.__wrapped__()}"' in text


def test_plain_yaml_reads_an_exported_file_too(tmp_path: Path) -> None:
    path = _write(tmp_path / "run.yaml", config_to_mapping(RunConfig()))
    assert yaml.safe_load(path.read_text()) == config_to_mapping(RunConfig())


def test_inert_settings_are_those_that_change_nothing() -> None:
    # hse_max_images too, as a number below the images of a split takes a part of them.
    assert set(RunConfig().inert_settings()) == {"augment.jitter", "evaluation.window"}
    linear = RunConfig(model=ModelConfig(head="linear"))
    assert linear.inert_settings()["model.head_width"] == "model.head is linear"


def test_unknown_attribute_of_the_package() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        csg_ray.config.nothing  # noqa: B018 - the look-up is what is tested


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import csg_ray.config", ["torch", "ray", "optuna", "pydantic", "yaml"]),
        (
            "import csg_ray.config.load, csg_ray.search_space as s;"
            "s.load_search_space('search_spaces/digits.yaml')",
            ["torch", "ray", "optuna", "numpy", "pandas"],
        ),
    ],
)
def test_heavy_imports_stay_out(code: str, absent: list[str]) -> None:
    check = f"import sys; {code}; print([m for m in {absent} if m in sys.modules])"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
