"""Images of the source with their labels, and images of the target without any, in one split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from csg_ray.data.splits import IGNORED, UNLABELLED, ClassSplit, SceneSplit, Split


@dataclass(frozen=True, eq=False)
class Mixture:
    """Some images of the source, and behind them some of `target_train`.

    Args:
        source: the labelled split.
        target: the other; whatever labels it may have are not read.
        source_positions: which of the source's images.
        target_positions: which of the target's.
    """

    source: Split
    target: Split
    source_positions: NDArray[np.int64]
    target_positions: NDArray[np.int64]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.source.name} and {self.target.name}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class number."""
        return self.source.class_names

    @property
    def fingerprint(self) -> str:
        """Of the two splits; which images of them are in it changes from round to round."""
        return f"{self.source.fingerprint}/{self.target.fingerprint}"

    def __len__(self) -> int:
        return len(self.source_positions) + len(self.target_positions)

    def image(self, index: int) -> Image.Image:
        """Image number `index`, RGB."""
        split, position = self._locate(index)
        return split.image(position)

    def labelled_classes(self) -> list[int]:
        """The classes that have a label, ascending."""
        return self.source.labelled_classes()

    def _locate(self, index: int) -> tuple[Split, int]:
        beyond = index - len(self.source_positions)
        if beyond < 0:
            return self.source, int(self.source_positions[index])
        return self.target, int(self.target_positions[beyond])


class ClassMixture(Mixture):
    """With a class for every image of the source; arguments as of `Mixture`."""

    @property
    def labels(self) -> Tensor:
        """Class numbers, (N,) int64; -1 of the target's images."""
        assert isinstance(self.source, ClassSplit)
        known = self.source.labels[torch.from_numpy(self.source_positions)]
        unknown = torch.full((len(self.target_positions),), UNLABELLED, dtype=torch.int64)
        return torch.cat([known, unknown])


class SceneMixture(Mixture):
    """With a class for every pixel of the source; arguments as of `Mixture`."""

    def label_map(self, index: int) -> NDArray[np.uint8]:
        """Class numbers (H, W) of image number `index`; 255 everywhere in the target's."""
        split, position = self._locate(index)
        if split is self.source:
            assert isinstance(split, SceneSplit)
            return split.label_map(position)
        image = split.image(position)
        return np.full((image.height, image.width), IGNORED, dtype=np.uint8)
