"""How all figures look, and where their parts are, in inches."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from csg_ray.results.figures.observe import ModelName

GREY = "0.35"
SMALL, NORMAL = 8, 10  # points
MARGIN = 0.15
_PRINT = 7  # points, the small print
_POINTS = 72  # in an inch
_LINE = 1.35  # the height of a line, in sizes of its letters
_LETTER, _BOLD_LETTER = 0.56, 0.68  # the width of a letter on average
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": SMALL,
    "axes.linewidth": 0.6,
    "text.parse_math": False,  # a dollar in the name of a class or of a folder is one
    "svg.hashsalt": "csg_ray",  # equal figures are equal files
}


@contextmanager
def figure_style() -> Iterator[None]:
    """The settings under which a figure is made and saved."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(width: float, height: float, small_print: Sequence[str]) -> Figure:
    """A figure with `small_print` below; `height` is that of what is above it."""
    lines = [line for each in small_print for line in _wrap(each, width - 2 * MARGIN, _PRINT)]
    below = len(lines) * _PRINT * _LINE / _POINTS + 1.5 * MARGIN
    figure = Figure(figsize=(width, height + below))
    figure.text(
        MARGIN / width,
        MARGIN / (height + below),
        "\n".join(lines),
        fontsize=_PRINT,
        color=GREY,
        linespacing=_LINE,
        va="bottom",
    )
    return figure


def add_panel(
    figure: Figure, left: float, top: float, width: float, height: float, **settings: Any
) -> Axes:
    """Axes of that size, `left` and `top` from the upper left corner of the figure."""
    whole_width, whole_height = figure.get_size_inches()
    bottom = whole_height - top - height
    return figure.add_axes(
        (left / whole_width, bottom / whole_height, width / whole_width, height / whole_height),
        **settings,
    )


def text_width(text: str, is_name: bool = False) -> float:
    """About the inches that a line takes, small or, of a method's name, bold."""
    letter = NORMAL * _BOLD_LETTER if is_name else SMALL * _LETTER
    return len(text) * letter / _POINTS


def title_height(name: ModelName, width: float) -> float:
    """The inches that `put_title` takes above a panel of `width`."""
    lines = len(_wrap(name.place, width, SMALL)) + 1
    return (lines * SMALL + NORMAL) * _LINE / _POINTS + MARGIN


def put_title(axes: Axes, name: ModelName, measured: str, width: float) -> None:
    """The method in bold above a panel of `width`, below it its place and what was measured."""
    lines = [*_wrap(name.place, width, SMALL), measured]
    above = 4 + len(lines) * SMALL * _LINE
    _annotate(axes, name.method, (0.5, 1.0), (0, above), ("center", "bottom"))
    _annotate(axes, "\n".join(lines), (0.5, 1.0), (0, 4), ("center", "bottom"), small=True)


def put_row_name(axes: Axes, name: ModelName, measured: str, width: float) -> None:
    """The same in the `width` to the left of a row, whose first panel is `axes`."""
    lines = [*_wrap(name.place, width, SMALL), *([measured] if measured else [])]
    # Name and lines together stand in the middle of the row.
    middle = (len(lines) * SMALL - NORMAL) * _LINE / 2
    _annotate(axes, name.method, (0.0, 0.5), (-8, middle), ("right", "bottom"))
    _annotate(axes, "\n".join(lines), (0.0, 0.5), (-8, middle), ("right", "top"), small=True)


def _annotate(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    alignment: tuple[str, str],
    small: bool = False,
) -> None:
    """Text at a place of a panel, moved by `offset` points; in bold, or small and grey."""
    looks: dict[str, Any] = {"fontsize": NORMAL, "fontweight": "bold"}
    if small:
        looks = {"fontsize": SMALL, "color": GREY, "linespacing": _LINE}
    axes.annotate(
        text,
        at,
        xycoords="axes fraction",
        xytext=offset,
        textcoords="offset points",
        ha=alignment[0],
        va=alignment[1],
        **looks,
    )


def add_colour_bar(axes: Axes, mappable: Any, label: str) -> None:
    """Fill a narrow panel with a scale of colours."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    bar = figure.colorbar(mappable, cax=axes)
    bar.set_label(label, fontsize=SMALL, color=GREY)
    bar.ax.tick_params(width=0.5, length=2.5, labelsize=_PRINT)
    axes.spines[:].set_linewidth(0.4)


def _wrap(text: str, width: float, size: float) -> list[str]:
    """Lines of `size` points that fit into `width` inches."""
    return textwrap.wrap(text, max(8, int(width * _POINTS / size / _LETTER)))
