"""Residual networks with SiLU in the place of ReLU (Gowal et al. 2020, "Uncovering the limits of …").

Most of the best classifiers on RobustBench are of these two kinds (Gowal, Rebuffi, Rade, Wang), with the names that
its model_zoo/architectures/dm_wide_resnet.py gives them. What differs from others of the same depth, beside the
activation: a convolution of stride 2 is padded at the right and at the bottom alone, as TensorFlow does it, and the
shortcuts of the narrow kind are 3×3 convolutions of what comes in as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustsynth.models.card import SMALL_IMAGE
from robustsynth.models.pointwise import pointwise


class SiluBlock(nn.Module):
    """Two times batch norm, SiLU and a 3×3 convolution, beside a shortcut where the shape changes.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution.
        names: of the two convolutions.
        plain_shortcut: whether the shortcut begins before the first batch norm, with a 3×3 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, names: tuple[str, str], plain_shortcut: bool) -> None:
        super().__init__()
        self.names, self.plain_shortcut = names, plain_shortcut
        self.pad = nn.ZeroPad2d((0, 1, 0, 1)) if stride > 1 else nn.Identity()
        padding = 0 if stride > 1 else 1
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.relu_0 = nn.SiLU()
        self.add_module(names[0], nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False))
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.relu_1 = nn.SiLU()
        self.add_module(names[1], nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False))
        # Of an odd side the first convolution leaves out the last row and column; of an even one this changes nothing.
        self.crop = nn.ZeroPad2d((0, -1, 0, -1)) if stride > 1 else nn.Identity()
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = pointwise(inputs, outputs, stride)
            if plain_shortcut:
                self.shortcut = nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (getattr(self, name) for name in self.names)
        active = self.relu_0(self.batchnorm_0(x))
        shortcut = x
        if self.shortcut is not None:
            shortcut = self.shortcut(self.pad(x) if self.plain_shortcut else self.crop(active))
        return second(self.relu_1(self.batchnorm_1(first(self.pad(active))))) + shortcut


class SiluStage(nn.Module):
    """The blocks of one stage of the wide kind."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.block = blocks

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class SiluWideResNet(nn.Module):
    """A wide residual network with SiLU: normalised images (N, C, H, W) in, logits (N, classes) out.

    Up to 64 pixels the stem is a 3×3 convolution; above, a 7×7 stride-2 one with max-pooling, which nobody publishes.

    Args:
        depth: layers, 6 n + 4 for n blocks a stage, as 28 and 70.
        widening: how many times as wide as its base width the first stage is.
        classes: number of logits.
        width: channels of the stem; 16 is standard.
        channels: channels of the images.
        image_size: side of the images in pixels, which chooses the stem.

    Example:
        >>> SiluWideResNet(10, 2, classes=10, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depth: int, widening: int, *, classes: int, width: int = 16, channels: int = 3, image_size: int = 32
    ) -> None:
        super().__init__()
        self.init_conv, self.maxpool = _stem(channels, width, image_size)
        wide, inputs = width * widening, width
        stages: list[nn.Module] = []
        for stage in range(3):
            blocks = _blocks(inputs, wide * 2**stage, (depth - 4) // 6, stage, ("conv_0", "conv_1"), False)
            stages.append(SiluStage(blocks))
            inputs = wide * 2**stage
        self.layer = nn.Sequential(*stages)
        self.batchnorm = nn.BatchNorm2d(inputs)
        self.relu = nn.SiLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.logits = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.maxpool(self.init_conv(x)))
        return self.logits(torch.flatten(self.avgpool(self.relu(self.batchnorm(x))), 1))


class SiluPreActResNet(nn.Module):
    """A narrow one of four stages: normalised images (N, C, H, W) in, logits (N, classes) out.

    Args:
        depths: blocks in each of the four stages.
        classes: number of logits.
        width: channels of the first stage; 64 is standard.
        channels: channels of the images.
        image_size: side of the images in pixels, which chooses the stem, as in `SiluWideResNet`.

    Example:
        >>> SiluPreActResNet([1, 1, 1, 1], classes=10, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depths: Sequence[int], *, classes: int, width: int = 64, channels: int = 3, image_size: int = 32
    ) -> None:
        super().__init__()
        self.conv_2d, self.maxpool = _stem(channels, width, image_size)
        inputs = width
        stages: list[nn.Sequential] = []
        for stage, depth in enumerate(depths):
            stages.append(_blocks(inputs, width * 2**stage, depth, stage, ("conv_2d_1", "conv_2d_2"), True))
            inputs = width * 2**stage
        self.layer_0, self.layer_1, self.layer_2, self.layer_3 = stages
        self.batchnorm = nn.BatchNorm2d(inputs)
        self.relu = nn.SiLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.logits = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv_2d(x))
        for stage in (self.layer_0, self.layer_1, self.layer_2, self.layer_3):
            x = stage(x)
        return self.logits(torch.flatten(self.avgpool(self.relu(self.batchnorm(x))), 1))


def _stem(channels: int, width: int, image_size: int) -> tuple[nn.Conv2d, nn.Module]:
    if image_size <= SMALL_IMAGE:
        return nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.Identity()
    return nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)


def _blocks(
    inputs: int, outputs: int, count: int, stage: int, names: tuple[str, str], plain_shortcut: bool
) -> nn.Sequential:
    first = SiluBlock(inputs, outputs, 2 if stage else 1, names=names, plain_shortcut=plain_shortcut)
    others = [SiluBlock(outputs, outputs, 1, names=names, plain_shortcut=plain_shortcut) for _ in range(count - 1)]
    return nn.Sequential(first, *others)
