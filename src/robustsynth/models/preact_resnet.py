"""Residual networks with activations before convolutions (He et al. 2016b, "Identity mappings").

Three of those that are called so, with RobustBench's names. Rice et al. 2020's: shortcuts begin after the first
activation, and a batch norm and a ReLU precede pooling. Without these, and with shortcuts that begin before the
activation (Wong et al. 2020 on RobustBench) or after it (the CIFAR-10 collection that they stem from).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustsynth.models.card import SMALL_IMAGE
from robustsynth.models.pointwise import pointwise


class PreActBlock(nn.Module):
    """Two times batch norm, ReLU and a 3×3 convolution, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, early_shortcut: bool = False) -> None:
        super().__init__()
        self.early_shortcut = early_shortcut
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Sequential(pointwise(inputs, outputs, stride))

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(x if self.early_shortcut else active)
        return self.conv2(self.relu(self.bn2(self.conv1(active)))) + shortcut


class PreActResNet(nn.Module):
    """A residual network with pre-activation: normalised images (N, C, H, W) in, logits (N, classes) out.

    Up to 64 pixels the stem is a 3×3 convolution; above, a 7×7 stride-2 one with max-pooling. Neither has a batch norm
    or an activation, because the first block begins with them.

    Args:
        depths: blocks in each of the four stages.
        classes: number of logits.
        width: channels of the first stage; 64 is standard.
        channels: channels of the images.
        image_size: side of the images in pixels, which chooses the stem.
        last_norm: whether a batch norm and a ReLU stand before pooling.
        early_shortcut: whether shortcuts begin before the first activation.

    Example:
        >>> PreActResNet([1, 1, 1, 1], classes=10, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depths: Sequence[int],
        *,
        classes: int,
        width: int = 64,
        channels: int = 3,
        image_size: int = 32,
        last_norm: bool = True,
        early_shortcut: bool = False,
    ) -> None:
        super().__init__()
        small = image_size <= SMALL_IMAGE
        self.conv1 = nn.Conv2d(channels, width, *((3, 1, 1) if small else (7, 2, 3)), bias=False)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        stages: list[nn.Sequential] = []
        inputs = width
        for stage, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(PreActBlock(inputs, width * 2**stage, stride, early_shortcut))
                inputs = width * 2**stage
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn = nn.BatchNorm2d(inputs) if last_norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True) if last_norm else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.linear(torch.flatten(self.avgpool(self.relu(self.bn(x))), 1))
