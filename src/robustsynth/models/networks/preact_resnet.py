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

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from robustsynth.models.card import SMALL_IMAGE
from robustsynth.models.layers import initialise, pointwise, stages


def _stem(channels: int, width: int, image_size: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, *((3, 1, 1) if image_size <= SMALL_IMAGE else (7, 2, 3)), bias=False)


def _stem_pool(image_size: int) -> nn.Module:
    return nn.Identity() if image_size <= SMALL_IMAGE else nn.MaxPool2d(3, 2, 1)


def _wide_stages(
    block: partial[PreActBlock] | partial[SiluBlock], name: str, depth: int, width: int, widening: int
) -> list[nn.Sequential]:
    """Three stages, the blocks of each held under the `name` that published files have."""
    outputs = [width * widening * 2**stage for stage in range(3)]
    found = stages(block, width, outputs, [(depth - 4) // 6] * 3)
    return [nn.Sequential(OrderedDict([(name, stage)])) for stage in found]


class PreActBlock(nn.Module):
    """Two times batch norm, ReLU and a 3×3 convolution, beside a shortcut, which the wide kind calls otherwise."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, early_shortcut: bool = False, wide: bool = False
    ) -> None:
        super().__init__()
        self.early_shortcut = early_shortcut
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = self.convShortcut = None
        if stride > 1 or inputs != outputs:
            convolution = pointwise(inputs, outputs, stride)
            if wide:
                self.convShortcut = convolution
            else:
                self.shortcut = nn.Sequential(convolution)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        shortcut = self.shortcut or self.convShortcut
        beside = x if shortcut is None else shortcut(x if self.early_shortcut else active)
        return self.conv2(self.relu(self.bn2(self.conv1(active)))) + beside


class PreActResNet(nn.Sequential):
    """A residual network with pre-activation: normalised images (N, C, H, W) in, logits (N, classes) out.

    Args:
        depths: blocks in each of the four stages.
        last_norm: whether a batch norm and a ReLU stand before pooling.
        early_shortcut: whether shortcuts begin before the first activation.

    Example:
        >>> import torch
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
        block = partial(PreActBlock, early_shortcut=early_shortcut)
        outputs = [width * 2**stage for stage in range(4)]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(block, width, outputs, depths)
        self.bn = nn.BatchNorm2d(outputs[-1]) if last_norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True) if last_norm else nn.Identity()
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.linear = nn.Linear(outputs[-1], classes)
        initialise(self)


class WideResNet(nn.Sequential):
    """A wide residual network: normalised images (N, C, H, W) in, logits (N, classes) out.

    Args:
        depth: layers, 6 n + 4 for n blocks a stage, as 28 and 34.
        widening: how many times as wide as its base width the first stage is.
        width: channels of the stem. The stages have 1, 2 and 4 times width × widening.

    Example:
        >>> import torch
        >>> WideResNet(10, 2, classes=10, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depth: int, widening: int, *, classes: int, width: int = 16, channels: int = 3, image_size: int = 32
    ) -> None:
        super().__init__()
        self.conv1 = _stem(channels, width, image_size)
        # No identity where there is no pooling: with nothing between, the first batch norm folds into the stem.
        if image_size > SMALL_IMAGE:
            self.maxpool = nn.MaxPool2d(3, 2, 1)
        block = partial(PreActBlock, wide=True)
        self.block1, self.block2, self.block3 = _wide_stages(block, "layer", depth, width, widening)
        self.bn1 = nn.BatchNorm2d(4 * width * widening)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(4 * width * widening, classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)


class SiluBlock(nn.Module):
    """Two times batch norm, SiLU and a 3×3 convolution (of these `names`), beside a shortcut where the shape changes.

    A `plain_shortcut` begins before the first batch norm, with a 3×3 convolution.
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


class SiluWideResNet(nn.Sequential):
    """A wide residual network with SiLU: arguments, images and logits as for `WideResNet`.

    Example:
        >>> import torch
        >>> SiluWideResNet(10, 2, classes=10, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depth: int, widening: int, *, classes: int, width: int = 16, channels: int = 3, image_size: int = 32
    ) -> None:
        super().__init__()
        self.init_conv = _stem(channels, width, image_size)
        self.maxpool = _stem_pool(image_size)
        block = partial(SiluBlock, names=("conv_0", "conv_1"), plain_shortcut=False)
        self.layer = nn.Sequential(*_wide_stages(block, "block", depth, width, widening))
        self.batchnorm = nn.BatchNorm2d(4 * width * widening)
        self.relu = nn.SiLU()
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.logits = nn.Linear(4 * width * widening, classes)


class SiluPreActResNet(nn.Sequential):
    """The narrow kind with SiLU, of four stages: arguments, images and logits as for `PreActResNet`.

    Example:
        >>> import torch
        >>> SiluPreActResNet([1, 1, 1, 1], classes=10, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depths: Sequence[int], *, classes: int, width: int = 64, channels: int = 3, image_size: int = 32
    ) -> None:
        super().__init__()
        self.conv_2d = _stem(channels, width, image_size)
        self.maxpool = _stem_pool(image_size)
        block = partial(SiluBlock, names=("conv_2d_1", "conv_2d_2"), plain_shortcut=True)
        outputs = [width * 2**stage for stage in range(4)]
        self.layer_0, self.layer_1, self.layer_2, self.layer_3 = stages(block, width, outputs, depths)
        self.batchnorm = nn.BatchNorm2d(outputs[-1])
        self.relu = nn.SiLU()
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.logits = nn.Linear(outputs[-1], classes)
