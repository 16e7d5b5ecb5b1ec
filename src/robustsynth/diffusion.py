"""Unknown pixels from known ones: the picture that minimises an energy of differences between neighbours.

The energy is Σ w_pq (u_p − u_q)² over neighbouring pixels p and q, which is ∫ ∇uᵀ D ∇u on the grid. With D = 1 its
minimum is the solution of Laplace's equation, each unknown pixel the mean of its neighbours; with a tensor D a pixel is
drawn more to its neighbours along one direction than along another. Known pixels hold their values, the edges of
the picture are free (Neumann). Moderate holes are solved exactly, row by row; larger ones from their own solution at
half the resolution on, by conjugate gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DIRECT = 2**24
"""The largest rows × columns² that is solved directly: two matrices of columns² are kept a row, 256 MiB here."""

PRECISION = 1e-5
"""Conjugate gradients stop when no pixel differs by more from the weighted mean of its neighbours; and they end…"""

ITERATIONS = 2000
"""…here at the latest: what is wrong then is only what hardly costs energy."""


class Weights(NamedTuple):
    """How strongly neighbours attract each other: to the right (H, W−1), below (H−1, W), and across each cell of four
    pixels (H−1, W−1), downwards to the right (`falling`) and to the left (`rising`). Diagonal ones may be negative."""

    right: Tensor
    below: Tensor
    falling: Tensor
    rising: Tensor

    def turned(self) -> Weights:
        """The weights of the transposed picture."""
        right, below, falling, rising = (each.T.contiguous() for each in self)
        return Weights(right=below, below=right, falling=falling, rising=rising)


def diffuse(values: Tensor, unknown: Tensor, tensors: Tensor | None = None) -> Tensor:
    """Fill the unknown pixels of one picture with those of least energy.

    Args:
        values: (C, H, W), float64; what stands at unknown pixels is not read.
        unknown: (H, W), bool; at least one pixel must be known.
        tensors: (3, H−1, W−1): D as Dxx, Dxy, Dyy on each cell of 2×2 pixels, positive definite; None for 1.

    Returns:
        (C, H, W), float64, the known pixels as they were.

    Example:
        >>> row = torch.tensor([[[0.0, float("nan"), float("nan"), 0.9]]], dtype=torch.float64)
        >>> diffuse(row, row[0].isnan()).flatten().round(decimals=6).tolist()
        [0.0, 0.3, 0.6, 0.9]
    """
    if not unknown.any():
        return values.clone()
    rows, columns = box_around(unknown, margin=1)
    inner = torch.where(unknown, 0.0, values)[:, rows, columns]
    if tensors is not None:
        tensors = tensors[:, rows.start : rows.stop - 1, columns.start : columns.stop - 1]
    result = values.clone()
    result[:, rows, columns] = _solve(inner, unknown[rows, columns], tensors)
    return result


def box_around(chosen: Tensor, *, margin: int) -> tuple[slice, slice]:
    """The rows and columns of the smallest box around the pixels that are true in `chosen` (H, W), and `margin` more
    on each side as far as the picture goes.

    Example:
        >>> box_around(torch.eye(4, dtype=torch.bool)[:, :2], margin=1)
        (slice(0, 3, None), slice(0, 2, None))
    """
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
        return _solve_by_rows(values.mT, unknown.T, weights.turned()).mT
    known = (~unknown).to(values)
    share = F.avg_pool2d(known[None], 2, ceil_mode=True)[0]
    coarse = F.avg_pool2d(values * known, 2, ceil_mode=True) / share.clamp_min(0.25)
    # A coarse cell lies between two coarse pixels, where every second fine one does.
    solved = diffuse(coarse, share == 0, None if tensors is None else tensors[:, 1::2, 1::2])
    start = F.interpolate(solved[None], scale_factor=2, mode="bilinear")[0, :, :height, :width]
    return _solve_by_conjugate_gradients(torch.where(unknown, start, values), unknown, weights)


def _weights(values: Tensor, tensors: Tensor | None) -> Weights:
    height, width = values.shape[1:]
    if tensors is None:
        right, below = values.new_ones(height, width - 1), values.new_ones(height - 1, width)
        across = values.new_zeros(height - 1, width - 1)
        return Weights(right, below, across, across)
    along, cross, down = tensors.to(values).unbind()
    # The picture goes on mirrored beyond its edge, hence cells do too.
    above_and_below = F.pad(along[None], (0, 0, 1, 1), mode="replicate")[0]
    left_and_right = F.pad(down[None], (1, 1, 0, 0), mode="replicate")[0]
    right = (above_and_below[:-1] + above_and_below[1:]) / 2
    below = (left_and_right[:, :-1] + left_and_right[:, 1:]) / 2
    # 2 Dxy ∂x ∂y, both averaged over the cell, is Dxy / 2 times the difference of its squared diagonals.
    return Weights(right, below, cross / 2, -cross / 2)


def _pull(values: Tensor, weights: Weights) -> Tensor:
    """Half the gradient of the energy: Σ w_pq (u_p − u_q) at each pixel p of (C, H, W)."""
    pull = torch.zeros_like(values)
    for weight, here, there in (
        (weights.right, (slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        (weights.below, (slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        (weights.falling, (slice(None, -1), slice(None, -1)), (slice(1, None), slice(1, None))),
        (weights.rising, (slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))),
    ):
        difference = weight * (values[(..., *here)] - values[(..., *there)])
        pull[(..., *here)] += difference
        pull[(..., *there)] -= difference
    return pull


def _degrees(weights: Weights) -> Tensor:
    right, below, falling, rising = weights
    return (
        F.pad(right, (0, 1))
        + F.pad(right, (1, 0))
        + F.pad(below, (0, 0, 0, 1))
        + F.pad(below, (0, 0, 1, 0))
        + F.pad(falling, (0, 1, 0, 1))
        + F.pad(falling, (1, 0, 1, 0))
        + F.pad(rising, (1, 0, 0, 1))
        + F.pad(rising, (0, 1, 1, 0))
    )


def _solve_by_rows(values: Tensor, unknown: Tensor, weights: Weights) -> Tensor:
    """Block elimination: a row of pixels is tied to the next row only, so its matrix is factored, and what that
    leaves of the coupling is passed on to the next. `values` must be 0 where unknown."""
    free = unknown.to(values)
    target = (-_pull(values, weights) * free).permute(1, 2, 0)
    degrees = _degrees(weights) * free + (1 - free)
    factors: list[Tensor] = []
    couplings: list[Tensor] = []
    known_part: list[Tensor] = []
    for row in range(len(unknown)):
        here = free[row]
        beside = -weights.right[row] * here[:-1] * here[1:]
        matrix = torch.diag(degrees[row]) + torch.diag(beside, 1) + torch.diag(beside, -1)
        right_side = target[row]
        if row:
            matrix = matrix - couplings[-1].T @ couplings[-1]
            right_side = right_side - couplings[-1].T @ known_part[-1]
        factor = torch.linalg.cholesky(matrix)
        factors.append(factor)
        known_part.append(torch.linalg.solve_triangular(factor, right_side, upper=False))
        if row + 1 < len(unknown):
            tie = torch.diag(-weights.below[row])
            tie = tie + torch.diag(-weights.falling[row], 1) + torch.diag(-weights.rising[row], -1)
            tie = tie * here[:, None] * free[row + 1][None, :]
            couplings.append(torch.linalg.solve_triangular(factor, tie, upper=False))
    solved = known_part
    for row in reversed(range(len(unknown))):
        rest = solved[row] if row + 1 == len(unknown) else solved[row] - couplings[row] @ solved[row + 1]
        solved[row] = torch.linalg.solve_triangular(factors[row].T, rest, upper=True)
    return torch.where(unknown, torch.stack(solved).permute(2, 0, 1), values)


def _solve_by_conjugate_gradients(values: Tensor, unknown: Tensor, weights: Weights) -> Tensor:
    """From `values` on, one channel as independent of the others as pictures are."""
    free = unknown.to(values)
    scale = free / _degrees(weights)
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
