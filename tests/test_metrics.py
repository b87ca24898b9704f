from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from csg_ray.metrics import (
    HSE_WORST,
    ConfusionMatrix,
    HypersphericalEnergies,
    hyperspherical_energies,
    hyperspherical_energy,
)

# Table 1 of the CSG paper, ResNet-101 on VisDA-17: HSE with power 0, 1, 2.
TABLE_1 = {
    "baseline": (0.4245, 1.2500, 1.6028),
    "weight l2": (0.4014, 1.2296, 1.5302),
    "synaptic intelligence": (0.3958, 1.2261, 1.5216),
    "feature l2": (0.3337, 1.1910, 1.4449),
    "asg": (0.3251, 1.1840, 1.4229),
    "csg": (0.3188, 1.1806, 1.4177),
}


def relu_features(number: int, channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, channels, generator=generator).clamp_min(0)


def simplex(points: int) -> Tensor:
    return torch.eye(points) - 1 / points


def energies_by_loop(features: Tensor) -> tuple[float, float, float, int]:
    """Powers 0, 1, 2 and the duplicates, pair by pair in float64."""
    vectors = [row / math.sqrt(float(row @ row)) for row in features.double() if row.any()]
    squares = []
    duplicates = 0
    for i, first in enumerate(vectors):
        for second in vectors[i + 1 :]:
            difference = first - second
            square = float(difference @ difference)
            if square < 1e-8:
                duplicates += 1
            else:
                squares.append(square)
    number = len(squares)
    return (
        math.fsum(-math.log(square) for square in squares) / number,
        math.fsum(1 / math.sqrt(square) for square in squares) / number,
        math.fsum(1 / square for square in squares) / number,
        duplicates,
    )


def assert_equal_to_loop(energies: HypersphericalEnergies, features: Tensor, rel: float) -> None:
    power0, power1, power2, duplicates = energies_by_loop(features)
    assert energies.duplicates == duplicates
    assert energies.power0 == pytest.approx(power0, rel=rel)
    assert energies.power0_distance == pytest.approx(power0 / 2, rel=rel)
    assert energies.power1 == pytest.approx(power1, rel=rel)
    assert energies.power2 == pytest.approx(power2, rel=rel)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (torch.eye(7), (-math.log(2), 0.5**0.5, 0.5)),
        (3 * torch.eye(7), (-math.log(2), 0.5**0.5, 0.5)),
        (torch.tensor([[1.0, 2.0], [-2.0, -4.0]]), (-math.log(4), 0.5, 0.25)),
        (simplex(5), (-math.log(2.5), 2.5**-0.5, 1 / 2.5)),
        (simplex(40), (-math.log(80 / 39), (80 / 39) ** -0.5, 39 / 80)),
    ],
    ids=["orthonormal", "scaled", "antipodal", "simplex of 5", "simplex of 40"],
)
def test_hse_has_its_closed_form(features: Tensor, expected: tuple[float, ...]) -> None:
    energies = hyperspherical_energies(features)
    assert (energies.power0, energies.power1, energies.power2) == pytest.approx(expected, rel=1e-6)
    number = len(features)
    assert (energies.pairs, energies.duplicates) == (number * (number - 1) // 2, 0)


@pytest.mark.parametrize("block_size", [1, 7, 16, 33, 64, 2048])
def test_hse_equals_a_loop_over_pairs_for_any_block_size(block_size: int) -> None:
    features = relu_features(64, 12)
    features[[5, 40]] = 0
    features[20] = features[50] * 2
    features[21] = features[50]
    energies = hyperspherical_energies(features, block_size=block_size)
    assert_equal_to_loop(energies, features, rel=1e-6)
    assert energies.zero_rows == 2
    assert energies.duplicates == 3
    assert energies.pairs + energies.duplicates == 62 * 61 // 2


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3])
def test_hse_keeps_its_digits_when_features_are_close(spread: float) -> None:
    """2 - 2 cos in float32 would be wrong by half at a spread of 1e-3."""
    features = torch.ones(40, 16) + spread * relu_features(40, 16, seed=1)
    energies = hyperspherical_energies(features, block_size=16)
    assert_equal_to_loop(energies, features, rel=1e-3)


