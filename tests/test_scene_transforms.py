from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator

from csg_ray.data.scene_transforms import SceneTransform
from made_data import random_image, refusal

Crop = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def _cut(
    transform: SceneTransform, image: Image.Image, labels: NDArray[np.uint8], seed: int
) -> Crop:
    cropped, label_map = transform.crop(image, labels, Generator().manual_seed(seed))
    size = transform.crop_size
    assert (cropped.mode, cropped.size, label_map.shape) == ("RGB", (size, size), (size, size))
    assert label_map.dtype == np.uint8
    return np.asarray(cropped), label_map


class Whole:
    """The same crop out of the whole scaled image, with the draws taken by hand."""

    def __init__(
        self, transform: SceneTransform, image: Image.Image, labels: NDArray[np.uint8], seed: int
    ) -> None:
        draws = torch.rand(4, generator=Generator().manual_seed(seed), dtype=torch.float64)
        scale, across, down, coin = draws.tolist()
        scale = transform.min_scale + scale * (transform.max_scale - transform.min_scale)
        side, size = transform.crop_size, (round(image.width * scale), round(image.height * scale))
        left, top = (
            int(draw * (length - side + 1))
            for draw, length in zip((across, down), size, strict=True)
        )
        box = (left, top, left + side, top + side)
        step = -1 if transform.flip and coin < 0.5 else 1
        scaled = image.resize(size, Image.Resampling.BILINEAR).crop(box)
        nearest = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST).crop(box)
        self.pixels = np.asarray(scaled)[:, ::step]
        self.labels = np.asarray(nearest)[:, ::step]
        rows, columns = (
            _between_pixels(start, side, length, whole)
            for start, length, whole in ((top, image.height, size[1]), (left, image.width, size[0]))
        )
        self.ties = (rows[:, None] | columns[None, :])[:, ::step]


def _between_pixels(start: int, count: int, side: int, scaled: int) -> NDArray[np.bool_]:
    """Whether the centre of a scaled pixel lies on the border of two pixels of the image."""
    centres = 2 * (start + np.arange(count)) + 1  # in half pixels
    found: NDArray[np.bool_] = centres * side % (2 * scaled) == 0
    return found


def test_a_crop_is_that_of_the_whole_scaled_image() -> None:
    rng = np.random.default_rng(0)
    differences, num_ties = [], 0
    for seed in range(150):
        crop_size = int(rng.integers(16, 64))
        width, height = rng.integers(int(crop_size / 0.75) + 2, 160, 2).tolist()
        transform = SceneTransform(crop_size, True, 0.75, 1.25)
        image = random_image(seed, width, height)
        labels = rng.integers(0, 256, (height, width), dtype=np.uint8)
        pixels, label_map = _cut(transform, image, labels, seed)
        whole = Whole(transform, image, labels, seed)
        differences.append(np.abs(pixels.astype(int) - whole.pixels).ravel())
        assert ((label_map == whole.labels) | whole.ties).all()
        num_ties += int(whole.ties.sum())
    # Pillow keeps the box in single precision, and rounds levels twice. Of noise this small many
    # levels lie near the middle of two.
    off = np.concatenate(differences)
    assert off.max() <= 2
    assert (off > 0).mean() < 0.08
    assert (off > 1).mean() < 1e-4
    # Labels differ only where two pixels are equally near, which is seldom.
    assert num_ties < 0.06 * len(off) / 3


def test_noise_of_a_real_size_is_one_level_of_few_pixels() -> None:
    transform = SceneTransform(512, False, 0.75, 1.25)
    image, labels = random_image(0, 1914, 1052), np.zeros((1052, 1914), np.uint8)
    pixels, _ = _cut(transform, image, labels, 1)
    off = np.abs(pixels.astype(int) - Whole(transform, image, labels, 1).pixels)
    assert off.max() <= 1
    assert (off > 0).mean() < 0.01


@pytest.mark.parametrize(("flip", "min_scale", "max_scale"), [(True, 0.75, 1.25), (False, 1, 1)])
def test_image_and_labels_stay_aligned(flip: bool, min_scale: float, max_scale: float) -> None:
    # Blocks of 16 x 16 pixels; red says the block's row, green its column, the label both.
    rows, columns = np.divmod(np.arange(36).reshape(6, 6), 6)
    rows, columns = (np.kron(each, np.ones((16, 16), int)) for each in (rows, columns))
    pixels = np.stack([rows * 40, columns * 40, 0 * rows], axis=2).astype(np.uint8)
    labels = (rows * 6 + columns).astype(np.uint8)
    transform = SceneTransform(48, flip, min_scale, max_scale)
    agreement, flipped = [], set()
    for seed in range(40):
        cropped, label_map = _cut(transform, Image.fromarray(pixels), labels, seed)
        found = np.rint(cropped[..., 0] / 40) * 6 + np.rint(cropped[..., 1] / 40)
        agreement.append((found == label_map).mean())
        flipped.add(bool(label_map[0, 0] % 6 > label_map[0, -1] % 6))
    # A pixel at a block's border may be equally near to both; one pixel off would be 6 % of them.
    assert min(agreement) > (0.9 if min_scale < 1 else 0.9999)
    assert np.mean(agreement) > 0.985
    assert flipped == ({True, False} if flip else {False})


