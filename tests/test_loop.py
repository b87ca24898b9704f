from __future__ import annotations

import copy
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from csg_ray.config.data import DataConfig, DigitsConfig
from csg_ray.config.errors import UserError
from csg_ray.config.methods import CSGConfig, VanillaConfig
from csg_ray.config.run import ComputeConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.epoch import train_batches
from csg_ray.data.load import load_splits
from csg_ray.data.loader import Batch
from csg_ray.data.splits import ArraySplit, DomainSplits
from csg_ray.methods.base import StepOutput
from csg_ray.methods.csg import CSG
from csg_ray.methods.vanilla import Vanilla
from csg_ray.metrics import HSE_WORST
from csg_ray.models.precision import float32_products
from csg_ray.seeding import sub_seed
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.training import loop
from csg_ray.training.guard import DivergedError, StepGuard
from csg_ray.training.loop import Metrics, Training, fit
from device_reads import CountReads

SPLIT_METRICS = (
    "mean_class_accuracy",
    "accuracy",
    "hse",
    "hse_power1",
    "hse_power2",
    "hse_distance",
    "hse_duplicates",
    "hse_zero_rows",
    *(f"class_accuracy/{digit}" for digit in range(10)),
)


def _small_splits(config: DataConfig) -> DomainSplits:
    """The digits with 40 target images."""
    splits = load_splits(config)
    target = splits.target_val
    assert isinstance(target, ArraySplit)
    few = ArraySplit(target.name, target.images[:40], target.labels[:40], target.class_names)
    return replace(splits, target_val=few)


@pytest.fixture(autouse=True)
def small_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "load_splits", _small_splits)


