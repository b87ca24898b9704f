"""The policy of learning rates and its REINFORCE, against plain loops and cases made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from csg_ray.methods.l2o_policy import (
    RATIOS,
    LearningRatePolicy,
    PolicyTraining,
    discounted_returns,
    reinforce_loss,
    window_ends,
)

# Batches of 32 in an epoch of VisDA-17, the incomplete last one kept.
VISDA_STEPS = 4763


def _lengths(earlier_epochs: int) -> list[int]:
    ends = window_ends(earlier_epochs * VISDA_STEPS, VISDA_STEPS, min_window=10)
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def test_the_windows_of_visda_are_the_published_ones() -> None:
    assert _lengths(0) == [10, 10, 20, 40, 80, 160, 320, 640, 1280, 2203]
    assert _lengths(1) == [238, 476, 952, 1904, 1193]
    assert [len(_lengths(epoch)) for epoch in range(8)] == [9 + 1, 5, 4, 3, 3, 3, 3, 2]
    assert len(_lengths(29)) == 1
    # The first window of all needs no decision.
    assert sum(len(_lengths(epoch)) for epoch in range(30)) - 1 == 66


@pytest.mark.parametrize(
    ("earlier", "steps", "shortest", "ends"),
    [
        (0, 1, 10, [1]),
        (0, 9, 10, [9]),
        (0, 10, 10, [10]),
        (0, 11, 10, [10, 11]),
        (0, 8, 1, [1, 2, 4, 8]),
        (59, 8, 2, [2, 6, 8]),  # 59 / 20 is 2: windows of 2, then of 2 + 2
        (60, 8, 2, [3, 8]),
    ],
)
def test_windows_by_hand(earlier: int, steps: int, shortest: int, ends: list[int]) -> None:
    assert window_ends(earlier, steps, shortest) == ends


def test_the_policy_has_the_published_parameters_without_the_unused_critic() -> None:
    policy = LearningRatePolicy(num_scalars=5, num_groups=7)
    count = sum(param.numel() for param in policy.parameters())
    assert count == 5 * (4 * 20 * (1 + 20) + 2 * 4 * 20) + 7 * (101 * 11 + 11) == 17_054
    assert count + 7 * 101 + 1 == 17_762
    assert RATIOS == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def test_the_policy_starts_orthogonal_and_undecided() -> None:
    policy = LearningRatePolicy(num_scalars=2, num_groups=3)
    for name, param in policy.named_parameters():
        if "bias" in name:
            assert param.count_nonzero() == 0
            continue
        small = param if len(param) <= param.shape[1] else param.T
        gain = 0.01 if name.startswith("classifiers") else 1.0
        torch.testing.assert_close(small @ small.T, gain**2 * torch.eye(len(small)))
    log_probs, _ = policy(torch.tensor([3.0, -2.0]), torch.ones(3), policy.start_memory())
    torch.testing.assert_close(log_probs.exp(), torch.full((3, 11), 1 / 11), atol=0.01, rtol=0)


def _plain_cell(
    weights: dict[str, Tensor], scalar: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """One LSTM step, gate by gate (Hochreiter and Schmidhuber, 1997, with a forget gate)."""
    gates = (
        weights["weight_ih"][:, 0] * scalar
        + weights["bias_ih"]
        + weights["weight_hh"] @ hidden
        + weights["bias_hh"]
    )
    enter, forget, new, leave = gates.view(4, -1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(leave) * torch.tanh(cell), cell


def _plain_policy(
    weights: dict[str, Tensor], scalars: Tensor, ratios: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    states = []
    for number, scalar in enumerate(scalars):
        prefix = f"cells.{number}."
        own = {name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)}
        states.append(torch.stack(_plain_cell(own, scalar, memory[number, 0], memory[number, 1])))
    rows = []
    for number, ratio in enumerate(ratios):
        seen = torch.cat([*(state[0] for state in states), ratio.view(1)])
        logits = weights[f"classifiers.{number}.weight"] @ seen
        exponentials = torch.exp(logits + weights[f"classifiers.{number}.bias"])
        rows.append(torch.log(exponentials / exponentials.sum()))
    return torch.stack(rows), torch.stack(states)


def _moved(policy: LearningRatePolicy) -> LearningRatePolicy:
    """In float64, with probabilities that differ."""
    policy.double()
    torch.manual_seed(1)
    with torch.no_grad():
        for param in policy.parameters():
            param.add_(0.3 * torch.randn_like(param))
    return policy


def test_two_decisions_equal_the_plain_policy() -> None:
    policy = _moved(LearningRatePolicy(num_scalars=3, num_groups=2))
    weights = {name: param.detach() for name, param in policy.named_parameters()}
    memory = policy.start_memory().double()
    assert memory.count_nonzero() == 0
    plain_memory = memory
    for seed in (2, 3):
        torch.manual_seed(seed)
        scalars, ratios = torch.randn(3).double(), torch.rand(2).double()
        log_probs, memory = policy(scalars, ratios, memory)
        expected, plain_memory = _plain_policy(weights, scalars, ratios, plain_memory)
        torch.testing.assert_close(log_probs, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(memory, plain_memory, rtol=1e-10, atol=1e-12)
    # What came before counts: the memory is carried.
    forgetful, _ = policy(scalars, ratios, policy.start_memory().double())
    assert not torch.allclose(forgetful, log_probs, atol=1e-3)


def test_returns_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0, 4.0])
    assert discounted_returns(rewards, 0.5).tolist() == [1 + 1 + 1, 2 + 2, 4]
    assert discounted_returns(rewards, 0.0).tolist() == [1, 2, 4]
    assert discounted_returns(rewards, 1.0).tolist() == [7, 6, 4]
    assert rewards.tolist() == [1, 2, 4]


def test_every_decision_is_credited_with_its_own_return() -> None:
    """-(2.5 * -1 + 3 * -2) / 2; the product of the means would be 2.75 * 1.5 = 4.125."""
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    returns = discounted_returns(torch.tensor([1.0, 3.0]), 0.5)
    loss = reinforce_loss(log_probs, returns)
    assert loss.item() == 4.25
    torch.autograd.backward(loss)
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [-1.25, -1.5]


def _training(rollout: int = 3, discount: float = 0.9, rate: float = 0.05) -> PolicyTraining:
    policy = _moved(LearningRatePolicy(num_scalars=2, num_groups=2))
    return PolicyTraining(policy, rollout, discount, rate).double()


def _observation(number: int) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(100 + number)
    scalars = torch.randn(2, generator=generator, dtype=torch.float64)
    return scalars, torch.rand(2, generator=generator, dtype=torch.float64)


def _decide(training: PolicyTraining, number: int) -> list[int]:
    return training.decide(*_observation(number), Generator().manual_seed(number))


def _reward(number: int) -> Tensor:
    return torch.tensor(1.5 - 0.7 * number)


def test_two_rollouts_move_the_policy_as_a_plain_loop_does() -> None:
    """Five decisions: an update after three, and one from the two left at the episode's end."""
    training = _training()
    policy = training.policy
    weights = {name: param.detach().clone() for name, param in policy.named_parameters()}
    momentum = {name: torch.zeros_like(param) for name, param in weights.items()}
    training.reward(torch.tensor(1e6))  # of the first window, for which nothing was decided
    actions = []
    for number in range(5):
        actions.append(_decide(training, number))
        training.reward(_reward(number))
    training.end_episode()

    memory = torch.zeros(2, 2, 20, dtype=torch.float64)
    for numbers in (range(3), range(3, 5)):
        leaves = {name: param.clone().requires_grad_() for name, param in weights.items()}
        loss = torch.zeros((), dtype=torch.float64)
        for number in numbers:
            log_probs, memory = _plain_policy(leaves, *_observation(number), memory)
            joint = sum(log_probs[group][action] for group, action in enumerate(actions[number]))
            later = [0.9 ** (n - number) * float(_reward(n)) for n in numbers if n >= number]
            loss = loss - sum(later) * joint / len(numbers)
        torch.autograd.backward(loss)
        memory = memory.detach()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            momentum[name] = 0.9 * momentum[name] + leaf.grad
            weights[name] = weights[name] - 0.05 * momentum[name]
    for name, param in policy.named_parameters():
        torch.testing.assert_close(param, weights[name], rtol=1e-9, atol=1e-12, msg=name)
        assert momentum[name].count_nonzero() > 0, name


