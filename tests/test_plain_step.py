from __future__ import annotations

import copy

import pytest
import torch

from csg_ray.config.data import DataConfig, DigitScenesConfig, DigitsConfig
from csg_ray.config.methods import CSGConfig
from csg_ray.config.run import ModelConfig, RunConfig, TrainConfig
from csg_ray.data.loader import Batch
from csg_ray.methods.csg import CSG
from csg_ray.models.encoders import build_encoder
from plain_step import PlainStep

STEPS = 3


def _package(data: DataConfig, patch_grid: int) -> CSG:
    segments = data.task == "segmentation"
    config = RunConfig(
        data=data,
        model=ModelConfig(head="fcn" if segments else "mlp"),
        method=CSGConfig(queue_size=24, patch_grid=patch_grid, temperature=0.2, ema_momentum=0.6),
        train=TrainConfig(batch_size=4),
    )
    return CSG(config, 10, 10).double()


def _plain(method: CSG, patch_grid: int) -> PlainStep:
    """The same networks, built apart: no folding, and the layout of the weight file."""
    encoder = build_encoder(method.config.model, 8 if patch_grid > 1 else 32).double()
    encoder.load_state_dict(method.encoder.state_dict())
    head, projections = copy.deepcopy(method.head), copy.deepcopy(method.projection_heads)
    stages = method.settings.stage_numbers()
    return PlainStep(
        encoder,
        head,
        {stage: projections[str(stage)] for stage in stages},
        {stage: method.get_buffer(f"queues.{stage}.keys") for stage in stages},
        method.loss_weight,
        method.temperature,
        method.ema_momentum,
        patch_grid,
    )


@pytest.mark.parametrize(
    ("data", "patch_grid"), [(DigitsConfig(), 1), (DigitScenesConfig(image_size=32), 2)]
)
def test_the_plain_step_is_the_packages(data: DataConfig, patch_grid: int) -> None:
    method = _package(data, patch_grid)
    plain = _plain(method, patch_grid)
    shape = (4, 32, 32) if data.task == "segmentation" else (4,)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (method, plain)]
    torch.manual_seed(0)
    for step in range(1, STEPS + 1):
        views = [torch.randn(4, 3, 32, 32, dtype=torch.float64) for _ in range(2)]
        labels = torch.randint(10, shape)
        own = method.training_loss(Batch(tuple(views), labels, torch.arange(4))).loss
        expected = plain.loss(views[0], views[1], labels)
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=0)
        for optimizer, loss in zip(optimizers, (own, expected), strict=True):
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        method.after_step(optimizers[0], step, STEPS)
        plain.after_step()
    for stage, queue in plain.queues.items():
        torch.testing.assert_close(method.get_buffer(f"queues.{stage}.keys"), queue)
    own_weights = method.encoder.state_dict()
    for name, weight in plain.encoder.state_dict().items():
        torch.testing.assert_close(own_weights[name], weight, msg=name)
