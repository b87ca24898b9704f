"""The synthetic source: digits drawn with the text fonts that matplotlib ships."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from csg_ray.data.digits.sensor import count_blocks, to_images
from csg_ray.seeding import sub_seed

# Whole type families. DejaVu's sans and mono share their digits' skeletons, as do the faces of
# Computer Modern, so each is one family here. Not in the list: symbol, size, display and
# last-resort fonts, and cmmi10, a mathematics font.
FAMILIES: dict[str, tuple[str, ...]] = {
    "DejaVu": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-BoldOblique",
        "DejaVuSans-Oblique",
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-BoldOblique",
        "DejaVuSansMono-Oblique",
        "DejaVuSerif",
        "DejaVuSerif-Bold",
        "DejaVuSerif-BoldItalic",
        "DejaVuSerif-Italic",
    ),
    "STIX": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic"),
    "Computer Modern": ("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
}
TRAIN_FAMILIES = ("DejaVu", "STIX")
VAL_FAMILIES = ("Computer Modern",)

NUM_CLASSES = 10
FONT_SIZE = 64
CANVAS_SIDE = 96
MAX_ROTATION = 12.0
MAX_SHEAR = 0.2
MAX_WIDTH_CHANGE = 0.15
STROKE_WIDTHS = (0, 1, 2, 3)


def render_glyphs(
    name: str, families: tuple[str, ...], seed: int, num_glyphs: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first `num_glyphs` glyphs of an endless sequence fixed by (name, families, seed).

    Args:
        name: Of the split; two names give two sequences.
        families: Keys of `FAMILIES`.
        seed: Of the sequence.
        num_glyphs: N; a longer sequence starts with the same glyphs.

    Returns:
        Images (N, 32, 32) uint8 and labels (N,) int64; the classes take turns.
    """
    faces = tuple(face for family in families for face in FAMILIES[family])
    counts = np.stack(
        [
            _render(faces, index % NUM_CLASSES, sub_seed(seed, f"digits/{name}/{index}"))
            for index in range(num_glyphs)
        ]
    )
    return to_images(counts), glyph_labels(num_glyphs)


def glyph_labels(num_glyphs: int) -> NDArray[np.int64]:
    """The classes of a sequence of glyphs, which take turns."""
    return np.arange(num_glyphs, dtype=np.int64) % NUM_CLASSES


def font_path(face: str) -> Path:
    """The file of a face."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


def _render(faces: tuple[str, ...], digit: int, seed: int) -> NDArray[np.uint8]:
    """One glyph as block counts (8, 8): a face, a stroke and a mild affine pose, all by chance."""
    rng = np.random.default_rng(seed)
    face, stroke = faces[rng.integers(len(faces))], STROKE_WIDTHS[rng.integers(len(STROKE_WIDTHS))]
    rotation, shear, widening = rng.uniform(-1, 1, size=3)
    angle = math.radians(MAX_ROTATION * rotation)
    return count_blocks(
        _pose(
            _draw(face, digit, stroke),
            angle,
            MAX_SHEAR * shear,
            1 + MAX_WIDTH_CHANGE * widening,
        )
    )


@cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    # The basic layout is in every build of Pillow, so the same glyphs come out everywhere.
    return ImageFont.truetype(str(font_path(face)), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


@cache
def _draw(face: str, digit: int, stroke_width: int) -> Image.Image:
    canvas = Image.new("L", (CANVAS_SIDE, CANVAS_SIDE))
    middle = CANVAS_SIDE // 2
    ImageDraw.Draw(canvas).text(
        (middle, middle),
        str(digit),
        fill=255,
        font=_font(face),
        anchor="mm",
        stroke_width=stroke_width,
    )
    return canvas


def _pose(drawing: Image.Image, angle: float, shear: float, width_factor: float) -> Image.Image:
    """Widen, then shear, then rotate about the canvas's middle.

    Pillow wants the way back, from a place in the result to its place in the drawing.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    row_x = np.array([cos - shear * sin, -sin - shear * cos]) / width_factor
    row_y = np.array([sin, cos])
    middle = np.array([CANVAS_SIDE / 2, CANVAS_SIDE / 2])
    matrix = (
        *row_x,
        middle[0] - row_x @ middle,
        *row_y,
        middle[1] - row_y @ middle,
    )
    return drawing.transform(
        drawing.size,
        Image.Transform.AFFINE,
        tuple(float(value) for value in matrix),
        Image.Resampling.BILINEAR,
    )
