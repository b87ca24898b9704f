"""Frozen BatchNorm as part of the convolution before it: one pass over the maps less.

Conv(x) * s + t is the convolution with kernels s * W and bias t, where s and t follow from the
running statistics, the scale and the shift. It is the same function of all parameters, so gradients
are the same too, up to rounding.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose work, by running statistics, the convolution before it does."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) as they are; in training mode normalised over the batch."""
        return super().forward(features) if self.training else features

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What it multiplies each channel by, and adds then: (C,) and (C,)."""
        assert self.running_mean is not None  # `fold_batch_norm` takes no other
        assert self.running_var is not None
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


class FoldedConv2d(nn.Conv2d):
    """A convolution that does the work of the BatchNorm after it, too."""

    _norm: tuple[FoldedBatchNorm2d]  # in a tuple, so that nn.Module does not register it twice
    _folded: tuple[tuple[int, ...], Tensor, Tensor] | None

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C_out, H_out, W_out)."""
        (norm,) = self._norm
        if norm.training:
            kernels, bias = self.weight, None
        else:
            kernels, bias = self._kernels_and_bias(norm)
        convolved: Tensor = self._conv_forward(features, kernels, bias)
        return convolved

    def _kernels_and_bias(self, norm: FoldedBatchNorm2d) -> tuple[Tensor, Tensor]:
        """Those of frozen parameters are kept; others are folded anew every time."""
        sources = (self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        # Versions do not tell of trained ones: torch's fused optimizers change them without a word.
        if any(source is not None and source.requires_grad for source in sources):
            return _fold(self.weight, norm)
        # In a functional call they are tensors of that call alone.
        if not isinstance(self.weight, nn.Parameter):
            return _fold(self.weight, norm)
        versions = tuple(
            number for t in sources if t is not None for number in (t.data_ptr(), t._version)
        )
        if self._folded is None or self._folded[0] != versions:
            with torch.inference_mode(False), torch.no_grad():
                self._folded = (versions, *_fold(self.weight, norm))
        return self._folded[1:]


def fold_batch_norm(network: nn.Module) -> None:
    """Let every convolution do the work of the BatchNorm right after it, in evaluation mode.

    Names and state dict stay. Instance norm (of IBN-Net) stays as it is.
    """
    for module in list(network.modules()):
        for conv, norm in itertools.pairwise(list(module.children())):
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                assert conv.bias is None
                norm.__class__ = FoldedBatchNorm2d
                conv.__class__ = FoldedConv2d
                assert isinstance(conv, FoldedConv2d)
                assert isinstance(norm, FoldedBatchNorm2d)
                conv._norm = (norm,)
                conv._folded = None


def _fold(weight: Tensor, norm: FoldedBatchNorm2d) -> tuple[Tensor, Tensor]:
    scale, shift = norm.scale_and_shift()
    return weight * scale.view(-1, 1, 1, 1), shift
