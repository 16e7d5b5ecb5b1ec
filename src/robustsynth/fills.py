"""Fills: pixels that are put under a mask before the classifier draws there.

A fill never reads what is under the mask, and never changes what is outside. No image depends on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.masks import check_mask

DEFAULT = "edges"

BEAMS = 16
"""Number of directions of edges; with more, each is continued more narrowly (docs/log/fills.md)."""

ANISOTROPY = 2.5
FLATNESS = 0.03

DIRECT = 2**24
"""The largest rows × columns² that is solved directly, which takes 256 MiB: two matrices of columns² for each row."""

PRECISION, ITERATIONS = 1e-5, 2000
"""Conjugate gradients stop when no pixel differs by more from the weighted mean of its neighbours, or after so many
iterations."""


@torch.no_grad()
def fill(images: Tensor, mask: Tensor, kind: str = DEFAULT) -> Tensor:
    """Fill the masked pixels of images from the others.

    ``"mean"``: each image's mean per channel over its known pixels, as in the paper (Santurkar et al. 2019,
    Appendix A.8, and the authors' notebooks). ``"laplace"``: each pixel is the mean of its neighbours. ``"edges"``:
    likewise, but edges that point into the hole are continued (`edge_tensors`). docs/log/fills.md compares them.
    Shape, dtype and device stay. Images of another form, and a mask that does not fit them, are a `UserError`.

    Args:
        images: (N, C, H, W) in [0, 1]; any values under the mask, even NaN.
        mask: as for `robustsynth.masks.check_mask`, 1 where to fill.
        kind: one of `FILLS`.

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
            "robustsynth.images.as_images makes them of anything"
        )
    unknown = check_mask(mask, images) > 0
    filled = torch.empty_like(images)
    for index, (image, hole) in enumerate(zip(images, unknown[:, 0], strict=True)):
        # On the CPU, because there are many small steps, and in double precision, which some devices lack.
        known = torch.where(hole, 0.0, image).cpu().double()
        filled[index] = FILLS[kind](known, hole.cpu()).clamp_(0, 1).to(images.dtype)
    return torch.where(unknown, filled, images)


def _mean(image: Tensor, hole: Tensor) -> Tensor:
    return torch.where(hole, image[:, ~hole].mean(dim=1)[:, None, None], image)


def _edges(image: Tensor, hole: Tensor) -> Tensor:
    margin = max(16, math.ceil(_thickness(hole) / 2))
    rows, columns = _box_around(hole, margin=margin)
    near, hole = image[:, rows, columns], hole[rows, columns]
    filled = image.clone()
    filled[:, rows, columns] = diffuse(near, hole, edge_tensors(near, hole))
    return filled


