"""Residual networks with activations before convolutions (He et al. 2016b, "Identity mappings"), with ReLU or SiLU.

`PreActResNet`, with RobustBench's names, is three networks that are called so. Rice et al. 2020's: shortcuts begin
after the first activation, and a batch norm and a ReLU precede pooling. Without these, and with shortcuts that begin
before the activation (Wong et al. 2020 on RobustBench) or after it (the CIFAR-10 collection that they stem from).

`WideResNet` (Zagoruyko and Komodakis 2016) has the names of TRADES' and RobustBench's files. TRADES' own file also
holds a ``sub_block1`` that its network never runs; it is left out here, as RobustBench does.

`SiluPreActResNet` and `SiluWideResNet` (Gowal et al. 2020, "Uncovering the limits of …") are what most of the best
classifiers on RobustBench are (Gowal, Rebuffi, Rade, Wang), with the names that its
model_zoo/architectures/dm_wide_resnet.py gives them. Beside the activation they differ in this: a convolution of stride
2 is padded at the right and at the bottom alone, as TensorFlow does it, and the shortcuts of the narrow kind are 3×3
convolutions of what comes in as it is.

Up to 64 pixels the stem is a 3×3 convolution; above, a 7×7 stride-2 one with max-pooling. It has no batch norm and no
activation, because the first block begins with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustsynth.models.card import SMALL_IMAGE
from robustsynth.models.layers import initialise, pointwise


def _stem(channels: int, width: int, image_size: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, *((3, 1, 1) if image_size <= SMALL_IMAGE else (7, 2, 3)), bias=False)


def _stem_pool(image_size: int) -> nn.Module:
    return nn.Identity() if image_size <= SMALL_IMAGE else nn.MaxPool2d(3, 2, 1)


class Stage(nn.Module):
    """The blocks of one stage of a wide network, held under the name that its published files have."""

    def __init__(self, name: str, blocks: nn.Sequential) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, blocks)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x)


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
        self.conv1 = _stem(channels, width, image_size)
        self.maxpool = _stem_pool(image_size)
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
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.linear(torch.flatten(self.avgpool(self.relu(self.bn(x))), 1))


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


class WideResNet(nn.Module):
    """A wide residual network: normalised images (N, C, H, W) in, logits (N, classes) out.

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
        width: int = 16,
        channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        wide = width * widening
        self.conv1 = _stem(channels, width, image_size)
        # None rather than the identity: with nothing between, the first batch norm folds into the stem.
        self.maxpool = None if image_size <= SMALL_IMAGE else nn.MaxPool2d(3, 2, 1)

        def stage(inputs: int, outputs: int, stride: int) -> Stage:
            blocks = [WideBlock(inputs, outputs, stride)]
            blocks += [WideBlock(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1)]
            return Stage("layer", nn.Sequential(*blocks))

        self.block1, self.block2 = stage(width, wide, 1), stage(wide, 2 * wide, 2)
        self.block3 = stage(2 * wide, 4 * wide, 2)
        self.bn1 = nn.BatchNorm2d(4 * wide)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * wide, classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x if self.maxpool is None else self.maxpool(x)
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(torch.flatten(self.avgpool(self.relu(self.bn1(x))), 1))


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


def _silu_blocks(
    inputs: int, outputs: int, count: int, stage: int, names: tuple[str, str], plain_shortcut: bool
) -> nn.Sequential:
    first = SiluBlock(inputs, outputs, 2 if stage else 1, names=names, plain_shortcut=plain_shortcut)
    others = [SiluBlock(outputs, outputs, 1, names=names, plain_shortcut=plain_shortcut) for _ in range(count - 1)]
    return nn.Sequential(first, *others)


class SiluWideResNet(nn.Module):
    """A wide residual network with SiLU: normalised images (N, C, H, W) in, logits (N, classes) out.

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
        self.init_conv = _stem(channels, width, image_size)
        self.maxpool = _stem_pool(image_size)
        wide, inputs = width * widening, width
        stages: list[nn.Module] = []
        for stage in range(3):
            blocks = _silu_blocks(inputs, wide * 2**stage, (depth - 4) // 6, stage, ("conv_0", "conv_1"), False)
            stages.append(Stage("block", blocks))
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
        image_size: side of the images in pixels, which chooses the stem.

    Example:
        >>> SiluPreActResNet([1, 1, 1, 1], classes=10, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depths: Sequence[int], *, classes: int, width: int = 64, channels: int = 3, image_size: int = 32
    ) -> None:
        super().__init__()
        self.conv_2d = _stem(channels, width, image_size)
        self.maxpool = _stem_pool(image_size)
        inputs = width
        stages: list[nn.Sequential] = []
        for stage, depth in enumerate(depths):
            stages.append(_silu_blocks(inputs, width * 2**stage, depth, stage, ("conv_2d_1", "conv_2d_2"), True))
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
