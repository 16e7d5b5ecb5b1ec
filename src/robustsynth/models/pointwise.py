"""A strided convolution of single pixels, whose weights' gradient is right for few channels too."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

LEAST_CHANNELS = 16
"""Input channels from which on PyTorch's own is safe on every processor."""


class PointwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` of one pixel, with the same parameters and the same function.

    PyTorch's processor library writes beyond its workspace in the weights' gradient of a strided one in float32 and
    channels-last, where there are fewer input channels than a vector has room for: a crash, or silently a wrong
    gradient (oneDNN issue 6035). Here the pixels that a stride leaves out are left out first.

    Args:
        inputs: channels.
        outputs: channels.
        stride: in both directions.

    Example:
        >>> import torch
        >>> PointwiseConv2d(4, 8, 2)(torch.zeros(1, 4, 6, 6)).shape
        torch.Size([1, 8, 3, 3])
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, outputs, ⌈H/stride⌉, ⌈W/stride⌉)."""
        rows, columns = self.stride
        return F.conv2d(input[..., ::rows, ::columns], self.weight, self.bias)


def pointwise(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """The convolution of a shortcut, without a bias: PyTorch's own wherever that is safe.

    Example:
        >>> type(pointwise(64, 128, 2)).__name__, type(pointwise(4, 8, 2)).__name__
        ('Conv2d', 'PointwiseConv2d')
    """
    if stride == 1 or inputs >= LEAST_CHANNELS:
        return nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return PointwiseConv2d(inputs, outputs, stride)
