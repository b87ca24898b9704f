"""A policy that sets the learning rates of parameter groups, and REINFORCE, which trains it.

Source: Automated Synthetic-to-Real Generalization (Chen et al., ICML 2020), "learning to optimize".
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from csg_ray.distributed import on_rank_zero

# What a learning rate may be multiplied by.
RATIOS = tuple(number / 10 for number in range(11))
HIDDEN = 20
MOMENTUM = 0.9
# A window is at least this part of all earlier epochs.
EARLIER_SHARE = 20


def window_ends(earlier_steps: int, epoch_steps: int, min_window: int) -> list[int]:
    """The steps of an epoch (from 1) after which a window ends; the last one is the epoch's own.

    A window is as long as what the epoch has behind it plus a twentieth of all earlier epochs, so
    that windows double within an epoch and grow with the training.

    Args:
        earlier_steps: of all epochs before this one.
        epoch_steps: of this epoch.
        min_window: steps of the shortest window.
    """
    ends, done = [], 0
    while done < epoch_steps:
        length = max(min_window, done + earlier_steps // EARLIER_SHARE)
        done = min(done + length, epoch_steps)
        ends.append(done)
    return ends


class LearningRatePolicy(nn.Module):
    """How a training goes -> probabilities of the eleven ratios, for each parameter group.

    An LSTM of its own reads each scalar of the observation. All that they say, and the group's
    present ratio, go into the group's own linear classifier.

    Args:
        num_scalars: S, LSTMs.
        num_groups: G, parameter groups whose learning rate is chosen.
    """

    def __init__(self, num_scalars: int, num_groups: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTMCell(1, HIDDEN) for _ in range(num_scalars))
        width = HIDDEN * num_scalars + 1
        self.classifiers = nn.ModuleList(nn.Linear(width, len(RATIOS)) for _ in range(num_groups))
        for name, param in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(param)
            else:
                # Small in the classifiers: at first every ratio is about as probable.
                nn.init.orthogonal_(param, gain=0.01 if name.startswith("classifiers") else 1.0)

    def start_memory(self) -> Tensor:
        """What the LSTMs remember before the first decision: nothing, (S, 2, hidden)."""
        return torch.zeros(len(self.cells), 2, HIDDEN)

    def forward(self, scalars: Tensor, ratios: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of one decision.

        Args:
            scalars: (S,).
            ratios: of the groups now, (G,).
            memory: hidden and cell state of every LSTM, (S, 2, hidden).

        Returns:
            Log-probabilities (G, 11), and the memory after them.
        """
        states = [
            torch.stack(cell(scalar.view(1), (hidden, state)))
            for cell, scalar, (hidden, state) in zip(self.cells, scalars, memory, strict=True)
        ]
        new_memory = torch.stack(states)
        heard = new_memory[:, 0].flatten()
        logits = [
            classifier(torch.cat([heard, ratio.view(1)]))
            for classifier, ratio in zip(self.classifiers, ratios, strict=True)
        ]
        return functional.log_softmax(torch.stack(logits), dim=1), new_memory


def discounted_returns(rewards: Tensor, discount: float) -> Tensor:
    """What each decision (T,) brought from then on: G_t = r_t + discount * G_(t+1)."""
    returns = rewards.clone()
    for number in reversed(range(len(rewards) - 1)):
        returns[number] += discount * returns[number + 1]
    return returns


def reinforce_loss(log_probs: Tensor, returns: Tensor) -> Tensor:
    """-mean of return * log-probability (Williams, 1992), each decision with its own return.

    No baseline, no entropy term, as published. The authors' released update multiplies the two
    means instead, by a mistake in broadcasting, which gives every decision the same credit.

    Args:
        log_probs: of the decisions taken, (T,).
        returns: (T,), of the same shape.
    """
    assert log_probs.shape == returns.shape
    return -(returns * log_probs).mean()


