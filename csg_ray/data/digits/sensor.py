"""The sensor that rendered and handwritten digits share: 32x32 bitmap, 4x4 block counts, 32x32.

Follows the preparation of the handwritten digits themselves (Alpaydin and Kaynak 1998, the UCI
data set behind `sklearn.datasets.load_digits`): size-normalised 32x32 bitmaps, counted over
non-overlapping 4x4 blocks into 8x8 images with values 0 to 16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITMAP_SIDE = 32
COUNTS_SIDE = 8
FULL_BLOCK = (BITMAP_SIDE // COUNTS_SIDE) ** 2
INK_THRESHOLD = 128


def count_blocks(drawing: Image.Image) -> NDArray[np.uint8]:
    """What the sensor sees of a drawing.

    Args:
        drawing: Bright ink on black, mode L, any size and any position of the ink.

    Returns:
        (8, 8) uint8, inked pixels per 4x4 block, 0 to 16.
    """
    bitmap = np.asarray(_fit_bitmap(drawing)) >= INK_THRESHOLD
    block = BITMAP_SIDE // COUNTS_SIDE
    blocks = bitmap.reshape(COUNTS_SIDE, block, COUNTS_SIDE, block)
    counts: NDArray[np.uint8] = blocks.sum(axis=(1, 3), dtype=np.uint8)
    return counts


def to_images(counts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Block counts back to images that a 32x32 encoder takes, bright ink on black.

    Args:
        counts: (N, 8, 8) uint8, 0 to 16.

    Returns:
        (N, 32, 32) uint8, 0 to 255, bilinear between the blocks.
    """
    grey = np.rint(counts * (255 / FULL_BLOCK)).astype(np.uint8)
    size = (BITMAP_SIDE, BITMAP_SIDE)
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
            for image in grey
        ]
    )


def _fit_bitmap(drawing: Image.Image) -> Image.Image:
    """The ink alone, as large as 32x32 allows without distorting it, centred."""
    ink = drawing.crop(drawing.point(_INK_TABLE).getbbox())
    scale = BITMAP_SIDE / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    bitmap = Image.new("L", (BITMAP_SIDE, BITMAP_SIDE))
    corner = ((BITMAP_SIDE - width) // 2, (BITMAP_SIDE - height) // 2)
    bitmap.paste(ink.resize((width, height), Image.Resampling.BILINEAR), corner)
    return bitmap


_INK_TABLE = [0] * INK_THRESHOLD + [255] * (256 - INK_THRESHOLD)
