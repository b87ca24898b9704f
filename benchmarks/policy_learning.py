"""How far the policy of asg_l2o gets from drawing at random, by episodes that it has learned from.

    python benchmarks/policy_learning.py

An episode is the first epoch of VisDA-17 (4,763 steps), its losses made up: CE falls from 2.5
towards 0.1, KL rises from 0 towards 0.5. The policy has the defaults of asg_l2o. Printed are the
least and the greatest probability of a ratio over all parameter groups, at an episode's last
decision; 1/11 is 0.0909. No network is involved, so that the choices change no loss: what is shown
is how far the policy's learning rate can carry it, not whether it would learn the right thing.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Generator, Tensor

from csg_ray.config.methods import ASGL2OConfig
from csg_ray.methods.asg_l2o import GROUPS, NUM_SCALARS
from csg_ray.methods.l2o_policy import RATIOS, LearningRatePolicy, PolicyTraining, window_ends
from csg_ray.seeding import seeded

EPOCH_STEPS = 4763
TOTAL_STEPS = 30 * EPOCH_STEPS


def losses_at(step: int) -> tuple[float, float]:
    """CE and KL of a made-up training."""
    fallen = math.exp(-step / 1000)
    return 0.1 + 2.4 * fallen, 0.5 * (1 - fallen)


def play_episode(training: PolicyTraining, weight: float, generator: Generator) -> Tensor:
    """One epoch of decisions and rewards; the probabilities (G, 11) of the last one."""
    ratios = torch.ones(len(GROUPS))
    probabilities = torch.full((len(GROUPS), len(RATIOS)), 1 / len(RATIOS))
    for end in window_ends(0, EPOCH_STEPS, ASGL2OConfig().min_window):
        task, kl = losses_at(end)
        training.reward(torch.tensor(-(task + weight * kl)))
        if end == EPOCH_STEPS:
            break
        scalars = torch.tensor([task, kl, end / TOTAL_STEPS, 0.0, 0.03])
        with torch.no_grad():
            probabilities = training.policy(scalars, ratios, training.memory)[0].exp()
        actions = training.decide(scalars, ratios, generator)
        ratios = torch.tensor([RATIOS[action] for action in actions])
    training.end_episode()
    return probabilities


def main() -> None:
    """Print the range of probabilities after 1, 10, 100, ... episodes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = ASGL2OConfig()
    with seeded(arguments.seed, "policy"):
        policy = LearningRatePolicy(NUM_SCALARS, len(GROUPS))
    training = PolicyTraining(policy, config.rollout, config.discount, config.policy_learning_rate)
    generator = Generator().manual_seed(arguments.seed)
    for played in range(arguments.episodes + 1):
        probabilities = play_episode(training, config.loss_weight, generator)
        if played in (0, 1, 10, 100, arguments.episodes):
            low, high = probabilities.min().item(), probabilities.max().item()
            print(f"learned from {played:4d} episodes: {low:.4f} to {high:.4f}")


if __name__ == "__main__":
    main()
