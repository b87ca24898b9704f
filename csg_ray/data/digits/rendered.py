"""Rendered glyphs, kept in a file that all processes of a node map into memory.

A file holds a SHA-256 and the pixels that it is of. One that is cut off or otherwise damaged is
rendered anew; where no file can be written, every process renders for itself.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import matplotlib
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import features

from csg_ray import seeding
from csg_ray.data.digits import glyphs, sensor
from csg_ray.data.digits.glyphs import FAMILIES, font_path, glyph_labels, render_glyphs
from csg_ray.data.digits.sensor import BITMAP_SIDE
from csg_ray.data.files import default_cache_folder
from csg_ray.storage.records import write_whole

DIGEST_BYTES = hashlib.sha256().digest_size


def rendered_glyphs(
    name: str, families: tuple[str, ...], seed: int, num_glyphs: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`render_glyphs`, once per node."""
    try:
        folder = default_cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{_key(name, families, seed, num_glyphs)}.glyphs"
        images = _read(path, num_glyphs)
        if images is None:
            # Free again when its holder dies, so that a process that waits takes over.
            with FileLock(path.with_suffix(".lock")):
                images = _read(path, num_glyphs)
                if images is None:
                    made, _ = render_glyphs(name, families, seed, num_glyphs)
                    pixels = made.tobytes()
                    write_whole(path, hashlib.sha256(pixels).digest() + pixels)
                    images = made
    except (OSError, RuntimeError):  # Path.home of a user without one raises the latter
        return render_glyphs(name, families, seed, num_glyphs)
    return images, glyph_labels(num_glyphs)


def _read(path: Path, num_glyphs: int) -> NDArray[np.uint8] | None:
    """The whole images in a file, mapped; None if it is missing or damaged."""
    shape = (num_glyphs, BITMAP_SIDE, BITMAP_SIDE)
    try:
        with path.open("rb") as file:
            digest = file.read(DIGEST_BYTES)
        # Copy on write: torch takes no array that is read-only, and nobody writes.
        mapped = np.memmap(path, np.uint8, mode="c", offset=DIGEST_BYTES, shape=shape)
    except (OSError, ValueError):  # too short
        return None
    images: NDArray[np.uint8] = np.asarray(mapped)
    return images if hashlib.sha256(images.data).digest() == digest else None


def _key(name: str, families: tuple[str, ...], seed: int, num_glyphs: int) -> str:
    """SHA-256 over what the pixels depend on: settings, fonts, Pillow and our own code."""
    faces = [face for family in families for face in FAMILIES[family]]
    head = {
        "glyphs": (name, faces, seed, num_glyphs),
        "fonts": (matplotlib.__version__, [font_path(face).stat().st_size for face in faces]),
        "pillow": (features.version("pil"), features.version("freetype2")),
        "numpy": np.__version__,
    }
    digest = hashlib.sha256(json.dumps(head).encode())
    for module in (glyphs, sensor, seeding):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()
