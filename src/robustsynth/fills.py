"""What holes are filled with before the loop begins. Pixels under the mask are never read."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.errors import UnknownNameError


def fill(images: Tensor, mask: Tensor, kind: str = "laplace") -> Tensor:
    """Images with what is under the mask replaced; the rest stays exactly as it is.

    Args:
        images: (N, C, H, W) in [0, 1].
        mask: (N, 1, H, W), 1 where to fill.
        kind: ``mean``, each image's mean colour over its known pixels (the paper's), or ``laplace``, the smoothest
            continuation of the hole's border (the solution of Laplace's equation).

    Raises:
        UnknownNameError: another kind.

    Example:
        >>> images, hole = torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
        >>> images[:, :, 1, 1], hole[:, :, 1, 1] = float("nan"), 1
        >>> fill(images, hole, "laplace")[0, 0, 1, 1].item()
        1.0
    """
    if kind not in FILLS:
        raise UnknownNameError("fill", kind, FILLS)
    if not len(images):
        return images
    known = torch.where(mask > 0, torch.zeros_like(images), images)
    return torch.where(mask > 0, FILLS[kind](known, mask).clamp(0, 1), images)


def mean_fill(known: Tensor, mask: Tensor) -> Tensor:
    """Each image's mean per channel over its known pixels (Santurkar et al. 2019, Section 3.2)."""
    weight = (1 - mask).sum((2, 3), keepdim=True)
    return (known.sum((2, 3), keepdim=True) / weight).expand_as(known)


def laplace_fill(known: Tensor, mask: Tensor) -> Tensor:
    """The harmonic continuation of the known pixels, one image at a time, by conjugate gradients inside the hole.

    The picture's edges are free: nothing flows across them.
    """
    return torch.cat([_harmonic(k[None], m[None]) for k, m in zip(known, mask, strict=True)])


def _harmonic(known: Tensor, mask: Tensor, tolerance: float = 1e-6) -> Tensor:
    values = torch.where(mask > 0, mean_fill(known, mask), known)
    residual = -mask * _laplacian(values)
    direction, size = residual.clone(), residual.square().sum()
    start = size.clone()
    for _ in range(4 * sum(known.shape[2:])):
        if size <= tolerance**2 * start or start == 0:
            break
        moved = mask * _laplacian(direction)
        step = size / (direction * moved).sum()
        values, residual = values + step * direction, residual - step * moved
        before, size = size, residual.square().sum()
        direction = residual + size / before * direction
    return values


def _laplacian(images: Tensor) -> Tensor:
    """Each pixel's difference from its four neighbours, added up."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return (
        4 * images
        - padded[:, :, :-2, 1:-1]
        - padded[:, :, 2:, 1:-1]
        - padded[:, :, 1:-1, :-2]
        - padded[:, :, 1:-1, 2:]
    )


FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean_fill, "laplace": laplace_fill}
"""What a hole may start as."""
