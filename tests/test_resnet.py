from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models.segmentation import deeplabv3_resnet50

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


def test_output_stride_8_is_torchvisions_dilated_backbone_on_the_same_weights() -> None:
    torch.manual_seed(0)
    published = resnet50().eval().state_dict()
    encoder = build_resnet("resnet50", output_stride=8).eval()
    encoder.load_state_dict(published)
    backbone = deeplabv3_resnet50(weights=None, weights_backbone=None).backbone.eval()
    backbone.load_state_dict({k: v for k, v in published.items() if not k.startswith("fc.")})
    images = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        maps = encoder(images)
        torch.testing.assert_close(maps[4], backbone(images)["out"])
    assert [tuple(maps[stage].shape[2:]) for stage in STAGES] == [(16, 12)] + 3 * [(8, 6)]


def _stage_convolutions(encoder: nn.Module, stage: int) -> list[tuple[int, int]]:
    """(stride, dilation) of the 3x3 convolution of every block."""
    return [
        (convolution.stride[0], convolution.dilation[0])
        for convolution in encoder.get_submodule(f"layer{stage}").modules()
        if isinstance(convolution, nn.Conv2d) and convolution.kernel_size == (3, 3)
    ]


def test_output_stride_8_dilates_stages_3_and_4_by_half_in_their_first_blocks() -> None:
    encoder = build_resnet("resnet101", output_stride=8)
    assert _stage_convolutions(encoder, 2) == [(2, 1)] + 3 * [(1, 1)]
    assert _stage_convolutions(encoder, 3) == [(1, 1)] + 22 * [(1, 2)]
    assert _stage_convolutions(encoder, 4) == [(1, 2)] + 2 * [(1, 4)]
    plain = build_resnet("resnet101").state_dict()
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in plain.items()}


@pytest.mark.parametrize("name", ["mini", "resnet50", "resnet101"])
def test_a_crop_of_512_gives_maps_of_64(name: str) -> None:
    with torch.device("meta"):  # sizes without the work
        maps = build_resnet(name, output_stride=8)(torch.empty(1, 3, 512, 512))
    assert maps[3].shape[2:] == maps[4].shape[2:] == (64, 64)


def test_output_stride_8_leaves_mini_as_it_is() -> None:
    torch.manual_seed(0)
    plain = build_resnet("mini").eval()
    strided = build_resnet("mini", output_stride=8).eval()
    strided.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for expected, got in zip(plain(images).values(), strided(images).values(), strict=True):
            assert got.equal(expected)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_networks_of_basic_blocks_cannot_be_dilated(name: str) -> None:
    with pytest.raises(NotImplementedError):
        build_resnet(name, output_stride=8)


@pytest.mark.parametrize("norm", ["ibn_a", "ibn_b"])
def test_the_instance_norm_variants_can_be_dilated(norm: Literal["ibn_a", "ibn_b"]) -> None:
    with torch.device("meta"):
        maps = build_resnet("resnet50", norm, output_stride=8)(torch.empty(1, 3, 64, 64))
    assert maps[4].shape == (1, 2048, 8, 8)


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
