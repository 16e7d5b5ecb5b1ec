"""The small convolutional network for 28×28 digits (the shape of Madry et al. 2018's MNIST network)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Two 5×5 convolutions with max-pooling, one hidden layer: (N, C, H, W) in, logits (N, classes) out.

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