class PolicyTraining(nn.Module):
    """A policy, its memory, and the decisions that it has yet to learn from.

    It learns by SGD after every `rollout` decisions, and at an episode's end from those that are
    left. All of it is in the state dict. The parameters never ask for a gradient, so that whoever
    trains a module that holds this one passes them by.

    Args:
        policy: of S scalars and G groups.
        rollout: T, decisions before the policy learns from them.
        discount: of the rewards of later decisions.
        learning_rate: of SGD with momentum 0.9.
    """

    memory: Tensor
    velocity: Tensor
    has_decided: Tensor
    num_rewarded: Tensor
    first_memory: Tensor
    scalars: Tensor
    ratios: Tensor
    actions: Tensor
    rewards: Tensor

    def __init__(
        self, policy: LearningRatePolicy, rollout: int, discount: float, learning_rate: float
    ) -> None:
        super().__init__()
        self.policy = policy.requires_grad_(False)
        self.rollout = rollout
        self.discount = discount
        self.learning_rate = learning_rate
        count = sum(param.numel() for param in policy.parameters())
        scalars, groups = len(policy.cells), len(policy.classifiers)
        self.register_buffer("memory", policy.start_memory())
        self.register_buffer("velocity", torch.zeros(count))
        self.register_buffer("has_decided", torch.tensor(False))
        self.register_buffer("num_rewarded", torch.tensor(0))
        self.register_buffer("first_memory", policy.start_memory())
        self.register_buffer("scalars", torch.zeros(rollout, scalars))
        self.register_buffer("ratios", torch.zeros(rollout, groups))
        self.register_buffer("actions", torch.zeros(rollout, groups, dtype=torch.int64))
        self.register_buffer("rewards", torch.zeros(rollout))

    @torch.no_grad()
    def decide(self, scalars: Tensor, ratios: Tensor, generator: Generator) -> list[int]:
        """Draw an action for every group, a position in RATIOS; all ranks draw the same.

        Args:
            scalars: (S,).
            ratios: of the groups now, (G,).
            generator: on the CPU.
        """
        number = int(self.num_rewarded)
        if number == 0:
            self.first_memory.copy_(self.memory)
        log_probs, memory = self.policy(scalars, ratios, self.memory)
        probabilities = log_probs.exp().cpu()
        # Two ranks on unlike hardware may differ in the last bit, and that can be another action.
        actions: list[int] = on_rank_zero(
            lambda: torch.multinomial(probabilities, 1, generator=generator).flatten().tolist()
        )
        self.memory.copy_(memory)
        self.scalars[number] = scalars
        self.ratios[number] = ratios
        self.actions[number] = torch.tensor(actions)
        self.has_decided.fill_(True)
        return actions

    def reward(self, value: Tensor) -> None:
        """Say what the last decision brought; before the first one of an episode it is not used."""
        if not self.has_decided:
            return
        self.rewards[int(self.num_rewarded)] = value
        self.num_rewarded += 1
        if self.num_rewarded == self.rollout:
            self._learn()

    def end_episode(self) -> None:
        """Learn from the decisions that are left, and forget everything but what was learned."""
        if self.num_rewarded > 0:
            self._learn()
        self.memory.zero_()
        self.has_decided.fill_(False)

    @torch.no_grad()
    def _learn(self) -> None:
        """One step of SGD on the decisions that have a reward."""
        params = dict(self.policy.named_parameters())
        leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
        with torch.enable_grad():
            log_probs = self._log_probs(leaves)
            returns = discounted_returns(self.rewards[: len(log_probs)], self.discount)
            loss = reinforce_loss(log_probs, returns)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.velocity.mul_(MOMENTUM).add_(flat)
        moves = torch.split(self.velocity, [param.numel() for param in params.values()])
        for param, move in zip(params.values(), moves, strict=True):
            param.sub_(move.view_as(param), alpha=self.learning_rate)
        self.num_rewarded.zero_()

    def _log_probs(self, params: dict[str, Tensor]) -> Tensor:
        """Of the decisions taken, (T,): each the sum over the groups, through the LSTMs' memory."""
        memory = self.first_memory
        taken = []
        for number in range(int(self.num_rewarded)):
            now = (self.scalars[number], self.ratios[number], memory)
            log_probs, memory = functional_call(self.policy, params, now)
            taken.append(log_probs.gather(1, self.actions[number].unsqueeze(1)).sum())
        return torch.stack(taken)
