"""What a step costs here in each way of training several lanes, found out by taking some."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from csg_ray.training.guard import DivergedError
from csg_ray.training.lanes import Lane, LaneGroup
from csg_ray.training.loop import Training
from csg_ray.training.stacked import stack_key, stacked
from csg_ray.training.turns import Outcomes, Rounds, in_turn

logger = logging.getLogger(__name__)


def measure_ways(lanes: Sequence[Lane], steps: int = 3) -> dict[str, float]:
    """Seconds of one step of one lane, loading included; the lanes are as before afterwards.

    Args:
        lanes: at least one; their first repeats take the steps.
        steps: of each lane, after one that is not counted.

    Returns:
        `alone`: of the first lane by itself. `in_turn`: of all lanes. `stacked`: the same, where
        they can be. A way that fails, for lack of memory perhaps, is left out.
    """
    group = LaneGroup()
    for number, lane in enumerate(lanes):
        group.add(str(number), lane)
    epochs = {lane.trainings[0]: lane.epoch + 1 for lane in lanes}
    ways: dict[str, tuple[list[Training], Rounds]] = {
        "alone": (list(epochs)[:1], in_turn),
        "in_turn": (list(epochs), in_turn),
    }
    keys = {stack_key(training) for training in epochs}
    if len(keys) == 1 and None not in keys:
        ways["stacked"] = (list(epochs), stacked)
    found = {}
    for name, (trainings, rounds) in ways.items():
        try:
            with _put_back(trainings):
                found[name] = _seconds(trainings, epochs, rounds, steps)
        except Exception as error:
            logger.warning("steps %s could not be measured: %s", name, error)
    return found


def _seconds(
    trainings: Sequence[Training], epochs: Mapping[Training, int], rounds: Rounds, steps: int
) -> float:
    for training in trainings:
        training.begin_epoch(epochs[training])
    outcomes: Outcomes = {}
    going = rounds(trainings, outcomes)
    times = []
    for _ in range(min(1 + steps, *(training.steps_per_epoch for training in trainings))):
        started = time.perf_counter()
        next(going, None)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        for outcome in outcomes.values():
            if isinstance(outcome, Exception) and not isinstance(outcome, DivergedError):
                raise outcome
    return statistics.median(times[1:] or times) / len(trainings)


@contextmanager
def _put_back(trainings: Sequence[Training]) -> Iterator[None]:
    """Within it trainings may go on; afterwards they are what they were before."""
    kept = [
        (
            vars(training) | {"guard": copy.deepcopy(training.guard)},
            copy.deepcopy(training.method.state_dict()),
            copy.deepcopy(training.optimizer.state_dict()),
        )
        for training in trainings
    ]
    try:
        yield
    finally:
        for training, (attributes, method, optimizer) in zip(trainings, kept, strict=True):
            vars(training).clear()
            vars(training).update(attributes)
            training.method.load_state_dict(method)
            training.optimizer.load_state_dict(optimizer)
            training.optimizer.zero_grad(set_to_none=True)
