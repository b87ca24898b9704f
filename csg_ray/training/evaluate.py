"""Accuracy or IoU, and the hyperspherical energy, of one split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csg_ray.config.data import Task
from csg_ray.config.run import RunConfig
from csg_ray.data.epoch import class_eval_batches, eval_batches, steps_per_epoch
from csg_ray.data.splits import ClassSplit, DomainSplits, Split
from csg_ray.distributed import gather_features, sum_over_ranks
from csg_ray.methods import build_method
from csg_ray.methods.base import TASK_STAGE, Method
from csg_ray.metrics import (
    HSE_WORST,
    ConfusionMatrix,
    HypersphericalEnergies,
    hyperspherical_energies,
)
from csg_ray.models.precision import float32_products
from csg_ray.training.scores import score


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one split.

    Attributes:
        confusion: counts of labels and predictions, of images or of pixels.
        features: pooled at stage 4, (M, C), of the images that the energy is taken over.
        energies: of `features`.
        finite: whether every logit was; a diverged encoder still gets an accuracy by argmax.
        class_names: one name per class number.
        task: of the metrics.
    """

    confusion: ConfusionMatrix
    features: Tensor
    energies: HypersphericalEnergies
    finite: bool
    class_names: tuple[str, ...]
    task: Task

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics by name, without the split's prefix.

        A class without a label in the split has no accuracy and no IoU, and so no key.
        """
        metrics = {
            "mean_class_accuracy": self.confusion.mean_class_accuracy,
            "accuracy": self.confusion.accuracy,
            "hse": self.energies.power0,
            "hse_distance": self.energies.power0_distance,
            "hse_power1": self.energies.power1,
            "hse_power2": self.energies.power2,
            "hse_duplicates": float(self.energies.duplicates),
            "hse_zero_rows": float(self.energies.zero_rows),
        }
        if self.task == "segmentation":
            metrics["mean_iou"] = self.confusion.mean_iou
        unlabelled = set(self.confusion.unlabelled_classes)
        per_class, prefix = self._per_class
        return metrics | {
            f"{prefix}/{name}": value
            for number, (name, value) in enumerate(zip(self.class_names, per_class, strict=True))
            if number not in unlabelled
        }

    @property
    def _per_class(self) -> tuple[list[float], str]:
        if self.task == "segmentation":
            return self.confusion.class_ious.tolist(), PER_CLASS[self.task]
        return self.confusion.class_accuracies.tolist(), PER_CLASS[self.task]


PER_CLASS: dict[Task, str] = {
    "classification": "class_accuracy",
    "segmentation": "class_iou",
}


def worst_metrics(split: Split, task: Task) -> dict[str, float]:
    """The worst finite value of every metric of a split, reported after a divergence."""
    pairs = len(split) * (len(split) - 1) // 2
    scores = ["mean_class_accuracy", "accuracy"]
    if task == "segmentation":
        scores.append("mean_iou")
    return {
        **dict.fromkeys(scores, 0.0),
        **HSE_WORST,
        "hse_duplicates": float(pairs),
        "hse_zero_rows": float(len(split)),
        **{
            f"{PER_CLASS[task]}/{split.class_names[number]}": 0.0
            for number in split.labelled_classes()
        },
    }


def load_trained(
    config: RunConfig, splits: DomainSplits, state: dict[str, Any], device: torch.device
) -> list[Method]:
    """The trained method of every repeat in a checkpoint, each built from its own seed.

    Args:
        config: of the training; its seed does not matter.
        splits: what was trained on.
        state: what `load_checkpoint` returned.
        device: where the methods go.

    Raises:
        UserError: the weights that the methods start from cannot be had, or are others by now.
    """
    steps = steps_per_epoch(len(splits.source_train), config.train)
    methods = []
    for repeat in state["repeats"]:
        own_config = config.model_copy(update={"seed": repeat["seed"]})
        method = build_method(own_config, len(splits.class_names), steps)
        method.load_state_dict(repeat["method"])
        methods.append(method.to(device))
    return methods


def evaluate_split(
    method: Method, split: Split, config: RunConfig, device: torch.device
) -> dict[str, float]:
    """The metrics of a split by name, without the split's prefix."""
    return measure_split(method, split, config, device).metrics


@torch.inference_mode()
def measure_split(
    method: Method, split: Split, config: RunConfig, device: torch.device
) -> Evaluation:
    """Run the method over a split; it is in training mode afterwards if it was before.

    Several ranks deal out the batches, and each returns what one process would.
    """
    with float32_products(config.compute.precision):
        return _measure_split(method, split, config, device)


def _measure_split(
    method: Method, split: Split, config: RunConfig, device: torch.device
) -> Evaluation:
    was_training = method.training
    method.eval()
    confusion = ConfusionMatrix(len(split.class_names))
    sampled = _energy_sample(len(split), config.evaluation.hse_max_images).to(device)
    features: list[Tensor] = []
    non_finite = torch.zeros((), dtype=torch.int64, device=device)
    for batch in eval_batches(split, config, device).share_of_all():
        batch = batch.to(device)
        scores = score(method, batch.views[0], config)
        non_finite += ~scores.finite
        confusion.update(scores.values.argmax(dim=1), batch.labels)
        features.append(scores.embeddings[sampled[batch.indices]])
    method.train(was_training)
    counts = torch.cat([confusion.counts.flatten(), non_finite.cpu().view(1)]).to(device)
    *cells, bad_scores = sum_over_ranks(counts).tolist()
    confusion.counts = torch.tensor(cells).view_as(confusion.counts)
    gathered = gather_features(features, device)
    return Evaluation(
        confusion=confusion,
        features=gathered,
        energies=hyperspherical_energies(gathered),
        finite=bad_scores == 0,
        class_names=split.class_names,
        task=config.data.task,
    )


@torch.inference_mode()
def reference_accuracy(
    method: Method, images: ClassSplit, config: RunConfig, device: torch.device
) -> float:
    """The share of photographs whose pre-training class the trained encoder still gets right.

    The frozen classifier of the pre-training task reads the encoder that was trained since: the
    column "ImageNet" of ASG's ablation (Chen et al., ICML 2020). Several ranks deal out the
    batches, and each returns what one process would.
    """
    was_training = method.training
    method.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for batch in class_eval_batches(images, config, device).share_of_all():
        batch = batch.to(device)
        stage4 = method.features(batch.views[0])[TASK_STAGE]
        predicted = method.encoder.pretraining_logits(stage4).argmax(dim=1)
        correct += (predicted == batch.labels).sum()
    method.train(was_training)
    return float(sum_over_ranks(correct)) / len(images)


def _energy_sample(count: int, at_most: int) -> Tensor:
    """Which images give the energy: all, or the same random ones every time; (count,) bool."""
    generator = torch.Generator().manual_seed(0)
    sampled = torch.zeros(count, dtype=torch.bool)
    sampled[torch.randperm(count, generator=generator)[:at_most]] = True
    return sampled
