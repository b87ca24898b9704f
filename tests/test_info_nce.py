from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from csg_ray.contrastive.info_nce import info_nce


def unit_vectors(number: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(number, dim, generator=generator), dim=1)


def loss_by_loop(query: Tensor, key: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """The paper's equation, term by term."""
    losses = []
    for n in range(len(query)):
        positive = torch.exp(query[n] @ key[n] / temperature)
        rest = sum(torch.exp(query[n] @ negative / temperature) for negative in negatives)
        losses.append(-torch.log(positive / (positive + rest)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("number", "dim", "size"), [(1, 2, 1), (3, 4, 5), (8, 16, 33)])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_loss_and_gradient_equal_a_loop_over_terms(
    number: int, dim: int, size: int, temperature: float
) -> None:
    query, key = unit_vectors(number, dim, 0), unit_vectors(number, dim, 1)
    negatives = unit_vectors(size, dim, 2)
    ours = query.clone().requires_grad_()
    loss = info_nce(ours, key, negatives, temperature)
    torch.autograd.backward(loss)
    theirs = query.double().requires_grad_()
    expected = loss_by_loop(theirs, key.double(), negatives.double(), temperature)
    torch.autograd.backward(expected)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


def test_loss_is_cross_entropy_with_the_key_at_index_zero() -> None:
    query, key, negatives = (unit_vectors(n, 8, seed) for n, seed in ((6, 0), (6, 1), (20, 2)))
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ negatives.T], dim=1) / 0.07
    expected = functional.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    assert info_nce(query, key, negatives, 0.07).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_equal_embeddings_give_the_log_of_the_number_of_candidates(size: int) -> None:
    same = unit_vectors(1, 16, 0)
    loss = info_nce(same.repeat(5, 1), same.repeat(5, 1), same.repeat(size, 1), 0.07)
    assert loss.item() == pytest.approx(math.log(size + 1), rel=1e-5)


@pytest.mark.parametrize(
    ("size", "expected"), [(65536, 0.0866), (16384, 0.0223), (4096, 0.0056), (1024, 0.0014)]
)
def test_perfect_positives_against_a_random_queue(size: int, expected: float) -> None:
    query = unit_vectors(128, 128, 0)
    loss = info_nce(query, query, unit_vectors(size, 128, 1), 0.07)
    assert loss.item() == pytest.approx(expected, rel=0.04)


def test_unrelated_positives_against_a_random_queue() -> None:
    query, key = unit_vectors(512, 128, 0), unit_vectors(512, 128, 1)
    loss = info_nce(query, key, unit_vectors(65536, 128, 2), 0.07)
    assert loss.item() == pytest.approx(11.9, abs=0.2)


def test_a_tiny_loss_keeps_its_digits() -> None:
    """log(1 + x) computed as a difference of logits near 100 would be 0 or rounding noise."""
    query = torch.tensor([[1.0, 0.0]])
    loss = info_nce(query, query, -query, temperature=0.1)
    assert loss.item() == pytest.approx(math.exp(-20), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_precision(dtype: torch.dtype) -> None:
    query, key, negatives = (unit_vectors(n, 128, seed) for n, seed in ((4, 0), (4, 1), (512, 2)))
    expected = info_nce(query, key, negatives, 0.07)
    with torch.autocast("cpu", dtype=dtype):
        loss = info_nce(query, key, negatives, 0.07)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()


def test_half_inputs_do_not_overflow() -> None:
    same = torch.ones(1, 4, dtype=torch.float16) / 2
    loss = info_nce(same, -same, same.repeat(1000, 1), temperature=1e-5)
    assert loss.item() == pytest.approx(2e5, rel=1e-3)
