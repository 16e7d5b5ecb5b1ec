"""Layers that are PyTorch's own but for a fault or a slowness of its processor library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

LEAST_CHANNELS = 16
"""Input channels from which on PyTorch's own is safe on every processor."""


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` of as many groups as channels, with the same parameters and the same function.

    On a processor PyTorch has no fast gradient of a *strided* one in bfloat16: it takes some 15 times as long as in
    float32, which made three layers of MobileNetV2 half of its training (measured: `benchmarks/depthwise.py`,
    docs/log/benchmarks.md). There it is computed in float32 and rounded after; its arithmetic is next to nothing.

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


def initialise(network: nn.Module) -> None:
    """Draw the weights of all convolutions for ReLUs behind them (He et al. 2015), by the outputs' number.

    Example:
        >>> initialise(nn.Sequential(nn.Conv2d(3, 4, 3)))
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class RowLinear(nn.Linear):
    """A linear layer that gives a row the same numbers wherever in the batch it stands.

    A matrix product of some shapes adds up even and odd rows in another order on some processors (seen: 32 to 3, on an
    Intel Xeon and not on an AMD EPYC), so that an image would depend, by a rounding, on its place in the batch. The
    same sum as a convolution of 1×1 does not.

    Example:
        >>> layer, row = RowLinear(32, 3), torch.rand(1, 32)
        >>> values = layer(row.expand(2, -1).contiguous())
        >>> bool(values[0].equal(values[1]))
        True
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """One with the weights of `linear`."""
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, dtype=linear.weight.dtype)
        made.load_state_dict(linear.state_dict())
        return made.to(linear.weight.device)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 2 or input.dtype != torch.float32 or input.device.type != "cpu":
            return super().forward(input)
        return F.conv2d(input[:, :, None, None], self.weight[:, :, None, None], self.bias).flatten(1)


class Float32Linear(RowLinear):
    """A linear layer that stays in float32 whatever it is given."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())
