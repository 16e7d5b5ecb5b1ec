"""From coarse to fine: the first steps draw on a small canvas that is enlarged to the model's size, the last ones on
the whole picture (a wish of hse2025's)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.constraints import Constraint, ball
from robustsynth.errors import UserError

SMALLEST = 4
"""Pixels of a side below which a canvas holds nothing to draw on."""


class CoarseToFine:
    """A ball in which the steps of a climb go from a small canvas to the whole picture.

    Each scale doubles the canvas's side and has the same number of steps. A step on a canvas that is enlarged
    linearly, by E, changes the picture by E·Eᵀ·gradient: this takes just these directions, so that the seed's own
    detail stays, and one ball around the seed holds at every scale. The ball's radius is shared out: after the steps of
    k scales of n, a picture is at most k/n of it away.

    It counts its directions to know where in the climb it is, so it is for one run of one batch.

    Args:
        norm: of the ball, ``l2`` or ``linf``.
        eps: its radius at the end.
        scales: how many there are; 1 is the plain ball.
        steps: of the whole climb.

    Example:
        >>> two = CoarseToFine("l2", 1.0, scales=2, steps=2)
        >>> grad = torch.zeros(1, 1, 8, 8).index_fill(3, torch.tensor([0]), 1.0)
        >>> [(two.direction(grad)[0, 0, 0] > 0).sum().item() for step in range(2)]
        [3, 1]
    """

    def __init__(self, norm: str, eps: float, *, scales: int, steps: int) -> None:
        self.scales, self.steps, self.taken = scales, steps, 0
        self.balls: list[Constraint] = [ball(norm, eps * (scale + 1) / scales) for scale in range(scales)]

    def direction(self, grad: Tensor) -> Tensor:
        """The steepest direction of length one on this step's canvas."""
        self.taken += 1
        halvings = self.scales - 1 - self._scale()
        for dim in (2, 3) if halvings else ():
            grad = torch.movedim(torch.movedim(grad, dim, 3) @ _enlarging(grad.shape[dim], halvings).to(grad), 3, dim)
        return self.balls[self._scale()].direction(grad)

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        """The nearest images within this scale's share of the radius."""
        return self.balls[self._scale()].project(images, center)

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """As in the whole ball."""
        return self.balls[-1].random_start(center, generators)

    def _scale(self) -> int:
        """The scale of the latest step, 0 for the coarsest."""
        return max(0, self.taken - 1) * self.scales // max(1, self.steps)


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
