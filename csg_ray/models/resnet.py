"""ResNets whose four stages can be tapped: `mini` for 32x32 images, and torchvision's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet
from torchvision.models.resnet import BasicBlock, Bottleneck

Norm = Literal["batch", "ibn_a", "ibn_b"]
OutputStride = Literal[8, 32]

STAGES = (1, 2, 3, 4)
TORCHVISION_MODELS = ("resnet18", "resnet34", "resnet50", "resnet101")
MINI_CHANNELS = (16, 32, 64, 128)
MINI_CLASSES = 10
IMAGENET_CLASSES = 1000


class InstanceBatchNorm(nn.Module):
    """IBN layer: instance norm on the first half of the channels, batch norm on the rest.

    Source: Pan et al., "Two at Once" (ECCV 2018), variant a.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widths = [channels // 2, channels - channels // 2]
        self.instance = nn.InstanceNorm2d(self.widths[0], affine=True)
        self.batch = nn.BatchNorm2d(self.widths[1])

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (N, C, H, W) features; the shape stays."""
        instance, batch = torch.split(features, self.widths, dim=1)
        return torch.cat([self.instance(instance), self.batch(batch)], dim=1)


class _NormAfterSum(nn.Module):
    """A residual block with an instance norm between the residual sum and the last ReLU (IBN-b)."""

    def __init__(self, block: BasicBlock | Bottleneck, channels: int) -> None:
        super().__init__()
        self.block = block
        self.instance = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, features: Tensor) -> Tensor:
        block = self.block
        out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(features)))))
        if isinstance(block, Bottleneck):
            out = block.bn3(block.conv3(block.relu(out)))
        shortcut = features if block.downsample is None else block.downsample(features)
        normalised: Tensor = block.relu(self.instance(out + shortcut))
        return normalised


class TappedResNet(nn.Module):
    """A ResNet that returns the maps of its stages.

    Parameter names are torchvision's (`conv1`, `bn1`, `layer1`..`layer4`, `fc`), so published
    weights load as they are. `fc` is the classifier of the pre-training task, always frozen.

    Attributes:
        stage_channels: channels of each stage's map, by stage number 1-4.
    """

    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    fc: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, network.get_submodule(name))
        self.fc = network.get_submodule("fc").requires_grad_(False)
        self.stage_channels = {stage: _out_channels(self.stage(stage)) for stage in STAGES}

    @property
    def num_pretraining_classes(self) -> int:
        """The classes of the pre-training task."""
        return int(self.fc.out_features)  # type: ignore[arg-type]

    def stage(self, number: int) -> nn.Module:
        """The module of one stage, `layer1`..`layer4`."""
        return self.get_submodule(f"layer{number}")

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Map images (N, 3, H, W) to {stage: (N, C_stage, H_stage, W_stage)}, after its ReLU."""
        features = self._stem(images)
        maps = {}
        for number in STAGES:
            features = self.stage(number)(features)
            maps[number] = features
        return maps

    def _stem(self, images: Tensor) -> Tensor:
        features: Tensor = self.conv1(images)
        features = self.relu(self.bn1(features))
        pooled: Tensor = self.maxpool(features)
        return pooled

    def pretraining_logits(self, stage4: Tensor) -> Tensor:
        """Logits of the pre-training task from a stage-4 map: (N, C, H, W) -> (N, classes)."""
        logits: Tensor = self.fc(stage4.mean(dim=(2, 3)))
        return logits


class _MiniNetwork(nn.Module):
    """Four stages of two basic blocks for 32x32 images; maps of side 16, 8, 4 and 4."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        stem, *_ = MINI_CHANNELS
        self.conv1 = nn.Conv2d(3, stem, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        channels = stem
        # Stage 4 keeps the side of stage 3: attention pooling needs more than 2x2 positions.
        for number, width, stride in zip(STAGES, MINI_CHANNELS, (1, 2, 2, 1), strict=True):
            self.add_module(f"layer{number}", _mini_stage(channels, width, stride))
            channels = width
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _mini_stage(channels: int, width: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or channels != width:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(width),
        )
    return nn.Sequential(BasicBlock(channels, width, stride, shortcut), BasicBlock(width, width))


def _out_channels(stage: nn.Module) -> int:
    convolutions = [module for module in stage.modules() if isinstance(module, nn.Conv2d)]
    shortcuts = {id(m) for n, m in stage.named_modules() if ".downsample" in n or n == "downsample"}
    return [conv for conv in convolutions if id(conv) not in shortcuts][-1].out_channels


def build_resnet(
    name: str,
    norm: Norm = "batch",
    num_classes: int | None = None,
    output_stride: OutputStride = 32,
) -> TappedResNet:
    """A randomly initialised tapped ResNet; `csg_ray.models.encoders` fills it.

    Args:
        name: `mini` or one of `TORCHVISION_MODELS`.
        norm: `batch`, or an IBN variant (`ibn_a`, `ibn_b`).
        num_classes: of the pre-training task; None: 10 for `mini`, ImageNet's 1000 for the others.
        output_stride: sides of the image to those of the stage-4 map. 8 dilates stages 3 and 4 and
            changes no parameter, so that the same weights load. `mini` is always at 8.

    Raises:
        KeyError: the name is not known.
        NotImplementedError: output stride 8 of resnet18 or resnet34, which cannot be dilated.
    """
    if name == "mini":
        network: nn.Module = _MiniNetwork(num_classes or MINI_CLASSES)
    else:
        network = _torchvision_network(name, num_classes or IMAGENET_CLASSES, output_stride)
    if norm == "ibn_a":
        _apply_ibn_a(network)
    elif norm == "ibn_b":
        _apply_ibn_b(network)
    return TappedResNet(network)


def _torchvision_network(name: str, num_classes: int, output_stride: OutputStride) -> nn.Module:
    if name not in TORCHVISION_MODELS:
        raise KeyError(name)
    dilated = output_stride == 8
    network: nn.Module = getattr(torchvision_resnet, name)(
        weights=None,
        num_classes=num_classes,
        replace_stride_with_dilation=[False, dilated, dilated],
    )
    return network


def _apply_ibn_a(network: nn.Module) -> None:
    """Replace the first norm of every block of stages 1-3."""
    for number in (1, 2, 3):
        for block in network.get_submodule(f"layer{number}").children():
            assert isinstance(block, BasicBlock | Bottleneck)
            block.bn1 = InstanceBatchNorm(block.conv1.out_channels)


def _apply_ibn_b(network: nn.Module) -> None:
    """Instance norm after conv1 and after the sum of the last block of stages 1 and 2."""
    conv1 = network.get_submodule("conv1")
    assert isinstance(conv1, nn.Conv2d)
    network.bn1 = nn.InstanceNorm2d(conv1.out_channels, affine=True)
    for number in (1, 2):
        stage = network.get_submodule(f"layer{number}")
        assert isinstance(stage, nn.Sequential)
        block = stage[-1]
        assert isinstance(block, BasicBlock | Bottleneck)
        stage[-1] = _NormAfterSum(block, _out_channels(stage))
