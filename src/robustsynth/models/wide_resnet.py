"""Wide residual networks (Zagoruyko and Komodakis 2016) with the names that TRADES and RobustBench's files have.

TRADES' own file also holds a ``sub_block1`` that its network never runs; it is left out here, as RobustBench does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustsynth.models.card import SMALL_IMAGE
from robustsynth.models.pointwise import pointwise

STANDARD_WIDTH = 16
"""Channels of the first convolution."""


class WideBlock(nn.Module):
    """Two times batch norm, ReLU and a 3×3 convolution, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.convShortcut = None if same else pointwise(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(self.relu2(self.bn2(self.conv1(active)))) + shortcut


class WideStage(nn.Module):
    """The blocks of one stage; the first of them has the stride."""

    def __init__(self, depth: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *(WideBlock(outputs, outputs, 1) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """A wide residual network: normalised images (N, C, H, W) in, logits (N, classes) out.

    Up to 64 pixels the stem is a 3×3 convolution; above, a 7×7 stride-2 one with max-pooling.

    Args:
        depth: layers, 6 n + 4 for n blocks a stage, as 28 and 34.
        widening: how many times as wide as its base width the first stage is.
        classes: number of logits.
        width: channels of the stem; 16 is standard. The stages have 1, 2 and 4 times width × widening.
        channels: channels of the images.
        image_size: side of the images in pixels, which chooses the stem.

    Example:
        >>> WideResNet(10, 2, classes=10, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int,
        widening: int,
        *,
        classes: int,
        width: int = STANDARD_WIDTH,
        channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        small = image_size <= SMALL_IMAGE
        blocks, wide = (depth - 4) // 6, width * widening
        self.conv1 = nn.Conv2d(channels, width, *((3, 1, 1) if small else (7, 2, 3)), bias=False)
        # None rather than the identity: with nothing between, the first batch norm folds into the stem.
        self.maxpool = None if small else nn.MaxPool2d(3, 2, 1)
        self.block1 = WideStage(blocks, width, wide, 1)
        self.block2 = WideStage(blocks, wide, 2 * wide, 2)
        self.block3 = WideStage(blocks, 2 * wide, 4 * wide, 2)
        self.bn1 = nn.BatchNorm2d(4 * wide)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * wide, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x if self.maxpool is None else self.maxpool(x)
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(torch.flatten(self.avgpool(self.relu(self.bn1(x))), 1))
