"""Weights held near the pre-trained ones, each by how much it has done for the task."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from csg_ray.config.methods import SynapticIntelligenceConfig
from csg_ray.config.run import RunConfig
from csg_ray.data.loader import Batch
from csg_ray.methods.base import LOSS_WORST, EpochContext, ReferenceMethod, StepOutput


class SynapticIntelligence(ReferenceMethod):
    """Cross-entropy + c * sum of Omega * (theta - theta_0)^2 (Zenke et al., ICML 2017, Eq. 4).

    The row "Synaptic Intelligence" of the paper's Table 1. There the importances Omega would be
    those for the pre-training task, whose path of weights nobody has, and how they were obtained
    was not published. Here they are those for the source task, renewed after every epoch:
    Omega = max(0, omega / ((theta - theta_0)^2 + xi)) (Eq. 5), where the path integral omega adds
    up what each weight has lowered the loss by since theta_0, the pre-trained weights. So the first
    epoch is free.
    """

    takes_turns: ClassVar[bool] = True
    worst_logs: ClassVar[dict[str, float]] = {"penalty": LOSS_WORST}

    def __init__(self, config: RunConfig, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__(config, num_classes, steps_per_epoch)
        assert isinstance(config.method, SynapticIntelligenceConfig)
        self.loss_weight = config.method.loss_weight
        self.damping = config.method.damping
        for number, (own, _) in enumerate(self.trained_with_start()):
            self.register_buffer(f"path_integral_{number}", torch.zeros_like(own))
            self.register_buffer(f"importance_{number}", torch.zeros_like(own))
        self._before: list[tuple[Tensor, Tensor]] = []

    @property
    def path_integrals(self) -> list[Tensor]:
        """Omega's numerators, one tensor for each trained tensor of the encoder."""
        return [self.get_buffer(f"path_integral_{n}") for n in range(self._count)]

    @property
    def importances(self) -> list[Tensor]:
        """Omega, one tensor for each trained tensor of the encoder."""
        return [self.get_buffer(f"importance_{n}") for n in range(self._count)]

    @property
    def _count(self) -> int:
        return len(self.trained_with_start())

    def training_loss(self, batch: Batch) -> StepOutput:
        """Cross-entropy of the one view, and the value of the penalty.

        `after_backward` adds the penalty's gradient, since the path integral wants the other alone.
        """
        task = self.task_loss(self.features(batch.views[0]), batch.labels)
        with torch.no_grad():
            penalty = (
                self.loss_weight
                * torch.stack(
                    [
                        (importance * (own - start).square()).sum()
                        for importance, (own, start) in zip(
                            self.importances, self.trained_with_start(), strict=True
                        )
                    ]
                ).sum()
            )
        return StepOutput(task + penalty, {"penalty": penalty})

    @torch.no_grad()
    def after_backward(self) -> None:
        """Note the gradient of the cross-entropy and where the weights are; add the penalty's."""
        self._before = []
        pairs = zip(self.importances, self.trained_with_start(), strict=True)
        for importance, (own, start) in pairs:
            assert own.grad is not None
            self._before.append((own.grad.clone(), own.detach().clone()))
            own.grad.add_(importance * (own - start), alpha=2 * self.loss_weight)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, step: int, total_steps: int) -> None:
        """Add what each weight's move has lowered the cross-entropy by."""
        pairs = zip(self.path_integrals, self.trained_with_start(), self._before, strict=True)
        for integral, (own, _), (gradient, before) in pairs:
            move = own - before
            # After a skipped step nothing has moved, and the gradient may be infinite.
            integral.sub_(torch.where(move == 0, 0.0, gradient * move))
        self._before = []

    @torch.no_grad()
    def on_epoch_end(self, context: EpochContext) -> None:
        """Renew the importances from the path since the pre-trained weights."""
        triples = zip(self.path_integrals, self.importances, self.trained_with_start(), strict=True)
        for integral, importance, (own, start) in triples:
            importance.copy_(integral / ((own - start).square() + self.damping)).clamp_(min=0)
