"""The methods that CSG is compared with, each against a plain form of its loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csg_ray.config.data import DigitScenesConfig, DigitsConfig
from csg_ray.config.methods import MethodConfig
from csg_ray.config.run import AugmentConfig, ModelConfig, RunConfig, TrainConfig
from csg_ray.data.load import load_splits
from csg_ray.data.loader import Batch
from csg_ray.methods import build_method
from csg_ray.methods.base import EpochContext, Method, ReferenceMethod
from csg_ray.methods.synaptic_intelligence import SynapticIntelligence
from method_settings import method_config
from plain_baselines import feature_penalty, importance, proxy_guidance, weight_penalty
from plain_csg import Weights, mini_maps, part, task_loss

BATCH, CLASSES = 3, 10
TASKS = pytest.mark.parametrize("segmentation", [False, True], ids=["images", "pixels"])


def _config(method: MethodConfig, segmentation: bool = False) -> RunConfig:
    head: Any = "fcn" if segmentation else "mlp"
    return RunConfig(
        data=DigitScenesConfig(image_size=32) if segmentation else DigitsConfig(num_train=30),
        model=ModelConfig(head=head),
        method=method,
        augment=AugmentConfig(num_ops=0),
        train=TrainConfig(batch_size=BATCH),
    )


def _build(name: str, segmentation: bool = False, **settings: Any) -> Method:
    """A method in float64, its encoder moved away from the start as in mid-training."""
    method = build_method(_config(method_config(name, **settings), segmentation), CLASSES, 10)
    torch.manual_seed(3)
    with torch.no_grad():
        for param in method.encoder.parameters():
            if param.requires_grad:
                param.add_(0.02 * torch.randn_like(param))
    return method.double()


def _batch(segmentation: bool = False, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    if segmentation:
        labels = torch.randint(0, CLASSES, (BATCH, 32, 32), generator=generator)
        labels[:, :, 3:] = 255  # few pixels are enough for a plain loop
    return Batch((images,), labels, torch.arange(BATCH))


def _weights(module: nn.Module) -> Weights:
    weights = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for name, param in module.named_parameters():
        weights[name] = param.detach().clone().requires_grad_(param.requires_grad)
    return weights


def _compare(method: Method, batch: Batch, expected: Tensor, weights: Weights) -> None:
    """The loss and the gradient of every parameter."""
    torch.autograd.backward(expected)
    output = method.training_loss(batch)
    torch.testing.assert_close(output.loss, expected, rtol=1e-9, atol=1e-12)
    torch.autograd.backward(output.loss)
    method.after_backward()
    for name, param in method.named_parameters():
        if not param.requires_grad:
            assert param.grad is None, name
            continue
        gradient = weights[name].grad
        assert gradient is not None, name
        assert gradient.count_nonzero() > 0, name
        torch.testing.assert_close(param.grad, gradient, rtol=1e-6, atol=1e-10, msg=name)


def _cross_entropy(weights: Weights, batch: Batch) -> Tensor:
    stage4 = mini_maps(part(weights, "encoder"), batch.views[0])[4]
    return task_loss(part(weights, "head"), stage4, batch.labels)


def _start(method: Method) -> Weights:
    assert isinstance(method, ReferenceMethod)
    return dict(method.reference_encoder.state_dict())


@TASKS
def test_oracle_is_cross_entropy_of_the_head_alone(segmentation: bool) -> None:
    method = _build("oracle", segmentation)
    batch, weights = _batch(segmentation), _weights(method)
    _compare(method, batch, _cross_entropy(weights, batch), weights)
    trained = {name for name, param in method.named_parameters() if param.requires_grad}
    assert {name.partition(".")[0] for name in trained} == {"head"}


def test_oracle_leaves_the_encoder_as_it_is() -> None:
    method = _build("oracle")
    before = {name: tensor.clone() for name, tensor in method.encoder.state_dict().items()}
    groups = [params for _, params, _ in method.parameter_groups()]
    optimizer = torch.optim.SGD([{"params": params} for params in groups], lr=0.1)
    torch.autograd.backward(method.training_loss(_batch()).loss)
    head = [param.clone() for param in method.head.parameters()]
    optimizer.step()
    assert all(method.encoder.state_dict()[name].equal(each) for name, each in before.items())
    assert not any(a.equal(b) for a, b in zip(method.head.parameters(), head, strict=True))


@TASKS
def test_weight_l2_equals_the_plain_loss(segmentation: bool) -> None:
    method = _build("weight_l2", segmentation, loss_weight=0.3)
    batch, weights, start = _batch(segmentation), _weights(method), _start(method)
    encoder = part(weights, "encoder")
    # The classifier of the pre-training task is frozen, and the running statistics are no weights.
    names = [name for name, each in encoder.items() if each.requires_grad]
    assert {"conv1.weight", "bn1.weight", "bn1.bias", "layer4.1.bn2.bias"} < set(names)
    # The loops of Python take a second for every 100,000 weights.
    small = [name for name in names if encoder[name].numel() < 3000]
    large = [name for name in names if encoder[name].numel() >= 3000]
    penalty = weight_penalty(encoder, start, small)
    for name in large:
        penalty = penalty + torch.linalg.vector_norm(encoder[name] - start[name]) ** 2 / 2
    expected = _cross_entropy(weights, batch) + 0.3 * penalty
    _compare(method, batch, expected, weights)
    logs = method.training_loss(batch).logs
    assert logs["squared_distance"].item() == pytest.approx(2 * penalty.item())


@TASKS
def test_feature_l2_equals_the_plain_loss(segmentation: bool) -> None:
    method = _build("feature_l2", segmentation, loss_weight=0.3, stages="2,4")
    batch, weights, start = _batch(segmentation), _weights(method), _start(method)
    images, encoder = batch.views[0], part(weights, "encoder")
    penalty = feature_penalty(encoder, start, images, 2) + feature_penalty(
        encoder, start, images, 4
    )
    _compare(method, batch, _cross_entropy(weights, batch) + 0.3 * penalty, weights)


@TASKS
def test_asg_equals_the_plain_loss(segmentation: bool) -> None:
    method = _build("asg", segmentation, loss_weight=0.3)
    batch, weights, start = _batch(segmentation), _weights(method), _start(method)
    guidance = proxy_guidance(part(weights, "encoder"), start, batch.views[0])
    assert guidance > 0.001
    _compare(method, batch, _cross_entropy(weights, batch) + 0.3 * guidance, weights)


@pytest.mark.parametrize("name", ["weight_l2", "feature_l2", "asg", "synaptic_intelligence"])
def test_at_the_start_there_is_nothing_to_hold(name: str) -> None:
    method = build_method(_config(method_config(name)), CLASSES, 10)
    output = method.training_loss(_batch().to("cpu")._map(_single))
    (value,) = output.logs.values()
    assert value.item() == pytest.approx(0, abs=1e-6)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _trained_intelligence(segmentation: bool = False, **settings: Any) -> SynapticIntelligence:
    method = _build("synaptic_intelligence", segmentation, **settings)
    assert isinstance(method, SynapticIntelligence)
    return method


@TASKS
def test_synaptic_intelligence_equals_the_plain_loss(segmentation: bool) -> None:
    method = _trained_intelligence(segmentation, loss_weight=0.3)
    torch.manual_seed(4)
    for each in method.importances:
        each.copy_(torch.rand_like(each))
    batch, weights, start = _batch(segmentation), _weights(method), _start(method)
    encoder = part(weights, "encoder")
    names = [name for name, each in encoder.items() if each.requires_grad]
    penalty = torch.zeros((), dtype=torch.float64)
    for name, each in zip(names, method.importances, strict=True):
        penalty = penalty + torch.einsum(
            "i,i,i->", each.flatten(), *[(encoder[name] - start[name]).flatten()] * 2
        )
    _compare(method, batch, _cross_entropy(weights, batch) + 0.3 * penalty, weights)


def test_the_path_integral_of_one_weight_by_hand() -> None:
    """Two epochs of two steps each: gradients 2, -1, 4, 1 and moves -0.5, 0.25, -0.5, 0.125."""
    method = build_method(
        _config(method_config("synaptic_intelligence", damping=0.25, loss_weight=10.0)), CLASSES, 2
    )
    assert isinstance(method, SynapticIntelligence)
    weight = method.encoder.get_parameter("conv1.weight")
    optimizer = torch.optim.SGD([weight], lr=1.0)
    context = EpochContext(1, load_splits(method.config.data), optimizer)
    place = (0, 0, 0, 0)
    seen = []
    for step, (gradient, move) in enumerate([(2, -0.5), (-1, 0.25), (4, -0.5), (1, 0.125)], 1):
        for param in method.encoder.parameters():
            param.grad = torch.zeros_like(param) if param.requires_grad else None
        assert weight.grad is not None
        weight.grad[place] = gradient
        before = weight[place].item()
        method.after_backward()
        seen.append(weight.grad[place].item())
        with torch.no_grad():
            weight[place] += move
        method.after_step(optimizer, step, 4)
        assert weight[place].item() == pytest.approx(before + move)
        if step % 2 == 0:
            method.on_epoch_end(context)
        if step == 2:
            # Lowered by 1 + 0.25 on the way to a distance of 0.25.
            assert method.importances[0][place].item() == pytest.approx(1.25 / (0.0625 + 0.25))
    # Lowered by 1 + 0.25 + 2 - 0.125; the distance is 0.625.
    assert method.path_integrals[0][place].item() == pytest.approx(3.125)
    assert method.importances[0][place].item() == pytest.approx(3.125 / (0.390625 + 0.25))
    assert method.importances[0].count_nonzero() == 1
    assert all(each.count_nonzero() == 0 for each in method.importances[1:])
    # The first epoch is free; then 2 * 10 * 4 * (theta - theta_0) joins the gradient: the path
    # integral above is that of the loss alone.
    assert seen == pytest.approx([2, -1, 4 + 20 * 4 * -0.25, 1 + 20 * 4 * -0.75], rel=1e-5)


def test_importances_of_a_real_training_equal_those_of_the_plain_path() -> None:
    method = _trained_intelligence(loss_weight=0.5, damping=0.01)
    with torch.no_grad():
        for own, start in method.trained_with_start():
            own.copy_(start)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    context = EpochContext(1, load_splits(method.config.data), optimizer)
    weight, place = method.encoder.get_parameter("layer3.0.conv1.weight"), (5, 4, 1, 1)
    number = [own is weight for own, _ in method.trained_with_start()].index(True)
    moves = []
    for step in range(1, 5):
        weights, batch = _weights(method), _batch(seed=step)
        torch.autograd.backward(_cross_entropy(weights, batch))
        gradient = weights["encoder.layer3.0.conv1.weight"].grad
        assert gradient is not None
        before = weight[place].item()
        optimizer.zero_grad()
        torch.autograd.backward(method.training_loss(batch).loss)
        method.after_backward()
        optimizer.step()
        method.after_step(optimizer, step, 4)
        moves.append((gradient[place].item(), weight[place].item() - before))
        if step % 2 == 0:
            method.on_epoch_end(context)
            found = method.importances[number][place].item()
            assert found == pytest.approx(importance(moves, 0.01), rel=1e-6)
    assert all((each >= 0).all() for each in method.importances)
    assert any((each == 0).any() and (each > 0).any() for each in method.importances)


def test_a_skipped_step_leaves_no_trace_in_the_path() -> None:
    method = _trained_intelligence()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
    for step, seed in enumerate((1, 2), start=1):
        optimizer.zero_grad()
        torch.autograd.backward(method.training_loss(_batch(seed=seed)).loss)
        method.after_backward()
        if seed == 2:
            optimizer.step()
            method.after_step(optimizer, step, 4)
    expected = 0.05 * sum(
        (own.grad.square().sum() for own, _ in method.trained_with_start() if own.grad is not None),
        torch.zeros(()),
    )
    total = sum((each.sum() for each in method.path_integrals), torch.zeros(()))
    torch.testing.assert_close(total, expected, check_dtype=False)
