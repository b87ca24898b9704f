"""The contract of every method in METHODS; a new one is picked up by itself."""

from __future__ import annotations

import io
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csg_ray.config.errors import UserError
from csg_ray.config.methods import METHOD_CONFIGS, CSGConfig
from csg_ray.config.run import AugmentConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.loader import Batch
from csg_ray.methods import METHODS, build_method
from csg_ray.methods.base import Method, ReferenceMethod
from csg_ray.seeding import rng_state
from csg_ray.training.optim import build_optimizer
from method_settings import SELF_TRAINING, method_config

CLASSES = 10
STEPS = 5
EVERY_METHOD = pytest.mark.parametrize("name", sorted(METHODS))
REFERENCE_METHODS = pytest.mark.parametrize(
    "name", sorted(name for name, kind in METHODS.items() if issubclass(kind, ReferenceMethod))
)


def _config(name: str, **sections: Any) -> RunConfig:
    train = TrainConfig(
        batch_size=4, learning_rate=0.01, backbone_lr_mult=0.5, steps_per_epoch=STEPS
    )
    like = RunConfig(model=sections.get("model", ModelConfig()))
    method = method_config(name, like)
    return RunConfig(**{"method": method, "train": train, **sections})


def _build(name: str, **sections: Any) -> Method:
    return build_method(_config(name, **sections), CLASSES, steps_per_epoch=STEPS)


def _batch(method: Method, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(method.num_views)]
    labels = torch.randint(0, CLASSES, (4,), generator=generator)
    return Batch(tuple(views), labels, torch.arange(4))


def _train(method: Method, optimizer: torch.optim.Optimizer, seeds: range) -> list[Tensor]:
    losses = []
    for step, seed in enumerate(seeds, start=1):
        output = method.training_loss(_batch(method, seed))
        optimizer.zero_grad()
        torch.autograd.backward(output.loss)
        method.after_backward()
        optimizer.step()
        method.after_step(optimizer, step, 10)
        losses.append(output.loss.detach())
    return losses


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)  # noqa: TID251 - what a checkpoint does
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)  # noqa: TID251
    return loaded


def test_every_configurable_method_exists() -> None:
    assert METHODS.keys() == METHOD_CONFIGS.keys()


@EVERY_METHOD
def test_loss_and_logs(name: str) -> None:
    method = _build(name)
    assert method.num_views >= 1
    output = method.training_loss(_batch(method))
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    assert output.loss.requires_grad
    assert output.logs.keys() == method.worst_logs.keys()
    for value in output.logs.values():
        assert value.isfinite()
        assert not value.requires_grad


@EVERY_METHOD
def test_features_and_prediction(name: str) -> None:
    method = _build(name).eval()
    images = torch.randn(3, 3, 32, 32)
    maps = method.features(images)
    assert list(maps) == [1, 2, 3, 4]
    channels = {stage: features.shape[1] for stage, features in maps.items()}
    assert channels == method.encoder.stage_channels
    assert method.predict(images).shape == (3, CLASSES)
    assert method.predict(images).equal(method.classify(maps, (32, 32)))
    # Each image is predicted by itself, whatever else is in the batch.
    torch.testing.assert_close(method.predict(images[1:2]), method.predict(images)[1:2])


@EVERY_METHOD
@pytest.mark.parametrize("affine", [True, False])
def test_every_trainable_parameter_is_in_exactly_one_group(name: str, affine: bool) -> None:
    method = _build(name, model=ModelConfig(train_batch_norm_affine=affine))
    groups = method.parameter_groups()
    names = [group_name for group_name, _, _ in groups]
    assert names[:7] == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "head"]
    assert len(set(names)) == len(names)
    grouped = [id(param) for _, params, _ in groups for param in params]
    trainable = {id(param) for param in method.parameters() if param.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trainable
    mults = {group_name: mult for group_name, _, mult in groups}
    assert {mults.pop(each) for each in names[:6]} == {0.5}
    assert set(mults.values()) == {1.0}


@EVERY_METHOD
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    method = _build(name)
    torch.autograd.backward(method.training_loss(_batch(method)).loss)
    without = {
        param_name
        for param_name, param in method.named_parameters()
        if param.requires_grad != (param.grad is not None)
    }
    assert without == set()


@EVERY_METHOD
def test_frozen_affine_parameters_of_batch_norm(name: str) -> None:
    method = _build(name, model=ModelConfig(train_batch_norm_affine=False))
    for module in method.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.weight.requires_grad
            assert not module.bias.requires_grad


@EVERY_METHOD
def test_running_statistics_never_change(name: str) -> None:
    method = _build(name)
    before = {key: value.clone() for key, value in _running(method).items()}
    method.eval()
    method.train()
    assert method.training
    _train(method, build_optimizer(method, method.config.train), range(3))
    method.predict(torch.randn(2, 3, 32, 32))
    after = _running(method)
    assert before.keys() == after.keys()
    assert all(after[key].equal(value) for key, value in before.items())


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"oracle"}))  # which keeps them always
def test_running_statistics_change_when_they_are_not_frozen(name: str) -> None:
    method = _build(name, model=ModelConfig(freeze_batch_norm=False))
    before = _running(method)["encoder.bn1.running_mean"].clone()
    method.training_loss(_batch(method))
    assert not _running(method)["encoder.bn1.running_mean"].equal(before)


