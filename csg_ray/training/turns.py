"""Trainings that go through an epoch together: step by step, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch

from csg_ray.data.loader import Batch
from csg_ray.methods.base import Reference, ReferenceMethod
from csg_ray.models.precision import float32_products

if TYPE_CHECKING:
    from csg_ray.training.loop import Metrics, Training

Outcomes = dict["Training", "Metrics | Exception"]
# Steps of trainings whose epoch has begun, a pause after each; who fails goes into the outcomes.
Rounds = Callable[["Sequence[Training]", Outcomes], Iterator[None]]


def run_epoch_together(epochs: Mapping[Training, int], rounds: Rounds) -> Outcomes:
    """Advance each training by one epoch, and measure it; one that fails leaves the others alone.

    Each bears the time of its own beginning and measuring, and by its steps a part of the rest.

    Args:
        epochs: the number (from 1) of the epoch that each of them is to train.
        rounds: how they take their steps.

    Returns:
        The metrics of each, or what it raised.
    """
    outcomes: Outcomes = {}
    for training, epoch in epochs.items():
        training.seconds = 0.0
        _attempt(training, partial(training.begin_epoch, epoch), outcomes)
    running = [training for training in epochs if training not in outcomes]
    _train(running, rounds, outcomes)
    for training in running:
        if training not in outcomes:
            metrics = _attempt(training, partial(training.end_epoch, epochs[training]), outcomes)
            if metrics is not None:
                outcomes[training] = metrics
    return outcomes


def _attempt(
    training: Training, act: Callable[[], Metrics | None], outcomes: Outcomes
) -> Metrics | None:
    started = time.perf_counter()
    try:
        with float32_products(training.config.compute.precision), training.own_generators():
            return act()
    except Exception as error:
        outcomes[training] = error
        return None
    finally:
        training.seconds += time.perf_counter() - started


def _train(running: Sequence[Training], rounds: Rounds, outcomes: Outcomes) -> None:
    before = [training.step for training in running]
    started = time.perf_counter()
    # Of several none draws from a global generator (`Method.takes_turns`).
    with running[0].own_generators() if len(running) == 1 else nullcontext():
        for _ in rounds(running, outcomes):
            pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    steps = [training.step - earlier for training, earlier in zip(running, before, strict=True)]
    for training, own in zip(running, steps, strict=True):
        training.training_seconds = seconds * own / max(sum(steps), 1)
        training.seconds += training.training_seconds


def in_turn(trainings: Sequence[Training], outcomes: Outcomes) -> Iterator[None]:
    """A step of each training in every round; those that see the same images load them once."""
    going = [_steps_of(company, outcomes) for company in companies(trainings)]
    while going := [steps for steps in going if next(steps, False)]:
        yield


def companies(trainings: Sequence[Training]) -> list[list[Training]]:
    """The trainings, those together whose present epoch has the same images in the same order."""
    by_images: dict[object, list[Training]] = {}
    for training in trainings:
        by_images.setdefault(training.images_key, []).append(training)
    return list(by_images.values())


def own_batches(company: Sequence[Training]) -> Iterator[Batch]:
    """The batches of a company's epoch, on its device, each this rank's part."""
    batches = company[0].batches.share_of_each()
    return (batch.to(company[0].device) for batch in batches)


def _steps_of(company: Sequence[Training], outcomes: Outcomes) -> Iterator[bool]:
    """Steps of trainings that share their batches, and the maps of a reference that is the same."""
    alive = list(company)
    try:
        for batch in own_batches(company):
            with ExitStack() as stack:
                for reference in _shared_references(alive):
                    stack.enter_context(reference.remembering())
                alive = [each for each in alive if _takes_step(each, batch, outcomes)]
            if not alive:
                return
            yield True
    except Exception as error:  # of loading, which is everybody's
        outcomes |= dict.fromkeys(alive, error)


def _shared_references(trainings: Sequence[Training]) -> list[Reference]:
    methods = [each.method for each in trainings if isinstance(each.method, ReferenceMethod)]
    references = [method.reference for method in methods]
    return [each for each in set(references) if references.count(each) > 1]


def _takes_step(training: Training, batch: Batch, outcomes: Outcomes) -> bool:
    try:
        training.train_on(batch)
    except Exception as error:
        outcomes[training] = error
        return False
    return True
