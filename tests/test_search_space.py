from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from csg_ray.config import RunConfig, UserError, override_config
from csg_ray.config.reader import dump_yaml, parse_yaml
from csg_ray.search_space import (
    METRICS,
    Choice,
    Domain,
    Float,
    Integer,
    Objective,
    ResourcesConfig,
    SearchConfig,
    load_search_space,
    parse_override,
    parse_search_space,
)
from csg_ray.search_space.domains import Branch

DIGITS = Path(__file__).parents[1] / "search_spaces" / "digits.yaml"
BRANCHES = {
    "csg": {"space": {"method.temperature": {"loguniform": [0.02, 0.5]}}},
    "vanilla": {"space": {"train.learning_rate": {"loguniform": [0.001, 0.1]}}},
}

CLASS_METRICS = [metric for metric in METRICS if not metric.endswith("mean_iou")]


def _mapping(**changes: Any) -> dict[str, Any]:
    """A small legal file with some of its keys changed."""
    mapping: dict[str, Any] = {
        "study": "small",
        "base": {"train.epochs": 4},
        "space": {
            "method.temperature": {"loguniform": [0.02, 0.5]},
            "augment.magnitude": {"randint": [0, 25]},
            "method.stages": {"choice": ["4", "3,4"]},
        },
        "search": {"metric": "target_val/mean_class_accuracy", "mode": "max"},
    }
    return copy.deepcopy(mapping | changes)


def _search(**changes: Any) -> dict[str, Any]:
    return {"metric": "target_val/mean_class_accuracy", "mode": "max"} | changes


def test_the_shipped_study() -> None:
    space = load_search_space(DIGITS)
    assert space.study == "digits"
    assert space.space == {
        "method.loss_weight": Float(0.01, 10.0, log=True),
        "method.temperature": Float(0.02, 0.5, log=True),
        "augment.magnitude": Integer(0, 24),
        "method.stages": Choice(("4", "3,4", "2,3,4", "1,2,3,4")),
        "method.ema_momentum": Choice((0.9, 0.99, 0.999, 0.9999)),
    }
    published = override_config(
        RunConfig(),
        {
            "augment.translate": "fraction",
            **{path: space.base[path] for path in space.base if path.startswith("train.")},
        },
    )
    assert space.config_for(space.points_to_evaluate[0]) == published
    assert space.objectives == (Objective(metric="target_val/mean_class_accuracy", mode="max"),)
    assert space.resources == ResourcesConfig()


def test_samplers() -> None:
    space = parse_search_space(
        _mapping(
            space={
                "method.loss_weight": {"uniform": [0, 1]},
                "method.temperature": {"loguniform": [1e-2, 1]},
                "method.ema_momentum": {"quniform": [0.5, 1, 0.1]},
                "augment.magnitude": {"randint": [0, 25]},
                "method.projection_dim": {"lograndint": [16, 257]},
                "method.stages": {"choice": [4, "4, 3"]},
                "augment.translate": {"choice": ["pixels", "fraction"]},
            }
        )
    )
    assert space.space == {
        "method.loss_weight": Float(0.0, 1.0),
        "method.temperature": Float(0.01, 1.0, log=True),
        "method.ema_momentum": Float(0.5, 1.0, step=0.1),
        "augment.magnitude": Integer(0, 24),
        "method.projection_dim": Integer(16, 256, log=True),
        "method.stages": Choice(("4", "3,4")),
        "augment.translate": Choice(("pixels", "fraction")),
    }
    assert space.to_mapping()["space"]["augment.magnitude"] == {"randint": [0, 25]}
    assert space.to_mapping()["space"]["method.ema_momentum"] == {"quniform": [0.5, 1.0, 0.1]}


def test_config_for_sets_base_and_parameters_alone() -> None:
    space = parse_search_space(_mapping())
    config = space.config_for({"method.temperature": 0.3, "augment.magnitude": 11})
    expected = RunConfig().model_dump()
    expected["train"]["epochs"] = 4
    expected["method"]["temperature"] = 0.3
    expected["augment"]["magnitude"] = 11.0
    assert config.model_dump() == expected


