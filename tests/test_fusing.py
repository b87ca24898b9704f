"""How many trials one process trains: what is said, what is reckoned, what is measured."""

from __future__ import annotations

from typing import Any

import pytest

from csg_ray.config.errors import UserError
from csg_ray.scale.fusing import choose_count, choose_way, find_fusing, measure_fusing, why_alone
from csg_ray.search_space import SearchSpace, parse_search_space
from small_study import space_mapping


def space_of(
    base: dict[str, Any] | None = None,
    space: dict[str, Any] | None = None,
    resources: dict[str, Any] | None = None,
    **search: Any,
) -> SearchSpace:
    mapping = space_mapping(16, 2, **{"fuse": "auto"} | search)
    mapping["base"] |= base or {}
    if space is not None:
        mapping |= {"space": space, "points_to_evaluate": []}
    return parse_search_space(mapping | {"resources": resources or {}})


MAGNITUDE = {"augment.magnitude": {"uniform": [1, 20]}}
RATE = {"train.learning_rate": {"loguniform": [0.001, 0.1]}}
STEPS = {"train.steps_per_epoch": 5}


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        (space_of(), None),
        (space_of(resources={"workers_per_trial": 2}), "each trial has several workers"),
        (space_of(space=MAGNITUDE), "augment.magnitude is searched, so that trials on CPUs"),
        (space_of(space=MAGNITUDE, resources={"gpus_per_worker": 1}), None),
        (space_of(space={"seed": {"choice": [1, 2]}}), "seed is searched"),
        (
            space_of({"method.name": "asg_l2o"}, RATE, {"gpus_per_worker": 1}),
            "method asg_l2o shares nothing",
        ),
        (space_of({"method.name": "vanilla"}, RATE), None),
    ],
)
def test_auto_is_1_where_nothing_could_be_shared(space: SearchSpace, reason: str | None) -> None:
    why = why_alone(space)
    assert why == reason if reason is None else str(why).startswith(reason)
    if reason is not None:
        fusing = find_fusing(space, most=1)
        assert fusing.count == 1
        assert fusing.reason == f"search.fuse auto: each trial by itself, as {why}"


def test_a_number_on_cpus_needs_no_measurement() -> None:
    fusing = find_fusing(space_of(fuse=4), most=3)
    assert (fusing.count, fusing.way) == (3, "in_turn")


SECONDS: dict[int, dict[str, float]] = {
    2: {"alone": 1.0, "in_turn": 0.8, "stacked": 0.6},
    4: {"alone": 1.1, "in_turn": 0.7, "stacked": 0.4},
    8: {"alone": 0.9, "in_turn": 0.38, "stacked": 0.37},
    16: {"alone": 1.0, "in_turn": 0.01},
}


def test_the_largest_count_that_still_gains() -> None:
    fusing = choose_count(SECONDS.__getitem__, (2, 4, 8, 16))
    assert (fusing.count, fusing.way) == (4, "stacked")
    assert fusing.reason == (
        "search.fuse auto: 4 trials in one process, stacked, 2.5 times as fast as each by itself; "
        "8 would gain less than 10% more"
    )


@pytest.mark.parametrize(
    ("seconds", "counts", "chosen", "why"),
    [
        ({2: {"alone": 1.0, "in_turn": 0.95}}, (2, 4), 1, "as 2 would gain less than 10% more"),
        ({2: {}}, (2, 4), 1, "as twice as many do not fit in memory"),
        ({2: SECONDS[2], 4: {"alone": 1.0}}, (2, 4), 2, "; twice as many do not fit in memory"),
        ({2: SECONDS[2], 4: SECONDS[4]}, (2, 4), 4, "; more are not tried"),
        ({2: {"alone": 1.0, "in_turn": 0.5}}, (2,), 2, ", in turn, 2.0 times as fast as each by"),
    ],
)
def test_where_it_stops(
    seconds: dict[int, dict[str, float]], counts: tuple[int, ...], chosen: int, why: str
) -> None:
    fusing = choose_count(seconds.__getitem__, counts)
    assert fusing.count == chosen
    assert why in fusing.reason


def test_the_faster_way_of_a_given_number() -> None:
    assert choose_way({"alone": 1.0, "in_turn": 0.5, "stacked": 0.6}, 4).way == "in_turn"
    assert choose_way({"alone": 1.0, "in_turn": 0.5, "stacked": 0.4}, 4).way == "stacked"
    assert choose_way({}, 4).way == "in_turn"


@pytest.mark.timeout(120)
def test_it_is_measured_with_the_first_trials() -> None:
    space = space_of(base=STEPS)
    configs = [space.config_for({"method.temperature": t}).model_dump() for t in (0.07, 0.2)]
    fusing = measure_fusing(configs, (2,), 1, 0, auto=True)
    assert fusing.count in (1, 2)
    assert fusing.reason.startswith("search.fuse auto: ")
    assert measure_fusing(configs, (2,), 1, 0, auto=False).count == 2


def test_another_number_is_checked_as_in_a_file() -> None:
    assert space_of().with_fuse(3).search.fuse == 3
    with pytest.raises(UserError, match=r"search\.fuse must be an integer from 1 to 1000 or"):
        space_of().with_fuse(0)
    with pytest.raises(UserError, match="set one of the two to 1"):
        space_of(resources={"workers_per_trial": 2}).with_fuse(2)
