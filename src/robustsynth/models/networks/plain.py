"""Networks without shortcuts: VGG with batch norm, and a small one for digits.

VGG (Simonyan and Zisserman 2015) has torchvision's parameter names. Above 64 pixels the network is torchvision's, with
its three linear layers. Up to 64 pixels it has the form that everybody uses on CIFAR-10: the same convolutions, and one
linear layer after the last pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from robustsynth.models.card import SMALL_IMAGE
from robustsynth.models.layers import initialise

WIDENING = (1, 2, 4, 8, 8)
"""Channels of the five stages, in base widths."""


class VGG(nn.Sequential):
    """A VGG network with batch norm: normalised images (N, C, H, W) in, logits (N, classes) out.

    Args:
        depths: convolutions in each of the five stages; (2, 2, 2, 2, 2) is VGG-13.
        width: channels of the first stage. The hidden layers of the large form have 64 times as many.

    Example:
        >>> import torch
        >>> VGG([1, 1, 2, 2, 2], classes=10, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depths: Sequence[int], *, classes: int, width: int = 64, channels: int = 3, image_size: int = 32
    ) -> None:
        super().__init__()
        small = image_size <= SMALL_IMAGE
        layers: list[nn.Module] = []
        inputs = channels
        for depth, widening in zip(depths, WIDENING, strict=True):
            for _ in range(depth):
                layers += [
                    nn.Conv2d(inputs, widening * width, 3, 1, 1),
                    nn.BatchNorm2d(widening * width),
                    nn.ReLU(inplace=True),
                ]
                inputs = widening * width
            # Rounded up, five poolings leave at least one place of images of any size, such as MNIST's 28 pixels.
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=small))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1 if small else 7)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(inputs, classes) if small else _large_head(inputs * 49, 64 * width, classes)
        initialise(self, linear_std=0.01)


def _large_head(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(hidden, classes),
    )


class SmallCNN(nn.Sequential):
    """Two 5×5 convolutions with max-pooling, one hidden layer: (N, C, H, W) in, logits (N, classes) out.

    The shape of Madry et al. 2018's MNIST network. The second convolution has twice as many channels as the first,
    the hidden layer eight times as many. The side of the images is a multiple of 4.

    Example:
        >>> import torch
        >>> SmallCNN(classes=10, width=4)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, classes: int, width: int = 32, channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool1 = _convolution(channels, width)
        self.conv2, self.relu2, self.pool2 = _convolution(width, 2 * width)
        self.flatten = nn.Flatten()
        self.fc1, self.relu3 = nn.Linear(2 * width * (image_size // 4) ** 2, 8 * width), nn.ReLU(inplace=True)
        self.fc = nn.Linear(8 * width, classes)


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)
