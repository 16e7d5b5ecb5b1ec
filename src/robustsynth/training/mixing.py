"""CutMix: rectangles of one image in another, and the labels mixed by area."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cutmix(
    images: Tensor, labels: Tensor, *, classes: int, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images with a rectangle of another image of the batch each, and the shares of their labels.

    Yun et al. 2019, Section 3.1 (α = 1), drawn for each image rather than for the batch: the rectangle has the
    image's aspect, an area uniform in [0, 1] before it is cut off at the border, and a centre uniform in the image.

    Args:
        images: (N, C, H, W).
        labels: (N,) integers.
        classes: number of classes.
        probability: of an image being mixed.
        generator: of the random numbers, on the CPU.

    Returns:
        Images (N, C, H, W), and the labels' shares (N, classes), each the share of the pixels from an image of
        that label.

    Example:
        >>> both = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
        >>> mixed, shares = cutmix(both, torch.tensor([0, 1]), classes=2, probability=1.0,
        ...                        generator=torch.Generator().manual_seed(1))
        >>> torch.allclose(mixed.mean((1, 2, 3)), shares[:, 1])
        True
    """
    count, _, height, width = images.shape
    draw = torch.rand(count, 4, generator=generator)
    partner = torch.randperm(count, generator=generator).to(images.device)
    side = draw[:, 0].sqrt() * (draw[:, 3] < probability)
    inside = _spans(draw[:, 1], side, height)[:, :, None] & _spans(draw[:, 2], side, width)[:, None, :]
    share = inside.float().mean((1, 2)).to(images.device)[:, None]
    mixed = torch.where(inside[:, None].to(images.device), images[partner], images)
    own = F.one_hot(labels, classes).float()
    return mixed, own * (1 - share) + own[partner] * share


def _spans(center: Tensor, share: Tensor, length: int) -> Tensor:
    """(N, length): which of `length` pixels lie within `share`·`length` around `center`·`length`."""
    half = (share * length / 2)[:, None]
    place = torch.arange(length) + 0.5
    return ((place - (center * length)[:, None]).abs() < half) & (share > 0)[:, None]
