from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from csg_ray.config.errors import UserError
from csg_ray.contrastive.embedding import (
    attention_pool,
    attention_weights,
    normalise,
    split_patches,
    update_ema,
)


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).clamp_min(0)


def pool_by_loop(features: Tensor, source: Tensor) -> Tensor:
    """The paper's sums, position by position."""
    pooled = torch.zeros(features.shape[:2], dtype=features.dtype)
    number, _, height, width = features.shape
    positions = [(i, j) for i in range(height) for j in range(width)]
    for n in range(number):
        mean = torch.stack([source[n, :, i, j] for i, j in positions]).mean(dim=0)
        scores = {(i, j): source[n, :, i, j] @ mean for i, j in positions}
        total = sum(scores.values())
        for i, j in positions:
            pooled[n] = pooled[n] + features[n, :, i, j] * scores[i, j] / total
    return pooled


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 4), (3, 8, 4, 4)])
def test_attention_pool_equals_a_loop_over_positions(shape: tuple[int, ...]) -> None:
    features = (maps(*shape) + 0.01).requires_grad_()
    exact = features.detach().double().requires_grad_()
    pooled, expected = attention_pool(features), pool_by_loop(exact, exact)
    torch.testing.assert_close(pooled, expected.float())
    torch.autograd.backward(pooled.square().sum())
    torch.autograd.backward(expected.square().sum())
    assert features.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(features.grad, exact.grad.float(), rtol=1e-4, atol=1e-5)


def test_attention_comes_from_another_map() -> None:
    features, source = maps(2, 6, 4, 4), maps(2, 6, 4, 4, seed=1)
    pooled = attention_pool(features, source)
    torch.testing.assert_close(pooled, pool_by_loop(features, source))
    assert not torch.allclose(pooled, attention_pool(features))
    assert torch.equal(attention_pool(features, features), attention_pool(features))


def test_attention_of_a_detached_source_gives_no_gradient_to_it() -> None:
    features = maps(1, 3, 2, 2).requires_grad_()
    torch.autograd.backward(attention_pool(features, features.detach()).sum())
    assert features.grad is not None
    # Linear in the features then: every channel of a position has the same gradient, its weight.
    torch.testing.assert_close(features.grad[:, :1].expand_as(features.grad), features.grad)
    torch.testing.assert_close(features.grad[:, 0].sum(), torch.tensor(1.0))


def test_constant_map_is_mean_pooled() -> None:
    constant = torch.tensor([1.0, 2.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    torch.testing.assert_close(attention_pool(constant), constant.mean(dim=(2, 3)))
    features = maps(2, 3, 4, 5)
    torch.testing.assert_close(attention_pool(features, constant), features.mean(dim=(2, 3)))


def test_attention_sums_to_one() -> None:
    pooled = attention_pool(torch.ones(4, 2, 3, 3), maps(4, 2, 3, 3))
    torch.testing.assert_close(pooled, torch.ones(4, 2))


def test_pooling_weighs_the_positions_by_the_attention() -> None:
    features, source = maps(3, 5, 2, 4), maps(3, 5, 2, 4, seed=1)
    source[1] = 0  # no activation
    weights = attention_weights(source)
    assert weights.shape == (3, 2, 4)
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(3))
    torch.testing.assert_close(weights[1], torch.full((2, 4), 1 / 8))
    assert float(weights[0].amax()) > 1.2 / 8  # an attention that is none would pass otherwise
    weighted = (features * weights.unsqueeze(1)).sum(dim=(2, 3))
    torch.testing.assert_close(attention_pool(features, source), weighted)


def test_the_attention_is_where_the_activation_is() -> None:
    features = torch.zeros(1, 3, 2, 3)
    features[0, 1, 1, 2] = 5.0
    expected = torch.zeros(1, 2, 3)
    expected[0, 1, 2] = 1.0
    assert torch.equal(attention_weights(features), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_map_without_activation_is_mean_pooled_with_finite_gradients(autocast: bool) -> None:
    features = maps(3, 4, 2, 2)
    features[1] = 0
    features[2] = 1e-25  # products of these are exactly 0, though every position is active
    features.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        pooled = attention_pool(features)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled[1], torch.zeros(4))
    torch.autograd.backward(pooled.sum())
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())
    torch.testing.assert_close(features.grad[1], torch.full((4, 2, 2), 0.25))
    silent = torch.zeros(3, 4, 2, 2)
    torch.testing.assert_close(attention_pool(features, silent), features.mean(dim=(2, 3)))


