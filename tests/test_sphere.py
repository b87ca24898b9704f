"""The projection and the density of features, against plain loops and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from csg_ray.results.figures.sphere import Array, density, log_map, project, unit_rows


def features(count: int, channels: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((count, channels))  # not negative, as after a ReLU


def log_map_by_loop(unit: Array) -> Array:
    mean = [float(sum(column)) / len(unit) for column in unit.T]
    length = math.sqrt(sum(value * value for value in mean))
    centre = [value / length for value in mean]
    found = []
    for row in unit:
        cosine = sum(a * b for a, b in zip(row, centre, strict=True))
        angle = math.acos(cosine)
        pairs = zip(row, centre, strict=True)
        found.append([(a - cosine * b) * angle / math.sin(angle) for a, b in pairs])
    return np.array(found)


def cone(degrees: float, count: int, channels: int = 3) -> Array:
    """Evenly around the first axis, all at the same angle from it."""
    turns = np.linspace(0, 2 * np.pi, count, endpoint=False)
    rows = np.zeros((count, channels))
    rows[:, 0] = math.cos(math.radians(degrees))
    rows[:, 1] = math.sin(math.radians(degrees)) * np.cos(turns)
    rows[:, 2] = math.sin(math.radians(degrees)) * np.sin(turns)
    return rows


@pytest.mark.parametrize("shape", [(5, 3), (40, 16)])
def test_the_map_equals_a_loop(shape: tuple[int, int]) -> None:
    unit = unit_rows(features(*shape))
    np.testing.assert_allclose(log_map(unit), log_map_by_loop(unit), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("degrees", [0.001, 10.0, 45.0, 89.0])
def test_the_distance_from_the_centre_is_the_angle_from_the_mean(degrees: float) -> None:
    found = project(3.0 * cone(degrees, 12, channels=5))
    np.testing.assert_allclose(np.hypot(*found.points.T), degrees, rtol=1e-6)
    assert found.share == pytest.approx(1)  # the other directions hold nothing
    assert found.reach(0.5) == pytest.approx(degrees)


def test_the_plane_takes_the_directions_that_hold_the_most() -> None:
    # Pairs on three great circles through the centre, at 40, 20 and 10 degrees from it.
    rows = []
    for axis, degrees in ((1, 40), (2, 20), (3, 10)):
        for side in (1, -1):
            row = np.zeros(4)
            row[0] = math.cos(math.radians(degrees))
            row[axis] = side * math.sin(math.radians(degrees))
            rows.append(row)
    found = project(np.array(rows))
    assert found.share == pytest.approx((40**2 + 20**2) / (40**2 + 20**2 + 10**2))
    expected = [(40, 0), (40, 0), (0, 20), (0, 20), (0, 0), (0, 0)]
    np.testing.assert_allclose(np.abs(found.points), expected, atol=1e-9)


def test_turning_the_sphere_and_longer_features_change_nothing() -> None:
    rng = np.random.default_rng(3)
    rows = features(60, 8)
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    turned = rows @ turn * rng.uniform(0.1, 10, (60, 1))
    np.testing.assert_allclose(project(turned).points, project(rows).points, atol=1e-8)


def test_features_of_any_size_keep_their_direction() -> None:
    rows = features(6, 4)
    np.testing.assert_allclose(unit_rows(rows * 1e-200), unit_rows(rows), rtol=1e-12)
    np.testing.assert_allclose(unit_rows(rows * 1e200), unit_rows(rows), rtol=1e-12)


def test_features_without_a_direction_are_left_out() -> None:
    rows = features(6, 4)
    broken = np.vstack([rows, np.zeros(4), np.full(4, np.nan), [np.inf, 0, 0, 0]])
    np.testing.assert_array_equal(project(broken).points, project(rows).points)
    assert len(project(np.zeros((3, 4))).points) == 0
    assert project(np.zeros((3, 4))).reach(0.9) == 0


def test_equal_features_are_all_at_the_centre() -> None:
    found = project(np.tile([0.3, 0.4, 0.0], (7, 1)))
    np.testing.assert_allclose(found.points, 0, atol=1e-5)
    assert found.share == pytest.approx(1)


def test_opposite_features_are_half_a_turn_apart() -> None:
    found = project(np.array([[0.0, 2.0, 0.0], [0.0, -1.0, 0.0]]))
    np.testing.assert_allclose(np.hypot(*found.points.T), [0, 180], atol=1e-9)


def test_the_density_equals_a_sum_of_kernels() -> None:
    points, at = features(30, 2) * 40, features(5, 2, seed=1) * 40
    covariance = np.cov(points.T) * len(points) ** (-2 / 6)  # Scott's rule in two dimensions
    inverse = np.linalg.inv(covariance)
    expected = []
    for place in at:
        kernels = [math.exp(-0.5 * (place - point) @ inverse @ (place - point)) for point in points]
        expected.append(sum(kernels) / len(points))
    scale = 2 * math.pi * math.sqrt(np.linalg.det(covariance))
    np.testing.assert_allclose(density(points, at, 0.1), np.array(expected) / scale, rtol=1e-9)


@pytest.mark.parametrize("kind", ["spread", "equal", "line", "single"])
def test_the_density_is_one_in_all_and_highest_where_the_points_are(kind: str) -> None:
    points = {
        "spread": np.random.default_rng(0).normal(size=(200, 2)) * 4 + [5.0, -5.0],
        "equal": np.tile([5.0, -5.0], (200, 1)),
        "line": np.linspace(-1, 1, 200)[:, None] ** 3 * [4.0, 4.0] + [5.0, -5.0],
        "single": np.array([[5.0, -5.0]]),
    }[kind]
    line = np.arange(-30, 30, 0.5)
    x, y = np.meshgrid(line, line)
    at = np.column_stack([x.ravel(), y.ravel()])
    found = density(points, at, 0.5)
    assert np.isfinite(found).all()
    assert found.sum() * 0.5**2 == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(at[found.argmax()], [5.0, -5.0], atol=2)
    np.testing.assert_array_equal(density(points, at, 0.5), found)


def test_a_collapsed_encoder_is_denser_than_one_that_is_not() -> None:
    centre = np.zeros((1, 2))
    collapsed = project(np.ones((50, 6)) + 1e-4 * features(50, 6)).points
    spread = project(features(50, 6)).points
    assert density(collapsed, centre, 1.0)[0] > 30 * density(spread, centre, 1.0)[0]


def test_no_points_have_no_density() -> None:
    np.testing.assert_array_equal(density(np.empty((0, 2)), np.zeros((3, 2)), 1.0), np.zeros(3))
