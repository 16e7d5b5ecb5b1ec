"""Objectives, which the loop minimises: functions of images (N, C, H, W) to one number an image (N,).

Objectives add and scale: ``CrossEntropy(model, labels) + 10 * Distance(images)``. The value of an image depends on that
image alone, so that no result depends on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.models.classifier import Classifier
from robustsynth.models.representation import feature_network
from robustsynth.resampling import resample

Network = Callable[[Tensor], Tensor]


class Objective:
    """Base of objectives that add and scale."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to (N,)."""
        raise NotImplementedError

    def __add__(self, other: Objective) -> Objective:
        return _Computed(lambda images: self(images) + other(images))

    def __radd__(self, other: object) -> Objective:
        # sum() begins with 0.
        return self if other == 0 else NotImplemented

    def __mul__(self, factor: float) -> Objective:
        return _Computed(lambda images: float(factor) * self(images))

    __rmul__ = __mul__


@dataclass(frozen=True)
class _Computed(Objective):
    compute: Network

    def __call__(self, images: Tensor) -> Tensor:
        return self.compute(images)


class CrossEntropy(Objective):
    """Σ_k w_k · −log p(k | image), w being 1 for the image's label (Santurkar et al. 2019, Section 3.1), or weights.

    With a label it makes images of ever more of that class. With weights it is least where p = w, so that it makes
    images that the model divides among the classes as w does.

    Args:
        model: a `Classifier`, which is used frozen, or any function from images to logits.
        labels: (N,) integers, one an image; or weights (N, K) of the classes, each row summing to 1.

    Raises:
        UserError: labels of another shape, or not among the classes.

    Example:
        >>> flat = lambda x: x.flatten(1)[:, :2]
        >>> CrossEntropy(flat, torch.tensor([0]))(torch.zeros(1, 1, 1, 2)).exp().item()
        2.0
        >>> half = CrossEntropy(flat, torch.tensor([[0.5, 0.5]]))
        >>> [round(half(torch.tensor([[[[0.0, z]]]])).item(), 3) for z in (-2.0, 0.0, 2.0)]
        [1.127, 0.693, 1.127]
    """

    def __init__(self, model: Classifier | Network, labels: Tensor | Sequence[int]) -> None:
        labels = torch.as_tensor(labels)
        classes = len(model.classes) if isinstance(model, Classifier) else None
        if labels.ndim == 2:
            labels = checked_weights(labels, classes)
        elif labels.ndim != 1 or labels.is_floating_point():
            raise UserError(f"expected labels as (N,) integers, got {labels.dtype} {tuple(labels.shape)}")
        elif classes is not None and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise UserError(f"expected labels from 0 to {classes - 1}, got {sorted(set(labels.tolist()))}")
        self.network = model.frozen() if isinstance(model, Classifier) else model
        self.labels = labels.long() if labels.ndim == 1 else labels

    def __call__(self, images: Tensor) -> Tensor:
        if len(images) != len(self.labels):
            what = "label" if self.labels.ndim == 1 else "row of weights"
            raise UserError(f"expected one {what} an image, got {len(self.labels)} for {len(images)} images")
        labels = self.labels.to(images.device) if self.labels.ndim == 1 else self.labels.to(images)
        return F.cross_entropy(self.network(images), labels, reduction="none")


def checked_weights(weights: Tensor, classes: int | None = None) -> Tensor:
    """Weights (N, K) of the classes as float32.

    Raises:
        UserError: another shape, `classes` being K or None for any; or a row that is not 0 or more and sums to 1.
    """
    if weights.ndim != 2 or not weights.is_floating_point() or classes not in (None, weights.shape[1]):
        raise UserError(
            f"expected weights of the classes as a floating tensor (N, {classes or 'K'}), got {weights.dtype} "
            f"{tuple(weights.shape)}"
        )
    # Written so that NaN fails as well.
    wrong = ~((weights >= 0).all(1) & ((weights.sum(1) - 1).abs() <= 1e-3))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise UserError(
            f"expected weights of 0 or more that sum to 1 for each image, got {weights[row].tolist()} for image {row}"
        )
    return weights.float()


