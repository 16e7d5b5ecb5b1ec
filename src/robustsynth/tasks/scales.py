"""From coarse to fine: the first steps draw on a small canvas that is enlarged to the model's size, the last ones on
the whole picture (a wish of hse2025's)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.constraints import Constraint
from robustsynth.errors import UserError

SMALLEST = 4
"""Pixels of a side below which a canvas holds nothing to draw on."""

COARSE_SHARE = 0.25
"""Of the steps, on canvases smaller than the picture."""


class CoarseToFine:
    """A constraint in which a climb begins on a small canvas and ends on the whole picture.

    Each scale doubles the canvas's side; the coarse ones share the first quarter of the steps. A step on a canvas that
    is enlarged linearly, by E, changes the picture by E·Eᵀ·gradient: this takes just these directions, so that the
    seed's own detail stays, and one ball around the seed holds at every scale.

    It counts its directions to know where in the climb it is, so it is for one run of one batch.

    Args:
        constraint: what pictures may become, such as a ball.
        scales: how many there are; 1 leaves the constraint as it is.
        steps: of the whole climb.

    Example:
        >>> from robustsynth.constraints import Box
        >>> two = CoarseToFine(Box(), scales=2, steps=2)
        >>> grad = torch.zeros(1, 1, 8, 8).index_fill(3, torch.tensor([0]), 1.0)
        >>> [(two.direction(grad)[0, 0, 0] > 0).sum().item() for step in range(2)]
        [3, 1]
    """

    def __init__(self, constraint: Constraint, *, scales: int, steps: int) -> None:
        self.constraint, self.scales, self.taken = constraint, scales, 0
        self.coarse_steps = max(scales - 1, round(steps * COARSE_SHARE)) if scales > 1 else 0

    def direction(self, grad: Tensor) -> Tensor:
        """The steepest direction of length one on this step's canvas."""
        coarse = self.scales - 1
        done = self.taken * coarse // self.coarse_steps if self.taken < self.coarse_steps else coarse
        self.taken += 1
        for dim in (2, 3) if done < coarse else ():
            enlarging = _enlarging(grad.shape[dim], coarse - done).to(grad)
            grad = torch.movedim(torch.movedim(grad, dim, 3) @ enlarging, 3, dim)
        return self.constraint.direction(grad)

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        """As the constraint does."""
        return self.constraint.project(images, center)

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """As the constraint does."""
        return self.constraint.random_start(center, generators)


def check_scales(scales: int, size: int) -> None:
    """Raise a `UserError` where the coarsest canvas of a picture of side `size` is too small.

    Example:
        >>> check_scales(3, 8)
        Traceback (most recent call last):
        robustsynth.errors.UserError: expected scales of 1 to 2 for images of 8 pixels, got 3: the coarsest canvas \
would have 2
    """
    most = 1
    while size >> most >= SMALLEST:
        most += 1
    if scales > most:
        raise UserError(
            f"expected scales of 1 to {most} for images of {size} pixels, got {scales}: the coarsest canvas would "
            f"have {size >> (scales - 1)}"
        )


@functools.cache
def _enlarging(size: int, halvings: int) -> Tensor:
    """E·Eᵀ (size, size) of the linear enlargement of a canvas that was halved so often."""
    small = torch.eye(max(1, size >> halvings))[None]
    enlarged = F.interpolate(small, size=size, mode="linear", align_corners=False)[0]
    return enlarged.T @ enlarged