def test_negative_attention_counts_as_zero() -> None:
    features = maps(1, 2, 1, 2)
    source = torch.tensor([[[[1.0, -5.0]], [[1.0, 0.0]]]])
    torch.testing.assert_close(attention_pool(features, source), features[:, :, 0, 0])


def test_half_maps_do_not_overflow() -> None:
    """One score alone is 2,048 * 36, past 65,504."""
    features = torch.full((1, 2048, 8, 8), 6.0, dtype=torch.float16)
    torch.testing.assert_close(attention_pool(features), torch.full((1, 2048), 6.0))


@pytest.mark.parametrize(
    ("number", "height", "width", "grid"),
    [(6, 64, 64, 8), (2, 4, 6, 2), (3, 4, 4, 1), (1, 3, 3, 3)],
)
def test_patches_are_where_the_paper_puts_them(
    number: int, height: int, width: int, grid: int
) -> None:
    features = maps(number, 2, height, width)
    patches = split_patches(features, grid)
    rows, columns = height // grid, width // grid
    assert patches.shape == (number * grid * grid, 2, rows, columns)
    for row in range(grid):
        for column in range(grid):
            for n in range(number):
                patch = patches[(row * grid + column) * number + n]
                down = slice(row * rows, (row + 1) * rows)
                across = slice(column * columns, (column + 1) * columns)
                assert torch.equal(patch, features[n, :, down, across])
    means = patches.mean(dim=(2, 3)).view(grid * grid, number, 2).mean(dim=0)
    torch.testing.assert_close(means, features.mean(dim=(2, 3)))


def test_a_grid_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"patch_grid is 4.*14x14"):
        split_patches(maps(1, 1, 14, 14), 4)
    with pytest.raises(UserError, match=r"patch_grid is 4.*8x6"):
        split_patches(maps(1, 1, 8, 6), 4)


def test_normalise_gives_length_one_in_float32() -> None:
    embeddings = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16)
    torch.testing.assert_close(normalise(embeddings), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_gradient_through_a_zero_embedding_is_bounded() -> None:
    embeddings = torch.zeros(1, 3, requires_grad=True)
    torch.autograd.backward(normalise(embeddings).sum())
    assert embeddings.grad is not None
    assert embeddings.grad.abs().max().item() == pytest.approx(1e6)


@pytest.mark.parametrize("momentum", [0.999, 0.9, 0.5, 0.2])
@pytest.mark.parametrize("steps", [1, 2, 200])
def test_gap_of_an_ema_shrinks_by_its_momentum_each_step(momentum: float, steps: int) -> None:
    torch.manual_seed(0)
    source, target = nn.Linear(4, 3), nn.Linear(4, 3)
    start = copy.deepcopy(target)
    for _ in range(steps):
        update_ema(target, source, momentum)
    for average, parameter, first in zip(
        target.parameters(), source.parameters(), start.parameters(), strict=True
    ):
        expected = parameter + momentum**steps * (first - parameter)
        torch.testing.assert_close(average, expected, rtol=1e-4, atol=1e-6)


def test_ema_with_momentum_one_stays_and_with_zero_copies() -> None:
    torch.manual_seed(0)
    source, target = nn.Linear(4, 3), nn.Linear(4, 3)
    start = copy.deepcopy(target)
    update_ema(target, source, 1.0)
    assert torch.equal(target.weight, start.weight)
    update_ema(target, source, 0.0)
    assert torch.equal(target.weight, source.weight)
    assert torch.equal(target.bias, source.bias)


def test_ema_leaves_the_source_and_gradients_alone() -> None:
    torch.manual_seed(0)
    source, target = nn.Linear(4, 3), nn.Linear(4, 3)
    before = copy.deepcopy(source)
    update_ema(target, source, 0.9)
    assert torch.equal(source.weight, before.weight)
    assert source.weight.requires_grad
    assert target.weight.grad_fn is None


def test_ema_in_half_precision_is_refused() -> None:
    """There 1,000 steps of 1e-3 leave the average exactly where it was."""
    source, target = nn.Linear(4, 3).bfloat16(), nn.Linear(4, 3).bfloat16()
    with pytest.raises(AssertionError):
        update_ema(target, source, 0.999)
