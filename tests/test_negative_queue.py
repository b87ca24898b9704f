from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from csg_ray.contrastive.info_nce import info_nce
from csg_ray.contrastive.negative_queue import NegativeQueue


class ListQueue:
    """The same queue as a Python list that is written one key at a time."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = list(rows)
        self.pointer = 0

    def enqueue(self, keys: list[list[float]]) -> None:
        for key in keys:
            if all(math.isfinite(value) for value in key):
                self.rows[self.pointer] = key
                self.pointer = (self.pointer + 1) % len(self.rows)


def numbered_keys(first: int, number: int) -> Tensor:
    return torch.arange(first, first + number).float().unsqueeze(1).repeat(1, 2)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 16])
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 5, 7, 16, 20, 33])
def test_queue_equals_a_python_list(size: int, batch: int) -> None:
    queue = NegativeQueue(dim=2, size=size)
    reference = ListQueue(queue.negatives.tolist())
    for step in range(12):
        keys = numbered_keys(100 * step, batch)
        queue.enqueue(keys)
        reference.enqueue(keys.tolist())
        assert queue.negatives.tolist() == reference.rows
        assert queue.pointer == reference.pointer
        assert queue.num_filled == min(size, (step + 1) * batch)


def test_queue_takes_batches_of_changing_sizes() -> None:
    queue = NegativeQueue(dim=2, size=10)
    reference = ListQueue(queue.negatives.tolist())
    for step, batch in enumerate([3, 8, 1, 25, 10, 4, 0, 11, 2, 30, 9]):
        keys = numbered_keys(100 * step, batch)
        queue.enqueue(keys)
        reference.enqueue(keys.tolist())
        assert (queue.negatives.tolist(), queue.pointer) == (reference.rows, reference.pointer)


def test_wrap_around_writes_the_remaining_keys_at_the_head() -> None:
    queue = NegativeQueue(dim=1, size=10)
    queue.enqueue(torch.zeros(8, 1))
    queue.enqueue(torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]]))
    assert queue.negatives.flatten().tolist() == [3, 4, 5, 0, 0, 0, 0, 0, 1, 2]
    assert queue.pointer == 3


def test_queue_starts_with_random_unit_vectors_of_its_seed() -> None:
    queue = NegativeQueue(dim=128, size=1000, seed=5)
    torch.testing.assert_close(queue.negatives.norm(dim=1), torch.ones(1000))
    cosines = queue.negatives @ queue.negatives.T
    off_diagonal = cosines[~torch.eye(1000, dtype=torch.bool)]
    assert off_diagonal.std().item() == pytest.approx(128**-0.5, rel=0.02)
    state = torch.get_rng_state()
    assert torch.equal(NegativeQueue(128, 1000, seed=5).negatives, queue.negatives)
    assert not torch.equal(NegativeQueue(128, 1000, seed=6).negatives, queue.negatives)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_keys_are_skipped_and_counted(bad: float) -> None:
    queue = NegativeQueue(dim=2, size=7)
    reference = ListQueue(queue.negatives.tolist())
    for step in range(6):
        keys = numbered_keys(10 * step, 5)
        keys[step % 5, step % 2] = bad
        queue.enqueue(keys)
        reference.enqueue(keys.tolist())
        assert queue.negatives.tolist() == reference.rows
        assert queue.pointer == reference.pointer
    assert queue.num_skipped == 6
    assert queue.num_filled == 7
    queue.enqueue(torch.full((9, 2), bad))
    assert queue.negatives.tolist() == reference.rows
    assert queue.num_skipped == 15


def test_state_dict_resumes_bitwise() -> None:
    queue = NegativeQueue(dim=2, size=7, seed=1)
    queue.enqueue(numbered_keys(0, 4))
    queue.enqueue(torch.tensor([[math.nan, 0.0], [1.0, 2.0]]))
    state = {name: value.clone() for name, value in queue.state_dict().items()}
    resumed = NegativeQueue(dim=2, size=7, seed=2)
    resumed.load_state_dict(state)
    assert (resumed.pointer, resumed.num_filled, resumed.num_skipped) == (5, 5, 1)
    for each in (queue, resumed):
        each.enqueue(numbered_keys(50, 6))
    assert torch.equal(resumed.negatives, queue.negatives)
    assert (resumed.pointer, resumed.num_filled) == (queue.pointer, queue.num_filled) == (4, 7)


def test_state_dict_holds_the_keys_and_refuses_another_size() -> None:
    state = NegativeQueue(dim=2, size=7).state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    assert state["keys"].shape == (7, 2)
    with pytest.raises(RuntimeError, match="size mismatch"):
        NegativeQueue(dim=2, size=8).load_state_dict(state)


def test_keys_enter_without_their_graph() -> None:
    queue = NegativeQueue(dim=2, size=7)
    queue.enqueue(torch.ones(3, 2, requires_grad=True))
    assert not queue.negatives.requires_grad
    queue.enqueue(torch.ones(3, 2, dtype=torch.bfloat16))
    assert queue.negatives.dtype == torch.float32


def test_enqueue_before_the_backward_pass_is_an_error_not_a_wrong_gradient() -> None:
    queue = NegativeQueue(dim=2, size=7)
    query = torch.ones(3, 2, requires_grad=True)
    loss = info_nce(query, query.detach(), queue.negatives, 0.07)
    queue.enqueue(query)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)
