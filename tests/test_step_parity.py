from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from csg_ray.config.data import DataConfig, DigitScenesConfig, DigitsConfig
from csg_ray.config.methods import CSGConfig
from csg_ray.config.run import AugmentConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.loader import Batch
from csg_ray.methods.csg import CSG
from csg_ray.models.deeplab import build_segmentation_head, upsample
from plain_csg import PlainCSG, segmentation_loss

BATCH = 4
NUM_CLASSES = 10
STEPS = 3
# Moves the weights, and keeps the untrained network where a plain softmax does not underflow.
LEARNING_RATE = 0.01


SCENES = DigitScenesConfig(image_size=32)


def _build(settings: CSGConfig, views: str, data: DataConfig) -> CSG:
    """A method in float64, its encoder away from the reference as in mid-training."""
    head: Any = "fcn" if data.task == "segmentation" else "mlp"
    augment = AugmentConfig().model_copy(update={"views": views})
    config = RunConfig(
        data=data,
        model=ModelConfig(weights="none", head=head),
        method=settings,
        augment=augment,
        train=TrainConfig(batch_size=BATCH),
    )
    method = CSG(config, NUM_CLASSES, 10)
    torch.manual_seed(3)
    with torch.no_grad():
        for param in method.encoder.parameters():
            param.add_(0.02 * torch.randn_like(param))
        for name, buffer in method.encoder.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return method.double()


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers, those of the trainable parameters being leaves."""
    weights = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for name, param in module.named_parameters():
        weights[name] = param.detach().clone().requires_grad_(param.requires_grad)
    return weights


def _plain(method: CSG) -> PlainCSG:
    settings = method.settings
    stages = settings.stage_numbers()
    queues = {stage: method.get_buffer(f"queues.{stage}.keys").clone() for stage in stages}
    heads = method.projection_heads.state_dict()
    return PlainCSG(
        stages=stages,
        loss_weight=settings.loss_weight,
        temperature=settings.temperature,
        ema_momentum=settings.ema_momentum,
        reference={**method.reference_encoder.state_dict()},
        ema_heads={name: tensor.clone() for name, tensor in heads.items()},
        queues={stage: list(queue) for stage, queue in queues.items()},
        pooling=settings.pooling,
        attention_from=settings.attention_from,
        detach_attention=settings.detach_attention,
        patch_grid=settings.patch_grid,
    )


def _batch(views: int, size: int, step: int, segmentation: bool) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = [
        torch.randn(BATCH, 3, size, size, generator=generator, dtype=torch.float64)
        for _ in range(views)
    ]
    labels = torch.randint(0, NUM_CLASSES, (BATCH,), generator=generator)
    if segmentation:
        labels = torch.randint(0, NUM_CLASSES, (BATCH, size, size), generator=generator)
        labels[0, :, : size // 2] = 255
        labels[1:, :, size // 8 :] = 255  # few pixels are enough for a plain loop
    return Batch(tuple(images), labels, torch.arange(BATCH))


def _assert_equal(actual: Tensor | None, expected: Tensor | None, name: str) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=1e-6, atol=1e-12, msg=lambda difference: f"{name}: {difference}"
    )


def _compare(
    changes: dict[str, Any],
    size: int = 32,
    views: str = "independent",
    segmentation: bool = False,
) -> None:
    """Three steps of both, the package's SGD moving the weights of both."""
    defaults = {"loss_weight": 0.7, "temperature": 0.2, "ema_momentum": 0.6, "queue_size": 6}
    method = _build(
        CSGConfig(**{**defaults, **changes}), views, SCENES if segmentation else DigitsConfig()
    )
    plain = _plain(method)
    optimizer = torch.optim.SGD(method.parameters(), lr=LEARNING_RATE)
    for step in range(1, STEPS + 1):
        batch = _batch(method.num_views, size, step, segmentation)
        weights = _weights(method)
        expected = plain.step(weights, batch.views[0], batch.views[-1], batch.labels)
        torch.autograd.backward(expected)
        optimizer.zero_grad()
        loss = method.training_loss(batch).loss
        assert loss.dtype == torch.float64
        _assert_equal(loss, expected, "loss")
        torch.autograd.backward(loss)
        for name, param in method.named_parameters():
            gradient = weights[name].grad
            if not param.requires_grad:
                assert param.grad is None, name
                continue
            assert gradient is not None, name
            assert gradient.count_nonzero() > 0, name
            _assert_equal(param.grad, gradient, name)
        optimizer.step()
        method.after_step(optimizer, step, STEPS)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stages": "2,3,4"},
        {"stages": "2,3,4", "pooling": "mean"},
        {"attention_from": "self"},
        {"detach_attention": True},
        {"detach_attention": True, "attention_from": "self"},
        {"temperature": 0.07, "loss_weight": 0.1, "ema_momentum": 0.999},  # as published
    ],
)
def test_classification_equals_the_plain_step(changes: dict[str, Any]) -> None:
    _compare(changes)


def test_one_view_equals_the_plain_step_on_it_twice() -> None:
    _compare({}, views="shared")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stages": "2,3,4"},
        {"stages": "2,3,4", "pooling": "mean"},
        {"attention_from": "self"},
        {"detach_attention": True},
    ],
)
def test_dense_equals_the_plain_step(changes: dict[str, Any]) -> None:
    # Not whole steps of 16 keys, so that the order of the patches in the queue matters.
    _compare({"patch_grid": 2, "queue_size": 24, **changes})


def test_dense_equals_the_plain_step_on_larger_images() -> None:
    _compare({"patch_grid": 2, "queue_size": 24, "stages": "4"}, size=64)


@pytest.mark.parametrize("changes", [{}, {"stages": "2,3,4", "pooling": "mean"}])
def test_segmentation_equals_the_plain_step(changes: dict[str, Any]) -> None:
    _compare({"patch_grid": 2, "queue_size": 24, **changes}, segmentation=True)


def test_projection_heads_that_stay_random_get_no_gradient_and_change_nothing_else() -> None:
    _compare({"patch_grid": 2, "queue_size": 24, "train_projection": False}, segmentation=True)


@pytest.mark.parametrize("ignored", ["some", "all"])
def test_segmentation_loss_equals_the_plain_one(ignored: str) -> None:
    torch.manual_seed(0)
    head = build_segmentation_head("fcn", 5, 3).double()
    features = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 9, 13))
    labels[0, 2:5] = 255
    if ignored == "all":
        labels[:] = 255
    logits = upsample(head(features), (9, 13))
    total = functional.cross_entropy(logits, labels, ignore_index=255, reduction="sum")
    loss = total / (labels != 255).sum().clamp_min(1)
    weights = _weights(head)
    expected = segmentation_loss(weights, features, labels)
    _assert_equal(loss, expected, "loss")
    if ignored == "all":
        assert loss == 0
        return
    torch.autograd.backward(loss)
    torch.autograd.backward(expected)
    for name, param in head.named_parameters():
        _assert_equal(param.grad, weights[name].grad, name)
