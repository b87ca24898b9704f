"""Grad-CAM of captum against its two equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csg_ray.methods import build_method
from csg_ray.methods.base import Method
from csg_ray.results.figures.grad_cam import grad_cam
from written_model import small_config


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def plain_grad_cam(method: Method, image: Tensor, number: int) -> Tensor:
    maps = method.features(image[None])[4].detach().requires_grad_()
    logit = method.classify({4: maps}, (32, 32))[0, number]
    (gradient,) = torch.autograd.grad(logit, maps)
    _, channels, height, width = maps.shape
    evidence = torch.zeros(height, width)
    for channel in range(channels):
        weight = gradient[0, channel].sum() / (height * width)
        evidence += weight * maps[0, channel].detach()
    return evidence.clamp_min(0)


@pytest.mark.parametrize("name", ["vanilla", "oracle"])  # that of oracle has a frozen encoder
@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_it_equals_the_equations(name: str, head: str) -> None:
    method = build_method(small_config(method__name=name, model__head=head), 10, 2).eval()
    classes = torch.tensor([3, 0, 9])
    found = grad_cam(method, images(), classes)
    assert float(found.max()) > 0
    for image, number, own in zip(images(), classes.tolist(), found, strict=True):
        expected = plain_grad_cam(method, image, number)
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-7)


def test_it_leaves_no_gradient_behind_and_asks_for_one_class() -> None:
    method = build_method(small_config(), 10, 2).eval()
    shown = images(1)
    first = grad_cam(method, shown, torch.tensor([1]))
    assert not shown.requires_grad
    assert not first.requires_grad
    assert all(param.grad is None for param in method.parameters())
    assert not torch.allclose(first, grad_cam(method, shown, torch.tensor([2])))