def test_learning_leaves_no_gradients_and_asks_for_none() -> None:
    training = _training(rollout=1)
    before = training.policy.classifiers[0].get_parameter("weight").clone()
    _decide(training, 0)
    training.reward(_reward(0))
    assert not training.policy.classifiers[0].get_parameter("weight").equal(before)
    for param in training.parameters():
        assert not param.requires_grad
        assert param.grad is None


def test_an_episode_starts_with_nothing_but_the_policy_and_its_momentum() -> None:
    training = _training()
    _decide(training, 0)
    training.reward(_reward(0))
    _decide(training, 1)  # its window brought no reward
    training.end_episode()
    assert training.memory.count_nonzero() == 0
    assert training.velocity.count_nonzero() > 0
    after = [param.clone() for param in training.policy.parameters()]
    training.reward(_reward(1))
    training.end_episode()
    assert all(map(torch.equal, training.policy.parameters(), after))


def test_an_episode_without_a_decision_teaches_nothing() -> None:
    training = _training()
    before = [param.clone() for param in training.policy.parameters()]
    training.reward(_reward(0))
    training.end_episode()
    assert all(map(torch.equal, training.policy.parameters(), before))


@pytest.mark.parametrize("done", [1, 2, 3, 4, 5])
def test_a_resumed_rollout_is_bitwise_the_same(done: int) -> None:
    straight = _training()
    for number in range(done):
        _decide(straight, number)
        straight.reward(_reward(number))
    resumed = _training()
    resumed.load_state_dict({name: each.clone() for name, each in straight.state_dict().items()})
    for number in range(done, 7):
        assert _decide(straight, number) == _decide(resumed, number)
        straight.reward(_reward(number))
        resumed.reward(_reward(number))
    states = straight.state_dict(), resumed.state_dict()
    assert all(states[1][name].equal(each) for name, each in states[0].items())


