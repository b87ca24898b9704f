from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from pydantic import ValidationError
from torch import Generator
from torchvision import transforms

from csg_ray.config.run import AugmentConfig
from csg_ray.data import rand_augment
from csg_ray.data.rand_augment import (
    FRACTION_OPERATIONS,
    OPERATIONS,
    ColorJitter,
    Operation,
    PhotometricRandAugment,
    RandAugment,
    TorchvisionRandAugment,
    build_augmentation,
    build_key_augmentation,
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


def _noted_jitters(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What `ColorJitter` does, in order: the name and the factor."""
    noted: list[tuple[str, float]] = []

    def note(name: str) -> Callable[[Image.Image, float], Image.Image]:
        def adjust(image: Image.Image, factor: float) -> Image.Image:
            noted.append((name, factor))
            adjusted: Image.Image = getattr(transforms.functional, name)(image, factor)
            return adjusted

        return adjust

    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
    centres = (1.0, 1.0, 1.0, 0.0)
    jitters = tuple((note(name), centre) for name, centre in zip(names, centres, strict=True))
    assert [getattr(transforms.functional, name) for name in names] == [
        adjust for adjust, _ in rand_augment._JITTERS
    ]
    assert [centre for _, centre in rand_augment._JITTERS] == list(centres)
    monkeypatch.setattr(rand_augment, "_JITTERS", jitters)
    return noted


def test_jitter_is_torchvisions_in_its_order_with_its_factors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = Image.fromarray(random_pixels(20, 30))
    for seed in range(10):
        jittered = ColorJitter(0.4)(image, keyed(seed))
        noted = _noted_jitters(monkeypatch)
        assert ColorJitter(0.4)(image, keyed(seed)) == jittered
        monkeypatch.undo()
        expected = image
        for name, factor in noted:
            expected = getattr(transforms.functional, name)(expected, factor)
        assert jittered == expected
        assert jittered != image


def test_jitters_factors_are_uniform_and_their_order_random(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noted = _noted_jitters(monkeypatch)
    image = Image.fromarray(random_pixels(4, 4))
    reference = transforms.ColorJitter(0.4, 0.4, 0.4, 0.4)
    ends = {
        f"adjust_{name}": tuple(getattr(reference, name))
        for name in ("brightness", "contrast", "saturation", "hue")
    }
    for seed in range(600):
        ColorJitter(0.4)(image, keyed(seed))
    orders = Counter(tuple(name for name, _ in noted[at : at + 4]) for at in range(0, 2400, 4))
    assert all(len(set(order)) == 4 for order in orders)
    # 24 orders, 25 times each, give or take 5.
    assert len(orders) == 24
    assert max(orders.values()) < 50
    factors: dict[str, list[float]] = {name: [] for name in ends}
    for name, factor in noted:
        factors[name].append(factor)
    for name, (low, high) in ends.items():
        share = (np.sort(factors[name]) - low) / (high - low)
        assert share[0] >= 0
        assert share[-1] <= 1
        # The distance from the uniform distribution; above 1.63 / sqrt(600) by chance of 1 %.
        assert np.abs(share - np.arange(600) / 600).max() < 1.63 / 600**0.5
    # Each factor has a draw of its own.
    table = np.array([factors[name] for name in ends])
    assert np.abs(np.corrcoef(table) - np.eye(4)).max() < 0.2


def test_jitter_of_strength_0_changes_nothing() -> None:
    image = Image.fromarray(random_pixels(20, 30))
    jittered = np.asarray(ColorJitter(0.0)(image, keyed(3))).astype(int)
    # By way of HSV and back, in whole numbers.
    assert np.abs(jittered - np.asarray(image)).max() <= 6


def _coloured_step(size: int) -> NDArray[np.uint8]:
    pixels = np.full((size, size, 3), (60, 90, 40), np.uint8)
    pixels[:, size // 2 :] = (200, 150, 180)
    return pixels


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(implementation="color_jitter", jitter=0.5),
        AugmentConfig(num_ops=4, magnitude=25),
    ],
)
def test_keys_of_segmentation_move_no_pixel(augment: AugmentConfig) -> None:
    key_augmentation = build_key_augmentation(augment)
    changed = 0
    for seed in range(60):
        key = np.asarray(key_augmentation(Image.fromarray(_coloured_step(40)), keyed(seed)))
        changed += not np.array_equal(key, _coloured_step(40))
        # Sharpening reaches a pixel further from the margin and from the step each of four times.
        inner = key[5:-5]
        assert (inner == inner[:1]).all()
        for side in (inner[:, 5:16], inner[:, 24:35]):
            assert (side == side[:, :1]).all()
    assert changed > 50


def test_the_photometric_operations_are_those_that_move_nothing() -> None:
    geometric = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
    kept = [operation for name, operation in OPERATIONS.items() if name not in geometric]
    augment = PhotometricRandAugment(2, 9)
    assert list(augment.operations) == kept
    assert len(kept) == 9
    assert (augment.num_ops, augment.magnitude) == (2, 9)


def test_photometric_operations_are_drawn_from_all_nine() -> None:
    drawn: Counter[int] = Counter()

    def recorder(number: int) -> Operation:
        def record(image: Image.Image, _: float) -> Image.Image:
            drawn[number] += 1
            return image

        return Operation(0, 1, record, "nothing")

    augment = PhotometricRandAugment(1, 6)
    augment.operations = tuple(recorder(number) for number in range(9))
    for seed in range(900):
        augment(Image.new("RGB", (4, 4)), keyed(seed))
    assert sum(drawn.values()) == 900
    assert all(abs(drawn[number] - 100) < 50 for number in range(9))


def test_the_key_augmentation_follows_the_settings() -> None:
    image = Image.fromarray(random_pixels(24, 24))
    jitter = AugmentConfig(implementation="color_jitter", jitter=0.2, num_ops=3)
    assert build_key_augmentation(jitter)(image, keyed(1)) == ColorJitter(0.2)(image, keyed(1))
    operations = AugmentConfig(num_ops=3, magnitude=17)
    expected = PhotometricRandAugment(3, 17)(image, keyed(1))
    assert build_key_augmentation(operations)(image, keyed(1)) == expected
