"""What to put under a mask before anything better is drawn there.

Each kind of fill goes by the known pixels alone: what stands under the mask is never read, and what stands outside is
never changed. Each image is filled by itself, so that none depends on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.diffusion import box_around, diffuse
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.masks import check_mask

DEFAULT = "edges"

BEAMS = 16
"""Directions into which edges are sorted, and how narrowly each is continued (docs/log/fills.md)."""

ANISOTROPY = 2.5
FLATNESS = 0.03


@torch.no_grad()
def fill(images: Tensor, mask: Tensor, kind: str = DEFAULT) -> Tensor:
    """Fill the masked pixels of images from the others.

    ``"mean"``: each image's mean per channel over its known pixels, as in the paper (Santurkar et al. 2019,
    Appendix A.8, and the authors' notebooks). ``"laplace"``: the harmonic fill, each pixel the mean of its neighbours;
    the edges of the picture are free. ``"edges"``: as that, but along the edges that point into the hole, which it
    continues (`edge_tensors`). docs/log/fills.md compares them.

    Args:
        images: (N, 3, H, W) or (N, 1, H, W) in [0, 1]; anything under the mask, even NaN.
        mask: (N, 1, H, W), or (1, H, W) for all; 1 where to fill.
        kind: one of `FILLS`.

    Returns:
        images of the same shape, dtype and device; outside the mask exactly as they were.

    Raises:
        UnknownNameError: no such kind.
        UserError: not such images, or a mask that does not suit them (`robustsynth.masks.check_mask`).

    Example:
        >>> images = torch.tensor([[[[0.0, 9.0, 1.0, 1.0]]]])
        >>> mask = torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])
        >>> fill(images, mask, "mean")[0, 0, 0, 1].item(), fill(images, mask, "laplace")[0, 0, 0, 1].item()
        (0.6666666865348816, 0.5)
    """
    if kind not in FILLS:
        raise UnknownNameError("fill", kind, FILLS)
    if images.ndim != 4 or not images.is_floating_point():
        raise UserError(
            f"expected images (N, C, H, W) as floats in [0, 1], got {images.dtype} {tuple(images.shape)}; "
            "robustsynth.images.as_tensor makes them of pictures"
        )
    unknown = check_mask(mask, images) > 0
    filled = torch.empty_like(images)
    for index, (image, hole) in enumerate(zip(images, unknown[:, 0], strict=True)):
        # On the CPU in double precision whatever the device: solving has many small steps, and some devices lack it.
        known = torch.where(hole, 0.0, image).cpu().double()
        filled[index] = FILLS[kind](known, hole.cpu()).clamp_(0, 1).to(images.dtype)
    return torch.where(unknown, filled, images)


def _mean(image: Tensor, hole: Tensor) -> Tensor:
    return torch.where(hole, image[:, ~hole].mean(dim=1)[:, None, None], image)


def _edges(image: Tensor, hole: Tensor) -> Tensor:
    margin = max(16, math.ceil(_thickness(hole) / 2))
    rows, columns = box_around(hole, margin=margin)
    near, hole = image[:, rows, columns], hole[rows, columns]
    filled = image.clone()
    filled[:, rows, columns] = diffuse(near, hole, edge_tensors(near, hole))
    return filled


FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "laplace": diffuse, "edges": _edges}
"""Each from (C, H, W) float64 with 0 under the hole, and the hole (H, W) as bool."""


def edge_tensors(image: Tensor, hole: Tensor) -> Tensor | None:
    """How to diffuse so that the edges around a hole go on through it.

    Every place with an edge casts its strength forwards and backwards along the edge, in a narrow beam that fades with
    the cube of the distance (a kind of tensor voting). What arrives at a place adds up to a structure tensor T; there
    pixels are then drawn together along the edge and hardly across it: D = T^-2.5, scaled by the trace to the power
    of 1.5, so that its strength is that of T^-1, and the measured mean square of a gradient becomes its inverse
    weight as for a Gaussian field.

    Args:
        image: (C, H, W), float64.
        hole: (H, W), bool; pixels there are not read.

    Returns:
        (3, H−1, W−1): Dxx, Dxy, Dyy on each cell of 2×2 pixels; None where no cell is wholly known or none has an edge.
    """
    structure, known = _structure(image, hole)
    if not known.any():
        return None
    # Thick holes need only coarse edges; and what is coarser costs less.
    coarse = max(1, round(_thickness(hole) / 32), math.ceil(max(hole.shape) / 320))
    weight = F.avg_pool2d(known[None, None], coarse, ceil_mode=True)[0, 0]
    pooled = F.avg_pool2d((structure * known)[None], coarse, ceil_mode=True)[0] / weight.clamp_min(1e-6)
    arrived = _beams(pooled, weight)
    if coarse > 1:
        height, width = known.shape
        arrived = F.interpolate(arrived[None], scale_factor=coarse, mode="bilinear")[0, :, :height, :width]
    xx, xy, yy = arrived.double().unbind()
    strength = (xx + yy) / 2
    typical = strength[hole[:-1, :-1] | hole[1:, :-1] | hole[:-1, 1:] | hole[1:, 1:]].mean()
    if not typical > 0:
        return None
    # Where nothing arrives every direction is alike.
    xx, xy, yy, strength = xx / typical + FLATNESS, xy / typical, yy / typical + FLATNESS, strength / typical + FLATNESS
    spread = (((xx - yy) / 2) ** 2 + xy**2).sqrt() + 1e-9 * strength
    most, least = strength + spread, (strength - spread).clamp_min(1e-6 * strength)
    across, along = (size**-ANISOTROPY * strength ** (ANISOTROPY - 1) for size in (most, least))
    slope = (across - along) / (most - least)
    return torch.stack([along + slope * (xx - least), slope * xy, along + slope * (yy - least)])


def _thickness(hole: Tensor) -> float:
    """The side of a square hole, about twice the width of a stroke: four times the area by the length of the rim."""
    rim = (hole[1:] ^ hole[:-1]).sum() + (hole[:, 1:] ^ hole[:, :-1]).sum()
    return 4 * float(hole.sum()) / max(float(rim), 1.0)


def _structure(image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient's products xx, xy, yy, summed over channels, and 1 for cells whose four pixels are known."""
    image = image.float()
    top, bottom = image[:, :-1], image[:, 1:]
    to_right = (top[..., 1:] - top[..., :-1] + bottom[..., 1:] - bottom[..., :-1]) / 2
    down = (bottom[..., :-1] - top[..., :-1] + bottom[..., 1:] - top[..., 1:]) / 2
    known = ~(hole[:-1, :-1] | hole[1:, :-1] | hole[:-1, 1:] | hole[1:, 1:])
    products = torch.stack([(a * b).sum(0) for a, b in ((to_right, to_right), (to_right, down), (down, down))])
    return products * known, known.float()


