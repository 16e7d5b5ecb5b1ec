"""Blurred pictures and regions with soft borders."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def softened(images: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, W) blurred by a Gaussian of `sigma` pixels, borders continued; 0 leaves them as they are.

    Example:
        >>> softened(torch.eye(3)[None, None], 0.0).equal(torch.eye(3)[None, None])
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
    """A region (N, 1, H, W) of 0 and 1 that rises from 0 at its border to 1 within `reach` pixels, inwards; within
    fewer where the region is too narrow for that.

    Example:
        >>> faded(torch.ones(1, 1, 2, 2), 0.0).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
    """
    return torch.cat([_faded_one(one[None], reach) for one in region]) if len(region) else region


def _faded_one(region: Tensor, reach: float) -> Tensor:
    while reach > 0.5:
        soft = (2 * softened(region, reach / 2) - 1).clamp(0, 1) * region
        if soft.amax() > 0.9:
            return soft
        reach /= 2
    return region
