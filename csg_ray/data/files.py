"""Images in files: which ones a split has, and how one is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

ReadLabels = Callable[[Path], NDArray[np.uint8]]


def default_cache_folder() -> Path:
    """Where what all processes of a node share is kept, unless a setting says otherwise."""
    own = os.environ.get("CSG_RAY_CACHE")
    return Path(own).expanduser() if own else Path.home() / ".cache" / "csg_ray"


class UnreadableImageError(Exception):
    """A file that is no whole image: `path` and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class FileList:
    """The files of one split, in order.

    Attributes:
        root: the folder that all paths are relative to.
        images: of N images, POSIX.
        label_maps: of as many label maps, where every pixel has a class; none for classification.
        read_labels: turns a file of `label_maps` into (H, W) uint8 class numbers.
    """

    root: Path
    images: tuple[str, ...]
    label_maps: tuple[str, ...] = ()
    read_labels: ReadLabels | None = None

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB.

        Raises:
            UnreadableImageError: the file is missing, damaged, or no image.
        """
        return read_image(self.root / self.images[index])

    def label_map(self, index: int) -> NDArray[np.uint8]:
        """Class numbers (H, W) of image number `index`, 255 where a pixel does not count.

        Raises:
            UnreadableImageError: the file is missing, damaged, or holds what is no label.
        """
        assert self.read_labels is not None
        return self.read_labels(self.root / self.label_maps[index])


def read_image(path: Path) -> Image.Image:
    """The decoded image, RGB.

    Raises:
        UnreadableImageError: the file is missing, damaged, or no image.
    """
    with reading(path), Image.open(path) as image:
        return image.convert("RGB")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong with a file inside, said as `UnreadableImageError`."""
    try:
        yield
    except FileNotFoundError:
        raise UnreadableImageError(path, "does not exist") from None
    except UnidentifiedImageError:
        raise UnreadableImageError(path, "is no image") from None
    # Pillow's decoders say SyntaxError and ValueError of some damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(path, f"is damaged ({error})") from error
