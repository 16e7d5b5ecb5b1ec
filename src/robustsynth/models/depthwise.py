"""A convolution of each channel by itself, which stays fast in bfloat16 on a processor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` of as many groups as channels, with the same parameters and the same function.

    On a processor PyTorch has no fast gradient of a *strided* one in bfloat16: it takes some 15 times as long as in
    float32 (measured: `benchmarks/depthwise.py`, docs/log/benchmarks.md), which made three layers of MobileNetV2 half of
    its training. There it is computed in float32 and rounded after; its arithmetic is next to nothing.

    Args:
        channels: in and out.
        kernel: its side, odd; it is padded by half of that.
        stride: in both directions.

    Example:
        >>> DepthwiseConv2d(8, kernel=3, stride=2)(torch.zeros(1, 8, 6, 6)).shape
        torch.Size([1, 8, 3, 3])
    """

    def __init__(self, channels: int, *, kernel: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ⌈H/stride⌉, ⌈W/stride⌉), in the precision that autocast or the input says."""
        if input.device.type != "cpu" or self.stride == (1, 1):
            return super().forward(input)
        reduced = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if reduced not in (torch.bfloat16, torch.float16):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast("cpu", enabled=False):
            found = F.conv2d(
                input.float(), self.weight.float(), bias, self.stride, self.padding, self.dilation, self.groups
            )
        return found.to(reduced)
