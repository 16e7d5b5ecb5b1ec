"""Networks without shortcuts: VGG with batch norm, and a small one for digits.

VGG (Simonyan and Zisserman 2015) has torchvision's parameter names. Above 64 pixels the network is torchvision's, with
its three linear layers. Up to 64 pixels it has the form that everybody uses on CIFAR-10: the same convolutions, and one
linear layer after the last pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustsynth.models.card import SMALL_IMAGE

WIDENING = (1, 2, 4, 8, 8)
"""Channels of the five stages, in base widths."""


class VGG(nn.Module):
    """A VGG network with batch norm: normalised images (N, C, H, W) in, logits (N, classes) out.

    Args:
        depths: convolutions in each of the five stages; (2, 2, 2, 2, 2) is VGG-13.
        classes: number of logits.
        width: channels of the first stage; 64 is standard. The hidden layers of the large form have 64 times as many.
        channels: channels of the images.
        image_size: side of the images in pixels, which chooses the head.

    Example:
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
        self.classifier = nn.Linear(inputs, classes) if small else _large_head(inputs * 49, 64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


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


class SmallCNN(nn.Module):
    """Two 5×5 convolutions with max-pooling, one hidden layer: (N, C, H, W) in, logits (N, classes) out.

    The shape of Madry et al. 2018's MNIST network.

    Args:
        classes: number of logits.
        width: channels of the first convolution; the second has twice, the hidden layer eight times as many.
        channels: channels of the images.
        image_size: side of the images in pixels, a multiple of 4.

    Example:
        >>> SmallCNN(classes=10, width=4)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, classes: int, width: int = 32, channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, 2 * width, 5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Linear(2 * width * (image_size // 4) ** 2, 8 * width)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        return self.fc(self.relu(self.fc1(torch.flatten(x, 1))))
