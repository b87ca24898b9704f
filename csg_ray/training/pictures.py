"""Pictures of a training: what the method sees, and how it sees the target. Drawn when asked."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from csg_ray.data.epoch import eval_batches
from csg_ray.data.loader import Batch
from csg_ray.data.splits import IGNORED
from csg_ray.data.transforms import denormalise
from csg_ray.training.scores import score

if TYPE_CHECKING:
    from csg_ray.training.loop import Training

Picture = NDArray[np.uint8]  # (H, W, 3)

NUM_IMAGES = 8  # of a batch, in the sheet of views
NUM_CLASSIFIED = 16
NUM_SEGMENTED = 4
LARGEST_SIDE = 128  # of one image in a sheet, which on a URI is uploaded after every epoch
SMALLEST_SIDE = 64  # below it, no name can be read
TITLE_HEIGHT = 14
CELL = 16  # of the confusion matrix
RIGHT, WRONG = (0, 96, 0), (176, 0, 0)


class Pictures:
    """What can be drawn of a training after an epoch. The training does not notice.

    Args:
        training: as it stands after the epoch.
    """

    def __init__(self, training: Training) -> None:
        self._training = training

    def training_views(self) -> Picture:
        """The first images of the epoch as the method saw them: a row each, a column a view."""
        batches = self._training.batches
        return draw_views(batches.load(batches.batch_indices[0][:NUM_IMAGES]))

    def predictions(self) -> Picture:
        """Images from all over target_val, with what the method takes them for."""
        training = self._training
        split = training.splits.target_val
        scenes = training.config.data.task == "segmentation"
        count = min(len(split), NUM_SEGMENTED if scenes else NUM_CLASSIFIED)
        positions = torch.linspace(0, len(split) - 1, count).long()
        load = eval_batches(split, training.config).load
        # One by one: scenes may differ in size.
        batches = [load(position).to(training.device) for position in torch.split(positions, 1)]
        predicted = [self._classify(batch.views[0]) for batch in batches]
        if scenes:
            return draw_scenes(batches, predicted, len(split.class_names))
        return draw_classified(batches, predicted, split.class_names)

    def confusion(self) -> Picture:
        """The confusion matrix of target_val."""
        return draw_confusion(self._training.confusion)

    @torch.inference_mode()
    def _classify(self, images: Tensor) -> Tensor:
        """Class numbers (1,), or (1, H, W), of one image (1, 3, H, W)."""
        method = self._training.method
        was_training = method.training
        method.eval()
        predicted = score(method, images, self._training.config).values.argmax(dim=1)
        method.train(was_training)
        return predicted


def draw_views(batch: Batch) -> Picture:
    """A sheet of a batch: a row for each image, a column for each view."""
    rows = [
        np.hstack([_small(to_rgb(view[number])) for view in batch.views])
        for number in range(len(batch.labels))
    ]
    return np.vstack(rows)


def draw_classified(
    batches: Sequence[Batch], predicted: Sequence[Tensor], class_names: Sequence[str]
) -> Picture:
    """A sheet of classified images, four to a row, the true class and a wrong guess over each."""
    cells = []
    for batch, guess in zip(batches, predicted, strict=True):
        label, number = int(batch.labels), int(guess)
        wrong = "" if label == number else f" as {class_names[number]}"
        title = f"{class_names[label]}{wrong}"
        image = _large(_small(to_rgb(batch.views[0][0])))
        cells.append(
            np.vstack([_title(title, image.shape[1], RIGHT if not wrong else WRONG), image])
        )
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % 4)
    return np.vstack([np.hstack(cells[start : start + 4]) for start in range(0, len(cells), 4)])


def draw_scenes(batches: Sequence[Batch], predicted: Sequence[Tensor], num_classes: int) -> Picture:
    """A row for each scene: the image, its labels, the prediction; a colour for each class."""
    palette = class_colours(num_classes)
    rows = []
    for batch, guess in zip(batches, predicted, strict=True):
        maps = (palette[batch.labels[0].cpu().numpy()], palette[guess[0].cpu().numpy()])
        columns = [_small(column) for column in (to_rgb(batch.views[0][0]), *maps)]
        rows.append(np.hstack(columns))
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def draw_confusion(counts: Tensor) -> Picture:
    """A square for each (label, prediction): the darker, the larger its share of the label.

    Args:
        counts: (K, K); rows are labels.
    """
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    grey = (255 * (1 - shares)).round().to(torch.uint8).numpy()
    enlarged = np.kron(grey, np.ones((CELL, CELL), dtype=np.uint8))
    return np.repeat(enlarged[:, :, np.newaxis], 3, axis=2)


def class_colours(num_classes: int) -> Picture:
    """A colour for each class number, (256, 1) RGB as (256, 3); pixels that do not count: black."""
    colours = np.zeros((IGNORED + 1, 3), dtype=np.uint8)
    for number in range(num_classes):
        # Neighbours on the wheel of colours differ in brightness, too.
        rgb = colorsys.hsv_to_rgb(number / num_classes, 0.8, 1.0 if number % 2 == 0 else 0.6)
        colours[number] = [round(255 * channel) for channel in rgb]
    return colours


def to_rgb(image: Tensor) -> Picture:
    """A network's input (3, H, W) as it looked before it was normalised."""
    rgb: Picture = (denormalise(image) * 255).round().astype(np.uint8)
    return rgb


def _small(picture: Picture) -> Picture:
    """Thinned out to sides of at most `LARGEST_SIDE`; colours stay those of single pixels."""
    step = -(-max(picture.shape[:2]) // LARGEST_SIDE)
    return picture[::step, ::step]


def _large(picture: Picture) -> Picture:
    """Every pixel repeated until no side is shorter than `SMALLEST_SIDE`."""
    times = -(-SMALLEST_SIDE // min(picture.shape[:2]))
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def _title(text: str, width: int, colour: tuple[int, int, int]) -> Picture:
    strip = Image.new("RGB", (width, TITLE_HEIGHT), "white")
    # ASCII: Pillow's own font may hold nothing else.
    plain = text.encode("ascii", "replace").decode()
    ImageDraw.Draw(strip).text((1, 1), plain, fill=colour)
    return np.asarray(strip)
