"""What is measured: accuracy and IoU from counts, and the hyperspherical energy of features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Convention = Literal["squared_distance", "distance"]

# Pairs closer than this are excluded and counted: one duplicate pair would decide powers 1 and 2.
DUPLICATE_SQUARED_DISTANCE = 1e-8
# Below this, 2 - 2 cos in float32 has lost its digits and is computed again in float64.
_NEAR_SQUARED_DISTANCE = 1e-3

# The bounds that the exclusion of duplicates implies; what features without any pair left get.
HSE_WORST = {
    "hse": -math.log(DUPLICATE_SQUARED_DISTANCE),
    "hse_distance": -math.log(DUPLICATE_SQUARED_DISTANCE) / 2,
    "hse_power1": DUPLICATE_SQUARED_DISTANCE**-0.5,
    "hse_power2": 1 / DUPLICATE_SQUARED_DISTANCE,
}


@dataclass(frozen=True)
class HypersphericalEnergies:
    """Mean energies over pairs i < j of unit vectors at distance d; lower is more spread out.

    Attributes:
        power0: mean ln(1 / d^2), what the paper's table 1 holds.
        power0_distance: mean ln(1 / d), its Eq. 1; half of `power0`.
        power1: mean 1 / d.
        power2: mean 1 / d^2.
        duplicates: pairs left out because d^2 < 1e-8.
        zero_rows: features of length zero, which have no direction and were dropped.
        pairs: pairs the means are taken over; 0 when the energies are `HSE_WORST`.
    """

    power0: float
    power0_distance: float
    power1: float
    power2: float
    duplicates: int
    zero_rows: int
    pairs: int


@torch.no_grad()
def hyperspherical_energies(
    features: Tensor, block_size: int | None = None
) -> HypersphericalEnergies:
    """Hyperspherical energies of L2-normalised features (Liu et al. 2018; CSG, Eq. 1 and table 1).

    The energies are always finite: non-finite features, fewer than two features with a direction,
    and features that are all duplicates (a collapsed encoder) get `HSE_WORST`. Time is mostly
    that of the products of all pairs i < j. Memory is linear in N: a normalised copy and one
    tile of `block_size` x 4 `block_size` distances.

    Args:
        features: (N, C), on any device and of any float type; need not be normalised.
        block_size: rows of a tile, a matter of speed and memory only; by default what suits the
            device.
    """
    features = features.float()
    lengths = torch.maximum(features.amax(dim=1, keepdim=True), -features.amin(dim=1, keepdim=True))
    if not bool(lengths.isfinite().all()):
        return _worst_energies(duplicates=0, zero_rows=0)
    usable = lengths.squeeze(1) > 0
    unit = features[usable]
    # Dividing by the largest entry first keeps the squares from over- and underflowing.
    unit /= lengths[usable]
    unit /= torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    zero_rows = len(features) - len(unit)

    with torch.autocast(unit.device.type, enabled=False), _full_float32_matmul():
        sums, duplicates = _sums_over_pairs(unit, block_size or _default_block_size(unit))
    pairs = len(unit) * (len(unit) - 1) // 2 - duplicates
    if pairs <= 0:
        return _worst_energies(duplicates, zero_rows)
    power0, power1, power2 = (sums / pairs).tolist()
    return HypersphericalEnergies(
        power0=power0,
        power0_distance=power0 / 2,
        power1=power1,
        power2=power2,
        duplicates=duplicates,
        zero_rows=zero_rows,
        pairs=pairs,
    )


def hyperspherical_energy(
    features: Tensor, power: Literal[0, 1, 2] = 0, convention: Convention = "squared_distance"
) -> float:
    """One hyperspherical energy of L2-normalised features; see `hyperspherical_energies`.

    Args:
        features: (N, C).
        power: 0 for the logarithmic energy, 1 or 2 for the mean of d^-power.
        convention: for power 0, the mean of ln(1 / d^2) (`squared_distance`) or ln(1 / d)
            (`distance`); without effect on the other powers.

    Raises:
        ValueError: the power or the convention is not one of these.
    """
    if power not in (0, 1, 2) or convention not in ("squared_distance", "distance"):
        raise ValueError(
            "power must be 0, 1 or 2 and convention 'squared_distance' or 'distance', "
            f"not {power!r} and {convention!r}"
        )
    energies = hyperspherical_energies(features)
    if power == 0 and convention == "distance":
        return energies.power0_distance
    return (energies.power0, energies.power1, energies.power2)[power]


def _worst_energies(duplicates: int, zero_rows: int) -> HypersphericalEnergies:
    return HypersphericalEnergies(
        power0=HSE_WORST["hse"],
        power0_distance=HSE_WORST["hse_distance"],
        power1=HSE_WORST["hse_power1"],
        power2=HSE_WORST["hse_power2"],
        duplicates=duplicates,
        zero_rows=zero_rows,
        pairs=0,
    )


@contextmanager
def _full_float32_matmul() -> Iterator[None]:
    """No TF32 and no bfloat16 inside float32 products, whatever the training loop has chosen."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    chosen = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, chosen, strict=True):
            backend.fp32_precision = precision


