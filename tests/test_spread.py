"""What several workers refuse to train together, without starting them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from csg_ray.config.load import override_config
from csg_ray.config.run import RunConfig
from csg_ray.methods import build_method
from csg_ray.methods.base import Method
from csg_ray.training import spread as spread_module
from csg_ray.training.spread import spread
from made_data import refusal

SCENES = {"data.name": "digit_scenes", "method.name": "vanilla", "train.batch_size": 4}


class Averaged(nn.Module):
    """Stands in for DDP, which wants a group of processes."""

    def __init__(self, loss: nn.Module, **options: Any) -> None:
        super().__init__()
        self.loss = loss


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    state: dict[str, Any] = {"workers": 2, "device": "cpu"}
    monkeypatch.setattr(spread_module, "world_size", lambda: state["workers"])
    monkeypatch.setattr(
        spread_module, "communication_device", lambda: torch.device(state["device"])
    )
    monkeypatch.setattr(spread_module, "DistributedDataParallel", Averaged)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return state


def method_of(**settings: Any) -> tuple[Method, RunConfig]:
    overrides = {path.replace("__", "."): value for path, value in settings.items()}
    config = override_config(RunConfig(), SCENES | overrides)
    return build_method(config, num_classes=11, steps_per_epoch=10), config


def test_a_head_with_batch_norm_is_refused_on_several_cpus(machines: dict[str, Any]) -> None:
    sentence = refusal(lambda: spread(*method_of(model__head="aspp_v3")))

    assert sentence.startswith("model.head is aspp_v3, which has BatchNorm that is trained, but on")
    assert "set it to deeplabv2 or fcn, or train with one worker" in sentence


@pytest.mark.parametrize("head", ["deeplabv2", "fcn"])
def test_the_heads_that_it_names_are_taken(head: str, machines: dict[str, Any]) -> None:
    assert isinstance(spread(*method_of(model__head=head)), Averaged)


def test_one_worker_takes_any_head(machines: dict[str, Any]) -> None:
    machines["workers"] = 1
    assert not isinstance(spread(*method_of(model__head="aspp_v3")), Averaged)


def test_on_gpus_the_head_shares_its_statistics_and_the_encoder_keeps_its_own(
    machines: dict[str, Any],
) -> None:
    machines["device"] = "cuda"
    method, config = method_of(model__head="aspp_v3")

    spread(method, config)

    kinds = {type(part) for part in method.head.modules() if "BatchNorm" in type(part).__name__}
    assert kinds == {nn.SyncBatchNorm}
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in method.encoder.modules())


def test_more_workers_than_images_are_refused(machines: dict[str, Any]) -> None:
    machines["workers"] = 5
    sentence = refusal(lambda: spread(*method_of(model__head="fcn")))
    assert "train.batch_size is 4, fewer images than the 5 workers" in sentence
