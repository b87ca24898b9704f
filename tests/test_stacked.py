"""Lanes that are stacked, against the same lanes in turn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from csg_ray.config.methods import CSGConfig, VanillaConfig
from csg_ray.config.run import AugmentConfig, ModelConfig, RunConfig
from csg_ray.contrastive.negative_queue import NegativeQueue
from csg_ray.training import stacked as stacked_module
from csg_ray.training.lanes import EpochReport, LaneGroup
from csg_ray.training.stacked import _Queue, stack_key
from lanes_alone import assert_same, config_of, differences, end_of, group_of, lane_of
from method_settings import method_config

pytestmark = pytest.mark.timeout(120)


def _close(one: Tensor, other: Tensor) -> bool:
    """Up to float32's rounding (6e-8) through nine steps: kernels add up in another order.

    What one update changes is 1e-4 and more of a weight, so a wrong number anywhere is seen.
    """
    return torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5, equal_nan=True)


def _csg(train: dict[str, Any] | None = None, seed: int = 0, **settings: Any) -> RunConfig:
    return config_of(train, seed=seed, method=CSGConfig(**{"queue_size": 10, **settings}))


def _unlike(form: str) -> dict[str, RunConfig]:
    """Lanes that differ in all that they may."""
    sgd: dict[str, Any] = {"sgd_form": form}
    other = {"learning_rate": 0.02, "momentum": 0.5, "weight_decay": 0.01, "decay_power": 0.5}
    return {
        "published": _csg(sgd),
        "loss": _csg(sgd, loss_weight=2.0, temperature=0.3, ema_momentum=0.5),
        "sgd": _csg(sgd | other | {"backbone_lr_mult": 1.0, "warmup_steps": 0}),
        "images": _csg(sgd, seed=3).model_copy(update={"augment": AugmentConfig(magnitude=15)}),
    }


SAME_IMAGES = {
    "published": _csg(queue_size=5, projection_dim=16),
    "loss": _csg(queue_size=5, projection_dim=16, loss_weight=2.0, ema_momentum=0.0),
}
GROUPS = {
    "unlike": _unlike("pytorch"),
    "lr_in_buffer": _unlike("lr_in_buffer"),
    "same_images": SAME_IMAGES,
    "random_heads": {
        name: _csg(train_projection=False, temperature=t)
        for name, t in {"one": 0.07, "other": 0.5}.items()
    },
    "no_momentum": {"one": _csg({"momentum": 0.0}), "other": _csg({"momentum": 0.0}, seed=1)},
    "one_view": {
        name: config_of(
            method=CSGConfig(queue_size=10, loss_weight=w),
            augment=AugmentConfig(views="shared"),
            seed=s,
        )
        for name, w, s in (("one", 0.1, 0), ("other", 1.0, 1))
    },
    "vanilla": {
        name: config_of({"learning_rate": rate}, method=VanillaConfig(), seed=seed)
        for name, rate, seed in (("one", 0.01, 0), ("other", 0.05, 1))
    },
}


def _stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the stacks that are made."""
    sizes: list[int] = []
    make = stacked_module._Stack.__init__

    def noted(stack: Any, trainings: Any) -> None:
        sizes.append(len(trainings))
        make(stack, trainings)

    monkeypatch.setattr(stacked_module._Stack, "__init__", noted)
    return sizes


def _assert_close(stack: Any, turns: Any) -> None:
    (metrics, checkpoint), (expected, expected_checkpoint) = stack, turns
    # What is measured on ten images may jump.
    for each in (metrics, expected, checkpoint["metrics"], expected_checkpoint["metrics"]):
        for name in [name for name in each if "_val/" in name]:
            del each[name]
    assert list(differences(metrics, expected, _close)) == []
    assert list(differences(checkpoint, expected_checkpoint, _close)) == []


@pytest.mark.parametrize("name", GROUPS)
def test_an_epoch_is_that_of_the_lanes_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sizes = _stacks(monkeypatch)
    turns, stack = (
        group_of({key: lane_of(config) for key, config in GROUPS[name].items()}, how)
        for how in ("in_turn", "stacked")
    )
    ahead = next(iter(GROUPS[name]))
    for group in (turns, stack):  # lanes may be at different epochs
        group.run_epoch([ahead])
    expected, found = turns.run_epoch(), stack.run_epoch()
    assert sizes == [len(GROUPS[name])]
    for key in GROUPS[name]:
        _assert_close(end_of(found[key], tmp_path), end_of(expected[key], tmp_path))
    # The comparison can fail: another step would not be close.
    moved = turns.run_epoch()[ahead]
    with pytest.raises(AssertionError):
        _assert_close(end_of(found[ahead], tmp_path), end_of(moved, tmp_path))