def _default_block_size(unit: Tensor) -> int:
    """On a CPU a tile stays in its cache; a GPU has many cores to fill."""
    return 256 if unit.device.type == "cpu" else 1024


def _sums_over_pairs(unit: Tensor, block_size: int) -> tuple[Tensor, int]:
    """Sums of ln(1 / d^2), 1 / d, 1 / d^2 over the pairs i < j of unit vectors (N, C).

    A block of rows meets itself, then everything after it, tile by tile. The tiles are summed as
    if no pair were near; the rows of a tile where one was are left out and done again with care.
    Which they are is asked once for all tiles of a block: a GPU need not wait after every tile.

    Returns:
        The sums, float64 (3,), without duplicates, and the number of those.
    """
    sums = unit.new_zeros(3, dtype=torch.float64)
    duplicates = 0
    width = 4 * block_size
    memory = unit.new_empty(block_size * min(width, len(unit)))
    for start in range(0, len(unit), block_size):
        rows = unit[start : start + block_size]
        after = [unit[at : at + width] for at in range(start + block_size, len(unit), width)]
        parts = [_careful_sums(rows, rows, ordered=True)]
        near = unit.new_zeros(len(after), len(rows), dtype=torch.bool)
        for columns, is_near in zip(after, near, strict=True):
            tile = memory[: len(rows) * len(columns)].view(len(rows), len(columns))
            _squared_distances(rows, columns, out=tile)
            torch.lt(tile.amin(dim=1), _NEAR_SQUARED_DISTANCE, out=is_near)
            far = torch.where(is_near, 0.0, _fast_row_sums(tile))
            sums += far.sum(dim=1, dtype=torch.float64)
        for index in near.any(dim=1).nonzero().flatten().tolist():
            parts.append(_careful_sums(rows[near[index]], after[index], ordered=False))
        for part_sums, part_duplicates in parts:
            sums += part_sums
            duplicates += part_duplicates
    return sums, duplicates