def edge_tensors(image: Tensor, hole: Tensor) -> Tensor | None:
    """Diffusion tensors D for `diffuse` that continue the edges around a hole through it.

    Each edge casts its strength forwards and backwards along its direction, in a narrow beam that fades with the cube
    of the distance (a kind of tensor voting). The beams that arrive at a place add up to a structure tensor T. Pixels
    are to be alike along the edge and hardly across it: D = T^-2.5 · trace^1.5, which has the strength of T^-1: the
    inverse weight of a gradient is its mean square, as for a Gaussian field.

    The image is (C, H, W), float64, the hole (H, W), bool. The result is (3, H−1, W−1): Dxx, Dxy, Dyy on each cell of
    2×2 pixels; None where no cell is wholly known or none has an edge.
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
    """The structure tensors (3, H, W) that arrive at each place from edges (3, H, W) of weights (H, W)."""
    xx, xy, yy = structure.unbind()
    energy = xx + yy
    gradient = 0.5 * torch.atan2(2 * xy, xx - yy)
    oriented = ((xx - yy) ** 2 + 4 * xy**2).sqrt() / (energy + 1e-9)
    # Without the root the strongest edge alone would decide.
    amount = energy.sqrt() * weight
    height, width = energy.shape
    padded = tuple(-(-2 * side // 16) * 16 for side in (height, width))
    down, right = (torch.fft.fftfreq(side, 1 / side) for side in padded)
    fading = (down[:, None] ** 2 + right**2 + 1) ** -1.5
    direction = torch.atan2(down[:, None], right[None, :].expand(len(down), -1))

    def spread(sources: Tensor, kernel: Tensor) -> Tensor:
        product = torch.fft.rfft2(sources, s=padded) * torch.fft.rfft2(kernel)
        return torch.fft.irfft2(product, s=padded)[:height, :width].clamp_min(0)

    mean_power = math.comb(BEAMS, BEAMS // 2) / 2**BEAMS  # of the cosine, over all angles
    arrived = torch.zeros_like(structure)
    for beam in range(BEAMS):
        angle = math.pi * beam / BEAMS
        share = oriented * (gradient - angle).cos() ** BEAMS / mean_power + 1 - oriented
        narrow = fading * (direction - angle).sin() ** (2 * BEAMS)
        narrow[0, 0] = fading[0, 0] / 2
        cast = spread(amount * share / BEAMS, narrow)
        x, y = math.cos(angle), math.sin(angle)
        arrived += torch.stack([x * x * cast, x * y * cast, y * y * cast])
    return arrived / spread(weight, fading).clamp_min(1e-6)


def diffuse(values: Tensor, unknown: Tensor, tensors: Tensor | None = None) -> Tensor:
    """Fill the unknown pixels of one image so that the differences between neighbours have the least energy.

    The energy is Σ w_pq (u_p − u_q)² over neighbouring pixels p and q, which is ∫ ∇uᵀ D ∇u on the grid. With D = 1 each
    unknown pixel becomes the mean of its neighbours (Laplace's equation); a tensor D pulls more along one direction
    than along another. The image continues freely at its edges (Neumann). Moderate holes are solved exactly, row by
    row; larger ones by conjugate gradients, which start from the solution at half the resolution. Values, (C, H, W)
    and float64, stay as they are where they are known.

    Args:
        values: of the pixels; unknown ones are not read.
        unknown: (H, W), bool; at least one pixel must be known.
        tensors: (3, H−1, W−1): D as Dxx, Dxy, Dyy on each cell of 2×2 pixels, positive definite; None for 1.

    Example:
        >>> row = torch.tensor([[[0.0, float("nan"), float("nan"), 0.9]]], dtype=torch.float64)
        >>> diffuse(row, row[0].isnan()).flatten().round(decimals=6).tolist()
        [0.0, 0.3, 0.6, 0.9]
    """
    if not unknown.any():
        return values.clone()
    rows, columns = _box_around(unknown, margin=1)
    inner = torch.where(unknown, 0.0, values)[:, rows, columns]
    if tensors is not None:
        tensors = tensors[:, rows.start : rows.stop - 1, columns.start : columns.stop - 1]
    result = values.clone()
    result[:, rows, columns] = _solve(inner, unknown[rows, columns], tensors)
    return result


def _box_around(chosen: Tensor, *, margin: int) -> tuple[slice, slice]:
    """The rows and columns of the smallest box around what is true in `chosen` (H, W), with a margin on each side."""
    sides = []
    for axis in (1, 0):
        at = chosen.any(dim=axis).nonzero().flatten()
        sides.append(slice(max(int(at[0]) - margin, 0), min(int(at[-1]) + 1 + margin, chosen.shape[1 - axis])))
    return sides[0], sides[1]


def _solve(values: Tensor, unknown: Tensor, tensors: Tensor | None) -> Tensor:
    weights = _weights(values, tensors)
    height, width = unknown.shape
    if max(height, width) * min(height, width) ** 2 <= DIRECT:
        if width <= height:
            return _solve_by_rows(values, unknown, weights)
        right, below, falling, rising = (each.T.contiguous() for each in weights)
        return _solve_by_rows(values.mT, unknown.T, (below, right, falling, rising)).mT
    known = (~unknown).to(values)
    share = F.avg_pool2d(known[None], 2, ceil_mode=True)[0]
    coarse = F.avg_pool2d(values * known, 2, ceil_mode=True) / share.clamp_min(0.25)
    # A coarse cell lies between two coarse pixels, where every second fine one does.
    solved = diffuse(coarse, share == 0, None if tensors is None else tensors[:, 1::2, 1::2])
    start = F.interpolate(solved[None], scale_factor=2, mode="bilinear")[0, :, :height, :width]
    return _solve_by_conjugate_gradients(torch.where(unknown, start, values), unknown, weights)


Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""w_pq of neighbours: to the right (H, W−1), below (H−1, W), and across each cell of four pixels (H−1, W−1): downwards
to the right, and downwards to the left. The last two may be negative."""

_BUT_LAST, _BUT_FIRST = slice(None, -1), slice(1, None)
_PAIRS = (
    ((slice(None), _BUT_LAST), (slice(None), _BUT_FIRST)),
    ((_BUT_LAST, slice(None)), (_BUT_FIRST, slice(None))),
    ((_BUT_LAST, _BUT_LAST), (_BUT_FIRST, _BUT_FIRST)),
    ((_BUT_LAST, _BUT_FIRST), (_BUT_FIRST, _BUT_LAST)),
)
"""The rows and columns of the pixels p and q of each of the `Weights`."""


def _weights(values: Tensor, tensors: Tensor | None) -> Weights:
    height, width = values.shape[1:]
    if tensors is None:
        across = values.new_zeros(height - 1, width - 1)
        return values.new_ones(height, width - 1), values.new_ones(height - 1, width), across, across
    along, cross, down = tensors.to(values).unbind()
    # The image continues mirrored beyond its edges, and so do the cells.
    above_and_below = F.pad(along[None], (0, 0, 1, 1), mode="replicate")[0]
    left_and_right = F.pad(down[None], (1, 1, 0, 0), mode="replicate")[0]
    right = (above_and_below[:-1] + above_and_below[1:]) / 2
    below = (left_and_right[:, :-1] + left_and_right[:, 1:]) / 2
    # 2 Dxy ∂x ∂y, both averaged over the cell, is Dxy / 2 times the difference of its squared diagonals.
    return right, below, cross / 2, -cross / 2


def _pull(values: Tensor, weights: Weights) -> Tensor:
    """Half the gradient of the energy: Σ w_pq (u_p − u_q) at each pixel p of (C, H, W)."""
    pull = torch.zeros_like(values)
    for weight, (here, there) in zip(weights, _PAIRS, strict=True):
        difference = weight * (values[(..., *here)] - values[(..., *there)])
        pull[(..., *here)] += difference
        pull[(..., *there)] -= difference
    return pull


def _degrees(unknown: Tensor, weights: Weights) -> Tensor:
    """Σ w_pq at each pixel p of (H, W)."""
    degrees = weights[0].new_zeros(unknown.shape)
    for weight, (here, there) in zip(weights, _PAIRS, strict=True):
        degrees[here] += weight
        degrees[there] += weight
    return degrees


def _solve_by_rows(values: Tensor, unknown: Tensor, weights: Weights) -> Tensor:
    """Block Cholesky factorisation, because a row of pixels is coupled to the next row only. `values` must be 0 where
    unknown."""
    right, below, falling, rising = weights
    free = unknown.to(values)
    target = (-_pull(values, weights) * free).permute(1, 2, 0)
    degrees = _degrees(unknown, weights) * free + (1 - free)
    factors, couplings, known_part = [], [], []
    for row in range(len(unknown)):
        here = free[row]
        beside = -right[row] * here[:-1] * here[1:]
        matrix = torch.diag(degrees[row]) + torch.diag(beside, 1) + torch.diag(beside, -1)
        right_side = target[row]
        if row:
            matrix = matrix - couplings[-1].T @ couplings[-1]
            right_side = right_side - couplings[-1].T @ known_part[-1]
        factor = torch.linalg.cholesky(matrix)
        factors.append(factor)
        known_part.append(torch.linalg.solve_triangular(factor, right_side, upper=False))
        if row + 1 < len(unknown):
            tie = torch.diag(-below[row]) + torch.diag(-falling[row], 1) + torch.diag(-rising[row], -1)
            tie = tie * here[:, None] * free[row + 1][None, :]
            couplings.append(torch.linalg.solve_triangular(factor, tie, upper=False))
    solved = known_part
    for row in reversed(range(len(unknown))):
        rest = solved[row] if row + 1 == len(unknown) else solved[row] - couplings[row] @ solved[row + 1]
        solved[row] = torch.linalg.solve_triangular(factors[row].T, rest, upper=True)
    return torch.where(unknown, torch.stack(solved).permute(2, 0, 1), values)


def _solve_by_conjugate_gradients(values: Tensor, unknown: Tensor, weights: Weights) -> Tensor:
    """From the start `values`, each channel by itself."""
    free = unknown.to(values)
    scale = free / _degrees(unknown, weights)
    residual = -_pull(values, weights) * free
    scaled = residual * scale
    direction, energy = scaled, (residual * scaled).sum((1, 2), keepdim=True)
    for _ in range(ITERATIONS):
        if float(scaled.abs().max()) < PRECISION:
            break
        pulled = _pull(direction, weights) * free
        length = energy / (direction * pulled).sum((1, 2), keepdim=True).clamp_min(1e-300)
        values = values + length * direction
        residual = residual - length * pulled
        scaled = residual * scale
        before, energy = energy, (residual * scaled).sum((1, 2), keepdim=True)
        direction = scaled + energy / before.clamp_min(1e-300) * direction
    return values


FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "laplace": diffuse, "edges": _edges}
"""Functions of an image (C, H, W), float64 with 0 under the hole, and of the hole (H, W), bool."""
