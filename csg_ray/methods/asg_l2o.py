"""Automated Synthetic-to-Real Generalization with learned learning rates ("learning to optimize").

Source: Chen et al., ICML 2020, which trains the policy with REINFORCE.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from csg_ray.config.methods import ASGL2OConfig
from csg_ray.config.run import RunConfig
from csg_ray.data.loader import Batch
from csg_ray.data.splits import DomainSplits, Split
from csg_ray.distributed import rank, shares, sum_over_ranks
from csg_ray.methods.asg import ASG
from csg_ray.methods.base import ENCODER_GROUPS, EpochContext, StepOutput
from csg_ray.methods.l2o_policy import RATIOS, LearningRatePolicy, PolicyTraining, window_ends
from csg_ray.seeding import seeded, sub_seed

GROUPS = (*ENCODER_GROUPS, "head")
# CE, KL, progress, mean and deviation of the head's last weight.
NUM_SCALARS = 5


class ASGL2O(ASG):
    """ASG whose parameter groups each have their learning rate multiplied by what a policy draws.

    After every window of steps the policy sees its mean CE and KL, the progress of the training,
    mean and deviation of the head's last weight and the present ratios, and draws a ratio out of
    0.0, 0.1, ..., 1.0 for each group. The first window runs at 1.0. The windows double within an
    epoch and end with it (`window_ends`).

    The first `episodes` epochs of the run train the policy, each from the initial weights and one
    epoch long, as published. Then the training starts anew with a policy that stays as it is; its
    actions are still drawn, as published. Every epoch is evaluated and reported, those of episodes
    too, and the progress is that of the training proper, of which an episode is the beginning.

    The reward of the paper was never published. Here it is -(CE + lambda * KL), the mean over the
    window that the decision was for, or exp of that. The policy's memory is carried from window to
    window, and every decision is credited with its own return; in the authors' release, by mistake,
    neither is so.

    At the published rate of the policy one episode leaves every ratio about as probable as it was:
    the defaults draw nearly at random (`benchmarks/policy_learning.py`).

    The ratios multiply the scheduled rate, whose warm-up and decay run over all epochs, episodes
    too. Published are train.backbone_lr_mult 1, warmup_steps 0 and decay_power 0: one constant
    rate. A ratio of 0 stops a group at once; with train.sgd_form lr_in_buffer, the authors', it
    coasts on for about ten steps.
    """

    reads_every_step: ClassVar[bool] = True  # a window counts the steps that were taken
    takes_turns: ClassVar[bool] = False
    worst_logs: ClassVar[dict[str, float]] = {
        **ASG.worst_logs,
        **{f"lr_ratio/{name}": 0.0 for name in GROUPS},
    }
    ratios: Tensor
    window: Tensor

    def __init__(self, config: RunConfig, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__(config, num_classes, steps_per_epoch)
        assert isinstance(config.method, ASGL2OConfig)
        method = config.method
        self.settings = method
        with seeded(config.seed, "policy"):
            policy = LearningRatePolicy(NUM_SCALARS, len(GROUPS))
        self.policy_training = PolicyTraining(
            policy, method.rollout, method.discount, method.policy_learning_rate
        )
        self.register_buffer("ratios", torch.ones(len(GROUPS)))
        # Sums of CE and KL over this rank's images, and the number of steps in them.
        self.register_buffer("window", torch.zeros(3, dtype=torch.float64))
        self._pending = torch.zeros(3)

    def training_loss(self, batch: Batch) -> StepOutput:
        """The loss of ASG; its two parts wait for `after_step`."""
        output = super().training_loss(batch)
        kl = output.logs["kl"]
        task = output.loss.detach() - self.loss_weight * kl
        self._pending = torch.stack([task, kl, torch.ones_like(kl)])
        ratios = zip(GROUPS, self.ratios.clone(), strict=True)
        logs = {**output.logs, **{f"lr_ratio/{name}": ratio for name, ratio in ratios}}
        return StepOutput(output.loss, logs)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, step: int, total_steps: int) -> None:
        """Add the step to its window, and end the window if it is the last one.

        A window whose last step was skipped goes on to the end of the next.
        """
        self.window += self._pending
        earlier_epochs, done = divmod(step, self.steps_per_epoch)
        # An epoch's last step, where `done` is 0, is left to `on_epoch_end`: it may be skipped.
        if done in window_ends(
            self._earlier_steps(earlier_epochs), self.steps_per_epoch, self.settings.min_window
        ):
            self._end_window(optimizer, step)

    @torch.no_grad()
    def on_epoch_end(self, context: EpochContext) -> None:
        """End the epoch's last window; after an episode also forget momentum and ratios."""
        self._end_window(context.optimizer, context.epoch * self.steps_per_epoch)
        if context.epoch <= self.settings.episodes:
            self.policy_training.end_episode()
            self._set_ratios(context.optimizer, [1.0] * len(GROUPS))
            context.optimizer.state.clear()

    def training_data(self, splits: DomainSplits, epoch: int) -> Split:
        """The source; after an episode the encoder and the head are first put back to the start."""
        if 1 < epoch <= self.settings.episodes + 1:
            self.encoder.load_state_dict(self.reference_encoder.state_dict())
            self.head.load_state_dict(self.new_head().state_dict())
        return super().training_data(splits, epoch)

    def _end_window(self, optimizer: Optimizer, step: int) -> None:
        """Reward the decision that the window was for, and make the next one."""
        if self.window[2] == 0:
            return  # every step was skipped
        batch_size = self.config.train.batch_size
        sums = sum_over_ranks(self.window * (shares(batch_size)[rank()] / batch_size))
        self.window.zero_()
        task, kl = sums[:2] / sums[2]
        epochs, done = divmod(step, self.steps_per_epoch)
        if step <= self.settings.episodes * self.steps_per_epoch:
            self.policy_training.reward(self._reward(task, kl))
            if done == 0:
                return
        if step == self.config.train.epochs * self.steps_per_epoch:
            return
        scalars = self._scalars(task, kl, self._earlier_steps(epochs) + done)
        generator = Generator().manual_seed(sub_seed(self.config.seed, f"actions/{step}"))
        actions = self.policy_training.decide(scalars, self.ratios, generator)
        self._set_ratios(optimizer, [RATIOS[action] for action in actions])

    def _earlier_steps(self, epochs: int) -> int:
        """The steps in the first `epochs` epochs that are not those of other episodes."""
        return max(0, epochs - self.settings.episodes) * self.steps_per_epoch

    def _reward(self, task: Tensor, kl: Tensor) -> Tensor:
        negative = -(task + self.loss_weight * kl)
        return negative if self.settings.reward == "negative_loss" else negative.exp()

    def _scalars(self, task: Tensor, kl: Tensor, steps: int) -> Tensor:
        """What the policy sees besides the ratios, (5,); `steps` of this episode, or training."""
        whole = (self.config.train.epochs - self.settings.episodes) * self.steps_per_epoch
        linear = [module for module in self.head.modules() if isinstance(module, nn.Linear)]
        weight = linear[-1].weight
        progress = torch.full_like(task, steps / whole)
        scalars = [task, kl, progress, weight.mean(), weight.std()]
        return torch.stack([scalar.to(self.ratios) for scalar in scalars])

    def _set_ratios(self, optimizer: Optimizer, ratios: list[float]) -> None:
        self.ratios.copy_(torch.tensor(ratios))
        by_name = dict(zip(GROUPS, ratios, strict=True))
        for group in optimizer.param_groups:
            group["lr_factor"] = by_name[group["name"]]
