"""SGD over a method's parameter groups, and the schedule of its learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from csg_ray.config.run import TrainConfig
from csg_ray.methods.base import Method

WARMUP_SHARE = 0.05
MAX_WARMUP_STEPS = 100


class LearningRateInBufferSGD(Optimizer):
    """SGD whose momentum buffer holds the learning rate: v <- mu v + lr (g + wd p); p <- p - v.

    The authors' form. With a constant rate it equals torch's; after a change of the rate the old
    one lingers in the buffer. Like torch's fused optimizers it does nothing where `found_inf` is 1.
    """

    found_inf: Tensor | None = None

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        found_inf = torch.zeros(()) if self.found_inf is None else self.found_inf
        skip = found_inf == 1
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                buffer = self._buffer(param)
                gradient = param.grad.add(param, alpha=group["weight_decay"])
                moved = (buffer * group["momentum"]).add_(gradient, alpha=group["lr"])
                # Not by a factor of 0, which would leave a NaN what it is.
                buffer.copy_(torch.where(skip, buffer, moved))
                param.copy_(torch.where(skip, param, param - moved))

    def _buffer(self, param: nn.Parameter) -> torch.Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer: torch.Tensor = state["momentum_buffer"]
        return buffer


def build_optimizer(method: Method, config: TrainConfig) -> Optimizer:
    """SGD with one group per name in `method.parameter_groups()`.

    Every group carries its `name` and its `base_lr`, which the schedule scales, as it does with an
    `lr_factor` that a method may set between steps.
    """
    groups = []
    for name, params, lr_mult in method.parameter_groups():
        rate = config.learning_rate * lr_mult
        groups.append({"params": params, "name": name, "lr": rate, "base_lr": rate})
    if config.sgd_form == "lr_in_buffer":
        return LearningRateInBufferSGD(
            groups, config.learning_rate, config.momentum, config.weight_decay
        )
    optimizer = torch.optim.SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.momentum > 0:
        # The fused kernel makes them at the first step, and leaves them unset if that is skipped.
        for group in optimizer.param_groups:
            for param in group["params"]:
                optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
    return optimizer


def step_unless(skip: Tensor, optimizer: Optimizer) -> None:
    """One step of an optimizer of `build_optimizer`; none if `skip` is 1.

    Nobody waits for the device to find out: the kernels read the number themselves.
    """
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()


def learning_rate_scale(
    step: int,
    total_steps: int,
    warmup_steps: int = 100,
    power: float = 0.9,
    floor: float = 0.0,
) -> float:
    """The factor on every base rate at `step` (0-based): quadratic warm-up times poly decay.

    Args:
        step: steps finished before this one.
        total_steps: T, steps of the whole training.
        warmup_steps: steps until the warm-up from 1 % has reached 1.
        power: of the decay (1 - t/T).
        floor: the decay's base stops here (ASG: 0.2, so never below 0.2 ** power).
    """
    warmup = 1.0
    if step < warmup_steps:
        warmup = 0.01 + 0.99 * (step / warmup_steps) ** 2
    remaining = max(1 - step / total_steps, floor)
    return float(warmup * remaining**power)


def warmup_steps(config: TrainConfig, total_steps: int) -> int:
    """The number of warm-up steps; `auto` keeps them short in a short training."""
    if config.warmup_steps == "auto":
        return min(MAX_WARMUP_STEPS, max(1, int(WARMUP_SHARE * total_steps)))
    return config.warmup_steps


def schedule_learning_rate(
    optimizer: Optimizer, config: TrainConfig, step: int, total_steps: int
) -> None:
    """Set every group's rate for the coming `step` (0-based)."""
    scale = learning_rate_scale(
        step,
        total_steps,
        warmup_steps(config, total_steps),
        config.decay_power,
        config.decay_floor,
    )
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * scale * group.get("lr_factor", 1.0)
