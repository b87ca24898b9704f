"""The plan of a study: what fits, how many at a time, what never fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from csg_ray.config.errors import UserError
from csg_ray.methods import build_method
from csg_ray.scale.resources import check_weights, checkpoint_bytes, plan
from csg_ray.search_space import SearchSpace, parse_search_space
from csg_ray.training.checkpoint import save_checkpoint
from csg_ray.training.optim import build_optimizer


def make_space(base: dict[str, Any] | None = None, **sections: Any) -> SearchSpace:
    mapping: dict[str, Any] = {
        "study": "s",
        "base": {"method.name": "csg", "train.epochs": 9} | (base or {}),
        "space": {"method.temperature": {"loguniform": [0.02, 0.5]}},
        "search": {"metric": "target_val/hse", "mode": "min", "num_trials": 100},
    }
    return parse_search_space(mapping | sections)


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "concurrent"),
    [
        ({}, 2, 0, 2),
        ({"cpus_per_worker": 2}, 5, 0, 2),
        ({"gpus_per_worker": 1}, 16, 4, 4),
        ({"gpus_per_worker": 1}, 3, 4, 3),
        ({"gpus_per_worker": 2}, 16, 5, 2),
        ({"gpus_per_worker": 0.25}, 16, 2, 8),
        ({"gpus_per_worker": 0.4}, 16, 2, 4),  # two on each, not five on both
        ({"gpus_per_worker": 0.1}, 64, 3, 30),
    ],
)
def test_trials_at_a_time(
    resources: dict[str, Any], cpus: float, gpus: float, concurrent: int
) -> None:
    assert plan(make_space(resources=resources), cpus, gpus).concurrent == concurrent


def test_trials_and_a_limit_bound_it_too() -> None:
    search = {"metric": "target_val/hse", "mode": "min", "num_trials": 3}
    assert plan(make_space(search=search), 16, 0).concurrent == 3
    assert plan(make_space(search=search | {"max_concurrent": 2}), 16, 0).concurrent == 2


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        ({"cpus_per_worker": 8}, r"resources\.cpus_per_worker is 8, but there are 2 CPUs in all"),
        ({"gpus_per_worker": 0.5}, r"resources\.gpus_per_worker is 0\.5, but there are 0 GPUs"),
        ({"workers_per_trial": 2}, "trials over several workers are not in this version"),
    ],
)
def test_what_never_fits_is_refused_with_the_numbers(
    resources: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        plan(make_space(resources=resources), 2, 0)


@pytest.mark.parametrize(
    ("search", "cpus", "checkpoints"),
    [
        ({}, 4, 3 * 3 + 4 + 4),  # the best by three rules, at work, being written
        ({"keep_checkpoints": 5}, 4, 3 * 5 + 4 + 4),
        ({"objectives": [{"metric": "source_val/hse", "mode": "min"}]}, 4, 4 * 3 + 4 + 4),
        ({"objectives": [{"metric": "target_val/hse", "mode": "min"}]}, 4, 3 * 3 + 4 + 4),
        ({"num_trials": 5}, 4, 5 + 4),  # no more than there are trials
    ],
)
def test_disk_holds_the_best_and_those_at_work(
    search: dict[str, Any], cpus: float, checkpoints: int
) -> None:
    goal = {} if "objectives" in search else {"metric": "target_val/hse", "mode": "min"}
    layout = plan(make_space(search={"num_trials": 100} | goal | search), cpus, 0)
    assert layout.disk_bytes == checkpoints * layout.checkpoint_bytes_per_trial


@pytest.mark.parametrize("method", ["csg", "vanilla"])
def test_checkpoints_are_of_the_planned_size(method: str, tmp_path: Path) -> None:
    space = {"train.learning_rate": {"loguniform": [0.01, 0.1]}}
    config = make_space({"method.name": method}, space=space).config_for(
        {"train.learning_rate": 0.1}
    )
    model = build_method(config, num_classes=10, steps_per_epoch=62)
    optimizer = build_optimizer(model, config.train)
    for parameter in model.parameters():
        if parameter.requires_grad:
            optimizer.state[parameter]["momentum_buffer"] = parameter.detach().clone()
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"method": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert 0.85 < checkpoint_bytes(config) / path.stat().st_size < 1.15


def test_weights_of_every_model_in_the_space_are_tried(tmp_path: Path) -> None:
    space = {"model.weights": {"choice": ["bundled", str(tmp_path / "missing.pt")]}}
    with pytest.raises(UserError, match=r"missing\.pt"):
        check_weights(make_space(space=space))
