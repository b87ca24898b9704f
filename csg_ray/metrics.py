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
def hyperspherical_energies(features: Tensor, block_size: int = 2048) -> HypersphericalEnergies:
    """Hyperspherical energies of L2-normalised features (Liu et al. 2018; CSG, Eq. 1 and table 1).

    The energies are always finite: non-finite features, fewer than two features with a direction,
    and features that are all duplicates (a collapsed encoder) get `HSE_WORST`. Memory is linear in
    N: a normalised copy and one tile of `block_size` x `block_size` distances.

    Args:
        features: (N, C), on any device and of any float type; need not be normalised.
        block_size: rows of a block; a matter of speed and memory only.
    """
    features = features.float()
    lengths = torch.linalg.vector_norm(features, ord=torch.inf, dim=1, keepdim=True)
    if not bool(lengths.isfinite().all()):
        return _worst_energies(duplicates=0, zero_rows=0)
    usable = lengths.squeeze(1) > 0
    unit = features[usable]
    # Dividing by the largest entry first keeps the squares from over- and underflowing.
    unit /= lengths[usable]
    unit /= torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    zero_rows = len(features) - len(unit)

    sums = torch.zeros(3, dtype=torch.float64, device=unit.device)
    fillers = duplicates = pairs = 0
    with torch.autocast(unit.device.type, enabled=False), _full_float32_matmul():
        for tile, tile_pairs, tile_duplicates in _distance_tiles(unit, block_size):
            pairs += tile_pairs - tile_duplicates
            duplicates += tile_duplicates
            fillers += tile.numel() - tile_pairs + tile_duplicates
            sums += _energy_sums(tile)
    if pairs == 0:
        return _worst_energies(duplicates, zero_rows)
    power0, power1, power2 = sums.tolist()
    return HypersphericalEnergies(
        power0=power0 / pairs,
        power0_distance=power0 / pairs / 2,
        power1=(power1 - fillers) / pairs,
        power2=(power2 - fillers) / pairs,
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


def _distance_tiles(unit: Tensor, block_size: int) -> Iterator[tuple[Tensor, int, int]]:
    """Squared distances of all pairs i < j of unit vectors (N, C), tile by tile.

    Yields:
        A tile in which everything but the pairs to average holds 1 (which adds a known amount to
        every sum), its number of pairs i < j, and how many of them are duplicates.
    """
    two = unit.new_full((), 2.0)
    blocks = [unit[start : start + block_size] for start in range(0, len(unit), block_size)]
    for first, rows in enumerate(blocks):
        for second, columns in enumerate(blocks[first:], start=first):
            tile = torch.addmm(two, rows, columns.T, alpha=-2)
            pairs = tile.numel()
            if first == second:
                tile.masked_fill_(torch.ones_like(tile, dtype=torch.bool).tril_(), 1.0)
                pairs = len(rows) * (len(rows) - 1) // 2
            duplicates = 0
            if bool(tile.amin() < _NEAR_SQUARED_DISTANCE):
                _recompute_near(tile, rows, columns)
                is_duplicate = tile < DUPLICATE_SQUARED_DISTANCE
                duplicates = int(is_duplicate.sum())
                tile.masked_fill_(is_duplicate, 1.0)
            yield tile, pairs, duplicates


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


def _energy_sums(tile: Tensor) -> Tensor:
    """Sums over a tile of squared distances: ln(1 / d^2), 1 / d, 1 / d^2; in float64, (3,)."""
    log_rows = tile.log().sum(dim=1)
    inverse = tile.rsqrt_()
    rows = torch.stack([-log_rows, inverse.sum(dim=1), inverse.square_().sum(dim=1)])
    # Only the rows of a tile are summed in float32 (pairwise, so to its last digit or two): a
    # float64 copy of every tile would cost as much as the matrix product.
    return rows.sum(dim=1, dtype=torch.float64)


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
