"""Numbers that were published, each with its source, for the rows of a comparison to stand beside.

Nothing is here that could not be read in the source that is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from csg_ray.config.data import Task

AUGMENTATION = "augmentation"  # stands for all of augment.*, worded as in a comparison

_TABLE_1 = "CSG (Chen et al., ICLR 2021), Table 1"
_TABLE_5 = "CSG (Chen et al., ICLR 2021), Table 5"
_ABLATION = "ASG (Chen et al., ICML 2020), ablation of its parts"
_SELF_TRAINING = "ASG (Chen et al., ICML 2020), table of self-training"
_CRST = "CRST (Zou et al., ICCV 2019), README: DeepLabv2, several scales, mirrored"
_ISSUE = "NVlabs/CSG, issue 1: the authors on their released checkpoint"


@dataclass(frozen=True)
class PublishedRow:
    """One method as published.

    Attributes:
        method: its `method.name` here.
        source: where the score and the energies stand.
        score: mean class accuracy or mIoU, in %.
        energies: HSE at powers 0, 1, 2; empty where not published.
        reference: what is left of the accuracy on ImageNet, in %; all from ASG's ablation.
        settings: dotted path (or `AUGMENTATION`) -> value, as far as known, that tell this row from
            others of its method.
        aside: what the source has in brackets behind the score: a spread or a gain.
    """

    method: str
    source: str
    score: float
    energies: tuple[float, ...] = ()
    reference: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    aside: str = ""


@dataclass(frozen=True)
class PublishedTask:
    """The published rows of one task with one encoder.

    Attributes:
        data: `data.name`.
        model: `model.name`.
        title: of the data and the encoder, in short lines.
        asides: what stands in the brackets of its rows.
    """

    data: str
    model: str
    title: tuple[str, ...]
    asides: str
    rows: tuple[PublishedRow, ...]


# The code of ASG, from which the rows before CSG's come, augments nothing.
_PLAIN = {AUGMENTATION: "none"}
_SMALL = _PLAIN | {"train.backbone_lr_mult": 0.1}
_LARGE = _PLAIN | {"train.backbone_lr_mult": 1.0}
_CSG = {
    AUGMENTATION: "RandAugment M=6",
    "train.backbone_lr_mult": 0.1,
    "method.loss_weight": 0.1,
    "method.temperature": 0.07,
    "method.stages": "3,4",
    "method.pooling": "attention",
}
_DENSE_CSG = _CSG | {
    AUGMENTATION: "colour jitter 0.4",
    "method.loss_weight": 75.0,
    "method.patch_grid": 8,
}
# The rows called ASG in CSG's tables have its learned policy of learning rates.
_WITH_POLICY = {"method.name": "asg_l2o"}

_VISDA17 = PublishedTask(
    data="visda17",
    model="resnet101",
    title=("VisDA-17", "ResNet-101"),
    asides="as printed there, presumably deviations over runs; begun from ImageNet, and from ASG "
    "82.5 (0.7) with CBST and 84.6 (0.4) with MRKLD",
    rows=(
        PublishedRow("oracle", _TABLE_1, 53.3, (), 77.4, _PLAIN),
        PublishedRow("vanilla", _TABLE_1, 49.3, (0.4245, 1.2500, 1.6028), 33.1, _SMALL),
        PublishedRow("vanilla", _ABLATION, 28.2, (), 0.8, _LARGE),
        PublishedRow("weight_l2", _TABLE_1, 56.4, (0.4014, 1.2296, 1.5302), 49.1, _PLAIN),
        PublishedRow(
            "synaptic_intelligence", _TABLE_1, 57.6, (0.3958, 1.2261, 1.5216), 53.9, _PLAIN
        ),
        PublishedRow("feature_l2", _TABLE_1, 57.1, (0.3337, 1.1910, 1.4449), 77.4, _PLAIN),
        PublishedRow("asg", _ABLATION, 60.2, (), 76.5, _SMALL),
        PublishedRow("asg", _ABLATION, 58.7, (), 76.2, _LARGE),
        # 61.5 in ASG's own tables, of which the accuracy on ImageNet is.
        PublishedRow("asg_l2o", _TABLE_1, 61.1, (0.3251, 1.1840, 1.4229), 76.7, _PLAIN),
        PublishedRow("csg", _TABLE_1, 64.05, (0.3188, 1.1806, 1.4177), None, _CSG),
        PublishedRow("cbst", _SELF_TRAINING, 76.4, aside="(0.9)"),
        PublishedRow("mrkld", _SELF_TRAINING, 77.9, aside="(0.5)"),
    ),
)
_GTA5 = PublishedTask(
    data="gta5_cityscapes",
    model="resnet101",
    title=("GTA5 ->", "Cityscapes", "ResNet-101"),
    asides="the gain over its own baseline",
    rows=(
        PublishedRow("vanilla", _TABLE_5, 28.94),  # of the row of CSG; 27.94 of that of ASG
        PublishedRow("asg", _TABLE_5, 32.79, settings=_WITH_POLICY, aside="(+4.85)"),
        PublishedRow("asg_l2o", _TABLE_5, 32.79, aside="(+4.85)"),
        PublishedRow("csg", _TABLE_5, 38.88, settings=_DENSE_CSG, aside="(+9.94)"),
        PublishedRow("cbst", _CRST, 46.47),
        PublishedRow("mrkld", _CRST, 47.39),
        PublishedRow("lrent", _CRST, 46.51),
    ),
)
_GTA5_RESNET50 = PublishedTask(
    data="gta5_cityscapes",
    model="resnet50",
    title=("GTA5 ->", "Cityscapes", "ResNet-50"),
    asides="",
    rows=(PublishedRow("csg", _ISSUE, 35.9, settings=_DENSE_CSG),),
)


def published_task(task: Task, model: str) -> PublishedTask:
    """The published task to compare with: of this kind, with this encoder where there is one."""
    if task == "classification":
        return _VISDA17
    return _GTA5_RESNET50 if model == _GTA5_RESNET50.model else _GTA5


@dataclass(frozen=True)
class Beside:
    """A published row beside one of ours, and the settings in which the two differ."""

    row: PublishedRow
    differences: tuple[str, ...]


def stand_beside(
    task: PublishedTask, rows: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[Beside | None]:
    """The published row for each of ours: of its method the one that differs least.

    Where several of ours are nearest to one that was published, it stands beside the nearest of
    them, and beside more than one when they are equally near.

    Args:
        task: what was published.
        rows: of ours, the method and its settings (`AUGMENTATION` among them).
    """
    nearest = [_nearest(task, method, settings) for method, settings in rows]
    fewest: dict[int, int] = {}
    for found in nearest:
        if found is not None:
            known = fewest.get(id(found.row), len(found.differences))
            fewest[id(found.row)] = min(known, len(found.differences))
    return [
        found if found is not None and len(found.differences) == fewest[id(found.row)] else None
        for found in nearest
    ]


def _nearest(task: PublishedTask, method: str, settings: Mapping[str, Any]) -> Beside | None:
    ours = {"method.name": method, **settings}
    found = [
        Beside(row, tuple(path for path in row.settings if ours.get(path) != row.settings[path]))
        for row in task.rows
        if row.method == method
    ]
    return min(found, key=lambda each: len(each.differences), default=None)