def test_branches_bring_their_own_settings() -> None:
    point = {"method.name": "vanilla", "train.learning_rate": 0.01, "augment.magnitude": 6}
    space = parse_search_space(
        _mapping(
            # A fixed setting of one method is left out for the others.
            base={"method.patch_grid": 2},
            space={
                "method.name": {"choice": BRANCHES},
                "augment.magnitude": {"randint": [0, 25]},
                "augment.views": {"choice": ["independent", "shared"]},
            },
            points_to_evaluate=[point | {"augment.views": "shared"}],
        )
    )
    top = {"method.name", "augment.magnitude", "augment.views"}
    assert set(space.active_domains({"method.name": "csg"})) == top | {"method.temperature"}
    assert set(space.active_domains({"method.name": "vanilla"})) == top | {"train.learning_rate"}
    assert space.config_for(space.first_point()).method.name == "vanilla"
    config = space.config_for({"method.name": "csg", "method.temperature": 0.2})
    assert config == override_config(
        RunConfig(), {"method.patch_grid": 2, "method.temperature": 0.2}
    )
    assert parse_search_space(space.to_mapping()) == space


def test_a_branch_fixes_settings_of_its_own() -> None:
    branches: dict[str, Any] = {
        "vanilla": {"base": {"train": {"decay_floor": 0.2}}},
        "csg": {"base": {"method.stages": "4"}, "space": BRANCHES["csg"]["space"]},
    }
    space = parse_search_space(
        _mapping(
            base={"method.stages": "3", "train.decay_floor": 0.1},
            space={"method.name": {"choice": branches}},
        )
    )
    vanilla = space.config_for({"method.name": "vanilla"})
    assert vanilla.train.decay_floor == 0.2
    csg = space.config_for({"method.name": "csg", "method.temperature": 0.2})
    assert csg.train.decay_floor == 0.1
    assert csg == override_config(
        RunConfig(),
        {"train.decay_floor": 0.1, "method.stages": "4", "method.temperature": 0.2},
    )
    assert space.methods == ("vanilla", "csg")
    assert parse_search_space(space.to_mapping()) == space


def test_methods_with_settings_that_have_no_default_are_searched() -> None:
    base = {"train.steps_per_epoch": 3}
    starts = {"method.start": {"choice": ["runs/a", "runs/b"]}}
    names = {"choice": ["cbst", "mrkld"]}
    space = parse_search_space(_mapping(base=base, space={"method.name": names} | starts))
    assert space.first_config().method.model_dump()["start"] == "runs/a"
    branches = {"cbst": {"base": {"method.start": "runs/a"}}, "csg": {}}
    other = parse_search_space(_mapping(base=base, space={"method.name": {"choice": branches}}))
    assert other.config_for({"method.name": "cbst"}).method.model_dump()["start"] == "runs/a"
    assert other.config_for({"method.name": "csg"}).method.name == "csg"
    assert len(other.notes) == 1


def test_an_empty_branch_and_a_plain_choice_of_methods() -> None:
    space = parse_search_space(
        _mapping(space={"method.name": {"choice": {"csg": None, "vanilla": {}}}})
    )
    assert space.space == {
        "method.name": Choice(("csg", "vanilla"), {"csg": Branch(), "vanilla": Branch()})
    }
    plain = parse_search_space(_mapping(space={"method.name": {"choice": ["csg", "vanilla"]}}))
    assert plain.space == {"method.name": Choice(("csg", "vanilla"))}
    assert parse_search_space(space.to_mapping()) == space
    assert parse_search_space(plain.to_mapping()) == plain


def test_first_point_without_points_is_complete() -> None:
    space = parse_search_space(_mapping(space={"method.name": {"choice": BRANCHES}}))
    assert space.first_point() == {"method.name": "csg", "method.temperature": 0.02}


def test_objectives() -> None:
    objectives = [
        {"metric": "target_val/mean_class_accuracy", "mode": "max"},
        {"metric": "target_val/hse", "mode": "min"},
    ]
    space = parse_search_space(_mapping(search={"objectives": objectives, "sampler": "nsga2"}))
    assert [objective.model_dump() for objective in space.objectives] == objectives
    single = parse_search_space(_mapping(search=_search(sampler="nsga2")))
    assert len(single.objectives) == 1
    assert parse_search_space(space.to_mapping()) == space


def test_every_listed_metric_is_legal() -> None:
    for metric in CLASS_METRICS:
        space = parse_search_space(_mapping(search={"metric": metric, "mode": "min"}))
        assert space.objectives[0].metric == metric


def test_with_num_trials_changes_that_alone() -> None:
    space = load_search_space(DIGITS)
    more = space.with_num_trials(40)
    assert more.search.num_trials == 40
    assert more.with_num_trials(space.search.num_trials) == space


