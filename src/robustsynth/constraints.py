"""Constraints on images: balls around a centre, one class a norm, within the box of valid images.

All sizes are in pixel units of images in [0, 1] (Santurkar et al. 2019, Appendix A.1).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from robustsynth import randomness
from robustsynth.errors import UserError
from robustsynth.resampling import back_project


class Constraint(Protocol):
    """The three things that the loop asks of a constraint."""

    @abstractmethod
    def direction(self, grad: Tensor) -> Tensor:
        """The steepest direction of length one for each image of `grad` (N, C, H, W)."""

    @abstractmethod
    def project(self, images: Tensor, center: Tensor) -> Tensor:
        """The nearest allowed images (N, C, H, W), in [0, 1]."""

    @abstractmethod
    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Images drawn from what is allowed around `center`, one generator an image."""


def l2_norm(images: Tensor) -> Tensor:
    """The ℓ2 norm of each image of (N, ...), shaped (N, 1, ...) to divide by."""
    norm = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norm.view(-1, *[1] * (images.ndim - 1))


@dataclass(frozen=True)
class Ball(Constraint):
    """Images within `eps` of their centre in some norm, and within [0, 1]: the base of a threat model.

    A new threat model is a subclass with `register_norm` before it, in any file. It has `name`, `growth` and the
    methods `length`, `direction` and `project`; the other facts have defaults.

    Attributes:
        eps: the radius, 0 or more and finite.
        name: of the norm on the command line and in files.
        growth: a radius grows as the number of an image's values to this power, where all change alike: 1/p for ℓp.
        usual_eps: the radius that classifiers of 32×32 images are usually trained for; None where there is none.
        usual_drawing: a radius and a step size to begin with when images are drawn; None where none are known.
        single_step: length in radii of the only step of one-step adversarial training, if that starts at random; None
            where it starts from the image itself, with the preset's share of the radius.
        attacks: the attacks beside PGD that can use the norm (``apgd``, ``auto``), and what they call it.
    """

    eps: float
    name: ClassVar[str]
    growth: ClassVar[float]
    usual_eps: ClassVar[float | None] = None
    usual_drawing: ClassVar[tuple[float, float] | None] = None
    single_step: ClassVar[float | None] = None
    attacks: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        if not (self.eps >= 0 and self.eps != float("inf")):
            raise UserError(f"expected a finite radius eps of 0 or more, got {self.eps}; for no radius use Box()")

    @abstractmethod
    def length(self, offset: Tensor) -> Tensor:
        """The norm (N,) of each image of `offset` (N, C, H, W)."""

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A Gaussian direction at the distance that a uniform draw in a ball has: uniform in ℓ2."""
        shape = center.shape[1:]
        offset = randomness.normal(generators, shape).to(center)
        # A uniform radius would crowd the middle: the volume within r grows as r to the number of dimensions.
        radius = torch.stack([torch.rand(1, generator=g) for g in generators]) ** (1 / shape.numel())
        radius = radius.to(center).view(-1, *[1] * len(shape))
        unit = offset / (self.length(offset).view_as(radius) + 1e-10)
        return self.project(center + self.eps * radius * unit, center)

    @classmethod
    def scale(cls, values: float) -> float:
        """What radii are proportional to, for images of `values` numbers."""
        return values**cls.growth

    def name_for(self, attack: str) -> str:
        """What an attack of `attacks` calls the norm; a `UserError` for other attacks."""
        if attack not in self.attacks:
            able = ", ".join(name for name, kind in NORMS.items() if attack in kind.attacks)
            raise UserError(f"expected a norm of {able} for the attack {attack}, got {self.name}; use the attack pgd")
        return self.attacks[attack]


NORMS: dict[str, type[Ball]] = {}
"""The norms by name, in the order in which they were registered."""

B = TypeVar("B", bound=type[Ball])


def register_norm(kind: B) -> B:
    """A class decorator: the ball is known by its norm's name in settings, ``--norm`` and a model's card.

    Registering a name again replaces what it meant.

    A `UserError` where the class has no `name` or no `growth`.

    Example:
        >>> @register_norm
        ... class Half(LinfBall):
        ...     name = "half"
        >>> ball("half", 0.1)
        Half(eps=0.1)
        >>> del NORMS["half"]
    """
    missing = [fact for fact in ("name", "growth") if not hasattr(kind, fact)]
    if missing:
        raise UserError(f"expected a class with name and growth, got {kind.__name__} without {' and '.join(missing)}")
    NORMS[kind.name] = kind
    return kind


def norm_named(name: str) -> type[Ball]:
    """The class of the balls of a registered norm; a `UserError` where there is none of that name."""
    if name not in NORMS:
        raise UserError(f"expected a norm of {', '.join(NORMS)}, got {name!r}")
    return NORMS[name]


def ball(norm: str, eps: float) -> Ball:
    """The ball of a norm by its name; a `UserError` where there is no such norm or radius."""
    return norm_named(norm)(eps)


@register_norm
class L2Ball(Ball):
    """Images within Euclidean distance `eps` of their centre, and within [0, 1].

    Example:
        >>> moved = L2Ball(eps=1.0).project(torch.ones(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5))
        >>> round(l2_norm(moved - 0.5).item(), 4)
        1.0
    """

    name = "l2"
    growth = 0.5
    usual_eps = 0.5
    attacks: ClassVar[Mapping[str, str]] = {"apgd": "L2", "auto": "L2"}

    def length(self, offset: Tensor) -> Tensor:
        return l2_norm(offset).flatten()

    def direction(self, grad: Tensor) -> Tensor:
        # 1e-10 as in the authors' code: it keeps a zero gradient from dividing by zero.
        return grad / (l2_norm(grad) + 1e-10)

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        offset = images - center
        scale = (self.eps / l2_norm(offset).clamp_min(1e-12)).clamp_max(1.0)
        return torch.addcmul(center, offset, scale).clamp_(0, 1)


@register_norm
class LinfBall(Ball):
    """Images no pixel of which is further than `eps` from its centre, and within [0, 1].

    Example:
        >>> LinfBall(eps=0.25).project(torch.ones(1, 1, 1, 2), torch.tensor([[[[0.5, 0.9]]]])).tolist()
        [[[[0.75, 1.0]]]]
    """

    name = "linf"
    growth = 0.0
    usual_eps = 8 / 255
    usual_drawing = (0.1, 0.01)
    single_step = 1.25  # Wong et al. 2020, Section 4.
    attacks: ClassVar[Mapping[str, str]] = {"apgd": "Linf", "auto": "Linf"}

    def length(self, offset: Tensor) -> Tensor:
        return offset.flatten(1).abs().amax(1)

    def direction(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        return (center + (images - center).clamp(-self.eps, self.eps)).clamp_(0, 1)

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Uniform in the ball."""
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
        return L2Ball(0).direction(grad)

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        return images.clamp(0, 1)

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return randomness.uniform(generators, center.shape[1:]).to(center)


@dataclass(frozen=True)
class Inside:
    """Pixels where the mask (N, 1, H, W) is above 0 change as another constraint allows; the rest is the centre's.

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
    """Another constraint, and area averages near low-resolution images (N, C, h, w): projections end with a round of
    back-projection.

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
