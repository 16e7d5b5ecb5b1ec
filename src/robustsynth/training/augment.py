"""Random crops, mirror images and colours, for whole batches on the device that trains."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.training.settings import TrainSettings
from robustsynth.training.workers import Rows, own, total_of


def augment(
    images: Tensor,
    settings: TrainSettings,
    generator: torch.Generator,
    *,
    side: int | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """Random views (N, C, H, W) of images in [0, 1], all drawn from one CPU generator.

    Args:
        images: (N, C, h, w).
        settings: which views.
        generator: of the random numbers.
        side: H and W of ``resized`` crops; those of the images where None.
        rows: which of a larger batch `images` are: numbers are drawn for all of that.

    Example:
        >>> views = augment(torch.rand(4, 3, 8, 8), TrainSettings(), torch.Generator().manual_seed(0))
        >>> views.shape
        torch.Size([4, 3, 8, 8])
    """
    if settings.crop == "pad":
        images = _padded_crop(images, max(1, images.shape[-1] // 8), settings.flip, generator, rows)
    elif settings.crop == "resized":
        images = _resized_crop(images, settings, generator, side or images.shape[-1], rows)
    elif settings.flip:
        mirrored = own(torch.rand(total_of(images, rows), generator=generator) < 0.5, rows).to(images.device)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if settings.jitter:
        images = _jitter(images, settings.jitter, generator, rows)
    return images


def _padded_crop(images: Tensor, padding: int, flip: bool, generator: torch.Generator, rows: Rows | None) -> Tensor:
    """Crops of the reflected-padded images at random places: one gather for the whole batch."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    drawn = total_of(images, rows)
    corner = own(torch.randint(0, 2 * padding + 1, (drawn, 2), generator=generator), rows).to(images.device)
    mirrored = own(torch.rand(drawn, generator=generator) < 0.5, rows).to(images.device) & flip
    across = torch.arange(width, device=images.device)
    down = corner[:, :1] + torch.arange(height, device=images.device)
    columns = corner[:, 1:] + torch.where(mirrored[:, None], across.flip(0), across)
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, down[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _resized_crop(
    images: Tensor, settings: TrainSettings, generator: torch.Generator, side: int, rows: Rows | None
) -> Tensor:
    """Crops of some share of the area and aspect 3:4 to 4:3, brought to `side` bilinearly."""
    count, channels = images.shape[:2]
    draw = own(torch.rand(total_of(images, rows), 5, generator=generator), rows).to(images.device)
    area = settings.crop_area + (1 - settings.crop_area) * draw[:, 0]
    aspect = torch.exp((2 * draw[:, 1] - 1) * math.log(4 / 3))
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    left, top = (2 * draw[:, 2] - 1) * (1 - wide), (2 * draw[:, 3] - 1) * (1 - high)
    mirror = torch.where((draw[:, 4] < 0.5) & settings.flip, -1.0, 1.0)
    zero = torch.zeros_like(wide)
    affine = torch.stack([torch.stack([wide * mirror, zero, left], 1), torch.stack([zero, high, top], 1)], 1)
    grid = F.affine_grid(affine, [count, channels, side, side], align_corners=False)
    views = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return views.clamp(0, 1)  # Rounded weights may add up to a little more than one.


def _jitter(images: Tensor, strength: float, generator: torch.Generator, rows: Rows | None) -> Tensor:
    draw = own(torch.rand(total_of(images, rows), 3, 1, 1, 1, generator=generator), rows).to(images.device)
    factor = 1 + strength * (2 * draw - 1)
    brightness, contrast, saturation = factor.unbind(1)
    images = images * brightness
    middle = images.mean((1, 2, 3), keepdim=True)
    images = middle + (images - middle) * contrast
    grey = images.mean(1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp(0, 1)
