from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from csg_ray.config.data import DigitScenesConfig, DigitsConfig
from csg_ray.config.methods import VanillaConfig
from csg_ray.config.run import EvaluationConfig, ModelConfig, RunConfig
from csg_ray.methods.vanilla import Vanilla
from csg_ray.training.scores import score, window_starts

CLASSES = 4


def _config(task: str = "segmentation", **evaluation: Any) -> RunConfig:
    scenes = task == "segmentation"
    return RunConfig(
        data=DigitScenesConfig() if scenes else DigitsConfig(),
        model=ModelConfig(head="fcn" if scenes else "linear"),
        method=VanillaConfig(),
        evaluation=EvaluationConfig(**evaluation),
    )


class PixelByPixel(Vanilla):
    """Says of a pixel what its colour says, wherever it is; notes the sizes it was given."""

    weights = torch.tensor([[2.0, -1, 0], [0, 2, 1], [-1, 0, 3], [1, 1, -2]])

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config, CLASSES, 1)
        self.sizes: list[tuple[int, int]] = []

    def features(self, images: Tensor) -> dict[int, Tensor]:
        self.sizes.append((images.shape[2], images.shape[3]))
        return {4: images}

    def classify(self, maps: dict[int, Tensor], size: tuple[int, int]) -> Tensor:
        assert tuple(maps[4].shape[2:]) == size
        return torch.einsum("kc,nchw->nkhw", self.weights, maps[4])


