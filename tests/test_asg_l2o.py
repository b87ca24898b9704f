"""Learned learning rates in a training: windows, episodes, what the policy sees and sets."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from csg_ray.config.data import DigitsConfig
from csg_ray.config.methods import ASGL2OConfig
from csg_ray.config.run import ModelConfig, RunConfig, TrainConfig
from csg_ray.data.load import load_splits
from csg_ray.data.loader import Batch
from csg_ray.data.splits import ArraySplit, DomainSplits
from csg_ray.methods import build_method
from csg_ray.methods.asg import ASG
from csg_ray.methods.asg_l2o import ASGL2O, GROUPS
from csg_ray.methods.base import EpochContext, StepOutput
from csg_ray.methods.l2o_policy import RATIOS, PolicyTraining
from csg_ray.training.loop import Training
from csg_ray.training.optim import build_optimizer, schedule_learning_rate
from method_settings import method_config

DATA = DigitsConfig(num_train=96, num_val=20)
BATCH = Batch((torch.zeros(0),), torch.zeros(0), torch.zeros(0))  # of a loss that is made up


@pytest.fixture(scope="module")
def splits() -> DomainSplits:
    """The digits with 40 target images."""
    loaded = load_splits(DATA)
    target = loaded.target_val
    assert isinstance(target, ArraySplit)
    few = ArraySplit(target.name, target.images[:40], target.labels[:40], target.class_names)
    return replace(loaded, target_val=few)


def _config(name: str = "asg_l2o", epochs: int = 3, train: Any = None, **method: Any) -> RunConfig:
    """One rate, no warm-up and no decay, as published; three steps an epoch of the digits."""
    settings: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": 32,
        "learning_rate": 0.02,
        "backbone_lr_mult": 1.0,
        "warmup_steps": 0,
        "decay_power": 0.0,
    }
    return RunConfig(
        data=DATA,
        method=method_config(name, **method),
        train=TrainConfig(**{**settings, **(train or {})}),
    )


def _build(steps: int, **settings: Any) -> tuple[ASGL2O, Optimizer]:
    config = _config(**settings)
    method = build_method(config, 10, steps)
    assert isinstance(method, ASGL2O)
    return method, build_optimizer(method, config.train)


@dataclass
class Seen:
    """What happened at which step."""

    step: int = 0
    scalars: dict[int, list[float]] = field(default_factory=dict)
    ratios: dict[int, list[float]] = field(default_factory=dict)
    actions: dict[int, list[int]] = field(default_factory=dict)
    rewards: dict[int, float] = field(default_factory=dict)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Decisions and rewards by step, in trainings whose loss is made up."""
    seen = Seen()
    decide, reward = PolicyTraining.decide, PolicyTraining.reward

    def noted_decide(
        self: PolicyTraining, scalars: Tensor, ratios: Tensor, generator: Generator
    ) -> list[int]:
        seen.scalars[seen.step] = scalars.tolist()
        seen.ratios[seen.step] = ratios.tolist()
        seen.actions[seen.step] = decide(self, scalars, ratios, generator)
        return seen.actions[seen.step]

    def noted_reward(self: PolicyTraining, value: Tensor) -> None:
        if self.has_decided:
            seen.rewards[seen.step] = value.item()
        reward(self, value)

    def made_up(self: ASG, batch: Batch) -> StepOutput:
        kl = torch.tensor(_kl(seen.step))
        return StepOutput(_task(seen.step) + self.loss_weight * kl, {"kl": kl})

    monkeypatch.setattr(PolicyTraining, "decide", noted_decide)
    monkeypatch.setattr(PolicyTraining, "reward", noted_reward)
    monkeypatch.setattr(ASG, "training_loss", made_up)
    return seen


def _task(step: int) -> float:
    return 2 + math.sin(step)


def _kl(step: int) -> float:
    return 5 + math.cos(step)


def _mean(of: Callable[[int], float], steps: Collection[int]) -> float:
    return sum(map(of, steps)) / len(steps)


