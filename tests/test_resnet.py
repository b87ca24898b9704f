from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from csg_ray.models.resnet import STAGES, InstanceBatchNorm, build_resnet


def test_mini_has_the_published_shapes_and_fits_the_package() -> None:
    encoder = build_resnet("mini")
    maps = encoder(torch.zeros(2, 3, 32, 32))
    shapes = {stage: tuple(features.shape) for stage, features in maps.items()}
    assert shapes == {1: (2, 16, 16, 16), 2: (2, 32, 8, 8), 3: (2, 64, 4, 4), 4: (2, 128, 4, 4)}
    assert encoder.stage_channels == {1: 16, 2: 32, 3: 64, 4: 128}
    # float16, at most 1.5 MB.
    assert 2 * sum(parameter.numel() for parameter in encoder.parameters()) < 1.5e6


@pytest.mark.parametrize("build", [resnet18, resnet50])
def test_torchvision_weights_load_and_give_torchvision_logits(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    published = build().eval()
    encoder = build_resnet(build.__name__).eval()
    encoder.load_state_dict(published.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = encoder(images)
        torch.testing.assert_close(encoder.pretraining_logits(maps[4]), published(images))
    assert encoder.stage_channels == {stage: maps[stage].shape[1] for stage in STAGES}


def test_taps_are_the_outputs_of_the_stages() -> None:
    encoder = build_resnet("mini").eval()
    seen: dict[int, torch.Tensor] = {}
    for stage in STAGES:
        encoder.stage(stage).register_forward_hook(
            lambda module, inputs, output, stage=stage: seen.update({stage: output.clone()})
        )
    with torch.no_grad():
        maps = encoder(torch.randn(2, 3, 32, 32))
    for stage in STAGES:
        # Equal after the later stages ran: nothing downstream writes into a tap.
        assert maps[stage].equal(seen[stage])
        assert maps[stage].min() >= 0


def test_the_pre_training_classifier_is_frozen() -> None:
    encoder = build_resnet("mini")
    frozen = {name for name, param in encoder.named_parameters() if not param.requires_grad}
    assert frozen == {"fc.weight", "fc.bias"}


def test_instance_batch_norm_normalises_each_half_in_its_own_way() -> None:
    norm = InstanceBatchNorm(5).eval()
    nn.init.constant_(norm.batch.running_mean, 2.0)  # type: ignore[arg-type]
    features = torch.randn(2, 5, 4, 4) * 3 + 1
    out = norm(features)
    # Two channels by their own mean and deviation, three by the running ones.
    for image in range(2):
        for channel in range(2):
            values = features[image, channel]
            expected = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(out[image, channel], expected)
    torch.testing.assert_close(out[:, 2:], (features[:, 2:] - 2) / (1 + 1e-5) ** 0.5)


def _norm_names(norm: str, kind: type[nn.Module]) -> set[str]:
    encoder = build_resnet("mini", norm)  # type: ignore[arg-type]
    return {name for name, module in encoder.named_modules() if isinstance(module, kind)}


def test_ibn_a_replaces_the_first_norm_of_every_block_of_stages_1_to_3() -> None:
    expected = {f"layer{stage}.{block}.bn1" for stage in (1, 2, 3) for block in (0, 1)}
    assert _norm_names("ibn_a", InstanceBatchNorm) == expected


def test_ibn_b_normalises_after_conv1_and_after_the_sums_of_stages_1_and_2() -> None:
    expected = {"bn1", "layer1.1.instance", "layer2.1.instance"}
    assert _norm_names("ibn_b", nn.InstanceNorm2d) == expected


@pytest.mark.parametrize("name", ["mini", "resnet50"])
def test_ibn_b_block_is_its_residual_block_plus_the_norm(name: str) -> None:
    torch.manual_seed(0)
    plain = build_resnet(name).eval()
    ibn = build_resnet(name, "ibn_b").eval()
    wrapped = ibn.stage(1).get_submodule("1" if name == "mini" else "2")
    original = copy.deepcopy(plain.stage(1).get_submodule("1" if name == "mini" else "2"))
    wrapped.get_submodule("block").load_state_dict(original.state_dict())
    # Without the last ReLU the block's output is the sum that the norm sees.
    sums: list[torch.Tensor] = []
    wrapped.get_submodule("instance").register_forward_hook(
        lambda module, inputs, output: sums.append(inputs[0].clone())
    )
    features = torch.randn(2, ibn.stage_channels[1], 8, 8)
    with torch.no_grad():
        out = wrapped(features.clone())
        expected_sum_after_relu = original(features.clone())
    torch.testing.assert_close(sums[0].relu(), expected_sum_after_relu)
    normalised = torch.nn.functional.instance_norm(sums[0]).relu()
    torch.testing.assert_close(out, normalised)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError):
        build_resnet("resnet19")