@pytest.mark.parametrize(
    ("trials", "sentence"),
    [
        (0, "search.num_trials must be an integer from 1 to 1000000, not 0"),
        (2_000_000, "search.num_trials must be an integer from 1 to 1000000, not 2000000"),
    ],
)
def test_with_num_trials_refuses_what_a_file_could_not_say(trials: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_search_space(DIGITS).with_num_trials(trials)


def test_with_num_trials_keeps_room_for_the_points() -> None:
    points = [
        {"augment.magnitude": m, "method.stages": "4", "method.temperature": 0.5} for m in (1, 2)
    ]
    space = parse_search_space(_mapping(points_to_evaluate=points))
    with pytest.raises(UserError, match=r"holds 2 points, more than search\.num_trials 1"):
        space.with_num_trials(1)


def test_points_are_held_as_the_sampler_draws_them() -> None:
    point = {"augment.magnitude": 6, "method.stages": 4, "method.temperature": 0.5}
    space = parse_search_space(_mapping(points_to_evaluate=[point]))
    assert space.points_to_evaluate == (
        {"method.temperature": 0.5, "augment.magnitude": 6, "method.stages": "4"},
    )
    nested = {"method": {"temperature": 0.5, "stages": "4"}, "augment.magnitude": 6}
    assert parse_search_space(_mapping(points_to_evaluate=[nested])) == space


def test_what_touches_an_inert_value_is_no_mistake() -> None:
    legal: list[dict[str, Any]] = [
        # lambda 0 makes tau inert; the rest of the range does not.
        {"method.loss_weight": {"uniform": [0, 1]}, "method.temperature": {"uniform": [0.1, 1]}},
        {"augment.num_ops": {"choice": [0, 1]}, "augment.magnitude": {"randint": [0, 25]}},
        # Two conditions at once: only the last pair lets attention_from matter.
        {
            "method.loss_weight": {"choice": [0, 1.0]},
            "method.pooling": {"choice": ["mean", "attention"]},
            "method.attention_from": {"choice": ["encoder", "self"]},
        },
        # Inert under vanilla, not under csg.
        {
            "method.name": {"choice": ["vanilla", "csg"]},
            "augment.views": {"choice": ["independent", "shared"]},
        },
        # Each legal only with the other: bundled weights exist for mini alone.
        {
            "model.name": {"choice": ["resnet18", "resnet50"]},
            "model.weights": {"choice": ["imagenet", "none"]},
        },
    ]
    for space in legal:
        assert set(parse_search_space(_mapping(space=space)).space) == set(space)


def test_a_long_grace_period_matters_to_asha_only() -> None:
    parse_search_space(_mapping(search=_search(grace_period=5, scheduler="none")))


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("train.learning_rate=1e-3", "train.learning_rate", 0.001),
        ("method.stages=3,4", "method.stages", "3,4"),
        ("model.weights=a=b.pt", "model.weights", "a=b.pt"),
        ("search.scheduler=none", "search.scheduler", "none"),
        ("model.freeze_batch_norm=false", "model.freeze_batch_norm", False),
        (" seed = 5", "seed", 5),
        ("search.max_concurrent=", "search.max_concurrent", None),
    ],
)
def test_parse_override(text: str, path: str, value: Any) -> None:
    parsed = parse_override(text)
    assert parsed == (path, value)
    assert type(parsed[1]) is type(value)


def test_overrides_go_to_their_sections() -> None:
    space = load_search_space(
        DIGITS,
        {
            "train.epochs": 2,
            "train.batch_size": 64,
            "seed": 3,
            "study": "short",
            "search.num_trials": 4,
            "search.scheduler": "none",
            "resources.cpus_per_worker": 2,
        },
    )
    before = load_search_space(DIGITS)
    assert space.base == before.base | {"train.epochs": 2, "train.batch_size": 64, "seed": 3}
    assert space.study == "short"
    assert space.search == before.search.model_copy(update={"num_trials": 4, "scheduler": "none"})
    assert space.resources == ResourcesConfig(cpus_per_worker=2)
    assert space.space == before.space


