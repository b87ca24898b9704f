"""The figure of the features on the sphere (CSG, Fig. 2 and 6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from csg_ray.results.figures.observe import Observation
from csg_ray.results.figures.sphere import density
from csg_ray.results.figures.style import (
    GREY,
    add_colour_bar,
    add_panel,
    new_figure,
    put_title,
    title_height,
)

MAX_POINTS = 2_000  # that are drawn; the density is of all
SMALL_PRINT = (
    "The centre is the mean direction of the features, the distance from it their angle to it. "
    "Shown are the two principal directions of the tangent plane there, with their share of the "
    "sum of squared angles. Density: Gaussian kernels with Scott's rule. Axes and colours are the "
    "same in all panels."
)
_SIDE = 2.3  # inches, of a panel
_LEFT, _GAP, _BELOW = 0.6, 0.2, 0.4
_BAR, _BAR_LABELS = 0.11, 0.62
_MAX_COLUMNS = 4
_CELLS = 121  # of the grid on which the density is measured, a side
_PALEST = 0.4  # of the scale of colours, where the densest place of any model is at least
_WITHIN = 0.995  # of the features of every model lie inside the axes


def draw_features(observations: Sequence[Observation], remarks: Sequence[str]) -> Figure:
    """A panel for each model: points, their density, and the energy in the title.

    Axes and colours are the same in all panels, so that what looks denser is denser.
    """
    rows = math.ceil(len(observations) / _MAX_COLUMNS)
    columns = math.ceil(len(observations) / rows)
    panels_width = columns * (_SIDE + _GAP)
    above = max(title_height(observation.name, _SIDE) for observation in observations)
    row_height = above + _SIDE + _BELOW
    figure = new_figure(
        _LEFT + panels_width + _BAR + _BAR_LABELS,
        rows * row_height,
        [SMALL_PRINT, *remarks],
    )
    limit = _limit(observations)
    grids = [_density_grid(each, limit) for each in observations]
    scale = _common_scale([float(grid.max()) for grid in grids])
    image: Any = None
    for place, (observation, grid) in enumerate(zip(observations, grids, strict=True)):
        row, column = divmod(place, columns)
        left, top = _LEFT + column * (_SIDE + _GAP), row * row_height + above
        axes = add_panel(figure, left, top, _SIDE, _SIDE)
        image = _draw_panel(axes, observation, grid, limit, scale)
        _label_axes(axes, is_first=column == 0, is_last=place + columns >= len(observations))
    bar = add_panel(figure, _LEFT + panels_width, above, _BAR, _SIDE)
    add_colour_bar(bar, image, "% of the features per square degree")
    return figure


def _common_scale(peaks: Sequence[float]) -> PowerNorm:
    """One scale for all panels: a root, so that beside a collapsed model the others are seen.

    The square root, or a higher one where the least dense of the peaks would get too pale.
    """
    highest = max(peaks) or 1.0
    lowest = min((peak for peak in peaks if peak > 0), default=highest)
    power = 0.5
    if lowest < highest:
        power = min(power, math.log(_PALEST) / math.log(lowest / highest))
    return PowerNorm(power, vmin=0.0, vmax=highest)


def _limit(observations: Sequence[Observation]) -> float:
    """Half the side of the axes, in degrees: a multiple of 5, and at least that."""
    reach = max(observation.projection.reach(_WITHIN) for observation in observations)
    return 5.0 * max(1, math.ceil(reach / 5.0))


def _density_grid(observation: Observation, limit: float) -> NDArray[np.float64]:
    """In % of the features per square degree."""
    line = np.linspace(-limit, limit, _CELLS)
    x, y = np.meshgrid(line, line)
    at = np.column_stack([x.ravel(), y.ravel()])
    found = density(observation.projection.points, at, resolution=line[1] - line[0])
    return 100 * found.reshape(_CELLS, _CELLS)


def _draw_panel(
    axes: Axes, observation: Observation, grid: NDArray[np.float64], limit: float, scale: PowerNorm
) -> Any:
    image = axes.imshow(
        grid,
        extent=(-limit, limit, -limit, limit),
        origin="lower",
        cmap="BuPu",
        norm=scale,
        interpolation="bilinear",
    )
    points = _at_most(observation.projection.points, MAX_POINTS)
    axes.scatter(
        points[:, 0], points[:, 1], s=1.2, color="black", alpha=0.35, linewidths=0, zorder=2
    )
    axes.axhline(0, color=GREY, linewidth=0.4, zorder=1)
    axes.axvline(0, color=GREY, linewidth=0.4, zorder=1)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.locator_params(nbins=5, prune="both")  # at the edges they would meet the next panel's
    axes.tick_params(width=0.5, length=2.5, labelsize=7)
    share = f"{observation.projection.share:.0%} of the squared angle"
    put_title(axes, observation.name, f"HSE {observation.energy:.3f}, {share}", _SIDE)
    return image


def _at_most(points: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    if len(points) <= count:
        return points
    chosen = np.random.default_rng(0).choice(len(points), count, replace=False)
    return points[chosen]


def _label_axes(axes: Axes, is_first: bool, is_last: bool) -> None:
    """Degrees at the left of every row, and below the last panel of every column."""
    axes.tick_params(labelleft=is_first, labelbottom=is_last)
    if is_first:
        axes.set_ylabel("second direction in degrees", fontsize=7, color=GREY, labelpad=2)
    if is_last:
        axes.set_xlabel("first direction in degrees", fontsize=7, color=GREY, labelpad=2)