def _beams(structure: Tensor, weight: Tensor) -> Tensor:
    """The structure tensors (3, H, W) that arrive everywhere from the edges of (3, H, W), weighted (H, W)."""
    xx, xy, yy = structure.unbind()
    energy = xx + yy
    gradient = 0.5 * torch.atan2(2 * xy, xx - yy)
    oriented = ((xx - yy) ** 2 + 4 * xy**2).sqrt() / (energy + 1e-9)
    # The root, or the strongest edge alone would decide.
    amount = energy.sqrt() * weight
    height, width = energy.shape
    padded = tuple(-(-2 * side // 16) * 16 for side in (height, width))
    down, right = (torch.fft.fftfreq(side, 1 / side) for side in padded)
    fading = (down[:, None] ** 2 + right**2 + 1) ** -1.5
    direction = torch.atan2(down[:, None], right[None, :].expand(len(down), -1))

    def spread(sources: Tensor, kernel: Tensor) -> Tensor:
        product = torch.fft.rfft2(sources, s=padded) * torch.fft.rfft2(kernel)
        return torch.fft.irfft2(product, s=padded)[:height, :width].clamp_min(0)

    arrived = torch.zeros_like(structure)
    for beam in range(BEAMS):
        angle = math.pi * beam / BEAMS
        share = oriented * (gradient - angle).cos() ** BEAMS / _mean_power(BEAMS) + 1 - oriented
        narrow = fading * (direction - angle).sin() ** (2 * BEAMS)
        narrow[0, 0] = fading[0, 0] / 2
        cast = spread(amount * share / BEAMS, narrow)
        x, y = math.cos(angle), math.sin(angle)
        arrived += torch.stack([x * x * cast, x * y * cast, y * y * cast])
    return arrived / spread(weight, fading).clamp_min(1e-6)


def _mean_power(power: int) -> float:
    """The mean of cos^power over all angles, for even powers."""
    return math.comb(power, power // 2) / 2**power