def test_actions_are_drawn_as_often_as_they_are_probable() -> None:
    training = _training()
    scalars, ratios = _observation(0)
    probabilities, _ = training.policy(scalars, ratios, training.memory)
    counts = torch.zeros(2, 11)
    draws = 500
    generator = Generator().manual_seed(0)
    start = training.memory.clone()
    for _ in range(draws):
        for group, action in enumerate(training.decide(scalars, ratios, generator)):
            counts[group, action] += 1
        training.memory.copy_(start)
    deviation = math.sqrt(0.25 / draws)
    torch.testing.assert_close(
        counts.double() / draws, probabilities.exp(), rtol=0, atol=4 * deviation
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_policy_learns_which_action_pays(seed: int) -> None:
    torch.manual_seed(seed)
    policy = LearningRatePolicy(num_scalars=1, num_groups=1)
    training = PolicyTraining(policy, rollout=5, discount=0.0, learning_rate=0.3)
    generator = Generator().manual_seed(seed)
    observation = torch.ones(1), torch.ones(1)
    for _ in range(300):
        (action,) = training.decide(*observation, generator)
        training.reward(torch.tensor(float(action == 3)))
    log_probs, _ = policy(*observation, training.memory)
    assert log_probs.exp()[0, 3] > 0.9  # 1/11 at first
