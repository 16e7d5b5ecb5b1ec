"""Resampling images to another size, back-projection, blurring, and feathering the edge of a region.

One small matrix for the rows and one for the columns give exact area averages, the kernels of Pillow, and gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.errors import UnknownNameError, UserError


def resample(images: Tensor, size: tuple[int, int], kernel: str = "bicubic") -> Tensor:
    """Images (N, C, H, W) at another size (h, w), differentiably; values may leave [0, 1] a little.

    The kernel is ``area`` (each pixel is the average of the area that it covers), ``nearest``, ``bilinear``,
    ``bicubic`` or ``lanczos``. The last three are widened where the size shrinks, as in Pillow. A size below one pixel
    is a `UserError`.

    Example:
        >>> resample(torch.tensor([[[[0.0, 1.0, 1.0]]]]), (1, 1), "area").item()
        0.6666666865348816
    """
    if kernel not in KERNELS:
        raise UnknownNameError("kernel", kernel, KERNELS)
    if min(size) < 1:
        raise UserError(f"expected a size of at least 1×1 pixels, got {size[0]}×{size[1]}")
    height, width = images.shape[2:]
    if (height, width) == tuple(size):
        return images
    rows = _matrix(height, size[0], kernel).to(images)
    columns = _matrix(width, size[1], kernel).to(images)
    # The direction that shrinks goes first, which is less work.
    if size[0] * width <= height * size[1]:
        return (rows @ images) @ columns.T
    return rows @ (images @ columns.T)


def back_project(images: Tensor, low: Tensor, *, rounds: int = 1, kernel: str = "bicubic") -> Tensor:
    """Images (N, C, H, W) in [0, 1] whose area averages are nearer to `low` (N, C, h, w) (Irani and Peleg 1991).

    Each round adds the difference between `low` and the averaged image, enlarged by the kernel. With ``area`` one
    round is exact but for clamping, and shows blocks.

    Example:
        >>> low = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> high = back_project(resample(low, (16, 16)).clamp(0, 1), low, rounds=10)
        >>> bool((resample(high, (4, 4), "area") - low).abs().mean() < 1 / 255)
        True
    """
    size = (images.shape[2], images.shape[3])
    for _ in range(rounds):
        missing = low - resample(images, (low.shape[2], low.shape[3]), "area")
        images = (images + resample(missing, size, kernel)).clamp(0, 1)
    return images


def _cubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _lanczos(x: float) -> float:
    if abs(x) >= 3:
        return 0.0
    return 1.0 if x == 0 else 3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2


SMOOTH: dict[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (lambda x: max(0.0, 1 - abs(x)), 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
"""Kernels and their reach in pixels of the input."""

KERNELS = ("area", "nearest", *SMOOTH)


@functools.lru_cache(maxsize=64)
def _matrix(inputs: int, outputs: int, kernel: str) -> Tensor:
    """(outputs, inputs): weights of the input pixels for each output pixel; rows sum to 1."""
    scale = inputs / outputs
    matrix = torch.zeros(outputs, inputs, dtype=torch.float64)
    for place in range(outputs):
        if kernel == "nearest":
            matrix[place, min(inputs - 1, int((place + 0.5) * scale))] = 1
            continue
        if kernel == "area":
            low, high = place * scale, (place + 1) * scale
            first, last = int(low), min(inputs, math.ceil(high))
            weights = [min(high, i + 1) - max(low, i) for i in range(first, last)]
        else:
            function, reach = SMOOTH[kernel]
            widened = max(scale, 1.0)
            centre = (place + 0.5) * scale
            first = max(0, int(centre - reach * widened + 0.5))
            last = min(inputs, int(centre + reach * widened + 0.5))
            weights = [function((i + 0.5 - centre) / widened) for i in range(first, last)]
        row = torch.tensor(weights, dtype=torch.float64)
        matrix[place, first:last] = row / row.sum()
    return matrix.float()


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, W) blurred by a Gaussian of `sigma` pixels, 0 or more. Borders are continued.

    Example:
        >>> blurred(torch.eye(3)[None, None], 0.0).equal(torch.eye(3)[None, None])
        True
    """
    reach = math.ceil(3 * sigma)
    if reach == 0:
        return images
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    for direction in (kernel, kernel.transpose(2, 3)):
        padding = [reach * (direction.shape[3] > 1)] * 2 + [reach * (direction.shape[2] > 1)] * 2
        images = F.conv2d(F.pad(images, padding, mode="replicate"), direction, groups=images.shape[1])
    return images.clamp(0, 1)


def faded(region: Tensor, reach: float) -> Tensor:
    """A region (N, 1, H, W) of 0 and 1 that rises from 0 at its border to 1 within `reach` pixels inwards; within fewer
    where the region is too narrow.

    Example:
        >>> faded(torch.ones(1, 1, 2, 2), 0.0).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
    """
    if len(region) != 1:
        return torch.cat([faded(one[None], reach) for one in region]) if len(region) else region
    while reach > 0.5:
        soft = (2 * blurred(region, reach / 2) - 1).clamp(0, 1) * region
        if soft.amax() > 0.9:
            return soft
        reach /= 2
    return region