def _go(
    seen: Seen,
    method: ASGL2O,
    optimizer: Optimizer,
    splits: DomainSplits,
    skipped: Collection[int] = (),
) -> None:
    """The calls of the loop over all epochs."""
    steps = method.steps_per_epoch
    total = steps * method.config.train.epochs
    for step in range(1, total + 1):
        seen.step = step
        method.training_loss(BATCH)
        if step not in skipped:
            method.after_step(optimizer, step, total)
        if step % steps == 0:
            method.on_epoch_end(EpochContext(step // steps, splits, optimizer))
            method.training_data(splits, step // steps + 1)


def test_decisions_come_at_the_ends_of_windows(seen: Seen, splits: DomainSplits) -> None:
    """One epoch of an episode, two of training; nothing is decided where either ends."""
    method, optimizer = _build(47)
    _go(seen, method, optimizer, splits)
    first = [1, 2, 4, 8, 16, 32]
    third = [2, 6, 14, 30]  # 47 / 20 is 2
    training = [*(47 + step for step in (*first, 47)), *(94 + step for step in third)]
    assert list(seen.actions) == [*first, *training]
    assert list(seen.rewards) == [*first[1:], 47]


@pytest.mark.parametrize("kind", ["negative_loss", "exp_negative_loss"])
def test_what_the_policy_sees_and_is_paid(seen: Seen, splits: DomainSplits, kind: str) -> None:
    """Windows of two steps, six steps an epoch, so that twelve are the training proper."""
    method, optimizer = _build(6, min_window=2, loss_weight=0.3, reward=kind)
    weight = method.head.get_parameter("2.weight").flatten().tolist()
    mean = sum(weight) / len(weight)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in weight) / (len(weight) - 1))
    _go(seen, method, optimizer, splits)
    progress = {2: 2, 4: 4, 8: 2, 10: 4, 12: 6, 14: 8, 16: 10}
    assert list(seen.scalars) == list(progress)
    for step, done in progress.items():
        window = (step - 1, step)
        expected = [_mean(_task, window), _mean(_kl, window), done / 12, mean, deviation]
        assert seen.scalars[step] == pytest.approx(expected, abs=1e-6)
    assert list(seen.rewards) == [4, 6]
    for step, reward in seen.rewards.items():
        loss = _mean(_task, (step - 1, step)) + 0.3 * _mean(_kl, (step - 1, step))
        assert reward == pytest.approx(-loss if kind == "negative_loss" else math.exp(-loss))


def test_the_policy_sees_the_ratios_and_the_optimizer_gets_them(
    seen: Seen, splits: DomainSplits
) -> None:
    method, optimizer = _build(6, min_window=2)
    assert [group["name"] for group in optimizer.param_groups] == list(GROUPS)
    _go(seen, method, optimizer, splits)
    drawn = {step: [RATIOS[action] for action in seen.actions[step]] for step in seen.actions}
    assert seen.ratios[2] == seen.ratios[8] == [1.0] * 7
    for step, before in {4: 2, 10: 8, 12: 10, 14: 12, 16: 14}.items():
        assert seen.ratios[step] == pytest.approx(drawn[before])
    assert len({tuple(ratios) for ratios in drawn.values()}) == len(drawn)
    assert [group["lr_factor"] for group in optimizer.param_groups] == drawn[16]
    logs = method.training_loss(BATCH).logs
    assert [float(logs[f"lr_ratio/{name}"]) for name in GROUPS] == pytest.approx(drawn[16])


def test_skipped_steps_are_in_no_window(seen: Seen, splits: DomainSplits) -> None:
    """The windows end after 2, 4 and 6 steps of an epoch; the third epoch has none skipped."""
    method, optimizer = _build(6, min_window=2, loss_weight=0.0)
    optimizer.state[method.head.get_parameter("2.bias")]["momentum_buffer"] = torch.ones(10)
    _go(seen, method, optimizer, splits, skipped={2, 6, 9, 11, 12})
    windows = {4: (1, 3, 4), 8: (7, 8), 10: (10,), 14: (13, 14), 16: (15, 16)}
    assert list(seen.scalars) == list(windows)
    for step, window in windows.items():
        assert seen.scalars[step][0] == pytest.approx(_mean(_task, window))
    assert seen.rewards == pytest.approx({6: -_task(5)})
    # The last step of the episode was skipped, and yet nothing of the episode goes on.
    assert not optimizer.state
    assert seen.ratios[8] == [1.0] * 7


def test_a_decision_whose_steps_were_all_skipped_teaches_nothing(
    seen: Seen, splits: DomainSplits
) -> None:
    method, optimizer = _build(6, min_window=2)
    before = [param.clone() for param in method.policy_training.policy.parameters()]
    _go(seen, method, optimizer, splits, skipped={3, 4, 5, 6})
    assert seen.rewards == {}
    assert list(seen.actions) == [2, 8, 10, 12, 14, 16]
    assert all(map(torch.equal, method.policy_training.policy.parameters(), before))


def test_the_policy_learns_in_episodes_and_then_stays(seen: Seen, splits: DomainSplits) -> None:
    method, optimizer = _build(6, min_window=1, epochs=4, episodes=2)
    policies: dict[int, list[Tensor]] = {}
    own = method.training_data

    def noted(splits: DomainSplits, epoch: int) -> Any:
        params = method.policy_training.policy.parameters()
        policies[epoch] = [param.clone() for param in params]
        return own(splits, epoch)

    method.training_data = noted  # type: ignore[method-assign]
    method.training_data(splits, 1)
    _go(seen, method, optimizer, splits)
    assert not all(map(torch.equal, policies[1], policies[2]))
    assert not all(map(torch.equal, policies[2], policies[3]))
    assert all(map(torch.equal, policies[3], policies[5]))
    assert method.policy_training.memory.count_nonzero() > 0


@pytest.mark.parametrize("frozen", [True, False])
def test_every_episode_and_the_training_start_from_the_initial_weights(
    splits: DomainSplits, frozen: bool
) -> None:
    config = _config(epochs=4, episodes=2)
    model = ModelConfig(freeze_batch_norm=frozen)
    method = build_method(config.model_copy(update={"model": model}), 10, 3)
    names = [name for name in method.state_dict() if name.partition(".")[0] in ("encoder", "head")]
    start = {name: method.state_dict()[name].clone() for name in names}
    assert "encoder.layer4.1.bn2.running_var" in names
    for epoch, restarts in {1: False, 2: True, 3: True, 4: False}.items():
        torch.manual_seed(epoch)
        with torch.no_grad():
            for name in names:
                method.state_dict()[name].add_(1)
        moved = {name: method.state_dict()[name].clone() for name in names}
        assert method.training_data(splits, epoch) is splits.source_train
        for name, expected in (start if restarts else moved).items():
            assert method.state_dict()[name].equal(expected), (epoch, name)


def _always(monkeypatch: pytest.MonkeyPatch, actions: list[int]) -> None:
    monkeypatch.setattr(PolicyTraining, "decide", lambda *_: actions)


def test_with_every_ratio_at_one_the_training_is_that_of_asg(
    monkeypatch: pytest.MonkeyPatch, splits: DomainSplits
) -> None:
    """Two epochs after an episode, bit by bit: weights, momentum, losses; the episode is gone."""
    _always(monkeypatch, [10] * 7)
    learned = Training(_config(), splits, torch.device("cpu"))
    plain = Training(_config("asg"), splits, torch.device("cpu"))
    start = plain.method.encoder.conv1.get_parameter("weight").clone()
    learned.run_epoch(1)
    assert not learned.method.encoder.conv1.get_parameter("weight").equal(start)
    for epoch in (2, 3):
        ours, theirs = learned.run_epoch(epoch), plain.run_epoch(epoch)
        assert {name: ours[name] for name in theirs if name != "images_per_second"} == {
            name: theirs[name] for name in theirs if name != "images_per_second"
        }
    for name, expected in plain.method.state_dict().items():
        if isinstance(expected, Tensor):
            assert learned.method.state_dict()[name].equal(expected), name
    states = learned.optimizer.state_dict()["state"], plain.optimizer.state_dict()["state"]
    assert states[0].keys() == states[1].keys()
    for number, each in states[1].items():
        assert states[0][number]["momentum_buffer"].equal(each["momentum_buffer"])


@pytest.mark.parametrize("form", ["pytorch", "lr_in_buffer"])
def test_the_ratios_multiply_the_scheduled_rate_from_the_next_step_on(
    monkeypatch: pytest.MonkeyPatch, splits: DomainSplits, form: str
) -> None:
    _always(monkeypatch, [10, 0, 1, 2, 3, 4, 5])
    train = {"backbone_lr_mult": 0.5, "warmup_steps": 4, "decay_power": 0.9, "sgd_form": form}
    config = _config(epochs=2, train=train)
    training = Training(config, splits, torch.device("cpu"))
    rates: list[list[float]] = []
    bn1: list[Tensor] = []
    own = ASGL2O.training_loss

    def watched(self: ASGL2O, batch: Batch) -> StepOutput:
        rates.append([group["lr"] for group in training.optimizer.param_groups])
        bn1.append(self.encoder.bn1.get_parameter("weight").clone())
        return own(self, batch)

    monkeypatch.setattr(ASGL2O, "training_loss", watched)
    training.run_epoch(1)
    training.run_epoch(2)
    base = [0.02 * 0.5] * 6 + [0.02]
    ones, drawn = [1.0] * 7, [1.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    for step, ratios in enumerate([ones, drawn, drawn, ones, drawn, drawn]):
        warmup = 0.01 + 0.99 * (step / 4) ** 2 if step < 4 else 1.0
        scale = warmup * (1 - step / 6) ** 0.9
        expected = [rate * ratio * scale for rate, ratio in zip(base, ratios, strict=True)]
        assert rates[step] == pytest.approx(expected)
    assert not bn1[0].equal(bn1[1])
    # A group that stands still stands still at once, or coasts on with the rate in its momentum.
    assert bn1[1].equal(bn1[2]) == (form == "pytorch")


def _real_batch(step: int) -> Batch:
    generator = Generator().manual_seed(step)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    return Batch((images,), torch.randint(0, 10, (2,), generator=generator), torch.arange(2))


def _real_steps(
    method: ASGL2O,
    optimizer: Optimizer,
    splits: DomainSplits,
    steps: range,
    keep: Collection[int] = (),
) -> dict[int, dict[str, Any]]:
    """The loop's calls with the real loss; the states after the steps to keep, and the last."""
    config = method.config.train
    total = method.steps_per_epoch * config.epochs
    states = {}
    for step in steps:
        epoch, done = divmod(step - 1, method.steps_per_epoch)
        if done == 0:
            method.training_data(splits, epoch + 1)
        schedule_learning_rate(optimizer, config, step - 1, total)
        output = method.training_loss(_real_batch(step))
        optimizer.zero_grad()
        torch.autograd.backward(output.loss)
        optimizer.step()
        method.after_step(optimizer, step, total)
        if step % method.steps_per_epoch == 0:
            method.on_epoch_end(EpochContext(epoch + 1, splits, optimizer))
        if step in keep or step == steps[-1]:
            buffer = io.BytesIO()
            state = {"method": method.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, buffer)  # noqa: TID251 - what a checkpoint does
            buffer.seek(0)
            states[step] = torch.load(buffer, weights_only=True)  # noqa: TID251
    return states


def _assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert one.equal(other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_same(one[key], other[key])
    elif isinstance(one, list):
        for left, right in zip(one, other, strict=True):
            _assert_same(left, right)
    else:
        assert one == other


@pytest.mark.timeout(30)
def test_a_resume_at_any_step_is_bitwise(splits: DomainSplits) -> None:
    """An episode and two epochs of four steps; windows end after 1, 2 and 4 of them."""
    # Within a window and a rollout, at the episode's end, in the training, within a window there.
    cuts = (3, 4, 6, 11)
    train = {"batch_size": 2, "learning_rate": 0.01}
    method, optimizer = _build(4, train=train, rollout=2)
    states = _real_steps(method, optimizer, splits, range(1, 13), keep=cuts)
    for cut in (3, 11):
        assert states[cut]["method"]["window"][2] == 1
    assert states[3]["method"]["policy_training.num_rewarded"] == 1
    for cut in cuts:
        torch.manual_seed(99)
        resumed, resumed_optimizer = _build(4, train=train, rollout=2)
        resumed.load_state_dict(states[cut]["method"])
        resumed_optimizer.load_state_dict(states[cut]["optimizer"])
        again = _real_steps(resumed, resumed_optimizer, splits, range(cut + 1, 13))
        _assert_same(again[12], states[12])
    with pytest.raises(AssertionError):
        _assert_same(states[11], states[12])


def test_the_parts_of_the_loss_are_told_apart() -> None:
    """What waits for the window are CE and KL; their weighted sum is the loss."""
    method, _ = _build(3, loss_weight=0.5)
    batch = _real_batch(0)
    with torch.no_grad():
        for param in method.encoder.parameters():
            param.add_(0.02 * torch.randn_like(param))
    output = method.training_loss(batch)
    task = torch.nn.functional.cross_entropy(method.predict(batch.views[0]), batch.labels)
    kl = output.logs["kl"]
    assert kl > 0.01
    torch.testing.assert_close(output.loss, task + 0.5 * kl)
    optimizer = build_optimizer(method, method.config.train)
    method.after_step(optimizer, 3, 9)  # the last step of an epoch: the window is still open
    torch.testing.assert_close(
        method.window, torch.stack([task.detach(), kl, torch.ones(())]).double(), rtol=1e-5, atol=0
    )


def test_every_output_says_that_the_reward_is_ours() -> None:
    (note,) = _config().notes
    assert note == ASGL2OConfig.notes[0]
    assert "never published" in note
    assert "re-trained" in note
