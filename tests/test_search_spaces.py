"""The search spaces that are shipped: their first trials are the settings that were published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from csg_ray.config.load import get_setting
from csg_ray.config.run import RunConfig
from csg_ray.scale.suggestions import Suggestions
from csg_ray.search_space import load_search_space
from csg_ray.search_space.domains import grid_size

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "search_spaces").glob("*.yaml"))
TABLES = sorted((ROOT / "search_spaces" / "paper").glob("*.yaml"))
# What the five searched settings are in the paper; M drives RandAugment with N = 1.
FIVE = {
    "method.name": "csg",
    "method.temperature": 0.07,
    "method.stages": "3,4",
    "method.ema_momentum": 0.999,
    "augment.implementation": "authors",
    "augment.num_ops": 1,
    "augment.magnitude": 6,
}
VISDA17 = FIVE | {
    "data.name": "visda17",
    "seed": 0,
    "data.image_size": 224,
    "model.name": "resnet101",
    "model.weights": "imagenet",
    "model.norm": "batch",
    "model.head": "mlp",
    "model.head_width": 512,
    "model.freeze_batch_norm": True,
    "model.train_batch_norm_affine": True,
    "method.loss_weight": 0.1,
    "method.projection_dim": 128,
    "method.train_projection": True,
    "method.queue_size": 65536,
    "method.pooling": "attention",
    "method.patch_grid": 1,
    "augment.translate": "pixels",
    "augment.views": "independent",
    "train.epochs": 30,
    "train.batch_size": 32,
    "train.steps_per_epoch": "auto",
    "train.learning_rate": 1e-4,
    "train.backbone_lr_mult": 0.1,
    "train.momentum": 0.9,
    "train.weight_decay": 5e-4,
    "train.warmup_steps": 100,
    "train.decay_power": 0.9,
    "train.decay_floor": 0.0,
    "evaluation.flip": True,
}
# Of both forms; they differ in the projection heads and in the keys' colours.
GTA5 = {
    "data.name": "gta5_cityscapes",
    "seed": 0,
    "data.source_list": "train",
    "data.image_size": 512,
    "data.min_scale": 0.75,
    "data.max_scale": 1.25,
    "data.flip": True,
    "data.max_side": None,
    "model.name": "resnet50",
    "model.weights": "imagenet",
    "model.norm": "batch",
    "model.head": "aspp_v3",
    "model.freeze_batch_norm": True,
    "model.train_batch_norm_affine": False,
    "method.name": "csg",
    "method.loss_weight": 75.0,
    "method.temperature": 0.07,
    "method.stages": "3,4",
    "method.ema_momentum": 0.999,
    "method.projection_dim": 128,
    "method.queue_size": 65536,
    "method.pooling": "attention",
    "method.patch_grid": 8,
    "train.epochs": 50,
    "train.steps_per_epoch": 2000,
    "train.batch_size": 6,
    "train.learning_rate": 1e-3,
    "train.backbone_lr_mult": 0.1,
    "train.momentum": 0.9,
    "train.weight_decay": 5e-4,
    "train.warmup_steps": 100,
    "train.decay_power": 0.9,
    "train.decay_floor": 0.0,
    "evaluation.flip": False,
    "evaluation.window": None,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "visda17": VISDA17,
    "gta5_cityscapes_published": GTA5
    | {
        "method.train_projection": False,
        "augment.implementation": "color_jitter",
        "augment.jitter": 0.4,
    },
    "gta5_cityscapes": GTA5 | FIVE | {"method.train_projection": True},
    "methods": FIVE | {"data.name": "digits", "method.loss_weight": 0.1},
    "pacs": FIVE | {"data.name": "image_folder", "method.loss_weight": 0.1},
    "digits": FIVE | {"data.name": "digits", "method.loss_weight": 0.1},
    "digit_scenes": FIVE | {"data.name": "digit_scenes", "method.loss_weight": 0.1},
    "digits_vanilla": {"data.name": "digits", "method.name": "vanilla", "augment.magnitude": 6},
}
SEGMENTATION = ("digit_scenes", "gta5_cityscapes", "gta5_cityscapes_published")


def test_every_file_has_its_published_values_written_down() -> None:
    assert {file.stem for file in FILES} == set(PUBLISHED)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_first_trial_is_as_published(file: Path) -> None:
    space = load_search_space(file)

    assert space.points_to_evaluate, "the published settings come first"
    config = space.first_config()
    wanted = PUBLISHED[file.stem]
    assert {path: get_setting(config, path) for path in wanted} == wanted


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_that_a_file_names_is_without_effect(file: Path) -> None:
    space = load_search_space(file)

    inert = space.first_config().inert_settings()
    named = set(space.base) | set(space.space)
    assert not named & inert.keys()


def _rows(file: Path) -> list[RunConfig]:
    """The configuration of every trial of a grid."""
    space = load_search_space(file)
    suggestions = Suggestions(space)
    asked = [suggestions.ask() for _ in range(space.search.num_trials)]
    assert suggestions.ask() is None
    return [space.config_for(each.params) for each in asked if each is not None]


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_a_table_trains_its_whole_grid_at_full_budget(file: Path) -> None:
    space = load_search_space(file)
    rows = _rows(file)

    assert (space.search.sampler, space.search.scheduler) == ("grid", "none")
    assert len(rows) == grid_size(space.space) == len(set(rows))
    on_digits = space.data_name in ("digits", "digit_scenes")
    # The paper has one seed, and the choice of strengths spends no more.
    several = on_digits and file.stem != "strengths"
    assert space.search.repeats == (3 if several else 1)
    assert f"`{file.name}`" in (ROOT / "README.md").read_text(encoding="utf-8")
    # What a file fixes for all has an effect in some row, and a branch's on every row of it.
    for path in space.base:
        assert any(path not in row.inert_settings() for row in rows), path
    for row in rows:
        assert not space.branch(row.method.name).base.keys() & row.inert_settings().keys()
    if not on_digits:
        assert row.data.model_dump()["protocol"] == "published"


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_tables_of_visda17_hold_the_published_csg(number: int) -> None:
    rows = _rows(ROOT / "search_spaces" / "paper" / f"table{number}_visda17.yaml")

    wanted = {path: value for path, value in VISDA17.items() if path != "train.sgd_form"}
    found = [row for row in rows if row.method.name == "csg"]
    same = [row for row in found if {path: get_setting(row, path) for path in wanted} == wanted]
    assert len(same) == 1


def test_the_other_methods_of_table_1_are_as_their_authors_trained_them() -> None:
    rows = _rows(ROOT / "search_spaces" / "paper" / "table1_visda17.yaml")
    plain: dict[str, RunConfig] = {
        str(row.method.name): row for row in rows if row.augment.num_ops == 0
    }

    vanilla = {
        path: value
        for path, value in VISDA17.items()
        if path.startswith(("train.", "model.", "data.", "evaluation."))
    } | {"train.decay_floor": 0.2}  # ASG's schedule
    for name in ("vanilla", "oracle", "weight_l2", "synaptic_intelligence", "feature_l2", "asg"):
        assert {path: get_setting(plain[name], path) for path in vanilla} == vanilla, name
    assert get_setting(plain["asg"], "method.loss_weight") == 0.1
    learned = plain["asg_l2o"].train
    assert (learned.backbone_lr_mult, learned.warmup_steps, learned.decay_power) == (1, 0, 0)


def test_the_rows_of_segmentation_are_as_their_authors_trained_them() -> None:
    rows = _rows(ROOT / "search_spaces" / "paper" / "table5_gta5_cityscapes.yaml")

    assert {(row.method.name, row.model.name) for row in rows} == {
        (method, model)
        for method in ("vanilla", "asg", "csg")
        for model in ("resnet50", "resnet101")
    }
    wanted = PUBLISHED["gta5_cityscapes_published"]
    csg = [row for row in rows if row.method.name == "csg" and row.model.name == "resnet50"]
    assert {path: get_setting(csg[0], path) for path in wanted} == wanted
    asg = next(row for row in rows if row.method.name == "asg")
    assert get_setting(asg, "method.loss_weight") == 75
    assert asg.train.decay_floor == 0.2


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_selects_by_the_score_of_its_task_and_stands_in_the_readme(file: Path) -> None:
    space = load_search_space(file)

    score = "mean_iou" if file.stem in SEGMENTATION else "mean_class_accuracy"
    assert [goal.metric for goal in space.objectives] == [f"target_val/{score}"]
    assert f"`{file.name}`" in (ROOT / "README.md").read_text(encoding="utf-8")
