"""What to minimise: images (N, C, H, W) to one number an image (N,), lower is better.

Objectives add and scale: ``CrossEntropy(model, labels) + 10 * Distance(images)``. Each image's value depends on
that image alone, so that no result depends on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.models.classifier import Classifier

Network = Callable[[Tensor], Tensor]


class Objective:
    """Base of objectives that add and scale."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to (N,)."""
        raise NotImplementedError

    def __add__(self, other: Objective) -> Objective:
        return _Sum(self, other)

    def __radd__(self, other: object) -> Objective:
        # sum() begins with 0.
        return self if other == 0 else NotImplemented

    def __mul__(self, factor: float) -> Objective:
        return _Scaled(self, float(factor))

    __rmul__ = __mul__


@dataclass(frozen=True)
class _Sum(Objective):
    first: Objective
    second: Objective

    def __call__(self, images: Tensor) -> Tensor:
        return self.first(images) + self.second(images)


@dataclass(frozen=True)
class _Scaled(Objective):
    objective: Objective
    factor: float

    def __call__(self, images: Tensor) -> Tensor:
        return self.factor * self.objective(images)


class CrossEntropy(Objective):
    """−log p(label | image): minimised, it makes images of the label (Santurkar et al. 2019, Section 3.1).

    Args:
        model: a `Classifier`, whose fast twin is used, or any function from images to logits.
        labels: (N,) integers, one an image.

    Raises:
        UserError: labels that are not (N,) integers, or are not among the classes.

    Example:
        >>> flat = lambda x: x.flatten(1)[:, :2]
        >>> CrossEntropy(flat, torch.tensor([0]))(torch.zeros(1, 1, 1, 2)).exp().item()
        2.0
    """

    def __init__(self, model: Classifier | Network, labels: Tensor | Sequence[int]) -> None:
        labels = torch.as_tensor(labels)
        if labels.ndim != 1 or labels.is_floating_point():
            raise UserError(f"expected labels as (N,) integers, got {labels.dtype} {tuple(labels.shape)}")
        if isinstance(model, Classifier):
            last = len(model.classes) - 1
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
                raise UserError(f"expected labels from 0 to {last}, got {sorted(set(labels.tolist()))}")
        self.network = model.synthesizer() if isinstance(model, Classifier) else model
        self.labels = labels.long()

    def __call__(self, images: Tensor) -> Tensor:
        if len(images) != len(self.labels):
            raise UserError(f"expected one label an image, got {len(self.labels)} for {len(images)} images")
        return F.cross_entropy(self.network(images), self.labels.to(images.device), reduction="none")


@dataclass(frozen=True)
class Untargeted(Objective):
    """log p(label | image): minimised, it makes a classifier err, as attacks do."""

    network: Network
    labels: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return -F.cross_entropy(self.network(images), self.labels.to(images.device), reduction="none")


@dataclass(frozen=True)
class Distance(Objective):
    """mean((x₀ − x)²) over an image, or over the part of it where `weight` is 1: the authors' notebooks' form of
    the term that the paper writes as a norm (Santurkar et al. 2019, Equations 3 and 5).

    Args:
        images: x₀, (N, C, H, W).
        weight: (N, 1, H, W) or broadcastable, such as 1 − mask; None for everywhere.

    Example:
        >>> Distance(torch.zeros(1, 1, 1, 2))(torch.tensor([[[[1.0, 0.0]]]])).tolist()
        [0.5]
    """

    images: Tensor
    weight: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        squared = (self.images - images) ** 2
        if self.weight is not None:
            squared = squared * self.weight
        return torch.mean(squared.flatten(1), dim=1)
