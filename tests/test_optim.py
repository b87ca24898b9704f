from __future__ import annotations

import pytest
import torch
from torch import nn

from csg_ray.config.methods import VanillaConfig
from csg_ray.config.run import ModelConfig, RunConfig, TrainConfig
from csg_ray.methods import build_method
from csg_ray.training.optim import (
    LearningRateInBufferSGD,
    build_optimizer,
    learning_rate_scale,
    schedule_learning_rate,
    warmup_steps,
)

PUBLISHED_STEPS = 142_860


def test_scale_has_the_published_values() -> None:
    assert learning_rate_scale(0, PUBLISHED_STEPS) == pytest.approx(0.01)
    at_10 = 0.0199 * (1 - 10 / PUBLISHED_STEPS) ** 0.9
    assert learning_rate_scale(10, PUBLISHED_STEPS) == pytest.approx(at_10)
    at_100 = (1 - 100 / PUBLISHED_STEPS) ** 0.9
    assert learning_rate_scale(100, PUBLISHED_STEPS) == pytest.approx(at_100)


def test_mean_of_the_published_schedule() -> None:
    scales = [learning_rate_scale(step, PUBLISHED_STEPS) for step in range(PUBLISHED_STEPS)]
    assert sum(scales) / PUBLISHED_STEPS == pytest.approx(0.52585, abs=1e-5)


def test_floor_stops_the_decay_where_asg_clips_it() -> None:
    clipped = 0.2**0.9
    for step in (800, 900, 999):
        assert learning_rate_scale(step, 1000, floor=0.2) == pytest.approx(clipped)
    assert learning_rate_scale(799, 1000, floor=0.2) > clipped
    assert learning_rate_scale(999, 1000) < clipped


def test_no_warm_up_starts_at_the_base_rate() -> None:
    assert learning_rate_scale(0, 1000, warmup_steps=0) == 1.0


@pytest.mark.parametrize(("total", "expected"), [(4, 1), (200, 10), (2000, 100), (10**6, 100)])
def test_auto_warm_up_is_short_in_a_short_training(total: int, expected: int) -> None:
    assert warmup_steps(TrainConfig(), total) == expected


def test_given_warm_up_is_taken() -> None:
    assert warmup_steps(TrainConfig(warmup_steps=7), 10**6) == 7


def _quadratic_path(form: str, rates: list[float], decay: float) -> list[float]:
    """Two parameters under the loss 1.5 p^2, by hand or by the optimizer under test."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = LearningRateInBufferSGD([weight], 0.0, momentum=0.9, weight_decay=decay)
    value, buffer, path = 1.0, 0.0, []
    for rate in rates:
        if form == "by hand":
            buffer = 0.9 * buffer + rate * (3 * value + decay * value)
            value -= buffer
        else:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            torch.autograd.backward(1.5 * weight.square().sum())
            optimizer.step()
            value = weight.item()
        path.append(value)
    return path


def test_rate_in_buffer_follows_its_formula() -> None:
    rates = [0.1, 0.1, 0.01, 0.05, 0.0]
    expected = _quadratic_path("by hand", rates, decay=0.2)
    assert _quadratic_path("optimizer", rates, decay=0.2) == pytest.approx(expected, rel=1e-6)


def test_rate_in_buffer_coasts_after_a_zero_rate() -> None:
    path = _quadratic_path("optimizer", [0.1, 0.0], decay=0.0)
    assert path[1] - path[0] == pytest.approx(0.9 * (path[0] - 1.0), rel=1e-5)


def test_both_forms_agree_while_the_rate_is_constant() -> None:
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ends = []
    for form in ("pytorch", "lr_in_buffer"):
        weight = nn.Parameter(start.clone())
        optimizer: torch.optim.Optimizer
        if form == "pytorch":
            optimizer = torch.optim.SGD([weight], 0.05, momentum=0.9, weight_decay=0.1)
        else:
            optimizer = LearningRateInBufferSGD([weight], 0.05, 0.9, 0.1)
        for _ in range(10):
            optimizer.zero_grad()
            torch.autograd.backward(weight.cos().sum())
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("form", ["pytorch", "lr_in_buffer"])
def test_groups_carry_their_rates_and_the_schedule_scales_them(form: str) -> None:
    train = TrainConfig(learning_rate=0.4, backbone_lr_mult=0.25, warmup_steps=0)
    train = train.model_copy(update={"sgd_form": form})
    config = RunConfig(method=VanillaConfig(), model=ModelConfig(weights="none"), train=train)
    optimizer = build_optimizer(build_method(config, 10, 3), train)
    schedule_learning_rate(optimizer, train, step=50, total_steps=100)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    half = 0.5**0.9
    assert rates.pop("head") == pytest.approx(0.4 * half)
    assert set(rates) == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert list(rates.values()) == pytest.approx([0.1 * half] * 6)


def test_backbone_factor_zero_moves_the_head_alone() -> None:
    train = TrainConfig(learning_rate=0.1, backbone_lr_mult=0.0, warmup_steps=0)
    config = RunConfig(method=VanillaConfig(), model=ModelConfig(weights="none"), train=train)
    method = build_method(config, 10, 3)
    before = {name: value.clone() for name, value in method.named_parameters()}
    optimizer = build_optimizer(method, train)
    schedule_learning_rate(optimizer, train, step=0, total_steps=10)
    torch.autograd.backward(method.predict(torch.randn(4, 3, 32, 32)).square().sum())
    optimizer.step()
    moved = {name for name, value in method.named_parameters() if not value.equal(before[name])}
    assert moved == {name for name in before if name.startswith("head.")}
