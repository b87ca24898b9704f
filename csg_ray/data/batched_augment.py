"""RandAugment of a whole batch at once, on any device, to the bit what Pillow makes of each image.

Nothing of Pillow's arithmetic is repeated here where it can be asked instead: at one magnitude an
operation has at most two values, one for each sign, so that Pillow itself fills a table for each.
Which pixel goes where is what it makes of an image of pixel numbers; which level becomes which,
what it makes of a ramp; what two levels blend to, what it makes of all pairs. Only what depends on
an image's own levels is computed: two histograms, a mean, a grey, a mean of neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from csg_ray.data.rand_augment import (
    FRACTION_OPERATIONS,
    GEOMETRIC,
    OPERATIONS,
    Augmentation,
    Operation,
    RandAugment,
)

LEVELS = 256
GREY_WEIGHTS = (19595, 38470, 7471)  # of red, green and blue in 65536, as in Pillow's mode L

Apply = Callable[[Image.Image, float], Image.Image]


@dataclass(frozen=True)
class _Kernel:
    """How a kind of operation is done in batches.

    Args:
        table: (operation, value, (height, width)) -> what is known before any image is.
        run: (images (n, C, H, W), tables, number of each image's table (n,)) -> new images.
    """

    table: Callable[[Apply, float, tuple[int, int]], Tensor]
    run: Callable[[Tensor, Tensor, Tensor], Tensor]


class BatchedRandAugment:
    """`RandAugment` of many images of one size.

    Args:
        augment: One that `is_batchable` lets pass.
        size: (height, width) of the images.
        device: Where they are.
    """

    def __init__(
        self, augment: RandAugment, size: tuple[int, int], device: torch.device | str
    ) -> None:
        self.num_ops = augment.num_ops
        self._num_operations = len(augment.operations)
        limits, kernels, tables = [], [], []
        rows: list[list[Tensor]] = [[] for _ in _KERNELS]
        for operation in augment.operations:
            limit, *values = _outcomes(operation, augment.magnitude)
            limits.append(limit)
            kernel = _KERNEL_OF[operation.apply]
            for value in values:
                if value is None or kernel == len(_KERNELS):
                    kernels.append(len(_KERNELS))
                    tables.append(0)
                else:
                    kernels.append(kernel)
                    tables.append(len(rows[kernel]))
                    rows[kernel].append(_KERNELS[kernel].table(operation.apply, value, size))
        self._limits = torch.tensor(limits, dtype=torch.float64)
        self._kernels, self._table_numbers = torch.tensor(kernels), torch.tensor(tables)
        self._tables = [torch.stack(own).to(device) if own else torch.empty(0) for own in rows]

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augment; the argument stays as it is.

        Args:
            images: (N, C, H, W) uint8, C 1 or 3; one channel stands for three equal ones.
            draws: (N, num_ops, 2) float64 in [0, 1), on the CPU: what `RandAugment` draws.
        """
        augmented = images.clone()
        for draw in draws.unbind(1):
            self._apply_one(augmented, draw)
        return augmented

    def _apply_one(self, images: Tensor, draw: Tensor) -> None:
        """One operation for each image, in place; images of one kernel are done together."""
        choice, coin = draw.unbind(1)
        number = (choice * self._num_operations).long()
        outcome = 2 * number + (coin >= self._limits[number])
        kernels, order = self._kernels[outcome].sort(stable=True)
        counts = kernels.bincount(minlength=len(_KERNELS) + 1).tolist()
        # The device hears of all images in one go, and nobody waits for it.
        plan = send(torch.stack([order, self._table_numbers[outcome[order]]]), images.device)
        # The last part is that of images which stay as they are.
        for kernel, table, part in zip(
            _KERNELS, self._tables, torch.split(plan, counts, dim=1)[:-1], strict=True
        ):
            chosen, numbers = part
            if len(chosen) > 0:
                changed = kernel.run(images.index_select(0, chosen), table, numbers)
                images.index_copy_(0, chosen, changed)


def is_batchable(augment: Augmentation) -> bool:
    """Whether there is a kernel for each of its operations."""
    return isinstance(augment, RandAugment) and all(
        operation.apply in _KERNEL_OF for operation in augment.operations
    )


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _outcomes(operation: Operation, magnitude: float) -> tuple[float, float | None, float | None]:
    """A limit, and the operation's values for coins below and not below it; None: not applied."""
    value = operation.value(magnitude)
    if operation.chance == "sign":
        return 0.5, -value, value
    if operation.chance == "probability":
        return value, value, None
    return 0.5, value, value


def _no_table(_apply: Apply, _value: float, _size: tuple[int, int]) -> Tensor:
    return torch.empty(0)


def _source_table(apply: Apply, value: float, size: tuple[int, int]) -> Tensor:
    """Of each pixel the number of the one that moves there, (H W,); one more than all: black."""
    count = size[0] * size[1]
    numbers = np.arange(1, count + 1, dtype=np.int32).reshape(size)
    moved = torch.from_numpy(np.array(apply(Image.fromarray(numbers), value))).flatten().long()
    return torch.where(moved > 0, moved - 1, count)


def _move(images: Tensor, tables: Tensor, numbers: Tensor) -> Tensor:
    pixels = torch.nn.functional.pad(images.flatten(2), (0, 1))
    sources = tables.index_select(0, numbers)[:, None].expand(-1, images.shape[1], -1)
    return pixels.gather(2, sources).view_as(images)


def _level_table(apply: Apply, value: float, _size: tuple[int, int]) -> Tensor:
    """What becomes of each level, (256,) uint8."""
    ramp = Image.frombytes("L", (LEVELS, 1), bytes(range(LEVELS))).convert("RGB")
    return torch.from_numpy(np.array(apply(ramp, value))[0, :, 0])


def _map_levels(images: Tensor, tables: Tensor, numbers: Tensor) -> Tensor:
    return tables.index_select(0, numbers).gather(1, images.flatten(1).long()).view_as(images)


def _stretch(images: Tensor, _tables: Tensor, _numbers: Tensor) -> Tensor:
    """`ImageOps.autocontrast`: the darkest level of a channel becomes 0, and the brightest 255."""
    low, high = (level.double() for level in images.flatten(2).aminmax(dim=2, keepdim=True))
    levels = torch.arange(LEVELS, dtype=torch.float64, device=images.device)
    span = (high - low).clamp_min(1)
    scale = torch.full_like(span, 255) / span  # 255 / span would be 255 * (1 / span)
    stretched = (levels * scale + -low * scale).clamp(0, 255)
    return _look_up(images, torch.where(high > low, stretched, levels))


def _equalize(images: Tensor, _tables: Tensor, _numbers: Tensor) -> Tensor:
    """`ImageOps.equalize`: as many pixels between each two levels, channel by channel."""
    pixels = images.flatten(2).long()
    shape = (*pixels.shape[:2], LEVELS)
    counts = torch.zeros(shape, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    # The brightest level of an image does not count.
    step = (pixels.shape[2] - counts.gather(2, pixels.amax(dim=2, keepdim=True))) // 255
    darker = counts.cumsum(2) - counts
    equal = ((step // 2 + darker) // step.clamp_min(1)).clamp_max(255)
    levels = torch.arange(LEVELS, device=images.device)
    return _look_up(images, torch.where(step > 0, equal, levels))


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Every channel by its own table of (n, C, 256)."""
    return tables.to(torch.uint8).gather(2, images.flatten(2).long()).view_as(images)


def _blend_table(_apply: Apply, value: float, _size: tuple[int, int]) -> Tensor:
    """What becomes of level q before level p, at place 256 p + q: (65536,) uint8."""
    levels = np.arange(LEVELS, dtype=np.uint8)
    behind, before = (
        Image.fromarray(np.ascontiguousarray(each))
        for each in np.meshgrid(levels, levels, indexing="ij")
    )
    return torch.from_numpy(np.array(Image.blend(behind, before, 1 + value))).flatten()


def _blend(images: Tensor, behind: Tensor, tables: Tensor, numbers: Tensor) -> Tensor:
    """`Image.blend` with levels of a shape that broadcasts to that of the images."""
    places = (numbers.int().view(-1, 1, 1, 1) * LEVELS + behind) * LEVELS + images
    return tables.flatten().index_select(0, places.flatten()).view_as(images)


def _color(images: Tensor, tables: Tensor, numbers: Tensor) -> Tensor:
    return _blend(images, _grey(images), tables, numbers)


def _contrast(images: Tensor, tables: Tensor, numbers: Tensor) -> Tensor:
    grey = _grey(images)
    pixels = grey.shape[2] * grey.shape[3]
    total = grey.sum(dim=(2, 3), keepdim=True, dtype=torch.int64).double()
    mean = total / torch.full_like(total, pixels)  # total / pixels would be total * (1 / pixels)
    return _blend(images, (mean + 0.5).int(), tables, numbers)


def _sharpness(images: Tensor, tables: Tensor, numbers: Tensor) -> Tensor:
    return _blend(images, _smooth(images), tables, numbers)


def _grey(images: Tensor) -> Tensor:
    """The luminance (n, 1, H, W) int32."""
    levels = images.int()
    if images.shape[1] == 1:
        return levels
    red, green, blue = (weight * levels[:, channel] for channel, weight in enumerate(GREY_WEIGHTS))
    return ((red + green + blue + 2**15) >> 16)[:, None]


def _smooth(images: Tensor) -> Tensor:
    """The mean of the 3 x 3 pixels around, the pixel itself 5 times; the border stays; int32.

    See `rand_augment`, whose images these are the same as.
    """
    levels = images.int()
    of_three = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    of_nine = of_three[..., :-2] + of_three[..., 1:-1] + of_three[..., 2:]
    inner = levels[:, :, 1:-1, 1:-1]
    smooth = levels.clone()
    smooth[:, :, 1:-1, 1:-1] = (of_nine + 4 * inner + 6).div(13, rounding_mode="floor")
    return smooth


_KERNELS = (
    _Kernel(_source_table, _move),
    _Kernel(_level_table, _map_levels),
    _Kernel(_no_table, _stretch),
    _Kernel(_no_table, _equalize),
    _Kernel(_blend_table, _color),
    _Kernel(_blend_table, _contrast),
    _Kernel(_blend_table, _sharpness),
)
_NAMES = (
    GEOMETRIC,
    ("posterize", "solarize", "brightness"),
    ("auto_contrast",),
    ("equalize",),
    ("color",),
    ("contrast",),
    ("sharpness",),
    ("identity",),  # has none
)
_KERNEL_OF = {
    table[name].apply: number
    for number, names in enumerate(_NAMES)
    for name in names
    for table in (OPERATIONS, FRACTION_OPERATIONS)
}