class Lopsided(PixelByPixel):
    """Prefers class 0 in the left half of what it is shown."""

    def classify(self, maps: dict[int, Tensor], size: tuple[int, int]) -> Tensor:
        logits = super().classify(maps, size)
        logits[:, 0, :, : size[1] // 2] += 2
        return logits


def _images(height: int = 40, width: int = 70, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("length", "side", "starts"),
    [
        (16, 16, [0]),
        (10, 16, [0]),
        (17, 16, [0, 1]),
        (30, 16, [0, 14]),
        (31, 16, [0, 14, 15]),
        # The authors' 5/6 of 1024, rounded up: 854.
        (2048, 1024, [0, 854, 1024]),
        (1024, 1024, [0]),
        (1732, 1024, [0, 708]),
    ],
)
def test_where_windows_start(length: int, side: int, starts: list[int]) -> None:
    assert window_starts(length, side) == starts


@pytest.mark.parametrize("side", [16, 17, 32, 100])
def test_windows_cover_every_pixel_and_reach_over_no_border(side: int) -> None:
    for length in range(1, 200):
        starts = window_starts(length, side)
        shown = [0] * length
        for start in starts:
            for position in range(start, min(start + side, length)):
                shown[position] += 1
        assert min(shown) >= 1
        assert len(set(starts)) == len(starts)
        assert starts == sorted(starts)
        assert starts[-1] + side <= length or length <= side


@pytest.mark.parametrize("window", [16, 24, 40, 64])
def test_windows_change_nothing_for_a_method_that_looks_at_one_pixel(window: int) -> None:
    config = _config(window=window)
    method, images = PixelByPixel(config).eval(), _images()
    found = score(method, images, config)
    whole = score(method, images, _config())
    torch.testing.assert_close(found.values, whole.values.log_softmax(dim=1))
    assert torch.equal(found.values.argmax(dim=1), whole.values.argmax(dim=1))
    assert bool(found.finite)
    # All windows were of the asked side; an image that is lower is shown in its whole height.
    assert set(method.sizes[:-1]) == {(min(window, 40), min(window, 70))}
    assert len(method.sizes) - 1 == len(window_starts(40, window)) * len(window_starts(70, window))


def test_a_pixel_gets_the_mean_of_the_windows_that_show_it() -> None:
    config = _config(window=16)
    method, images = Lopsided(config).eval(), _images(16, 40)
    found = score(method, images, config).values
    expected = torch.zeros(2, CLASSES, 16, 40)
    shown = torch.zeros(40)
    # Every 14 pixels (5/6 of 16, rounded up), and the last one at the end.
    for left in (0, 14, 24):
        part = images[..., left : left + 16]
        logits = torch.einsum("kc,nchw->nkhw", method.weights, part)
        logits[:, 0, :, :8] += 2
        expected[..., left : left + 16] += logits.softmax(dim=1)
        shown[left : left + 16] += 1
    assert shown.max() == 2
    torch.testing.assert_close(found.exp(), expected / shown)
    whole = score(method, images, _config()).values
    assert not torch.equal(found.argmax(dim=1), whole.argmax(dim=1))


@pytest.mark.parametrize("window", [64, 100])
def test_one_window_as_large_as_the_image_is_the_whole_image(window: int) -> None:
    config = _config(window=window)
    method, images = Vanilla(config, CLASSES, 1).eval(), _images(64, 64)
    with torch.no_grad():
        found, whole = score(method, images, config), score(method, images, _config())
    torch.testing.assert_close(found.values, whole.values.log_softmax(dim=1))
    torch.testing.assert_close(found.embeddings, whole.embeddings)


def test_embeddings_are_the_mean_over_positions_and_windows() -> None:
    method, images = PixelByPixel(_config()).eval(), _images(16, 40)
    whole = score(method, images, _config()).embeddings
    torch.testing.assert_close(whole, images.flatten(2).mean(dim=2))
    windows = score(method, images, _config(window=16)).embeddings
    expected = torch.stack([images[..., at : at + 16].flatten(2).mean(dim=2) for at in (0, 14, 24)])
    torch.testing.assert_close(windows, expected.mean(dim=0))


@pytest.mark.parametrize("window", [None, 16])
def test_one_bad_logit_anywhere_is_noticed(window: int | None) -> None:
    config = _config(window=window)
    method, images = PixelByPixel(config).eval(), _images()
    assert bool(score(method, images, config).finite)
    images[1, 0, 39, 69] = float("inf")
    assert not bool(score(method, images, config).finite)


def test_flip_averages_the_shares_of_a_scene_and_its_mirror_image() -> None:
    config = _config(flip=True)
    method, images = Lopsided(config).eval(), _images(6, 10)
    found = score(method, images, config)
    logits = torch.einsum("kc,nchw->nkhw", method.weights, images)
    left, right = logits.clone(), logits.clone()
    left[:, 0, :, :5] += 2
    right[:, 0, :, 5:] += 2
    expected = (left.softmax(dim=1) + right.softmax(dim=1)) / 2
    torch.testing.assert_close(found.values / found.values.sum(dim=1, keepdim=True), expected)
    torch.testing.assert_close(found.embeddings, images.flatten(2).mean(dim=2))


def test_flip_changes_nothing_for_a_method_that_looks_at_one_pixel() -> None:
    config = _config(flip=True, window=16)
    method, images = PixelByPixel(config).eval(), _images()
    logits = torch.einsum("kc,nchw->nkhw", method.weights, images)
    assert torch.equal(score(method, images, config).values.argmax(dim=1), logits.argmax(dim=1))


class PooledLopsided(Vanilla):
    """The three colours' means of the left half of an image."""

    def features(self, images: Tensor) -> dict[int, Tensor]:
        return {4: images[..., : images.shape[3] // 2]}

    def classify(self, maps: dict[int, Tensor], size: tuple[int, int]) -> Tensor:
        return 20 * maps[4].mean(dim=(2, 3))


def test_flip_averages_sigmoids_of_classes() -> None:
    config = _config("classification", flip=True)
    method, images = PooledLopsided(config, 3, 1).eval(), _images(8, 12)
    left, right = (20 * half.mean(dim=(2, 3)) for half in (images[..., :6], images[..., 6:]))
    expected = functional.sigmoid(left) + functional.sigmoid(right)
    torch.testing.assert_close(score(method, images, config).values, expected)


def test_windows_are_of_segmentation_alone() -> None:
    config = _config("classification", window=16)
    method, images = PooledLopsided(config, 3, 1).eval(), _images(8, 12)
    plain = score(method, images, _config("classification")).values
    assert torch.equal(score(method, images, config).values, plain)
