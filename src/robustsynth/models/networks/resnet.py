"""Residual networks (He et al. 2016) with torchvision's parameter names, so that published weights load.

Two stems: a 3×3 convolution for images up to 64 pixels, as everybody uses on CIFAR-10, and the 7×7 stride-2
convolution with max-pooling above.

The ``even`` variant is made to be drawn with. A convolution whose side is no multiple of its stride, and a max-pool,
touch some pixels more often than others, and what descends their gradient shows it as a fine checkerboard (Odena et al.
2016, "Deconvolution and checkerboard artifacts"). There, stages shrink by average pooling (as in He et al. 2019's
ResNet-D, in both branches), and the stem is two 4×4 stride-2 convolutions. It also is faster on a processor.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robustsynth.models.card import SMALL_IMAGE
from robustsynth.models.layers import initialise, pointwise, stages


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, even: bool = False) -> None:
        super().__init__()
        self.pool = _pool() if even and stride > 1 else nn.Identity()
        stride = 1 if even else stride
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions beside a shortcut; the stride is on the 3×3, as in torchvision."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, even: bool = False, *, widening: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.pool = _pool() if even and stride > 1 else nn.Identity()
        stride = 1 if even else stride
        inner = widening * width
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Sequential):
    """A residual network: normalised images (N, C, H, W) in, logits (N, classes) out.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks in each of the four stages.
        even: shrink by average pooling, so that every pixel counts alike.
        widening: how many times as wide as usual the 3×3 convolutions of a `Bottleneck` are (Zagoruyko and Komodakis
            2016; torchvision's wide_resnet50_2 has 2).
        grouped: whether they are in groups, of 4 channels each in the first stage, as in ResNeXt's 32x4d (Xie et al.
            2017).

    Example:
        >>> import torch
        >>> ResNet(BasicBlock, [1, 1, 1, 1], classes=10, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        classes: int,
        width: int = 64,
        channels: int = 3,
        image_size: int = 32,
        even: bool = False,
        widening: int = 1,
        grouped: bool = False,
    ) -> None:
        super().__init__()
        small = image_size <= SMALL_IMAGE
        if small:
            self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        elif even:
            self.conv1 = _even_stem(channels, width)
        else:
            self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small or even else nn.MaxPool2d(3, 2, 1)
        inner: dict[str, int] = {}
        if block is Bottleneck:
            inner = {"widening": widening, "groups": max(1, widening * width // 4) if grouped else 1}
        outputs = [width * 2**stage * block.expansion for stage in range(4)]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(
            lambda inputs, outputs, stride: block(inputs, outputs // block.expansion, stride, even, **inner),
            width,
            outputs,
            depths,
        )
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(outputs[-1], classes)
        initialise(self)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(pointwise(inputs, outputs, stride), nn.BatchNorm2d(outputs))


def _even_stem(channels: int, width: int) -> nn.Sequential:
    """To a quarter of the side, each pixel being seen by as many places as any other."""
    first = max(1, width // 2)
    return nn.Sequential(
        nn.Conv2d(channels, first, 4, 2, 1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
        nn.Conv2d(first, width, 4, 2, 1, bias=False),
    )


def _pool() -> nn.AvgPool2d:
    return nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