def test_hse_counts_duplicates_that_differ_only_by_rounding() -> None:
    features = relu_features(30, 64)
    copies = (features * 0.3).half().float()
    features = torch.cat([copies, copies * 7.3, relu_features(10, 64, seed=2)])
    energies = hyperspherical_energies(features, block_size=16)
    assert energies.duplicates == 30
    assert_equal_to_loop(energies, features, rel=1e-6)


def test_hse_survives_features_whose_squares_overflow_or_underflow() -> None:
    features = relu_features(20, 8)
    expected = hyperspherical_energies(features)
    scale = torch.tensor([1e-30, 1.0, 1e30, 1e36]).repeat(5).unsqueeze(1)
    assert hyperspherical_energies(features * scale).power2 == pytest.approx(expected.power2)


@pytest.mark.parametrize(
    ("features", "duplicates", "zero_rows"),
    [
        (torch.ones(300, 16), 300 * 299 // 2, 0),
        (torch.zeros(9, 4), 0, 9),
        (torch.tensor([[0.0, 0.0], [1.0, 0.0]]), 0, 1),
        (torch.ones(1, 4), 0, 0),
        (torch.zeros(0, 4), 0, 0),
        (torch.tensor([[1.0, 0.0], [math.nan, 1.0], [0.0, 1.0]]), 0, 0),
        (torch.tensor([[1.0, 0.0], [math.inf, 1.0], [0.0, 1.0]]), 0, 0),
    ],
    ids=["collapsed", "all zero", "one left", "one", "none", "nan", "inf"],
)
def test_hse_without_a_pair_is_the_finite_worst(
    features: Tensor, duplicates: int, zero_rows: int
) -> None:
    energies = hyperspherical_energies(features, block_size=128)
    assert energies.pairs == 0
    assert (energies.duplicates, energies.zero_rows) == (duplicates, zero_rows)
    values = (energies.power0, energies.power0_distance, energies.power1, energies.power2)
    assert values == tuple(HSE_WORST.values())
    assert values == pytest.approx((-math.log(1e-8), -math.log(1e-4), 1e4, 1e8))


def test_hse_worst_bounds_the_nearest_pair_that_counts() -> None:
    angle = 1.01e-4
    pair = torch.tensor([[1.0, 0.0], [1.0, angle]])
    energies = hyperspherical_energies(pair)
    assert energies.duplicates == 0
    assert energies.power2 == pytest.approx(angle**-2, rel=1e-3)
    assert energies.power0 < HSE_WORST["hse"]
    assert energies.power1 < HSE_WORST["hse_power1"]
    assert energies.power2 < HSE_WORST["hse_power2"]


def test_hse_is_computed_in_float32_inside_autocast_and_low_precision_settings() -> None:
    features = relu_features(100, 32)
    expected = hyperspherical_energies(features)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert hyperspherical_energies(features) == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_hse_multiplies_without_tf32_and_puts_the_setting_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    seen = []

    def recording_addmm(*operands: Tensor, alpha: float, out: Tensor | None) -> Tensor:
        seen.append([backend.fp32_precision for backend in backends])
        return original(*operands, alpha=alpha, out=out)

    original = torch.addmm
    monkeypatch.setattr(torch, "addmm", recording_addmm)
    torch.set_float32_matmul_precision("medium")
    try:
        hyperspherical_energies(relu_features(10, 4), block_size=8)
        assert seen == [["ieee", "ieee"]] * 3  # two squares on the diagonal and what lies between
        assert [backend.fp32_precision for backend in backends] == ["tf32", "bf16"]
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("block_size", [300, 513, 2048])
def test_hse_of_many_rows_equals_the_full_matrix_in_float64(block_size: int) -> None:
    features = relu_features(700, 32)
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    squares = (unit[:, None] - unit[None]).square().sum(dim=2)
    squares = squares[tuple(torch.triu_indices(700, 700, offset=1))]
    energies = hyperspherical_energies(features, block_size=block_size)
    assert energies.power0 == pytest.approx(float(-squares.log().mean()), rel=1e-6)
    assert energies.power1 == pytest.approx(float((1 / squares.sqrt()).mean()), rel=1e-6)
    assert energies.power2 == pytest.approx(float((1 / squares).mean()), rel=1e-6)


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-2])
def test_hse_with_one_near_pair_is_exact_there_and_equal_elsewhere(distance: float) -> None:
    features = relu_features(150, 16)
    features[140] = features[3] * 2
    features[140, 0] += distance
    energies = hyperspherical_energies(features, block_size=8)
    assert energies.duplicates == (distance < 1e-2)
    assert_equal_to_loop(energies, features, rel=1e-6)


