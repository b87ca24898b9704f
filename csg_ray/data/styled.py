"""Images of a split that also come in other styles, as copies in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from csg_ray.config.errors import UserError
from csg_ray.data.class_folders import list_folders
from csg_ray.data.file_splits import SplitOfFiles
from csg_ray.data.files import UnreadableImageError, read_image
from csg_ray.data.splits import ClassSplit, SceneSplit, Split

SETTING = "method.styles"


@dataclass(frozen=True, eq=False)
class StyledSplit:
    """A split, and of each of its images a copy in every style.

    Args:
        split: The images as they are.
        folder: Holds a folder for each style.
        styles: The names of those folders.
        names: Of each image the file of its copy, below every style.
        num_copies: How many copies `copies` draws.
    """

    split: Split
    folder: Path
    styles: tuple[str, ...]
    names: tuple[str, ...]
    num_copies: int

    @property
    def name(self) -> str:
        """That of the split."""
        return self.split.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class number."""
        return self.split.class_names

    @property
    def fingerprint(self) -> str:
        """That of the split, without its copies."""
        return self.split.fingerprint

    def __len__(self) -> int:
        return len(self.split)

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        return self.split.image(index)

    def labelled_classes(self) -> list[int]:
        """The classes that have a label, ascending."""
        return self.split.labelled_classes()

    def copies(self, index: int, size: tuple[int, int], generator: Generator) -> list[Image.Image]:
        """Copies of image number `index`, each in another style.

        Args:
            index: The image's number.
            size: (width, height) that every copy is brought to.
            generator: Draws the styles, without replacement.
        """
        drawn = torch.randperm(len(self.styles), generator=generator)[: self.num_copies]
        return [self._read(self.styles[style], index, size) for style in drawn.tolist()]

    def _read(self, style: str, index: int, size: tuple[int, int]) -> Image.Image:
        try:
            copy = read_image(self.folder / style / self.names[index])
        except UnreadableImageError as error:
            raise UserError(f"{SETTING}: {error}; make that copy again") from error
        # What makes the copies often has a size of its own.
        return copy if copy.size == size else copy.resize(size, Image.Resampling.BILINEAR)


class StyledImages(StyledSplit):
    """With a class for every image; arguments as of `StyledSplit`."""

    @property
    def labels(self) -> Tensor:
        """Class numbers, (N,) int64."""
        assert isinstance(self.split, ClassSplit)
        return self.split.labels


class StyledScenes(StyledSplit):
    """With a class for every pixel; arguments as of `StyledSplit`."""

    def label_map(self, index: int) -> NDArray[np.uint8]:
        """Class numbers (H, W) of image number `index` and of its copies."""
        assert isinstance(self.split, SceneSplit)
        return self.split.label_map(index)


def open_styles(split: Split, folder: str, num_copies: int) -> StyledSplit:
    """A split with the copies in `folder`: FOLDER/STYLE/NAME for every style and image.

    NAME is the image's path below its domain's folder, or its number where the images are made in
    memory: `000123.png`.

    Raises:
        UserError: no such folder, too few styles, or an image without its copy.
    """
    root = Path(folder).expanduser()
    styles = tuple(list_folders(root, SETTING))
    if len(styles) < num_copies:
        raise UserError(
            f"{SETTING}: {root} holds {len(styles)} styles, fewer than method.copies {num_copies}; "
            "add some, or lower method.copies"
        )
    names = file_names(split)
    missing = [f"{s}/{name}" for s in styles for name in names if not (root / s / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{SETTING}: {root} lacks {missing[0]}{more}; every style needs a copy of each of the "
            f"{len(names)} images of {split.name}"
        )
    kind = StyledScenes if isinstance(split, SceneSplit) else StyledImages
    return kind(split, root, styles, names, num_copies)


def file_names(split: Split) -> tuple[str, ...]:
    """What the copies of a split's images are called, in their order."""
    if isinstance(split, SplitOfFiles):
        return tuple(split.files.images[position] for position in split.positions)
    return tuple(f"{number:06d}.png" for number in range(len(split)))
