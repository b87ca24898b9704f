from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from csg_ray.models.deeplab import SegmentationHead, build_segmentation_head, upsample

HEADS: tuple[SegmentationHead, ...] = ("aspp_v3", "deeplabv2", "fcn")


def _count(head: nn.Module) -> int:
    return sum(param.numel() for param in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_a_head_keeps_the_size_of_the_map(name: SegmentationHead) -> None:
    logits = build_segmentation_head(name, 16, 5)(torch.randn(2, 16, 6, 4))
    assert logits.shape == (2, 5, 6, 4)


def test_aspp_v3_has_the_published_size_and_parts() -> None:
    with torch.device("meta"):
        head = build_segmentation_head("aspp_v3", 2048, 19)
    assert _count(head) == 16_130_323
    convolutions = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    dilations = [conv.dilation[0] for conv in convolutions if conv.kernel_size == (3, 3)]
    assert dilations == [12, 24, 36, 1]
    assert [conv.out_channels for conv in convolutions] == 7 * [256] + [19]
    assert [conv.bias is not None for conv in convolutions] == 7 * [False] + [True]
    assert [module.p for module in head.modules() if isinstance(module, nn.Dropout)] == [0.5]


def test_aspp_v3_cannot_train_on_one_image_but_evaluates_it() -> None:
    head = build_segmentation_head("aspp_v3", 8, 3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        head(torch.randn(1, 8, 4, 4))
    assert head.eval()(torch.randn(1, 8, 4, 4)).shape == (1, 3, 4, 4)


def _convolve_by_loops(features: Tensor, conv: nn.Conv2d, dilation: int) -> Tensor:
    assert conv.bias is not None
    _, height, width = features.shape
    out = conv.bias.detach()[:, None, None].repeat(1, height, width)
    for row in range(height):
        for column in range(width):
            for i in range(3):
                for j in range(3):
                    y, x = row + (i - 1) * dilation, column + (j - 1) * dilation
                    if 0 <= y < height and 0 <= x < width:
                        out[:, row, column] += conv.weight.detach()[:, :, i, j] @ features[:, y, x]
    return out


def test_deeplabv2_is_the_sum_of_four_dilated_convolutions() -> None:
    head = build_segmentation_head("deeplabv2", 3, 2)
    features = torch.randn(1, 3, 26, 8)  # taller than the widest dilation
    convolutions = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    expected = torch.stack(
        [
            _convolve_by_loops(features[0], conv, dilation)
            for conv, dilation in zip(convolutions, (6, 12, 18, 24), strict=True)
        ]
    ).sum(dim=0)
    torch.testing.assert_close(head(features)[0].detach(), expected)
    assert _count(build_segmentation_head("deeplabv2", 2048, 19)) == 4 * (2048 * 9 + 1) * 19


def test_fcn_is_two_convolutions_without_statistics() -> None:
    head = build_segmentation_head("fcn", 6, 4)
    features = torch.randn(2, 6, 5, 5)
    # No image depends on another: what one alone gives, it gives in a batch.
    torch.testing.assert_close(head(features)[1:], head(features[1:]))
    assert _count(head) == (6 * 9 + 1) * 6 + (6 + 1) * 4
    assert not list(head.buffers())


def test_upsampled_logits_have_their_corners_on_the_corners() -> None:
    logits = torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]])
    expected = torch.tensor([[0.0, 1.0, 2.0, 3.0], [6.0, 7.0, 8.0, 9.0]])
    torch.testing.assert_close(upsample(logits, (2, 4))[0, 0], expected)
    assert upsample(torch.zeros(2, 5, 3, 4), (9, 13)).shape == (2, 5, 9, 13)