def test_hse_multiplies_many_close_pairs_without_overflow() -> None:
    """All pairs just above what is computed in float64: the largest factors a product gets."""
    side = 0.0225
    features = torch.cat([torch.ones(200, 1), side * torch.eye(200)], dim=1)
    square = 2 * side**2 / (1 + side**2)
    assert 1e-3 < square < 1.02e-3
    energies = hyperspherical_energies(features, block_size=16)
    expected = (-math.log(square), square**-0.5, 1 / square)
    assert (energies.power0, energies.power1, energies.power2) == pytest.approx(expected, rel=1e-3)


def test_hse_of_antipodal_crowds_multiplies_without_underflow() -> None:
    features = torch.cat([torch.ones(300, 1), 0.1 * torch.eye(300)], dim=1)
    features[150:, 0] *= -1
    near, far = 2 * 0.01 / 1.01, 2 + 2 / 1.01
    alike = 2 * (150 * 149 // 2) / (300 * 299 // 2)
    energies = hyperspherical_energies(features, block_size=16)
    expected = [
        alike * of(near) + (1 - alike) * of(far)
        for of in (lambda d: -math.log(d), lambda d: d**-0.5, lambda d: 1 / d)
    ]
    assert [energies.power0, energies.power1, energies.power2] == pytest.approx(expected, rel=1e-4)


def test_hse_multiplies_one_triangle_and_the_near_rows_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Work is counted, not timed: (N + block) / 2 products a row where all of them are N."""
    products = 0

    def counting_addmm(*operands: Tensor, alpha: float, out: Tensor | None) -> Tensor:
        nonlocal products
        tile = original(*operands, alpha=alpha, out=out)
        products += tile.numel()
        return tile

    original = torch.addmm
    monkeypatch.setattr(torch, "addmm", counting_addmm)
    features = relu_features(1000, 32)
    hyperspherical_energies(features, block_size=50)
    assert products == 1000 * (1000 + 50) // 2
    features[900] = features[100]
    products = 0
    hyperspherical_energies(features, block_size=50)
    assert products == 1000 * (1000 + 50) // 2 + 200  # one row of one tile


def test_hse_does_not_change_its_input_or_keep_a_graph() -> None:
    features = relu_features(10, 4).requires_grad_()
    before = features.detach().clone()
    hyperspherical_energies(features)
    assert torch.equal(features, before)


def test_hyperspherical_energy_picks_power_and_convention() -> None:
    features = relu_features(30, 6)
    energies = hyperspherical_energies(features)
    assert hyperspherical_energy(features) == energies.power0
    assert hyperspherical_energy(features, 0, "distance") == energies.power0 / 2
    assert hyperspherical_energy(features, power=1) == energies.power1
    assert hyperspherical_energy(features, power=2, convention="distance") == energies.power2
    with pytest.raises(ValueError, match="power must be"):
        hyperspherical_energy(features, power=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="convention"):
        hyperspherical_energy(features, convention="cosine")  # type: ignore[arg-type]


def assert_consistent_moments(power0: float, power1: float, power2: float) -> None:
    """What Jensen's inequality demands when power 0 is the mean of ln(1 / d^2)."""
    assert power0 / 2 <= math.log(power1)
    assert power0 <= math.log(power2)
    assert power2 >= power1**2


@pytest.mark.parametrize("row", TABLE_1)
def test_table_1_holds_the_squared_distance_convention(row: str) -> None:
    power0, power1, power2 = TABLE_1[row]
    assert_consistent_moments(power0, power1, power2)
    assert power0 > math.log(power1)  # so it cannot be the mean of ln(1 / d)
    # With ln(1 / d^2) near a Gaussian, powers 0 and 2 foretell power 1.
    variance = 2 * (math.log(power2) - power0)
    assert math.exp(power0 / 2 + variance / 8) == pytest.approx(power1, abs=0.0012)


@pytest.mark.parametrize("channels", [3, 16, 128])
def test_our_energies_satisfy_the_inequalities_of_table_1(channels: int) -> None:
    energies = hyperspherical_energies(relu_features(200, channels))
    assert_consistent_moments(energies.power0, energies.power1, energies.power2)
    assert energies.power0_distance <= math.log(energies.power1)


def scores_by_loop(
    predictions: list[int], labels: list[int], classes: int, ignore: int
) -> tuple[list[float], list[float]]:
    """Recall and IoU of each class, counted one by one."""
    kept = [(p, t) for p, t in zip(predictions, labels, strict=True) if t != ignore]
    recalls, ious = [], []
    for c in range(classes):
        hits = sum(p == c and t == c for p, t in kept)
        labelled = sum(t == c for _, t in kept)
        union = sum(c in pair for pair in kept)
        recalls.append(hits / labelled if labelled else math.nan)
        ious.append(hits / union if union else math.nan)
    return recalls, ious


def mean_of_finite(values: list[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return sum(finite) / len(finite)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_confusion_matrix_equals_a_count_by_hand(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    predictions = torch.randint(0, 20, (3, 6, 5), generator=generator)
    labels = torch.randint(0, 19, (3, 6, 5), generator=generator)
    predictions[predictions == 7] = 8  # class 7 is never predicted, 18 and 19 never labelled
    labels[labels == 18] = 255
    matrix = ConfusionMatrix(21)
    for prediction, label in zip(predictions, labels, strict=True):
        matrix.update(prediction.to(dtype), label.to(dtype))
    recalls, ious = scores_by_loop(
        predictions.flatten().tolist(), labels.flatten().tolist(), 21, 255
    )
    assert matrix.class_accuracies.tolist() == pytest.approx(recalls, nan_ok=True)
    assert matrix.class_ious.tolist() == pytest.approx(ious, nan_ok=True)
    assert matrix.mean_class_accuracy == pytest.approx(mean_of_finite(recalls))
    assert matrix.mean_iou == pytest.approx(mean_of_finite(ious))
    kept = labels != 255
    assert matrix.accuracy == pytest.approx(float((predictions == labels)[kept].float().mean()))
    assert matrix.unlabelled_classes == [c for c, value in enumerate(recalls) if math.isnan(value)]
    assert matrix.absent_classes == [c for c, value in enumerate(ious) if math.isnan(value)]
    assert 18 in matrix.unlabelled_classes
    assert 18 not in matrix.absent_classes
    assert 20 in matrix.absent_classes


def test_confusion_matrix_perfect_prediction_and_ignored_pixels() -> None:
    labels = torch.tensor([0, 1, 1, 3])
    matrix = ConfusionMatrix(4)
    matrix.update(labels, labels)
    assert (matrix.mean_class_accuracy, matrix.mean_iou, matrix.accuracy) == (1.0, 1.0, 1.0)
    before = matrix.counts.clone()
    matrix.update(torch.tensor([0, 77]), torch.tensor([255, 255]))
    assert torch.equal(matrix.counts, before)


def test_confusion_matrix_means_classes_not_samples() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
    assert matrix.mean_class_accuracy == 0.5
    assert matrix.accuracy == 0.75
    assert matrix.mean_iou == pytest.approx(0.375)


def test_confusion_matrix_counts_past_the_limits_of_int32_and_float32() -> None:
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**33
    matrix.update(torch.tensor([0]), torch.tensor([0]))
    assert int(matrix.counts[0, 0]) == 2**33 + 1


def test_confusion_matrix_of_nothing_is_nan() -> None:
    matrix = ConfusionMatrix(3)
    assert math.isnan(matrix.mean_class_accuracy)
    assert matrix.unlabelled_classes == [0, 1, 2]


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0, 1], [0, 3], "labels go from 0 to 3"),
        ([0, 1], [-1, 1], "labels go from -1 to 1"),
        ([0, 3], [0, 1], "predictions go from 0 to 3"),
    ],
)
def test_confusion_matrix_refuses_what_is_no_class(
    predictions: list[int], labels: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(3).update(torch.tensor(predictions), torch.tensor(labels))