def test_one_that_skips_steps_and_those_that_diverge_leave_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = _stacks(monkeypatch)
    skips = {"max_gradient_norm": 1e-9}
    configs = {
        "good": _csg(),
        "infinite": _csg(temperature=0.5),
        "skips": _csg(skips),
        "too_often": _csg(skips | {"max_skipped_steps": 2}),
    }
    groups = []
    for how in ("in_turn", "stacked"):
        lanes = {name: lane_of(config) for name, config in configs.items()}
        with torch.no_grad():
            bias = lanes["infinite"].trainings[0].method.head.get_parameter("2.bias")
            bias.fill_(math.inf)
        groups.append((lanes, group_of(lanes, how).run_epoch()))
    (lanes, turns), (stacked_lanes, stack) = groups
    assert sizes == [4]
    for name in ("good", "skips"):
        _assert_close(end_of(stack[name], tmp_path), end_of(turns[name], tmp_path))
    for name in ("infinite", "too_often"):
        found, expected = stack[name], turns[name]
        assert isinstance(found, EpochReport)
        assert isinstance(expected, EpochReport)
        assert_same(found.metrics, expected.metrics)
        assert found.metrics["diverged"] == 1
        assert stacked_lanes[name].finished
        assert stacked_lanes[name].trainings[0].step == lanes[name].trainings[0].step


def test_when_the_joint_step_fails_the_lanes_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = stacked_module._Stack.step

    def fail(stack: Any, batch: Any) -> None:
        step(stack, batch)
        if stack.step_number == 2:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(stacked_module._Stack, "step", fail)
    turns, stack = (
        group_of({name: lane_of(config) for name, config in SAME_IMAGES.items()}, how).run_epoch()
        for how in ("in_turn", "stacked")
    )
    assert "2 trainings cannot be stacked, and take turns: out of memory" in caplog.text
    for name in SAME_IMAGES:
        assert_same(end_of(stack[name], tmp_path), end_of(turns[name], tmp_path))


def test_repeats_are_stacked_and_what_is_unlike_takes_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = _stacks(monkeypatch)

    def group(how: Any) -> LaneGroup:
        two = lane_of(_csg(), repeats=2)
        return group_of({"two": two, "plain": lane_of(config_of(method=VanillaConfig()))}, how)

    turns, stack = group("in_turn").run_epoch(), group("stacked").run_epoch()
    assert sizes == [2]
    assert_same(end_of(stack["plain"], tmp_path), end_of(turns["plain"], tmp_path))
    _assert_close(end_of(stack["two"], tmp_path), end_of(turns["two"], tmp_path))


def _key(config: RunConfig) -> Any:
    group = LaneGroup()
    for name, each in {"it": config, "published": _csg()}.items():
        group.add(name, lane_of(each))
    it, published = (stack_key(lane.trainings[0]) for lane in group._lanes.values())
    return it, it == published


@pytest.mark.parametrize(
    ("config", "alike"),
    [
        (_csg({"learning_rate": 0.5}, temperature=1.0), True),
        (_csg(stages="4"), False),
        (_csg(queue_size=11), False),
        (_csg({"batch_size": 12}), False),
        (_csg({"sgd_form": "lr_in_buffer"}), False),
        (config_of(method=CSGConfig(queue_size=10), model=ModelConfig(weights="none")), False),
        (config_of(method=VanillaConfig()), False),
    ],
)
def test_what_is_alike(config: RunConfig, alike: bool) -> None:
    key, same = _key(config)
    assert key is not None
    assert same == alike


@pytest.mark.parametrize(
    "config",
    [
        config_of(method=method_config("asg")),
        config_of(model=ModelConfig(freeze_batch_norm=False)),
    ],
)
def test_what_is_never_stacked(config: RunConfig) -> None:
    assert _key(config)[0] is None


@pytest.mark.parametrize("size", [3, 7, 8])
def test_queues_in_a_stack_are_queues(size: int) -> None:
    plain = [NegativeQueue(2, size, seed) for seed in range(3)]
    plain[1].enqueue(torch.rand(5, 2))
    queue = _Queue(
        torch.stack([each.keys for each in plain]),
        torch.tensor([each.pointer for each in plain]),
        torch.tensor([each.num_filled for each in plain]),
    )
    generator = torch.Generator().manual_seed(0)
    for accepted in ([True, True, True], [True, False, True], [False, True, True]):
        keys = torch.rand(3, 5, 2, generator=generator)
        queue = queue.enqueue(keys, torch.tensor(accepted))
        for each, own, accepts in zip(plain, keys, accepted, strict=True):
            if accepts:
                each.enqueue(own)
    for k, each in enumerate(plain):
        assert queue.keys[k].equal(each.keys)
        numbers = int(queue.pointers[k]), int(queue.num_filled[k])
        assert numbers == (each.pointer, each.num_filled)
