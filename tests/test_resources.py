"""The plan of a study: what fits, how many at a time, what never fits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from csg_ray.config.data import DigitsConfig, ImageFolderConfig
from csg_ray.config.errors import UserError
from csg_ray.methods import build_method
from csg_ray.scale.cluster import Cluster, Node
from csg_ray.scale.resources import (
    DRIVER_BYTES,
    FOLLOWER_BYTES,
    Workers,
    check_models,
    check_workers,
    checkpoint_bytes,
    cpus_for_loaders,
    plan,
)
from csg_ray.search_space import SearchSpace, parse_search_space
from csg_ray.storage.checkpoint import save_checkpoint
from csg_ray.training.optim import build_optimizer

SCENES = {"data.name": "digit_scenes", "model.head": "fcn"}


def make_space(base: dict[str, Any] | None = None, **sections: Any) -> SearchSpace:
    mapping: dict[str, Any] = {
        "study": "s",
        "base": {"method.name": "csg", "train.epochs": 9} | (base or {}),
        "space": {"method.temperature": {"loguniform": [0.02, 0.5]}},
        "search": {"metric": "target_val/hse", "mode": "min", "num_trials": 100},
    }
    return parse_search_space(mapping | sections)


def machine(cpus: float, gpus: float = 0) -> Cluster:
    return Cluster((Node(cpus, gpus),))


def machines(*nodes: tuple[float, float]) -> Cluster:
    return Cluster(tuple(Node(*node) for node in nodes), "the cluster at 10.0.0.1:6379", True)


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
        ({"workers_per_trial": 2}, 2, 0, 1),
        ({"workers_per_trial": 2}, 5, 0, 2),
        ({"workers_per_trial": 4, "gpus_per_worker": 1}, 64, 10, 2),
    ],
)
def test_trials_at_a_time(
    resources: dict[str, Any], cpus: float, gpus: float, concurrent: int
) -> None:
    assert plan(make_space(resources=resources), machine(cpus, gpus)).concurrent == concurrent


@pytest.mark.parametrize(
    ("resources", "nodes", "concurrent"),
    [
        ({"cpus_per_worker": 2}, [(3, 0), (3, 0), (1, 0)], 2),  # not three on seven CPUs
        ({"gpus_per_worker": 1}, [(4, 0), (8, 1), (8, 1)], 2),  # none on the head
        ({"workers_per_trial": 2}, [(1, 0), (1, 0), (1, 0)], 1),  # across machines
        ({"workers_per_trial": 2, "gpus_per_worker": 2}, [(8, 3), (8, 3)], 1),
    ],
)
def test_a_worker_is_never_spread_over_two_machines(
    resources: dict[str, Any], nodes: list[tuple[float, float]], concurrent: int
) -> None:
    assert plan(make_space(resources=resources), machines(*nodes)).concurrent == concurrent


def test_what_steers_a_nested_trial_is_counted_too() -> None:
    nested = make_space(resources={"workers_per_trial": 2})
    assert plan(nested, Cluster((Node(64, 0, 3.5 * DRIVER_BYTES),))).concurrent == 3
    with pytest.raises(UserError, match="takes 1 GiB of memory to steer, which no machine"):
        plan(nested, Cluster((Node(64, 0, 0.5 * DRIVER_BYTES),)))


def test_trials_and_a_limit_bound_it_too() -> None:
    search = {"metric": "target_val/hse", "mode": "min", "num_trials": 3}
    assert plan(make_space(search=search), machine(16)).concurrent == 3
    assert plan(make_space(search=search | {"max_concurrent": 2}), machine(16)).concurrent == 2


@pytest.mark.parametrize(
    ("search", "cpus", "processes", "fuse", "concurrent"),
    [
        ({"fuse": 4}, 2, 2, 4, 8),
        ({"fuse": 4, "max_concurrent": 6}, 2, 2, 3, 6),
        ({"fuse": 4, "max_concurrent": 2}, 4, 2, 1, 2),
        ({"fuse": 4, "num_trials": 5}, 2, 2, 3, 5),
        ({"fuse": 4, "num_trials": 1}, 2, 1, 1, 1),
        ({"fuse": 1}, 2, 2, 1, 2),
        ({"fuse": "auto"}, 1, 1, 16, 16),
    ],
)
def test_trials_in_one_process_multiply_those_at_a_time(
    search: dict[str, Any], cpus: int, processes: int, fuse: int, concurrent: int
) -> None:
    goal = {"metric": "target_val/hse", "mode": "min", "num_trials": 100}
    layout = plan(make_space(search=goal | search), machine(cpus))
    assert (layout.processes, layout.fuse, layout.concurrent) == (processes, fuse, concurrent)


def test_what_follows_a_fused_trial_takes_memory() -> None:
    goal = {"metric": "target_val/hse", "mode": "min", "num_trials": 100, "fuse": 8}
    little = Cluster((Node(2, 0, 5.5 * FOLLOWER_BYTES),))
    assert plan(make_space(search=goal), little).concurrent == 5
    none = Cluster((Node(2, 0, 0),))
    layout = plan(make_space(search=goal), none)
    assert (layout.fuse, layout.concurrent) == (1, 2)


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        (
            {"cpus_per_worker": 8},
            "resources.cpus_per_worker is 8, but this machine has 2 CPUs, so no worker can ever "
            "start; set it to at most 2",
        ),
        (
            {"gpus_per_worker": 0.5},
            "resources.gpus_per_worker is 0.5, but this machine has 0 GPUs, so no worker can ever "
            "start; set it to at most 0",
        ),
        (
            {"workers_per_trial": 3},
            "resources.workers_per_trial is 3, but this machine holds 2 workers of 1 CPU and 0 "
            "GPU, so no trial can ever start; set it to at most 2",
        ),
        (
            {"workers_per_trial": 2, "gpus_per_worker": 0.5},
            "resources.gpus_per_worker must be whole when resources.workers_per_trial is 2, not "
            "0.5: two workers of a trial on one GPU cannot exchange gradients; set it to 1, or "
            "workers_per_trial to 1",
        ),
    ],
)
def test_what_never_fits_is_refused_with_the_numbers(
    resources: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        plan(make_space(resources=resources), machine(2))
    assert str(caught.value) == sentence


def test_a_batch_has_an_image_for_every_worker() -> None:
    base = {"train.batch_size": 4}
    with pytest.raises(UserError, match=r"more than the 4 images of train\.batch_size"):
        plan(make_space(base, resources={"workers_per_trial": 8}), machine(16))
    searched = {"train.batch_size": {"choice": [2, 64]}}
    with pytest.raises(UserError, match=r"more than the 2 images of train\.batch_size"):
        plan(make_space(space=searched, resources={"workers_per_trial": 8}), machine(16))


@pytest.mark.parametrize(
    ("workers", "cluster", "sentence"),
    [
        ((4, 4, 1, 0), machine(2), "--workers is 4, but this machine holds 2 workers of 1 CPU"),
        ((4, 3, 1, 0), machine(2), "--min-workers is 3, but this machine holds 2 workers"),
        ((2, 2, 1, 1), machine(2), "--gpus-per-worker is 1, but this machine has 0 GPUs, so no"),
        (
            (1, 1, 3, 0),
            machines((2, 0), (2, 0)),
            "data.workers is 3, but the cluster at 10.0.0.1:6379 has 2 CPUs on any one machine",
        ),
        ((64, 1, 1, 0), machine(2), "--workers is 64, more than the 32 images of train.batch_size"),
    ],
)
def test_a_run_that_could_never_start_is_refused(
    workers: tuple[int, int, int, int], cluster: Cluster, sentence: str
) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_workers(Workers(*workers), 32, cluster)


def test_an_elastic_run_may_ask_for_more_than_there_is_now() -> None:
    check_workers(Workers(16, 2, 1, 0), 32, machine(2))


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
    layout = plan(make_space(search={"num_trials": 100} | goal | search), machine(cpus))
    assert layout.disk_bytes == checkpoints * layout.checkpoint_bytes_per_trial


@pytest.mark.parametrize(
    "base",
    [
        {"method.name": "csg"},
        {"method.name": "vanilla"},
        SCENES | {"method.patch_grid": 3},
        SCENES | {"model.head": "deeplabv2", "method.name": "vanilla"},
        SCENES | {"model.head": "aspp_v3", "method.name": "vanilla"},
    ],
)
def test_checkpoints_are_of_the_planned_size(base: dict[str, Any], tmp_path: Path) -> None:
    space = {"train.learning_rate": {"loguniform": [0.01, 0.1]}}
    config = make_space(base, space=space).config_for({"train.learning_rate": 0.1})
    steps = (62, 31)[config.data.task == "segmentation"]
    model = build_method(config, num_classes=11, steps_per_epoch=steps)
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
        check_models(make_space(space=space))


STAGES = {"method.stages": {"choice": ["4", "3,4"]}}


@pytest.mark.parametrize(
    ("base", "space"),
    [
        ({"method.patch_grid": 4}, STAGES),
        ({}, {"method.patch_grid": {"choice": [3, 4]}}),
        (
            {"method.patch_grid": 6, "data.image_size": 48},
            {"data.min_scale": {"uniform": [0.8, 1]}},
        ),
        ({"method.patch_grid": 3}, {"data.image_size": {"choice": [48, 40]}}),
        ({"method.patch_grid": 3}, STAGES),
        # The maps of stage 1 are larger, and 4 divides them.
        ({"method.patch_grid": 4}, {"method.stages": {"choice": ["1", "1,4"]}}),
        (
            {},
            {
                "method.name": {
                    "choice": {
                        "vanilla": {"space": {}},
                        "csg": {"space": {"method.patch_grid": {"choice": [1, 4]}}},
                    }
                },
                "train.learning_rate": {"uniform": [0.1, 0.2]},
            },
        ),
    ],
)
def test_every_grid_of_patches_in_the_space_is_tried(
    base: dict[str, Any], space: dict[str, Any]
) -> None:
    """Against plain division: stages 2 to 4 have an eighth of the crop's side."""
    mapping = {"study": "s", "base": SCENES | base, "space": space}
    if "method.name" not in space:
        mapping["base"] = SCENES | base | {"method.name": "csg"}
    goal = {"search": {"metric": "target_val/hse", "mode": "min"}}
    searched = parse_search_space(mapping | goal)

    def values(path: str, default: Any) -> list[Any]:
        branches = space.get("method.name", {}).get("choice", {}).get("csg", {}).get("space", {})
        domain = (space | branches).get(path)
        return domain["choice"] if domain else [base.get(path, default)]

    fits = all(
        stage == "1" or size // 8 % grid == 0
        for size in values("data.image_size", 48)
        for grid in values("method.patch_grid", 1)
        for stages in values("method.stages", "3,4")
        for stage in stages.split(",")
    )
    if fits:
        check_models(searched)
    else:
        with pytest.raises(UserError, match="which does not divide maps of"):
            check_models(searched)


@pytest.mark.parametrize(
    ("workers", "gpus", "nodes", "cpus"),
    [
        (3, 1, [(8, 1)], 3),
        (0, 1, [(8, 1)], 1),
        ("auto", 0, [(8, 1)], 1),
        ("auto", 1, [(8, 0), (32, 4)], 8),
        ("auto", 2, [(32, 4)], 16),
        ("auto", 1, [(96, 8), (16, 2)], 8),
        ("auto", 1, [(64, 1)], 17),
        ("auto", 1, [(1, 2)], 1),
        ("auto", 2, [(8, 1)], 1),  # refused later, as it fits nowhere
    ],
)
def test_a_gpu_comes_with_its_share_of_processors(
    workers: Any, gpus: int, nodes: list[tuple[int, int]], cpus: int
) -> None:
    cluster = Cluster(tuple(Node(*node) for node in nodes))
    files = ImageFolderConfig(source="-", target="-", workers=workers)
    assert cpus_for_loaders(files, gpus, cluster) == cpus
    if workers == "auto":
        assert cpus_for_loaders(DigitsConfig(), gpus, cluster) == 1
