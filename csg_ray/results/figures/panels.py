"""The figures that are grids of images: attention, Grad-CAM, segmentation (CSG, Fig. 4b, 5, 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch.nn import functional

from csg_ray.data.splits import IGNORED
from csg_ray.results.figures.images import Pixels, ShownImage
from csg_ray.results.figures.observe import ModelName, Observation
from csg_ray.results.figures.style import (
    MARGIN,
    NORMAL,
    SMALL,
    add_colour_bar,
    add_panel,
    new_figure,
    put_row_name,
    text_width,
)

RIGHT, WRONG = "#1a7f37", "#c0262d"
ATTENTION_PRINT = (
    "A-pool's weights at stage 4, in units of those of mean pooling; one scale for all panels."
)
GRAD_CAM_PRINT = (
    "Grad-CAM of the true class at stage 4, each panel up to its own maximum. Above it what the "
    "model predicts."
)
IGNORED_PRINT = "White: pixels that do not count."
_SIDE = 1.0  # inches, the height of a panel
_GAP, _HEADER, _CAPTION = 0.07, 0.3, 0.24
_NAMES = 1.8  # for the names of the rows, at most
_BAR, _BAR_LABELS = 0.11, 0.6
_LEGEND_LINE, _LEGEND_PATCH = 0.2, 0.42
_HEAT = 0.5  # of an overlay, the rest is the image
_BACKGROUND = "background"
_CLASS_LETTERS = 13


def draw_attention(
    images: Sequence[ShownImage],
    class_names: Sequence[str],
    observations: Sequence[Observation],
    remarks: Sequence[str],
) -> Figure:
    """A row of images, and a row for each model with its A-pool weights on top (Fig. 4b).

    The weights are shown in units of those of mean pooling, on one scale for all models: where a
    model pays attention to nothing in particular, all is 1.
    """
    rows = len(observations) + 1
    names = _names_width([each.name for each in observations], [])
    grid = _Grid(images, rows, names, right=_BAR + _BAR_LABELS)
    figure, panels = grid.build([ATTENTION_PRINT, *remarks])
    _draw_images(panels[0], images, class_names)
    heats = [[each * each.size for each in observed.attention] for observed in observations]
    scale = Normalize(0.0, max(float(heat.max()) for row in heats for heat in row))
    for line, observed, row in zip(panels[1:], observations, heats, strict=True):
        put_row_name(line[0], observed.name, "", names)
        for axes, image, heat in zip(line, images, row, strict=True):
            axes.imshow(_overlay(image.pixels, scale(heat)))
    bar = add_panel(figure, grid.right_edge + _GAP, grid.top(1), _BAR, grid.height(rows - 1))
    add_colour_bar(bar, ScalarMappable(scale, _heat_colours()), "attention (mean pooling: 1)")
    return figure


def draw_grad_cam(
    images: Sequence[ShownImage],
    class_names: Sequence[str],
    observations: Sequence[Observation],
    remarks: Sequence[str],
) -> Figure:
    """A row of images, and a row for each model with the evidence for the true class (Fig. 5).

    What the model predicted stands above each panel. The colours of each go up to its own maximum,
    as the gradients of two models have no common unit.
    """
    measured = [f"accuracy {each.task.score:.3f}" for each in observations if each.task]
    names = _names_width([each.name for each in observations], measured)
    grid = _Grid(images, len(observations) + 1, names, caption=_CAPTION)
    figure, panels = grid.build([GRAD_CAM_PRINT, *remarks])
    _draw_images(panels[0], images, class_names)
    for line, observed, accuracy in zip(panels[1:], observations, measured, strict=True):
        assert observed.task is not None
        put_row_name(line[0], observed.name, accuracy, names)
        seen = zip(line, images, observed.task.grad_cam, observed.task.predictions, strict=True)
        for axes, image, heat, predicted in seen:
            axes.imshow(_overlay(image.pixels, heat / (heat.max() or 1.0)))
            _put_prediction(axes, int(predicted), int(image.label), class_names)
    return figure


def draw_segmentation(
    images: Sequence[ShownImage],
    class_names: Sequence[str],
    rows: Sequence[tuple[ModelName, float, Sequence[NDArray[Any]]]],
    remarks: Sequence[str],
) -> Figure:
    """A row of images, one of their labels, and one of each model's predictions (Fig. 7).

    Args:
        images: with label maps.
        class_names: one name per class number.
        rows: of each model its name, its mIoU on target_val, and a map (H, W) for each image.
        remarks: in small print below.
    """
    measured = [f"mIoU {score:.3f}" for _, score, _ in rows]
    names = _names_width([name for name, _, _ in rows], measured)
    grid = _Grid(images, len(rows) + 2, names, header=MARGIN)
    legend_rows = _legend_rows(class_names, grid.right_edge)
    legend_height = legend_rows * _LEGEND_LINE + _GAP
    ignored = any((image.label == IGNORED).any() for image in images)
    figure, panels = grid.build([IGNORED_PRINT, *remarks] if ignored else remarks, legend_height)
    colours = class_colours(class_names)
    for line, what in zip(panels, ("images", "labels"), strict=False):
        put_row_name(line[0], ModelName(what, ""), "", names)
    for upper, lower, image in zip(*panels[:2], images, strict=True):
        upper.imshow(image.pixels)
        lower.imshow(paint(image.label, colours), interpolation="nearest")
    for line, (name, _, maps), score in zip(panels[2:], rows, measured, strict=True):
        put_row_name(line[0], name, score, names)
        for axes, classes in zip(line, maps, strict=True):
            axes.imshow(paint(classes, colours), interpolation="nearest")
    top = grid.top(len(rows) + 2)
    legend = add_panel(figure, MARGIN, top, grid.right_edge - MARGIN, legend_height, frameon=False)
    _fill_legend(legend, class_names, colours, legend_rows)
    return figure


def class_colours(class_names: Sequence[str]) -> NDArray[np.float64]:
    """A colour for each class, (classes, 3); a background is black."""
    count = len(class_names) - (class_names[0] == _BACKGROUND)
    if count <= 20:
        listed = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
        assert isinstance(listed, ListedColormap)
        colours = np.array(listed.colors)[:count]
    else:
        colours = matplotlib.colormaps["turbo"](np.linspace(0, 1, count))[:, :3]
    black = np.zeros((len(class_names) - count, 3))
    return np.concatenate([black, colours])


def paint(classes: NDArray[Any], colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """A map of class numbers (H, W) in colours (H, W, 3); white where no class counts."""
    painted = np.ones((*classes.shape, 3))
    counts = classes != IGNORED
    painted[counts] = colours[classes[counts]]
    return painted


class _Grid:
    """Where the panels of a grid of images are, in inches.

    Args:
        images: a column each.
        rows: below each other.
        names: the room for the names of the rows.
        header: the room above the first row.
        caption: the room above each other row.
        right: the room to the right of the panels.
    """

    def __init__(
        self,
        images: Sequence[ShownImage],
        rows: int,
        names: float,
        header: float = _HEADER,
        caption: float = 0.0,
        right: float = 0.0,
    ) -> None:
        height, width = images[0].pixels.shape[:2]
        self._width: float = _SIDE * min(max(width / height, 0.5), 2.5)
        self._columns, self._rows = len(images), rows
        self._names, self._header = names, header
        self._caption, self._right = caption, right

    @property
    def right_edge(self) -> float:
        """Where the last column ends."""
        return self._left(self._columns) - _GAP

    def top(self, row: int) -> float:
        """Where a row of panels begins."""
        return self._header + row * (_SIDE + _GAP + self._caption)

    def height(self, rows: int) -> float:
        """Of so many rows, the gaps between them included."""
        return self.top(rows) - self._header - _GAP - self._caption

    def build(self, small_print: Sequence[str], below: float = 0.0) -> tuple[Figure, NDArray[Any]]:
        """A figure and its panels (rows, columns), with so much room below them."""
        width = self.right_edge + _GAP + self._right + MARGIN
        height = self.top(self._rows) - self._caption + below
        figure = new_figure(width, height, small_print)
        panels = np.empty((self._rows, self._columns), dtype=object)
        for row, column in np.ndindex(panels.shape):
            axes = add_panel(figure, self._left(column), self.top(row), self._width, _SIDE)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            panels[row, column] = axes
        return figure, panels

    def _left(self, column: int) -> float:
        return MARGIN + self._names + column * (self._width + _GAP)


def _names_width(names: Sequence[ModelName], measured: Sequence[str]) -> float:
    """The inches that the names of the rows take, and what stands below them."""
    methods = [text_width(name.method, is_name=True) for name in (*names, ModelName("images", ""))]
    lines = [text_width(line) for line in (*(name.place for name in names), *measured)]
    return min(max(*methods, *lines) + 0.2, _NAMES)


def _draw_images(
    line: NDArray[Any], images: Sequence[ShownImage], class_names: Sequence[str]
) -> None:
    put_row_name(line[0], ModelName("images", ""), "", _NAMES)
    for axes, image in zip(line, images, strict=True):
        axes.imshow(image.pixels)
        if image.label.ndim == 0:
            axes.set_title(_short(class_names[int(image.label)]), fontsize=NORMAL, pad=4)


def _put_prediction(axes: Axes, predicted: int, label: int, class_names: Sequence[str]) -> None:
    right = predicted == label
    mark, colour = ("\N{CHECK MARK}", RIGHT) if right else ("\N{BALLOT X}", WRONG)
    axes.set_title(f"{_short(class_names[predicted])} {mark}", fontsize=SMALL, color=colour, pad=3)


def _short(name: str) -> str:
    return name if len(name) <= _CLASS_LETTERS else f"{name[: _CLASS_LETTERS - 1]}."


def _overlay(pixels: Pixels, heat: NDArray[Any]) -> NDArray[Any]:
    """The image in grey under the colours of `heat` (H', W'), 0 to 1, brought to its size."""
    grey = pixels.mean(axis=2, keepdims=True)
    grown = functional.interpolate(
        torch.as_tensor(np.asarray(heat), dtype=torch.float32)[None, None],
        size=pixels.shape[:2],
        mode="bilinear",
        align_corners=False,
    )[0, 0].numpy()
    overlaid: NDArray[Any] = (1 - _HEAT) * grey + _HEAT * _heat_colours()(grown)[..., :3]
    return overlaid


def _heat_colours() -> Any:
    return matplotlib.colormaps["turbo"]


def _legend_rows(class_names: Sequence[str], width: float) -> int:
    """How many rows the classes take in so many inches."""
    needed = sum(text_width(name) + _LEGEND_PATCH for name in class_names)
    rows = math.ceil(needed / width)
    # The columns of several rows are as wide as their longest name.
    return rows if rows == 1 else math.ceil(1.3 * needed / width)


def _fill_legend(
    axes: Axes, class_names: Sequence[str], colours: NDArray[np.float64], rows: int
) -> None:
    """Fill a panel with the classes and their colours."""
    axes.set(xticks=[], yticks=[])
    patches = [
        Patch(facecolor=colour, edgecolor="0.5", linewidth=0.4, label=name)
        for name, colour in zip(class_names, colours, strict=True)
    ]
    axes.legend(
        handles=patches,
        loc="center",
        ncols=math.ceil(len(patches) / rows),
        frameon=False,
        fontsize=SMALL,
        handlelength=1.0,
        handleheight=1.0,
        columnspacing=1.2,
    )