def _running(method: Method) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in method.named_buffers() if ".running_" in name}


@REFERENCE_METHODS
def test_reference_encoder_is_hidden_frozen_and_untouched(name: str) -> None:
    method = _build(name)
    assert isinstance(method, ReferenceMethod)
    reference = method.reference_encoder
    before = {key: value.clone() for key, value in reference.state_dict().items()}
    method.train()
    _train(method, build_optimizer(method, method.config.train), range(3))
    assert all(reference.state_dict()[key].equal(value) for key, value in before.items())
    assert not method.encoder.state_dict()["conv1.weight"].equal(before["conv1.weight"])
    assert not reference.training
    own = {id(param) for param in method.parameters()}
    assert all(id(param) not in own for param in reference.parameters())
    assert not any(param.requires_grad for param in reference.parameters())
    assert not any("reference" in key for key in method.state_dict())
    method.double()
    assert reference.state_dict()["conv1.weight"].dtype == torch.float64


@REFERENCE_METHODS
def test_a_state_of_other_reference_weights_is_refused(name: str) -> None:
    other = _build(name, model=ModelConfig(weights="none"))
    with pytest.raises(UserError, match="other reference weights"):
        other.load_state_dict(_build(name).state_dict())


@pytest.mark.parametrize("name", sorted(n for n, kind in METHODS.items() if kind.takes_turns))
def test_the_steps_of_a_method_that_takes_turns_draw_from_no_global_generator(name: str) -> None:
    method = _build(name)
    optimizer = build_optimizer(method, method.config.train)
    before = rng_state()
    _train(method, optimizer, range(2))
    after = rng_state()
    assert after["python"] == before["python"]
    assert all(after["numpy"][1] == before["numpy"][1])
    assert after["torch"].equal(before["torch"])


@EVERY_METHOD
@pytest.mark.parametrize("form", ["pytorch", "lr_in_buffer"])
def test_resume_is_bitwise(name: str, form: str) -> None:
    train = TrainConfig(batch_size=4, learning_rate=0.01, steps_per_epoch=STEPS)
    train = train.model_copy(update={"sgd_form": form})
    method = _build(name, train=train)
    optimizer = build_optimizer(method, train)
    _train(method, optimizer, range(2))
    saved = _through_a_file({"m": method.state_dict(), "o": optimizer.state_dict()})
    losses = _train(method, optimizer, range(2, 4))

    torch.manual_seed(99)
    resumed = _build(name, train=train)
    resumed_optimizer = build_optimizer(resumed, train)
    resumed.load_state_dict(saved["m"])
    resumed_optimizer.load_state_dict(saved["o"])
    assert torch.stack(_train(resumed, resumed_optimizer, range(2, 4))).equal(torch.stack(losses))
    state, resumed_state = _tensors(method.state_dict()), _tensors(resumed.state_dict())
    assert state.keys() == resumed_state.keys()
    assert all(resumed_state[key].equal(value) for key, value in state.items())


@pytest.mark.parametrize("name", sorted(METHODS.keys() - set(SELF_TRAINING)))
def test_the_seed_decides_the_start(name: str) -> None:
    torch.manual_seed(1)
    first = _tensors(_build(name, seed=1).state_dict())
    torch.manual_seed(2)
    again = _tensors(_build(name, seed=1).state_dict())
    other = _tensors(_build(name, seed=2).state_dict())
    assert all(again[key].equal(value) for key, value in first.items())
    assert not other["head.0.weight"].equal(first["head.0.weight"])
    assert other["encoder.conv1.weight"].equal(first["encoder.conv1.weight"])


@EVERY_METHOD
def test_a_linear_head_is_one_layer(name: str) -> None:
    method = _build(name, model=ModelConfig(head="linear"))
    assert sum(param.numel() for param in method.head.parameters()) == 128 * CLASSES + CLASSES


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"drpc"}))  # whose copies differ anyhow
def test_one_view_is_enough_without_augmentation(name: str) -> None:
    method = _build(name, augment=AugmentConfig(num_ops=0))
    assert method.num_views == 1
    assert method.training_loss(_batch(method)).loss.isfinite()


@pytest.mark.parametrize(
    "stages", [",".join(some) for size in range(1, 5) for some in combinations("1234", size)]
)
def test_csg_trains_with_every_subset_of_stages(stages: str) -> None:
    method = _build("csg", method=CSGConfig(stages=stages))
    losses = _train(method, build_optimizer(method, method.config.train), range(2))
    assert torch.stack(losses).isfinite().all()
    heads = {name.split(".")[1] for name in method.state_dict() if name.startswith("queues.")}
    assert heads == set(stages.split(","))
