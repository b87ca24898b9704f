from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from csg_ray.config.run import ComputeConfig, ModelConfig, RunConfig
from csg_ray.methods.csg import CSG
from csg_ray.models.folding import FoldedConv2d, fold_batch_norm
from csg_ray.models.resnet import Norm, TappedResNet, build_resnet


def _network(name: str, norm: Norm = "batch") -> TappedResNet:
    """With running statistics and scales as after a training."""
    torch.manual_seed(0)
    network = build_resnet(name, norm).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.1)
            for tensor in (module.running_var, module.weight):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 2.0)
    return network.eval()


def _gradients(network: TappedResNet, images: Tensor) -> dict[str, Tensor]:
    maps = network(images)
    torch.autograd.backward(sum(features.square().mean() for features in maps.values()))
    return {
        name: param.grad for name, param in network.named_parameters() if param.grad is not None
    }


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("mini", "batch"),
        ("mini", "ibn_a"),
        ("mini", "ibn_b"),
        ("resnet18", "batch"),
        ("resnet50", "batch"),
        ("resnet50", "ibn_b"),
    ],
)
def test_the_same_function_and_the_same_gradients(name: str, norm: Norm) -> None:
    plain = _network(name, norm)
    folded = copy.deepcopy(plain)
    fold_batch_norm(folded)
    assert any(isinstance(module, FoldedConv2d) for module in folded.modules())
    assert folded.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected, maps = plain(images), folded(images)
    for stage, features in expected.items():
        torch.testing.assert_close(maps[stage], features)
    gradients = _gradients(folded, images)
    for parameter, gradient in _gradients(plain, images).items():
        torch.testing.assert_close(gradients[parameter], gradient, msg=parameter)


def test_every_batch_norm_of_an_encoder_is_folded() -> None:
    network = _network("resnet50")
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    fold_batch_norm(network)
    folded = [module for module in network.modules() if isinstance(module, FoldedConv2d)]
    assert len(folded) == len(norms) == 53


def test_in_training_mode_it_normalises_over_the_batch() -> None:
    plain = _network("mini").train()
    folded = copy.deepcopy(plain)
    fold_batch_norm(folded)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    assert folded(images)[4].equal(plain(images)[4])
    running = dict(plain.named_buffers())
    assert all(buffer.equal(running[name]) for name, buffer in folded.named_buffers())


def test_frozen_kernels_follow_new_weights_and_new_types() -> None:
    network = _network("mini").requires_grad_(False)
    fold_batch_norm(network)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    first = network(images)[4]
    assert network(images)[4].equal(first)
    other = {name: tensor * 1.1 for name, tensor in network.state_dict().items()}
    network.load_state_dict(other)
    plain = build_resnet("mini").double().eval()
    plain.load_state_dict(other)
    torch.testing.assert_close(network(images)[4], plain(images)[4])
    assert network.float()(images.float())[4].dtype == torch.float32


def test_trained_kernels_are_folded_anew_after_a_fused_step() -> None:
    # A fused optimizer does not count up the versions of what it changes.
    network = _network("mini").float()
    fold_batch_norm(network)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = network(images)[4]
    _gradients(network, images)
    torch.optim.SGD(network.parameters(), lr=1e-4, fused=True).step()
    plain = build_resnet("mini").eval()
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        after = network(images)[4]
        torch.testing.assert_close(after, plain(images)[4], rtol=1e-4, atol=1e-4)
    assert not after.equal(before)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("freeze", [True, False])
def test_the_reference_is_always_folded_and_the_encoder_when_frozen(
    fold: bool, freeze: bool
) -> None:
    config = RunConfig(
        model=ModelConfig(freeze_batch_norm=freeze), compute=ComputeConfig(fold_batch_norm=fold)
    )
    method = CSG(config, 10, 10)
    assert isinstance(method.reference_encoder.conv1, FoldedConv2d)
    assert isinstance(method.encoder.conv1, FoldedConv2d) == (fold and freeze)
