"""Several trials on one GPU, with a GPU whose memory is a number."""

from __future__ import annotations

import pytest
import torch

from csg_ray.config.errors import UserError
from csg_ray.scale.gpu_share import CONTEXT_BYTES, GIB, train_within


class Device:
    """80 GiB that several processes share."""

    def __init__(self) -> None:
        self.processes: list[Process] = []

    @property
    def free(self) -> int:
        return 80 * GIB - sum(process.context + process.tensors for process in self.processes)


class Process:
    """One process's view of the device; `allocate` behaves as torch's allocator does."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.context = CONTEXT_BYTES
        self.tensors = 0
        self.most = 80 * GIB
        device.processes.append(self)

    def total(self) -> int:
        return 80 * GIB

    def free(self) -> int:
        return self.device.free

    def held(self) -> int:
        return self.tensors

    def limit(self, size: int) -> None:
        self.most = size

    def release(self) -> None:
        self.tensors = 0

    def allocate(self, size: float) -> None:
        if self.tensors + size * GIB > self.most or size * GIB > self.device.free:
            raise torch.OutOfMemoryError(f"Tried to allocate {size} GiB")
        self.tensors += int(size * GIB)


def test_a_trial_that_does_not_fit_fails_alone() -> None:
    """Four at a quarter each; the one that grows meets its own limit, not its neighbours'."""
    device = Device()
    neighbours = [Process(device) for _ in range(3)]
    greedy = Process(device)
    for neighbour in neighbours:
        train_within(0.25, lambda neighbour=neighbour: neighbour.allocate(10), neighbour)  # type: ignore[misc]

    def grow() -> None:
        for _ in range(30):
            greedy.allocate(1)

    with pytest.raises(UserError, match=r"resources\.gpus_per_worker 0\.25 is 19\.4 GiB of memory"):
        train_within(0.25, grow, greedy)
    assert greedy.tensors == 19 * GIB, "it got its own share, and no more"
    for neighbour in neighbours:
        neighbour.allocate(9)  # what is theirs is still there


def test_without_the_limit_it_would_have_taken_them_along() -> None:
    """The simulation can show the harm that the limit prevents."""
    device = Device()
    neighbour, greedy = Process(device), Process(device)
    train_within(1, lambda: greedy.allocate(70), greedy)
    with pytest.raises(torch.OutOfMemoryError):
        neighbour.allocate(19)


def test_memory_that_comes_free_later_is_waited_for() -> None:
    """A trial that ASHA has just stopped still holds its memory when the next one starts."""
    device = Device()
    stopped, following = Process(device), Process(device)
    stopped.allocate(70)
    attempts = []

    def train() -> None:
        attempts.append(following.free())
        if len(attempts) == 2:
            stopped.release()
        following.allocate(15)

    train_within(0.25, train, following, wait_seconds=0.01)
    assert len(attempts) == 2, "the first attempt ran out of the device, not of its share"


def test_memory_that_never_comes_free_is_not_called_the_trials_own_fault() -> None:
    device = Device()
    hog, trial = Process(device), Process(device)
    hog.allocate(75)
    with pytest.raises(UserError, match="another process holds more than its share"):
        train_within(0.25, lambda: trial.allocate(15), trial, wait_seconds=0.01)


@pytest.mark.parametrize("share", [0, 1, 2.0])
def test_whole_gpus_and_none_are_left_alone(share: float) -> None:
    process = Process(Device())
    train_within(share, lambda: process.allocate(60), process)
    assert process.most == 80 * GIB


def test_a_share_smaller_than_cuda_itself_is_refused() -> None:
    trained = []
    with pytest.raises(UserError, match=r"gpus_per_worker is 0\.005, which is 0\.4 GiB of"):
        train_within(0.005, lambda: trained.append(1), Process(Device()))
    assert not trained


def test_another_error_passes_through_at_once() -> None:
    process, attempts = Process(Device()), []

    def fail() -> None:
        attempts.append(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_within(0.5, fail, process)
    assert len(attempts) == 1
