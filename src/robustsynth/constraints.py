"""What an image may become: balls around a centre, within the box of valid images.

Each constraint says which way a step of length one goes (`direction`), how to come back after it (`project`)
and how to start at random inside (`random_start`). A new norm is one small class. All sizes are in pixel units
of images in [0, 1] (Santurkar et al. 2019, Appendix A.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robustsynth import randomness
from robustsynth.errors import UserError
from robustsynth.resampling import back_project


class Constraint(Protocol):
    """The three things that the loop asks of a constraint."""

    def direction(self, grad: Tensor) -> Tensor:
        """The steepest direction of length one for each image of `grad` (N, C, H, W)."""
        ...

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        """The nearest allowed images (N, C, H, W), in [0, 1]."""
        ...

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Images drawn uniformly from what is allowed around `center`, one generator an image."""
        ...


def l2_norm(images: Tensor) -> Tensor:
    """The ℓ2 norm of each image of (N, ...), shaped (N, 1, ...) to divide by.

    Example:
        >>> l2_norm(torch.full((2, 1, 2, 2), 0.5)).flatten().tolist()
        [1.0, 1.0]
    """
    norm = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norm.view(-1, *[1] * (images.ndim - 1))


@dataclass(frozen=True)
class L2Ball:
    """Images within Euclidean distance `eps` of their centre, and within [0, 1].

    Example:
        >>> ball = L2Ball(eps=1.0)
        >>> moved = ball.project(torch.ones(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5))
        >>> round(l2_norm(moved - 0.5).item(), 4)
        1.0
    """

    eps: float

    def __post_init__(self) -> None:
        _check_radius(self.eps)

    def direction(self, grad: Tensor) -> Tensor:
        # 1e-10 as in the authors' code: it keeps a zero gradient from dividing by zero.
        return grad / (l2_norm(grad) + 1e-10)

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        offset = images - center
        scale = (self.eps / l2_norm(offset).clamp_min(1e-12)).clamp_max(1.0)
        return torch.addcmul(center, offset, scale).clamp_(0, 1)

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        shape = center.shape[1:]
        offset = randomness.normal(generators, shape).to(center)
        # A uniform radius would crowd the middle: the volume within r grows as r to the number of dimensions.
        radius = torch.stack([torch.rand(1, generator=g) for g in generators]) ** (1 / shape.numel())
        radius = radius.to(center).view(-1, *[1] * len(shape))
        return self.project(center + self.eps * radius * self.direction(offset), center)


@dataclass(frozen=True)
class LinfBall:
    """Images no pixel of which is further than `eps` from its centre, and within [0, 1].

    Example:
        >>> LinfBall(eps=0.25).project(torch.ones(1, 1, 1, 2), torch.tensor([[[[0.5, 0.9]]]])).tolist()
        [[[[0.75, 1.0]]]]
    """

    eps: float

    def __post_init__(self) -> None:
        _check_radius(self.eps)

    def direction(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        return (center + (images - center).clamp(-self.eps, self.eps)).clamp_(0, 1)

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        offset = 2 * randomness.uniform(generators, center.shape[1:]).to(center) - 1
        return self.project(center + self.eps * offset, center)


@dataclass(frozen=True)
class Box:
    """Any image in [0, 1]. Steps have Euclidean length one, as in an ℓ2 ball without an edge.

    Example:
        >>> Box().project(torch.tensor([[[[-1.0, 0.3, 7.0]]]]), torch.zeros(1, 1, 1, 3)).tolist()
        [[[[0.0, 0.30000001192092896, 1.0]]]]
    """

    def direction(self, grad: Tensor) -> Tensor:
        return grad / (l2_norm(grad) + 1e-10)

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        return images.clamp(0, 1)

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return randomness.uniform(generators, center.shape[1:]).to(center)


@dataclass(frozen=True)
class Inside:
    """Only pixels under the mask change, and they as another constraint allows; the rest is the centre's, exactly.

    Args:
        constraint: of what is under the mask.
        mask: (N, 1, H, W), 1 where images may change.

    Example:
        >>> mask = torch.tensor([[[[1.0, 0.0]]]])
        >>> Inside(Box(), mask).project(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)).tolist()
        [[[[1.0, 0.0]]]]
    """

    constraint: Constraint
    mask: Tensor

    def direction(self, grad: Tensor) -> Tensor:
        return self.constraint.direction(grad * self.mask)

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        return torch.where(self.mask > 0, self.constraint.project(images, center), center)

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.where(self.mask > 0, self.constraint.random_start(center, generators), center)


@dataclass(frozen=True)
class Consistent:
    """Images whose area averages stay near a low-resolution one, beside another constraint: each projection ends
    with a round of back-projection.

    Args:
        constraint: the other one.
        low: (N, C, h, w), what averages should give.

    Example:
        >>> low = torch.full((1, 1, 1, 1), 0.25)
        >>> Consistent(Box(), low).project(torch.full((1, 1, 2, 2), 0.75), low.expand(1, 1, 2, 2)).mean().item()
        0.25
    """

    constraint: Constraint
    low: Tensor

    def direction(self, grad: Tensor) -> Tensor:
        return self.constraint.direction(grad)

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        return back_project(self.constraint.project(images, center), self.low)

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return back_project(self.constraint.random_start(center, generators), self.low)


def ball(norm: str, eps: float) -> L2Ball | LinfBall:
    """The ball of a norm by its name on the command line: ``"l2"`` or ``"linf"``.

    Raises:
        UserError: another name, or a radius that is not a positive finite number.

    Example:
        >>> ball("linf", 0.3)
        LinfBall(eps=0.3)
    """
    if norm not in BALLS:
        raise UserError(f"expected a norm of {', '.join(BALLS)}, got {norm!r}")
    return BALLS[norm](eps)


def _check_radius(eps: float) -> None:
    if not (eps >= 0 and eps != float("inf")):
        raise UserError(f"expected a finite radius eps of 0 or more, got {eps}; for no radius at all use Box()")


BALLS = {"l2": L2Ball, "linf": LinfBall}
