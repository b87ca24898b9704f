"""What one model makes of target_val: its features, and what it sees in a few of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csg_ray.config.run import RunConfig
from csg_ray.contrastive.embedding import attention_weights
from csg_ray.data.epoch import eval_batches
from csg_ray.data.splits import Split
from csg_ray.methods.base import TASK_STAGE, Method
from csg_ray.results.figures.grad_cam import grad_cam
from csg_ray.results.figures.sphere import Projection, project
from csg_ray.training.evaluate import measure_split
from csg_ray.training.scores import score

Maps: TypeAlias = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class ModelName:
    """How a model is called in a figure: `csg`, and below it `runs/best`."""

    method: str
    place: str


@dataclass(frozen=True)
class TaskView:
    """What a model with a task head says of the shown images.

    Attributes:
        score: on the whole of target_val, mean class accuracy or mIoU.
        predictions: a class number, () of int64, or (H, W) of segmentation, for each image.
        grad_cam: (H', W') for each image, of its true class; empty for segmentation.
    """

    score: float
    predictions: Maps
    grad_cam: Maps


@dataclass(frozen=True)
class Observation:
    """What a model makes of target_val.

    Attributes:
        projection: of the features that the energy is of.
        energy: HSE, power 0, of the pooled stage-4 features.
        attention: A-pool's weights at stage 4, (H', W') that sum to 1, for each shown image.
        task: None for the reference encoder, which has no task head.
    """

    name: ModelName
    projection: Projection
    energy: float
    attention: Maps
    task: TaskView | None


def observe(
    name: ModelName,
    method: Method,
    config: RunConfig,
    split: Split,
    indices: list[int],
    trained: bool,
) -> Observation:
    """Run a method over a split, and look at a few images closely.

    Args:
        name: in the figures.
        method: on the device where it is to run; left in evaluation mode.
        config: of its training, which says how it is evaluated.
        split: target_val.
        indices: of the images to look at.
        trained: whether its task head is.
    """
    device = next(method.parameters()).device
    method.eval()
    measured = measure_split(method, split, config, device)
    load = eval_batches(split, config).load
    # One by one, as images may be large, and of segmentation differ in size.
    batches = [load(torch.tensor([index])).to(device) for index in indices]
    images = [batch.views[0] for batch in batches]
    labels = [batch.labels for batch in batches]
    return Observation(
        name=name,
        projection=project(measured.features.double().cpu().numpy()),
        energy=measured.energies.power0,
        attention=tuple(_attention(method, image) for image in images),
        task=TaskView(
            score=measured.metrics[config.score],
            predictions=tuple(_prediction(method, image, config) for image in images),
            grad_cam=_grad_cams(method, images, labels, config),
        )
        if trained
        else None,
    )


@torch.inference_mode()
def _attention(method: Method, image: Tensor) -> NDArray[np.float32]:
    weights: NDArray[np.float32] = (
        attention_weights(method.features(image)[TASK_STAGE])[0].cpu().numpy()
    )
    return weights


@torch.inference_mode()
def _prediction(method: Method, image: Tensor, config: RunConfig) -> NDArray[np.int64]:
    classes: NDArray[np.int64] = score(method, image, config).values.argmax(dim=1)[0].cpu().numpy()
    return classes


def _grad_cams(
    method: Method, images: list[Tensor], labels: list[Tensor], config: RunConfig
) -> Maps:
    if config.data.task == "segmentation":
        return ()
    return tuple(
        grad_cam(method, image, label)[0].cpu().numpy()
        for image, label in zip(images, labels, strict=True)
    )