def test_without_scaling_a_crop_is_a_plain_one_at_every_offset_there_is() -> None:
    image = random_image(0, 20, 19)
    pixels = np.asarray(image)
    labels = np.arange(20 * 19).astype(np.uint8).reshape(19, 20)
    transform = SceneTransform(16, False, 1, 1)
    seen = []
    for seed in range(600):
        cropped, label_map = _cut(transform, image, labels, seed)
        places = [
            (top, left)
            for top in range(4)
            for left in range(5)
            if (pixels[top : top + 16, left : left + 16] == cropped).all()
        ]
        ((top, left),) = places
        assert (labels[top : top + 16, left : left + 16] == label_map).all()
        seen.append((top, left))
    counts = np.array([seen.count((top, left)) for top in range(4) for left in range(5)])
    # 30 of each of the 20 expected, give or take 5 standard deviations of 5.3.
    assert np.abs(counts - 30).max() < 27


def test_the_only_crop_of_an_image_as_large_as_it_is_the_image() -> None:
    image, labels = random_image(0, 16, 16), np.arange(256).astype(np.uint8).reshape(16, 16)
    cropped, label_map = _cut(SceneTransform(16, False, 1, 1), image, labels, 3)
    assert (cropped == np.asarray(image)).all()
    assert (label_map == labels).all()


def test_scales_are_uniform_between_both_ends() -> None:
    # A ramp of one level a column: the slope of the crop is 1 / scale.
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    labels = np.ascontiguousarray(ramp[..., 0])
    transform = SceneTransform(96, True, 0.75, 1.25)
    scales, flips = [], 0
    for seed in range(500):
        row = _cut(transform, Image.fromarray(ramp), labels, seed)[0][50, :, 0].astype(int)
        scales.append(94 / abs(int(row[95]) - int(row[1])))
        flips += bool(row[0] > row[-1])
    found = np.sort(scales)
    assert 0.74 < found[0] < 0.77
    assert 1.23 < found[-1] < 1.27
    # The share below a scale against the uniform distribution's; 1.6 / sqrt(500) has p = 0.01.
    expected = (found - 0.75) / 0.5
    assert np.abs(expected - np.arange(500) / 500).max() < 1.6 / 500**0.5 + 0.02
    assert abs(flips - 250) < 56


def test_the_generator_alone_decides() -> None:
    image, labels = random_image(0, 64, 64), np.zeros((64, 64), np.uint8)
    transform = SceneTransform(32, True, 0.75, 1.25)
    first = _cut(transform, image, labels, 7)[0]
    torch.rand(3)
    assert (_cut(transform, image, labels, 7)[0] == first).all()
    assert (_cut(transform, image, labels, 8)[0] != first).any()


def test_no_draw_depends_on_whether_images_are_flipped() -> None:
    image, labels = random_image(0, 64, 64), np.zeros((64, 64), np.uint8)
    for seed in range(10):
        plain = _cut(SceneTransform(32, False, 0.75, 1.25), image, labels, seed)[0]
        flipped = _cut(SceneTransform(32, True, 0.75, 1.25), image, labels, seed)[0]
        assert (flipped == plain).all() or (flipped == plain[:, ::-1]).all()


@pytest.mark.parametrize(("width", "height", "covers"), [(682, 700, True), (700, 681, False)])
def test_an_image_must_cover_the_crop_at_the_smallest_scale(
    width: int, height: int, covers: bool
) -> None:
    transform = SceneTransform(512, True, 0.75, 1.25)
    image, labels = Image.new("RGB", (width, height)), np.zeros((height, width), np.uint8)
    if covers:
        transform.check_covers(width, height, "images/00001.png")
        for seed in range(20):
            _cut(transform, image, labels, seed)
        return
    said = refusal(lambda: transform.check_covers(width, height, "images/00001.png"))
    assert said.startswith(
        "data.image_size is 512, but images/00001.png has 700x681 pixels, 511 on the shorter"
    )
