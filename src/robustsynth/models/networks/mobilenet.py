"""MobileNetV2 (Sandler et al. 2018) with torchvision's parameter names, so that published weights load.

Up to 64 pixels the first convolution and the first strided stage keep the side, as everybody does on CIFAR-10: a 32nd
of 32 pixels would be one place.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from robustsynth.models.card import SMALL_IMAGE
from robustsynth.models.layers import DepthwiseConv2d, initialise

STANDARD_WIDTH = 32
"""Channels of the first convolution at width multiplier 1."""

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels at multiplier 1, blocks, and stride of the first block (their Table 2)."""

LAST = 1280


class ClippedReLU(nn.Module):
    """min(max(x, 0), 6), with the ReLU as its last step: the network's last activation.

    That it is a ReLU lets the gradient of a dead unit pass straight through it (`robustsynth.models.representation`).
    The others are PyTorch's own ReLU6, which is the same in one pass and faster.
    """

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(F.hardtanh(x, -math.inf, 6.0))


class InvertedResidual(nn.Module):
    """Widen by a 1×1 convolution, filter each channel by itself, narrow without an activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        widen = [] if expansion == 1 else [_activated(nn.Conv2d(inputs, hidden, 1, bias=False))]
        self.conv = nn.Sequential(
            *widen,
            _activated(DepthwiseConv2d(hidden, kernel=3, stride=stride)),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Sequential):
    """MobileNetV2: normalised images (N, C, H, W) in, logits (N, classes) out.

    `width` / 32 is the paper's width multiplier. Channels but the first are rounded to multiples of 8 as torchvision
    does it, so that 16, 24, 32 and 48 are its multipliers 0.5, 0.75, 1 and 1.5. The last convolution has at least 1280.
    `image_size` chooses the first strides.

    Example:
        >>> import torch
        >>> MobileNetV2(classes=10, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, classes: int, width: int = STANDARD_WIDTH, channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        small = image_size <= SMALL_IMAGE
        multiplier = width / STANDARD_WIDTH
        layers: list[nn.Module] = [_activated(nn.Conv2d(channels, width, 3, 1 if small else 2, 1, bias=False))]
        inputs = width
        for stage, (expansion, stage_channels, blocks, stage_stride) in enumerate(STAGES):
            outputs = divisible_by_8(stage_channels * multiplier)
            for position in range(blocks):
                keeps = position > 0 or (small and stage == 1)
                layers.append(InvertedResidual(inputs, outputs, 1 if keeps else stage_stride, expansion))
                inputs = outputs
        last = divisible_by_8(LAST * max(1.0, multiplier))
        layers.append(_activated(nn.Conv2d(inputs, last, 1, bias=False), ClippedReLU()))
        self.features = nn.Sequential(*layers)
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        initialise(self, linear_std=0.01)


def divisible_by_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and the one above where that takes away more than a tenth.

    Example:
        >>> [divisible_by_8(n) for n in (3, 24, 18, 11.2)]
        [8, 24, 24, 16]
    """
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _activated(convolution: nn.Conv2d, activation: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), activation or nn.ReLU6(inplace=True))
