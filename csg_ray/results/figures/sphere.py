"""Features on the hypersphere, brought into the plane, and their density there (CSG, Fig. 2).

The paper does not say how its features came into two dimensions. This projection is ours: the map
to the tangent plane at the mean direction, and its two leading principal directions there. It keeps
what hyperspherical energy is about, how far directions lie apart: the distance from the centre is
the angle from the mean direction, in the same degrees for every model, so that a collapsed encoder
looks collapsed. A projection that scales each model to its own spread, as t-SNE does, hides that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

Array: TypeAlias = NDArray[np.float64]

_NO_DIRECTION = 1e-12
_ENOUGH = 400  # points that make a smooth density


@dataclass(frozen=True)
class Projection:
    """Features in the plane.

    Attributes:
        points: (N, 2) in degrees; the centre is the mean direction.
        share: of the sum of the squared angles, what the two directions of the plane hold, 0 to 1.
    """

    points: Array
    share: float

    def reach(self, quantile: float) -> float:
        """The distance from the centre within which so large a part of the points lies; 0 of none.

        In degrees.
        """
        if not len(self.points):
            return 0.0
        return float(np.quantile(np.hypot(*self.points.T), quantile))


def project(features: Array) -> Projection:
    """Bring features (N, C), of any length, from the sphere into the plane.

    Features without a direction are left out: zero, or not finite.
    """
    tangent = log_map(unit_rows(features))
    if not len(tangent):
        return Projection(np.empty((0, 2)), 1.0)
    points = tangent @ _principal_directions(tangent)
    total = float(np.square(tangent).sum())
    share = float(np.square(points).sum()) / total if total > 0 else 1.0
    return Projection(np.degrees(points), min(share, 1.0))


def unit_rows(features: Array) -> Array:
    """The rows of (N, C) scaled to length 1; those without a direction are left out."""
    rows = np.asarray(features, dtype=np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    largest = np.abs(rows).max(axis=1, initial=0.0, keepdims=True)
    usable = largest[:, 0] > 0
    # Dividing by the largest entry first keeps the squares from over- and underflowing.
    rows = rows[usable] / largest[usable]
    unit: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def log_map(unit: Array) -> Array:
    """Unit vectors (N, C) in the tangent plane at their mean direction.

    The azimuthal equidistant projection: a vector at the angle t from the mean direction lands at
    the distance t, in radians, in the direction in which the great circle leaves the centre. That
    of a vector opposite to the mean direction is not determined, and chosen.

    Returns:
        (N, C), all at right angles to the mean direction.
    """
    if not len(unit):
        return unit
    centre = _mean_direction(unit)
    along = unit @ centre
    aside = unit - along[:, None] * centre
    distance = np.linalg.norm(aside, axis=1)
    directed = distance > _NO_DIRECTION
    direction = np.where(
        directed[:, None],
        aside / np.where(directed, distance, 1.0)[:, None],
        _any_direction_aside(centre),
    )
    tangent: Array = np.arctan2(distance, along)[:, None] * direction
    return tangent


def _mean_direction(unit: Array) -> Array:
    mean = unit.mean(axis=0)
    length = float(np.linalg.norm(mean))
    # Vectors that cancel each other out have no mean direction: the first one stands in.
    direction: Array = mean / length if length > _NO_DIRECTION else unit[0]
    return direction


def _any_direction_aside(centre: Array) -> Array:
    """A unit vector at right angles to `centre`, always the same."""
    assert len(centre) > 1
    aside = -centre[np.abs(centre).argmin()] * centre
    aside[np.abs(centre).argmin()] += 1
    direction: Array = aside / np.linalg.norm(aside)
    return direction


def _principal_directions(tangent: Array) -> Array:
    """The two directions (C, 2) that hold the most of the squared distances from the centre.

    Each points to where the longer tail is, so that turning the sphere changes nothing.
    """
    _, vectors = np.linalg.eigh(tangent.T @ tangent)
    directions: Array = vectors[:, :-3:-1]
    tails = np.power(tangent @ directions, 3).sum(axis=0)
    return np.where(tails < 0, -directions, directions)


def density(points: Array, at: Array, resolution: float) -> Array:
    """The density of points in the plane, by Gaussian kernels with Scott's rule.

    Points that coincide, or lie on a line, have no density, and kernels narrower than `resolution`
    fall through a grid as fine as that: such points are scattered by as much, at random but always
    alike. A collapsed encoder is a dot that can still be seen.

    Args:
        points: (N, 2) in degrees; N may be 0.
        at: (M, 2), where to measure.
        resolution: in degrees, the distance between neighbours in `at`.

    Returns:
        (M,), per square degree.
    """
    if not len(points):
        return np.zeros(len(at))
    if _narrowest_kernel(points) < resolution:
        points = _scattered(points, resolution)
    found: Array = gaussian_kde(points.T, bw_method="scott")(at.T)
    return found


def _narrowest_kernel(points: Array) -> float:
    """The standard deviation of Scott's kernels in the direction in which it is the smallest."""
    if len(points) < 3:
        return 0.0
    variance = float(np.linalg.eigvalsh(np.cov(points.T)).min())
    return float(math.sqrt(max(variance, 0.0)) * len(points) ** (-1 / 6))


def _scattered(points: Array, deviation: float) -> Array:
    copies: Array = np.repeat(points, math.ceil(_ENOUGH / len(points)), axis=0)
    return copies + np.random.default_rng(0).normal(scale=deviation, size=copies.shape)
