from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from pydantic import ValidationError
from torch import Generator
from torchvision import transforms

from csg_ray.config.run import AugmentConfig
from csg_ray.data.rand_augment import (
    FRACTION_OPERATIONS,
    OPERATIONS,
    Operation,
    RandAugment,
    TorchvisionRandAugment,
    build_augmentation,
)

MINUS, PLUS = 0.0, 0.9


def random_pixels(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def apply(name: str, pixels: NDArray[np.uint8], magnitude: float, coin: float = PLUS) -> np.ndarray:
    return np.asarray(OPERATIONS[name](Image.fromarray(pixels), magnitude, coin))


def keyed(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def test_values_at_magnitude_6() -> None:
    expected = {
        "identity": 0.2,
        "auto_contrast": 0.2,
        "equalize": 0.2,
        "rotate": 6,
        "posterize": 1.4,
        "solarize": 256 - 204.8,
        "color": 0.18,
        "contrast": 0.18,
        "brightness": 0.18,
        "sharpness": 0.18,
        "shear_x": 0.06,
        "shear_y": 0.06,
        "translate_x": 20,
        "translate_y": 20,
    }
    assert {name: operation.value(6) for name, operation in OPERATIONS.items()} == pytest.approx(
        expected
    )


@pytest.mark.parametrize(("magnitude", "bits"), [(3, 8), (6, 7), (12, 6), (18, 4), (24, 3)])
def test_posterize_keeps_the_derived_bits(magnitude: float, bits: int) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    kept = apply("posterize", ramp, magnitude)
    np.testing.assert_array_equal(kept, ramp // 2 ** (8 - bits) * 2 ** (8 - bits))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("coin", [MINUS, PLUS])
def test_magnitude_0_changes_nothing(name: str, coin: float) -> None:
    pixels = random_pixels(9, 12)
    np.testing.assert_array_equal(apply(name, pixels, 0, coin), pixels)


def test_magnitude_0_never_equalizes_even_for_the_smallest_coin() -> None:
    dark = random_pixels(40, 40) // 4
    np.testing.assert_array_equal(apply("equalize", dark, 0, 0.0), dark)


def test_solarize_inverts_from_the_threshold_on() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    expected = np.where(ramp >= 204.8, 255 - ramp, ramp)
    np.testing.assert_array_equal(apply("solarize", ramp, 6), expected)


@pytest.mark.parametrize(("coin", "factor"), [(MINUS, 0.82), (PLUS, 1.18)])
def test_brightness_scales_every_level(coin: float, factor: float) -> None:
    pixels = random_pixels(9, 12)
    expected = np.clip(pixels * factor, 0, 255)
    assert np.abs(apply("brightness", pixels, 6, coin).astype(float) - expected).max() <= 1


@pytest.mark.parametrize(("coin", "factor"), [(MINUS, 0.82), (PLUS, 1.18)])
def test_contrast_scales_about_the_mean_luminance(coin: float, factor: float) -> None:
    pixels = random_pixels(9, 12)
    mean = (pixels @ np.array([0.299, 0.587, 0.114])).mean()
    expected = np.clip(mean + factor * (pixels - mean), 0, 255)
    assert np.abs(apply("contrast", pixels, 6, coin).astype(float) - expected).max() <= 2


@pytest.mark.parametrize("name", ["contrast", "brightness", "sharpness"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 3), (3, 2), (3, 3), (60, 61), (250, 180)])
def test_enhancements_equal_pillows_to_the_bit(name: str, size: tuple[int, int]) -> None:
    enhance = getattr(ImageEnhance, name.capitalize())
    for seed, high in enumerate((256, 200, 3)):
        pixels = np.random.default_rng(seed).integers(0, high, (*size, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        for magnitude in (0, 1, 6, 17.3, 30):
            for sign, coin in ((-1, MINUS), (1, PLUS)):
                expected = enhance(image).enhance(1 + sign * 0.9 * magnitude / 30)
                np.testing.assert_array_equal(apply(name, pixels, magnitude, coin), expected)


def test_color_leaves_grey_images_alone_and_changes_coloured_ones() -> None:
    grey = np.repeat(random_pixels(9, 12)[..., :1], 3, axis=2)
    np.testing.assert_array_equal(apply("color", grey, 30), grey)
    luminance = random_pixels(9, 12) @ np.array([0.299, 0.587, 0.114])
    expected = np.clip(
        luminance[..., None] + 0.1 * (random_pixels(9, 12) - luminance[..., None]), 0, 255
    )
    faded = apply("color", random_pixels(9, 12), 30, MINUS)
    # Pillow rounds the luminance, then cuts the blend: up to 0.45 and 1.
    assert np.abs(faded.astype(float) - expected).max() <= 1.45


def test_translate_moves_by_whole_pixels_and_fills_with_black() -> None:
    pixels = random_pixels(30, 40)
    expected = np.zeros_like(pixels)
    expected[:, :20] = pixels[:, 20:]
    np.testing.assert_array_equal(apply("translate_x", pixels, 6, PLUS), expected)
    expected = np.zeros_like(pixels)
    expected[20:] = pixels[:10]
    np.testing.assert_array_equal(apply("translate_y", pixels, 6, MINUS), expected)


@pytest.mark.parametrize("name", ["translate_x", "translate_y"])
def test_fraction_and_pixels_agree_on_a_side_of_320(name: str) -> None:
    image = Image.fromarray(random_pixels(320, 320))
    in_pixels = OPERATIONS[name](image, 6, PLUS)
    assert in_pixels == FRACTION_OPERATIONS[name](image, 6, PLUS)


def test_fraction_moves_a_digit_by_two_of_32_pixels() -> None:
    pixels = random_pixels(32, 32)
    moved = np.asarray(FRACTION_OPERATIONS["translate_x"](Image.fromarray(pixels), 6, PLUS))
    np.testing.assert_array_equal(moved[:, :30], pixels[:, 2:])
    assert not moved[:, 30:].any()


@pytest.mark.parametrize(("coin", "sign"), [(MINUS, -1), (PLUS, 1)])
def test_shear_takes_the_nearest_pixel(coin: float, sign: int) -> None:
    pixels = random_pixels(11, 13)
    expected = np.zeros_like(pixels)
    for y in range(11):
        for x in range(13):
            source = math.floor(x + 0.5 + sign * 0.3 * (y + 0.5))
            if 0 <= source < 13:
                expected[y, x] = pixels[y, source]
    np.testing.assert_array_equal(apply("shear_x", pixels, 30, coin), expected)
    transposed = apply("shear_y", np.ascontiguousarray(pixels.swapaxes(0, 1)), 30, coin)
    np.testing.assert_array_equal(transposed.swapaxes(0, 1), expected)


def test_rotate_turns_about_the_middle_by_the_value() -> None:
    pixels = np.zeros((101, 101, 3), np.uint8)
    pixels[49:52, 89:92] = 255
    turned = apply("rotate", pixels, 30, PLUS)
    rows, columns = np.nonzero(turned[..., 0])
    angle = math.degrees(math.atan2(50 - rows.mean(), columns.mean() - 50))
    assert angle == pytest.approx(30, abs=1)
    assert set(np.unique(turned)) == {0, 255}


@pytest.mark.parametrize("name", ["auto_contrast", "equalize"])
def test_the_value_is_the_probability(name: str) -> None:
    dark = random_pixels(40, 40) // 4
    assert not np.array_equal(apply(name, dark, 6, 0.19), dark)
    np.testing.assert_array_equal(apply(name, dark, 6, 0.21), dark)


def test_auto_contrast_stretches_each_channel_to_the_full_range() -> None:
    stretched = apply("auto_contrast", random_pixels(9, 12) // 4, 30)
    assert (stretched.min(axis=(0, 1)) == 0).all()
    assert (stretched.max(axis=(0, 1)) == 255).all()


def test_operations_are_drawn_uniformly_with_replacement() -> None:
    drawn: list[int] = []

    def recorder(number: int) -> Operation:
        def record(image: Image.Image, _: float) -> Image.Image:
            drawn.append(number)
            return image

        return Operation(0, 1, record, "nothing")

    augment = RandAugment(2, 6, "pixels")
    augment.operations = tuple(recorder(number) for number in range(14))
    generator = keyed(0)
    for _ in range(3500):
        augment(Image.new("RGB", (4, 4)), generator)
    assert len(drawn) == 7000
    # 500 expected each; 5 standard deviations are about 108.
    assert all(abs(count - 500) < 108 for count in Counter(drawn).values())
    repeated = sum(first == second for first, second in zip(drawn[::2], drawn[1::2], strict=True))
    assert abs(repeated - 250) < 77


@pytest.mark.parametrize("implementation", ["authors", "torchvision"])
def test_the_generator_alone_decides(implementation: str) -> None:
    config = AugmentConfig(implementation=implementation, num_ops=3, magnitude=20)  # type: ignore[arg-type]
    augment = build_augmentation(config)
    image = Image.fromarray(random_pixels(32, 32))
    before = torch.get_rng_state()
    first = augment(image, keyed(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert augment(image, keyed(1)) == first
    assert any(augment(image, keyed(seed)) != first for seed in range(2, 6))
    torch.set_rng_state(before)


def test_torchvision_is_torchvisions() -> None:
    image = Image.fromarray(random_pixels(32, 32))
    reference = transforms.RandAugment(num_ops=2, magnitude=9)
    for seed in range(20):
        lent = int(torch.randint(2**63 - 1, (), generator=keyed(seed)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(lent)
            expected = reference(image)
        assert TorchvisionRandAugment(2, 9)(image, keyed(seed)) == expected


def test_torchvision_refuses_half_a_bin() -> None:
    with pytest.raises(ValidationError, match=r"augment\.magnitude 6\.5 .* round it"):
        AugmentConfig(implementation="torchvision", magnitude=6.5)