class Ensemble(Objective):
    """The mean of one or more objectives, such as the cross-entropies of several classifiers.

    Example:
        >>> near = [Distance(torch.full((1, 1, 1, 1), value)) for value in (0.0, 1.0)]
        >>> Ensemble(near)(torch.zeros(1, 1, 1, 1)).tolist()
        [0.5]
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        if not objectives:
            raise UserError("expected one or more objectives, got none")
        self.objectives = tuple(objectives)

    def __call__(self, images: Tensor) -> Tensor:
        return torch.stack([objective(images) for objective in self.objectives]).mean(0)


class Reordered:
    """A network whose logits are put in the order of the names `wanted`.

    `network` gives them in the order of `classes`; a `UserError` where these are not the same names.

    Example:
        >>> Reordered(lambda x: x.flatten(1), ["cat", "ship"], ["ship", "cat"])(torch.tensor([[1.0, 2.0]])).tolist()
        [[2.0, 1.0]]
    """

    def __init__(self, network: Network, classes: Sequence[str], wanted: Sequence[str]) -> None:
        if sorted(classes) != sorted(wanted):
            only = [sorted({*a} - {*b})[:5] for a, b in ((classes, wanted), (wanted, classes))]
            raise UserError(
                f"expected classifiers of the same classes, got one with {', '.join(only[0]) or 'none other'} and "
                f"without {', '.join(only[1]) or 'none'}; an ensemble needs the same names in any order"
            )
        self.network = network
        self.order = torch.tensor([list(classes).index(name) for name in wanted])

    def __call__(self, images: Tensor) -> Tensor:
        return self.network(images).index_select(1, self.order.to(images.device))


@dataclass(frozen=True)
class Untargeted(Objective):
    """log p(label | image). Minimised, it makes a classifier err, as attacks do."""

    network: Network
    labels: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return -F.cross_entropy(self.network(images), self.labels.to(images.device), reduction="none")


class Activation(Objective):
    """−R(x)_f, minus the activation of a unit f of the representation (Santurkar et al. 2019, Equation 5).

    Args:
        model: a `Classifier`, whose `feature_network` is used, or any function from images to features (N, D).
        units: f, one integer for all images, or (N,).

    Raises:
        UserError: units that are not integers of 0 or more.

    Example:
        >>> flat = lambda x: x.flatten(1)
        >>> Activation(flat, [1, 0])(torch.tensor([[[[0.0, 0.5]]], [[[0.25, 0.0]]]])).tolist()
        [-0.5, -0.25]
    """

    def __init__(self, model: Classifier | Network, units: int | Tensor | Sequence[int]) -> None:
        units = torch.as_tensor(units)
        if units.ndim > 1 or units.is_floating_point() or units.dtype == torch.bool:
            raise UserError(f"expected one unit, or (N,) integers, got {units.dtype} {tuple(units.shape)}")
        if units.numel() and int(units.min()) < 0:
            raise UserError(f"expected units of 0 or more, got {int(units.min())}")
        self.network = feature_network(model) if isinstance(model, Classifier) else model
        self.units = units.long()
        self._highest = int(units.max()) if units.numel() else -1

    def __call__(self, images: Tensor) -> Tensor:
        features = self.network(images)
        if self.units.ndim and len(self.units) != len(images):
            raise UserError(f"expected one unit an image, got {len(self.units)} for {len(images)} images")
        if self._highest >= features.shape[1]:
            raise UserError(f"expected units from 0 to {features.shape[1] - 1}, got {self._highest}")
        chosen = self.units.to(images.device).expand(len(images))
        return -features.gather(1, chosen.unsqueeze(1)).squeeze(1)


class Roughness(Objective):
    """The mean absolute difference between neighbouring pixels, along rows and columns: anisotropic total variation
    (Mahendran and Vedaldi 2015, "Understanding deep image representations by inverting them").

    Example:
        >>> Roughness()(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])).tolist()
        [1.0]
    """

    def __call__(self, images: Tensor) -> Tensor:
        across, down = images.diff(dim=3).abs(), images.diff(dim=2).abs()
        return across.flatten(1).mean(1) + down.flatten(1).mean(1)


@dataclass(frozen=True)
class AveragedDistance(Objective):
    """mean((↓x − low)²), where ↓ averages over areas and `low` is (N, C, h, w): the consistency loss of hse2025, which
    does not define its own.

    Example:
        >>> AveragedDistance(torch.zeros(1, 1, 1, 1))(torch.tensor([[[[0.0, 1.0]]]])).tolist()
        [0.25]
    """

    low: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        averaged = resample(images, (self.low.shape[2], self.low.shape[3]), "area")
        return (averaged - self.low).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Distance(Objective):
    """mean((x₀ − x)²), where `weight` is 1. This is the form of the authors' notebooks; the paper writes a norm
    (Santurkar et al. 2019, Equations 3 and 5).

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
