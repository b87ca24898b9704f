"""The figures of a report as PNG or SVG, drawn by kaleido, which drives a Chromium."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from csg_ray.config.errors import UserError
from csg_ray.results.report.plots import Figure
from csg_ray.storage.folders import whole_folder

WIDTH, HEIGHT, SCALE = 900, 520, 2  # pixels, and how many device pixels each has in a PNG
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def check_renderer() -> None:
    """Refuse before any work when there is nothing to draw with.

    Raises:
        UserError: kaleido or a browser is missing.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise UserError(
            "pictures of figures need kaleido, which is not installed; "
            "pip install 'csg-ray[images]', or leave --images out"
        )
    if not any(shutil.which(name) for name in BROWSERS):
        raise UserError(
            "pictures of figures need Chromium or Chrome, and neither is on the PATH; install one "
            "(apt install chromium), or leave --images out"
        )


def write_pictures(figures: Sequence[Figure], folder: Path, image_format: str) -> None:
    """Draw every figure into a new folder, which is whole or not there.

    Args:
        figures: one file each, named after the figure.
        folder: does not exist yet.
        image_format: png or svg.
    """
    import plotly.io

    with whole_folder(folder) as hidden:
        plotly.io.write_images(
            fig=[_titled(figure) for figure in figures],
            file=[hidden / f"{figure.name}.{image_format}" for figure in figures],
            format=image_format,
            width=WIDTH,
            height=HEIGHT,
            scale=SCALE,
        )


def _titled(figure: Figure) -> object:
    """On its own a figure needs the title that the page prints above it."""
    plot = type(figure.plot)(figure.plot)
    plot.update_layout(title={"text": figure.title, "x": 0.02}, margin={"t": 110})
    return plot