def _config(train: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    """Three steps an epoch."""
    settings = {"epochs": 2, "batch_size": 32, "learning_rate": 0.01, **(train or {})}
    data = DigitsConfig(num_train=96, num_val=20)
    return RunConfig(**{"data": data, "train": TrainConfig(**settings), **sections})


def _collect(config: RunConfig, folder: Path | None = None, **options: Any) -> list[Metrics]:
    """The reports of a training; checkpoints go to `folder`, one an epoch."""
    reports: list[Metrics] = []

    def on_epoch_end(metrics: Metrics, save: Callable[[Path], None], _: object) -> None:
        reports.append(metrics)
        if folder is not None:
            save(folder / f"{metrics['epoch']}.pt")
        # A listener may draw random numbers; the training must not notice.
        _draw()

    fit(config, on_epoch_end, **options)
    return reports


def _draw() -> float:
    """The product of one draw from each global generator."""
    return float(torch.rand(())) * random.random() * float(np.random.random())  # noqa: NPY002


TIMES = ("images_per_second", "seconds")


def _timeless(metrics: Metrics) -> Metrics:
    return {name: value for name, value in metrics.items() if name not in TIMES}


def _assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.equal(other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            if key not in TIMES:
                _assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            _assert_equal(left, right)
    else:
        assert one == other


@pytest.mark.timeout(30)
@pytest.mark.parametrize("repeats", [1, 2])
def test_two_epochs_are_one_and_a_restart_and_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeats: int
) -> None:
    own_loss = CSG.training_loss

    def random_loss(method: CSG, batch: Batch) -> StepOutput:
        output = own_loss(method, batch)
        return StepOutput(output.loss * (1 + _draw()), output.logs)

    monkeypatch.setattr(CSG, "training_loss", random_loss)
    straight, restarted = tmp_path / "straight", tmp_path / "restarted"
    straight.mkdir()
    restarted.mkdir()
    # An epoch's 96 keys leave the queue's pointer in its middle.
    config = _config(method=CSGConfig(queue_size=40))
    reports = _collect(config, straight, repeats=repeats)
    again = _collect(config, restarted, repeats=repeats, resume_from=straight / "1.pt")
    assert [report["epoch"] for report in reports] == [1, 2]
    assert [report["epoch"] for report in again] == [2]
    assert _timeless(again[0]) == _timeless(reports[1])
    _assert_equal(load_checkpoint(restarted / "2.pt"), load_checkpoint(straight / "2.pt"))
    # The comparison can fail: an epoch changes weights, momentum, queue and counters.
    with pytest.raises(AssertionError):
        _assert_equal(load_checkpoint(straight / "1.pt"), load_checkpoint(straight / "2.pt"))


def test_every_step_has_its_rate_and_fills_the_queue_and_every_epoch_its_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_loss = CSG.training_loss
    order: list[int] = []

    def watched_loss(method: CSG, batch: Batch) -> StepOutput:
        order.extend(batch.indices.tolist())
        return own_loss(method, batch)

    monkeypatch.setattr(CSG, "training_loss", watched_loss)
    train = {"learning_rate": 0.01, "backbone_lr_mult": 0.5, "warmup_steps": 4, "decay_power": 0.9}
    config = _config(train, method=CSGConfig(queue_size=150, ema_momentum=0.9))
    training = Training(config, _small_splits(config.data), torch.device("cpu"))
    method = training.method
    assert isinstance(method, CSG)
    start = method.ema_projection_heads.get_parameter("4.0.weight").clone()

    # Steps finished before the last one of each epoch: 2 and 5 of 6.
    scales = {1: (0.01 + 0.99 * (2 / 4) ** 2) * (1 - 2 / 6) ** 0.9, 2: (1 - 5 / 6) ** 0.9}
    for epoch, scale in scales.items():
        training.run_epoch(epoch)
        rates = {group["name"]: group["lr"] for group in training.optimizer.param_groups}
        for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"):
            assert rates.pop(name) == pytest.approx(0.01 * 0.5 * scale)
        assert rates == pytest.approx({"head": 0.01 * scale, "projection_heads": 0.01 * scale})
        for queue in method.queues.values():
            assert queue.num_filled == min(150, 96 * epoch)

    averaged = method.ema_projection_heads.get_parameter("4.0.weight")
    assert not averaged.equal(start)
    assert not averaged.equal(method.projection_heads.get_parameter("4.0.weight"))
    first, second = order[:96], order[96:]
    assert sorted(first) == sorted(second) == list(range(96))
    assert first != second


def test_reports_have_the_promised_keys() -> None:
    (report,) = _collect(_config({"epochs": 1}))
    splits = {f"{split}/{key}" for split in ("source_val", "target_val") for key in SPLIT_METRICS}
    rest = {"epoch", "diverged", "workers", *TIMES}
    train = {"train/loss", "train/nce", "train/queue_fill", "train/skipped_steps"}
    assert set(report) == splits | rest | train
    assert all(math.isfinite(value) for value in report.values())
    assert report["images_per_second"] > 0
    # Of the epoch, the 96 images of training are a part.
    assert report["seconds"] > 96 / report["images_per_second"]
    assert report["diverged"] == 0
    assert report["workers"] == 1


def test_vanilla_reports_no_nce() -> None:
    (report,) = _collect(_config({"epochs": 1}, method=VanillaConfig()))
    assert "train/nce" not in report
    assert "train/queue_fill" not in report


@pytest.mark.parametrize("repeats", [1, 2])
def test_divergence_ends_the_training_with_one_finite_report(tmp_path: Path, repeats: int) -> None:
    good = _collect(_config({"epochs": 1}), repeats=repeats)[0]
    train = {"epochs": 5, "learning_rate": 100.0, "backbone_lr_mult": 1.0, "warmup_steps": 0}
    config = _config(train, method=CSGConfig(loss_weight=100.0))
    reports = _collect(config, tmp_path, repeats=repeats)
    assert len(reports) < 5
    last = reports[-1]
    assert [report["diverged"] for report in reports] == [0] * (len(reports) - 1) + [1]
    assert last["epoch"] == len(reports)
    assert set(last) == set(good)
    assert all(math.isfinite(value) for value in last.values())
    assert last["target_val/mean_class_accuracy"] == 0
    assert last["source_val/hse"] == HSE_WORST["hse"]
    assert last["train/loss"] > 1e6
    assert last["train/nce"] > 1e6
    assert last["train/queue_fill"] == 0
    resumed = _collect(config, repeats=repeats, resume_from=tmp_path / f"{len(reports)}.pt")
    assert resumed == []


class Sabotage:
    """Spoils the gradients of chosen steps of every method, and remembers the weights then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float) -> None:
        self.steps, self.value = steps, value
        self.step = 0
        self.weights: list[Tensor] = []
        sabotage = self

        def after_backward(method: Vanilla) -> None:
            sabotage.step += 1
            sabotage.weights.append(method.encoder.get_parameter("conv1.weight").clone())
            if sabotage.step in sabotage.steps:
                gradient = method.encoder.get_parameter("layer1.0.conv1.weight").grad
                assert gradient is not None
                gradient[0, 0, 0, 0] = sabotage.value

        monkeypatch.setattr(Vanilla, "after_backward", after_backward)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e5])
def test_an_unusable_gradient_skips_the_step_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    sabotage = Sabotage(monkeypatch, {2}, value)
    reports = _collect(_config(method=VanillaConfig()))
    assert [report["train/skipped_steps"] for report in reports] == [1, 0]
    assert [report["diverged"] for report in reports] == [0, 0]
    first, second, third, fourth, *_ = sabotage.weights
    assert not second.equal(first)
    assert third.equal(second)
    assert not fourth.equal(third)


def test_as_many_skipped_steps_in_a_row_as_allowed_end_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Steps 2-3, then 5-7: three in a row only across the border of epochs 2 and 3.
    Sabotage(monkeypatch, {2, 3, 5, 6, 7}, math.nan)
    train = {"epochs": 4, "max_skipped_steps": 3}
    reports = _collect(_config(train, method=VanillaConfig()))
    assert [report["diverged"] for report in reports] == [0, 0, 1]


def test_a_row_of_skipped_steps_survives_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config({"max_skipped_steps": 3}, method=VanillaConfig())
    Sabotage(monkeypatch, {2, 3}, math.nan)
    _collect(config.model_copy(), tmp_path)
    Sabotage(monkeypatch, {1}, math.nan)
    (report,) = _collect(config, resume_from=tmp_path / "1.pt")
    assert report["diverged"] == 1


def test_a_non_finite_loss_is_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(method=VanillaConfig())
    training = Training(config, load_splits(config.data), torch.device("cpu"))
    with torch.no_grad():
        training.method.head.get_parameter("2.bias").fill_(math.inf)
    with pytest.raises(DivergedError, match="loss is nan at step 1"):
        training.run_epoch(1)


def test_weights_that_broke_at_the_last_step_are_noticed_before_the_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ruin(method: Vanilla, *_: object) -> None:
        with torch.no_grad():
            method.head.get_parameter("2.bias").fill_(math.nan)

    monkeypatch.setattr(Vanilla, "on_epoch_end", ruin)
    (report,) = _collect(_config(method=VanillaConfig()))
    assert report["diverged"] == 1


def test_repeats_are_the_mean_of_trainings_with_their_own_seeds() -> None:
    config = _config({"epochs": 1}, seed=7)
    (together,) = _collect(config, repeats=2)
    other_seed = sub_seed(7, "repeat/1") % 2**32
    singles = [_collect(config.model_copy(update={"seed": seed}))[0] for seed in (7, other_seed)]
    assert singles[0]["train/loss"] != singles[1]["train/loss"]
    for key in _timeless(singles[0]):
        values = [single[key] for single in singles]
        assert together[key] == pytest.approx(statistics.fmean(values), abs=1e-12), key
    stds = {key: value for key, value in together.items() if key.endswith("_std")}
    assert set(stds) == {
        f"{split}/{key}_std"
        for split in ("source_val", "target_val")
        for key in ("mean_class_accuracy", "hse", "hse_power1", "hse_power2")
    }
    left, right = (single["target_val/hse"] for single in singles)
    assert stds["target_val/hse_std"] == pytest.approx(abs(left - right) / math.sqrt(2))


def test_a_finished_training_has_nothing_left_to_do(tmp_path: Path) -> None:
    config = _config({"epochs": 1})
    _collect(config, tmp_path)
    assert _collect(config, resume_from=tmp_path / "1.pt") == []


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    config = _config({"epochs": 1})
    _collect(config, tmp_path)
    path = tmp_path / "1.pt"
    model = ModelConfig(name="resnet18", weights="none")
    with pytest.raises(UserError, match=r"model.name 'mini' there, 'resnet18' here"):
        fit(config.model_copy(update={"model": model}), _refuse, resume_from=path)
    other = config.model_copy(update={"method": CSGConfig(temperature=0.2)})
    with pytest.raises(UserError, match=r"method.temperature 0.07 there, 0.2 here"):
        fit(other, _refuse, resume_from=path)
    with pytest.raises(UserError, match="repeats 1 there, 2 here"):
        fit(config, _refuse, resume_from=path, repeats=2)
    with pytest.raises(UserError, match="does not exist"):
        fit(config, _refuse, resume_from=tmp_path / "2.pt")


def _refuse(*_: object) -> None:
    raise AssertionError("nothing may be trained")


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size"):
        fit(_config({"batch_size": 97}), _refuse)


def test_training_learns() -> None:
    train = {"epochs": 4, "batch_size": 8, "learning_rate": 0.05, "backbone_lr_mult": 0.1}
    reports = _collect(_config(train, method=VanillaConfig()))
    # Ten classes: a guess costs ln 10 = 2.30.
    assert reports[0]["train/loss"] > 2.2
    assert reports[-1]["train/loss"] < 2.0


@pytest.mark.parametrize("value", [1.0, math.nan])
def test_a_guard_that_is_read_late_changes_no_number(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    Sabotage(monkeypatch, {2, 5}, value)
    config = _config(method=VanillaConfig())
    now = _collect(config)
    late = partial(StepGuard, read_every=50)
    monkeypatch.setattr(
        loop, "StepGuard", lambda norm, row, device, read_every: late(norm, row, device)
    )
    Sabotage(monkeypatch, {2, 5}, value)
    assert [_timeless(report) for report in _collect(config)] == [_timeless(each) for each in now]


def test_a_step_does_not_wait_for_the_device() -> None:
    config = _config()
    training = Training(config, load_splits(config.data), torch.device("cpu"))
    training.guard = StepGuard(1e4, 20, training.device, read_every=50)
    batches = list(train_batches(training.splits.source_train, config, 2, epoch=1))
    with CountReads() as reads:  # type: ignore[no-untyped-call]
        for batch in batches:
            training._train_step(batch)
        assert reads.count == 0
        training.guard.take_skipped(training.step)
        assert reads.count == 1


@pytest.mark.timeout(60)  # many processors emulate bfloat16
def test_in_bfloat16_only_the_maps_are_rounded() -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        config = _config(compute=ComputeConfig(precision=precision))
        training = Training(config, load_splits(config.data), torch.device("cpu"))
        batch = next(iter(train_batches(training.splits.source_train, config, 2, epoch=1)))
        maps = training.method.features(batch.views[0])
        assert maps[4].dtype == torch.float32
        exact = maps[4].equal(maps[4].bfloat16().float())
        assert exact == (precision == "bf16")
        losses[precision] = float(training.method.training_loss(batch).loss.detach())
        training._train_step(batch)
        states = (training.method.state_dict(), training.optimizer.state_dict())
        tensors = [t for state in states for t in _tensors(state)]
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in _tensors(value)]
    if isinstance(state, list | tuple):
        return [tensor for value in state for tensor in _tensors(value)]
    return []


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_products_of_float32_are_what_the_precision_says_and_put_back(precision: Any) -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    with float32_products(precision):
        chosen = {backend.fp32_precision for backend in backends}
    assert chosen == {"tf32" if precision == "tf32" else "ieee"}
    assert [backend.fp32_precision for backend in backends] == before


def test_momentum_lies_in_memory_as_the_weights_do_wherever_it_comes_from(tmp_path: Path) -> None:
    """As from a checkpoint of another `compute.channels_last`: fused SGD walks through memory."""
    config = _config()
    splits = load_splits(config.data)
    straight = Training(config, splits, torch.device("cpu"))
    straight.run_epoch(1)
    state = copy.deepcopy(straight.state_dict())
    for kept in state["optimizer"]["state"].values():
        kept["momentum_buffer"] = kept["momentum_buffer"].contiguous()
    resumed = Training(config, splits, torch.device("cpu"))
    resumed.load_state_dict(state)
    for param, kept in resumed.optimizer.state.items():
        assert kept["momentum_buffer"].stride() == param.stride()
    assert _timeless(resumed.run_epoch(2)) == _timeless(straight.run_epoch(2))