def _random_domain(generator: random.Random, path: str) -> dict[str, Any]:
    low = round(generator.uniform(0.001, 0.4), 4)
    high = round(generator.uniform(0.41, 0.99), 4)
    step = generator.choice([0.1, 0.25, 0.05])
    ranges: list[dict[str, Any]] = [
        {"uniform": [low, high]},
        {"loguniform": [low, high]},
        {"quniform": [step, step * generator.randrange(2, 4), step]},
        {"choice": sorted({low, high, 0.405})},
    ]
    integers: list[dict[str, Any]] = [
        {"randint": [generator.randrange(1, 9), generator.randrange(11, 25)]},
        {"lograndint": [generator.randrange(1, 9), generator.randrange(11, 25)]},
        {"choice": generator.sample(range(1, 25), 3)},
    ]
    choices: dict[str, list[dict[str, Any]]] = {
        "method.stages": [{"choice": generator.sample(["4", 3, "3,4", "4,2", "1,2,3,4"], 3)}],
        "augment.views": [{"choice": ["shared", "independent"]}],
        "augment.magnitude": integers,
        "train.batch_size": integers,
    }
    return generator.choice(choices.get(path, ranges))


def _draw(generator: random.Random, domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return generator.choice(domain.values)
    if isinstance(domain, Integer):
        return generator.randint(domain.low, domain.high)
    if domain.step is not None:
        steps = round((domain.high - domain.low) / domain.step)
        return domain.low + domain.step * generator.randint(0, steps)
    return generator.uniform(domain.low, domain.high)


def _random_mapping(generator: random.Random) -> dict[str, Any]:
    csg = ["method.loss_weight", "method.temperature", "method.ema_momentum", "method.stages"]
    shared = ["augment.magnitude", "train.learning_rate", "train.batch_size", "augment.views"]
    method = {
        path: _random_domain(generator, path)
        for path in generator.sample(csg, generator.randint(1, 4))
    }
    space = {
        path: _random_domain(generator, path)
        for path in generator.sample(shared, generator.randint(1, 4))
    }
    if generator.random() < 0.5:
        space |= {"method.name": {"choice": {"csg": {"space": method}, "vanilla": {}}}}
    else:
        space |= method
    search: dict[str, Any] = {
        "num_trials": generator.randint(9, 99),
        "seed": generator.randrange(9),
    }
    if generator.random() < 0.5:
        search |= {"metric": generator.choice(CLASS_METRICS), "mode": "min"}
    else:
        metrics = generator.sample(CLASS_METRICS, generator.randint(1, 3))
        search |= {"objectives": [{"metric": metric, "mode": "max"} for metric in metrics]}
    return _mapping(space=space, search=search, resources={"gpus_per_worker": 0.5})


def test_to_mapping_round_trips() -> None:
    generator = random.Random(0)
    for _ in range(20):
        mapping = _random_mapping(generator)
        space = parse_search_space(mapping)
        for _ in range(generator.randrange(4)):
            point = {path: _draw(generator, domain) for path, domain in space.space.items()}
            for path, domain in space.active_domains(point).items():
                point.setdefault(path, _draw(generator, domain))
            if point not in mapping.setdefault("points_to_evaluate", []):
                mapping["points_to_evaluate"].append(point)
        space = parse_search_space(mapping)
        plain = space.to_mapping()
        assert parse_search_space(plain) == space
        assert parse_search_space(plain).to_mapping() == plain
        assert parse_search_space(parse_yaml(dump_yaml(plain))) == space
        assert parse_search_space(yaml.safe_load(yaml.safe_dump(plain))) == space
        assert len(plain["points_to_evaluate"]) == len(mapping.get("points_to_evaluate", []))


def test_domains_hold_what_they_draw() -> None:
    generator = random.Random(1)
    for _ in range(100):
        path = generator.choice(["method.loss_weight", "augment.magnitude", "method.stages"])
        mapping = _mapping(space={path: _random_domain(generator, path)})
        domain = parse_search_space(mapping).space[path]
        assert all(domain.contains(_draw(generator, domain)) for _ in range(20))
        assert all(domain.contains(end) for end in domain.ends())
        assert not domain.contains(1e6)
        assert not domain.contains(True)
        assert not domain.contains(None)


def test_search_defaults() -> None:
    search = parse_search_space(_mapping()).search
    assert search == SearchConfig(metric="target_val/mean_class_accuracy", mode="max")
    assert (search.sampler, search.scheduler, search.grace_period) == ("tpe", "asha", 1)
    assert (search.reduction_factor, search.repeats, search.max_concurrent) == (3, 1, None)
