from __future__ import annotations

import math

import pytest
import torch

from csg_ray.training.guard import DivergedError, StepGuard

CPU = torch.device("cpu")


def _guard(read_every: int, max_skipped_steps: int = 3) -> StepGuard:
    return StepGuard(10.0, max_skipped_steps, CPU, read_every)


def _judge(guard: StepGuard, loss: float, norm: float, step: int) -> float:
    return float(guard.judge(torch.tensor(loss), torch.tensor(norm), step))


def _judge_all(guard: StepGuard, losses: list[float], norms: list[float]) -> None:
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        _judge(guard, loss, norm, step)
    guard.take_skipped(len(losses))


@pytest.mark.parametrize("read_every", [1, 4])
def test_a_step_is_skipped_for_its_loss_or_its_norm(read_every: int) -> None:
    norms = [9.0, 11.0, 10.0, math.inf, math.nan, 1.0]
    guard = _guard(read_every)
    skips = [_judge(guard, 1.0, norm, step) for step, norm in enumerate(norms, start=1)]
    assert skips == [0, 1, 0, 1, 1, 0]
    assert guard.take_skipped(len(norms)) == 3
    assert guard.take_skipped(len(norms)) == 0
    assert guard.skipped_in_a_row == 0


def test_before_it_is_read_a_loss_that_is_not_finite_skips_its_step() -> None:
    guard = _guard(read_every=4)
    assert _judge(guard, math.nan, 1.0, 1) == 1
    assert _judge(guard, 1.0, 1.0, 2) == 0
    with pytest.raises(DivergedError, match="the loss is nan at step 1"):
        guard.take_skipped(2)


@pytest.mark.parametrize("read_every", [1, 2, 5])
@pytest.mark.parametrize(
    ("losses", "norms", "sentence"),
    [
        ([1, math.inf, math.nan], [1, 1, 1], "the loss is inf at step 2"),
        ([1, 1, 1, 1], [1, 20, 20, 20], "3 gradients in a row were unusable at step 4"),
        ([1, 1, math.nan, 1], [20, 20, 20, 20], "the loss is nan at step 3"),
        ([1, 1, 1, math.nan], [20, 20, 20, 20], "3 gradients in a row were unusable at step 3"),
    ],
)
def test_what_ended_the_training_is_the_same_however_late_it_is_read(
    read_every: int, losses: list[float], norms: list[float], sentence: str
) -> None:
    guard = _guard(read_every)
    with pytest.raises(DivergedError, match=sentence):
        _judge_all(guard, losses, norms)


def test_a_row_goes_on_from_one_reading_to_the_next() -> None:
    guard = _guard(read_every=2)
    for step, norm in enumerate([1.0, 20.0, 20.0], start=1):
        _judge(guard, 1.0, norm, step)
    assert guard.take_skipped(3) == 2
    assert guard.skipped_in_a_row == 2
    assert _judge(guard, 1.0, 20.0, 4) == 1
    with pytest.raises(DivergedError, match="3 gradients in a row were unusable at step 4"):
        guard.take_skipped(4)