def _squared_distances(rows: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
    """2 - 2 cos of unit vectors (R, C) and (S, C): (R, S)."""
    return torch.addmm(rows.new_full((), 2.0), rows, columns.T, alpha=-2, out=out)


def _fast_row_sums(tile: Tensor) -> Tensor:
    """Sums over rows of squared distances, none near: ln(1 / d^2), 1 / d, 1 / d^2; (3, R).

    Overwrites the tile. Only rows are summed in float32 (pairwise, so to the last digit or two): a
    float64 copy of every tile would cost more than all of this.
    """
    inverse = tile.rsqrt_()
    # A logarithm costs ten times a product, and a product of 16 has one: 1 / d is between 1/2 and
    # 32, so it neither over- nor underflows.
    products, rest = inverse.tensor_split([inverse.shape[1] // 16 * 16], dim=1)
    logs = products.unflatten(1, (16, products.shape[1] // 16)).prod(dim=1).log().sum(dim=1)  # type: ignore[no-untyped-call]
    logs += rest.log().sum(dim=1)
    squares = torch.linalg.vector_norm(inverse, dim=1).square_()
    return torch.stack([2 * logs, inverse.sum(dim=1), squares])


def _careful_sums(rows: Tensor, columns: Tensor, ordered: bool) -> tuple[Tensor, int]:
    """Sums as of `_sums_over_pairs`, with near pairs in float64; and the duplicates among them.

    Args:
        rows: (R, C).
        columns: (S, C).
        ordered: rows and columns are the same; only pairs i < j count.
    """
    tile = _squared_distances(rows, columns)
    if ordered:
        tile.masked_fill_(torch.ones_like(tile, dtype=torch.bool).tril_(), torch.inf)
    _recompute_near(tile, rows, columns)
    duplicates = int((tile < DUPLICATE_SQUARED_DISTANCE).sum())
    squares = tile[(tile >= DUPLICATE_SQUARED_DISTANCE) & tile.isfinite()].double()
    return torch.stack(
        [-squares.log().sum(), squares.rsqrt().sum(), squares.reciprocal().sum()]
    ), duplicates


def _recompute_near(tile: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Replace the small distances of a tile by float64 ones.

    Only the rows and columns that hold one are multiplied again: next to nothing when duplicates
    are few, a whole tile when the encoder has collapsed.
    """
    near = tile < _NEAR_SQUARED_DISTANCE
    row_index = near.any(dim=1).nonzero()
    column_index = near.any(dim=0).nonzero().T
    exact_rows, exact_columns = (
        torch.nn.functional.normalize(block[index.flatten()].double(), dim=1)
        for block, index in ((rows, row_index), (columns, column_index))
    )
    exact = (2 - 2 * exact_rows @ exact_columns.T).to(tile.dtype)
    part = (row_index, column_index)
    tile[part] = torch.where(near[part], exact, tile[part])


class ConfusionMatrix:
    """Counts of (label, prediction), and the accuracies and IoUs they give.

    A class that cannot be scored is NaN in the per-class values, left out of the mean, and listed.
    A mean over no class at all is NaN.

    Attributes:
        counts: (num_classes, num_classes) int64 on the CPU; rows are labels, columns predictions.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        """Start with nothing counted; labels equal to `ignore_index` will not be."""
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Count predicted classes against labels, both integers of one shape: (N,) or (N, H, W).

        Raises:
            ValueError: a label is neither a class nor `ignore_index`, or a prediction is no class.
        """
        assert predictions.shape == labels.shape
        counted = labels != self.ignore_index
        labels = labels[counted].long()
        predictions = predictions[counted].long()
        for what, values in (("labels", labels), ("predictions", predictions)):
            if bool(((values < 0) | (values >= self.num_classes)).any()):
                raise ValueError(
                    f"{what} go from {int(values.min())} to {int(values.max())}, allowed are 0 to "
                    f"{self.num_classes - 1} (and {self.ignore_index} for labels to ignore)"
                )
        cells = torch.bincount(
            labels * self.num_classes + predictions, minlength=self.num_classes**2
        )
        self.counts += cells.view_as(self.counts).cpu()

    @property
    def class_accuracies(self) -> Tensor:
        """Recall of each class (num_classes,), float64; NaN for a class without labels."""
        return self.counts.diagonal() / self.counts.sum(dim=1).double()

    @property
    def class_ious(self) -> Tensor:
        """TP / (TP + FP + FN) of each class; NaN for one neither labelled nor predicted."""
        unions = self.counts.sum(dim=0) + self.counts.sum(dim=1) - self.counts.diagonal()
        return self.counts.diagonal() / unions.double()

    @property
    def unlabelled_classes(self) -> list[int]:
        """Classes without a label, which `mean_class_accuracy` leaves out."""
        return _nan_positions(self.class_accuracies)

    @property
    def absent_classes(self) -> list[int]:
        """Classes neither labelled nor predicted, which `mean_iou` leaves out."""
        return _nan_positions(self.class_ious)

    @property
    def accuracy(self) -> float:
        """Share of correct predictions over everything counted."""
        return float(self.counts.diagonal().sum() / self.counts.sum().double())

    @property
    def mean_class_accuracy(self) -> float:
        """Mean over classes of their recall (method of VisDA-17)."""
        return float(self.class_accuracies.nanmean())

    @property
    def mean_iou(self) -> float:
        """Mean over classes of their intersection over union."""
        return float(self.class_ious.nanmean())


def _nan_positions(values: Tensor) -> list[int]:
    positions: list[int] = values.isnan().nonzero().flatten().tolist()
    return positions
