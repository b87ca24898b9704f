"""Methods and their training where every pixel has a class."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from csg_ray.config.data import DigitScenesConfig
from csg_ray.config.methods import CSGConfig, MethodConfig, VanillaConfig
from csg_ray.config.run import AugmentConfig, EvaluationConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.load import load_splits
from csg_ray.data.loader import Batch
from csg_ray.methods import build_method
from csg_ray.methods.base import Method
from csg_ray.methods.csg import CSG
from csg_ray.storage.checkpoint import load_checkpoint
from csg_ray.training.loop import Metrics, fit
from csg_ray.training.optim import build_optimizer

CLASSES = 11
JITTER = AugmentConfig(implementation="color_jitter")
DENSE = CSGConfig(patch_grid=3, projection_dim=16, queue_size=300)
FROZEN = DENSE.model_copy(update={"train_projection": False})


def _config(method: MethodConfig, **sections: Any) -> RunConfig:
    train = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, **sections.pop("train", {})}
    defaults = {
        "data": DigitScenesConfig(num_train=16, num_val=10),
        "model": ModelConfig(head="fcn"),
        "augment": JITTER,
        "evaluation": EvaluationConfig(batch_size=10),
    }
    return RunConfig(**{**defaults, **sections}, method=method, train=TrainConfig(**train))


def _build(method: MethodConfig, **sections: Any) -> Method:
    return build_method(_config(method, **sections), CLASSES, steps_per_epoch=2)


def _batch(count: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(count, 3, 48, 48, generator=generator) for _ in range(2)]
    labels = torch.randint(0, CLASSES, (count, 48, 48), generator=generator)
    return Batch(tuple(views), labels, torch.arange(count))


def test_the_task_loss_is_the_mean_over_the_pixels_that_count() -> None:
    method = _build(VanillaConfig())
    batch = _batch(2)
    counted = torch.rand(2, 48, 48, generator=torch.Generator().manual_seed(1)) < 0.1
    counted[1] &= torch.arange(48) < 5  # the images count unlike
    labels = torch.where(counted, batch.labels, 255)
    maps = method.features(batch.views[0])
    logits = method.predict(batch.views[0]).detach()
    assert logits.shape == (2, CLASSES, 48, 48)
    losses = [
        -float(logits[image, :, row, column].log_softmax(0)[labels[image, row, column]])
        for image, row, column in counted.nonzero().tolist()
    ]
    assert method.task_loss(maps, labels).item() == pytest.approx(math.fsum(losses) / len(losses))


def test_a_batch_in_which_no_pixel_counts_costs_nothing_and_moves_nothing() -> None:
    method = _build(VanillaConfig())
    batch = _batch(2)
    ignored = Batch(batch.views, torch.full_like(batch.labels, 255), batch.indices)
    output = method.training_loss(ignored)
    assert output.loss.item() == 0
    torch.autograd.backward(output.loss)
    gradients = [param.grad for param in method.parameters() if param.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


def test_an_image_in_which_no_pixel_counts_is_as_if_it_were_not_there() -> None:
    method = _build(VanillaConfig())
    batch = _batch(2)
    labels = batch.labels.clone()
    labels[1] = 255
    alone = Batch(tuple(view[:1] for view in batch.views), batch.labels[:1], batch.indices[:1])
    found = [
        method.training_loss(each).loss.detach()
        for each in (Batch(batch.views, labels, batch.indices), alone)
    ]
    torch.testing.assert_close(found[0], found[1])


def _steps(method: Method, count: int) -> None:
    optimizer = build_optimizer(method, method.config.train)
    for step in range(1, count + 1):
        output = method.training_loss(_batch(seed=step))
        optimizer.zero_grad()
        torch.autograd.backward(output.loss)
        method.after_backward()
        optimizer.step()
        method.after_step(optimizer, step, 10)


def _copies(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("settings", [FROZEN, DENSE])
def test_heads_that_are_not_trained_stay_as_they_were_drawn(settings: CSGConfig) -> None:
    method = _build(settings)
    assert isinstance(method, CSG)
    heads, encoder = _copies(method.projection_heads), _copies(method.encoder)
    groups = [name for name, _, _ in method.parameter_groups()]
    trained = settings.train_projection
    assert ("projection_heads" in groups) is trained
    grouped = {id(param) for _, params, _ in method.parameter_groups() for param in params}
    assert (grouped & {id(param) for param in method.projection_heads.parameters()} != set()) is (
        trained
    )
    _steps(method, 3)
    assert _equal(_copies(method.projection_heads), heads) is not trained
    assert _equal(_copies(method.ema_projection_heads), heads) is not trained
    gradients = [param.grad for param in method.projection_heads.parameters()]
    assert all(gradient is not None for gradient in gradients) is trained
    assert any(gradient is not None for gradient in gradients) is trained
    # The loss reaches the encoder through heads that do not move, too.
    assert not _equal(_copies(method.encoder), encoder)
    assert method.training_loss(_batch()).logs["queue_fill"].item() == pytest.approx(3 * 72 / 300)


def test_heads_that_are_not_trained_start_as_those_that_are() -> None:
    frozen, trained = _build(FROZEN), _build(DENSE)
    assert isinstance(frozen, CSG)
    assert isinstance(trained, CSG)
    assert _equal(_copies(frozen.projection_heads), _copies(trained.projection_heads))
    assert _equal(_copies(frozen.ema_projection_heads), _copies(frozen.projection_heads))
    one, other = (method.training_loss(_batch()).loss for method in (frozen, trained))
    torch.testing.assert_close(one, other)


def test_the_gradient_of_the_encoder_does_not_depend_on_who_trains_the_heads() -> None:
    found = []
    for settings in (FROZEN, DENSE):
        method = _build(settings)
        torch.autograd.backward(method.training_loss(_batch()).loss)
        found.append([param.grad for param in method.encoder.parameters()])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("method", "augment", "views"),
    [
        (DENSE, JITTER, 2),
        (DENSE, AugmentConfig(num_ops=2), 2),
        (DENSE, AugmentConfig(views="shared"), 2),
        (DENSE, AugmentConfig(implementation="color_jitter", num_ops=0), 1),
        (VanillaConfig(), JITTER, 1),
    ],
)
def test_csg_compares_two_views_unless_nothing_is_augmented(
    method: MethodConfig, augment: AugmentConfig, views: int
) -> None:
    assert _build(method, augment=augment).num_views == views


def test_the_task_sees_the_query_and_the_reference_the_key() -> None:
    method = _build(DENSE)
    assert isinstance(method, CSG)
    batch = _batch(2)
    seen: list[Tensor] = []
    method.reference_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    output = method.training_loss(batch)
    assert len(seen) == 1
    assert torch.equal(seen[0], batch.views[1])
    task = method.task_loss(method.features(batch.views[0]), batch.labels)
    torch.testing.assert_close(output.loss, task + 0.1 * output.logs["nce"])


def _collect(config: RunConfig, folder: Path | None = None, **options: Any) -> list[Metrics]:
    reports: list[Metrics] = []

    def on_epoch_end(metrics: Metrics, save: Callable[[Path], None], _: object) -> None:
        reports.append(metrics)
        if folder is not None:
            save(folder / f"{metrics['epoch']}.pt")

    fit(config, on_epoch_end, **options)
    return reports


def _timeless(metrics: Metrics) -> Metrics:
    return {
        name: value
        for name, value in metrics.items()
        if name not in ("images_per_second", "seconds")
    }


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "method", [VanillaConfig(), DENSE, FROZEN], ids=["vanilla", "csg", "frozen"]
)
def test_two_epochs_are_one_and_a_restart_and_one(method: MethodConfig, tmp_path: Path) -> None:
    config = _config(method, train={"steps_per_epoch": 3, "batch_size": 4})
    reports = _collect(config, tmp_path)
    last = load_checkpoint(tmp_path / "2.pt")
    again = _collect(config, tmp_path, resume_from=tmp_path / "1.pt")
    assert [report["epoch"] for report in reports] == [1, 2]
    assert [_timeless(report) for report in again] == [_timeless(reports[1])]
    (state,), (restarted,) = last["repeats"], load_checkpoint(tmp_path / "2.pt")["repeats"]
    assert state["step"] == restarted["step"] == 6
    tensors = {name: x for name, x in state["method"].items() if isinstance(x, Tensor)}
    assert all(torch.equal(restarted["method"][name], x) for name, x in tensors.items())
    for report in reports:
        assert all(map(math.isfinite, report.values()))
        assert {f"target_val/class_iou/{name}" for name in ("background", "0", "9")} < set(report)
    assert reports[0].keys() == reports[1].keys()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("method", [VanillaConfig(), DENSE], ids=["vanilla", "csg"])
def test_training_learns_a_few_scenes(method: MethodConfig) -> None:
    config = _config(
        method,
        data=DigitScenesConfig(num_train=10, num_val=10, min_scale=1, max_scale=1),
        train={"epochs": 4, "batch_size": 5, "steps_per_epoch": 6, "learning_rate": 0.05},
    )
    reports = _collect(config)
    # Eleven classes: a guess costs ln 11 = 2.4, and all background about 1.
    task = [report["train/loss"] - 0.1 * report.get("train/nce", 0) for report in reports]
    assert task[-1] < 0.8 * task[0]
    assert reports[-1]["source_val/accuracy"] > 0.6


def test_the_splits_are_the_tasks(tmp_path: Path) -> None:
    config = _config(VanillaConfig())
    (report, _) = _collect(config)
    splits = load_splits(config.data)
    assert {name.partition("/")[0] for name in report if "/" in name} == {
        "train",
        *(split.name for split in splits.measured),
    }
