"""Clean accuracy, and accuracy under PGD, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustsynth.constraints import ball
from robustsynth.errors import UserError
from robustsynth.loop import NonFiniteError, Problem, pgd
from robustsynth.models.classifier import Classifier
from robustsynth.objectives import Untargeted
from robustsynth.randomness import image_generators

PGD_STEPS = 20
"""Steps of PGD, each 2.5·ε/20 long, once from the image itself and once from a random start in the ball."""


@dataclass(frozen=True)
class Accuracy:
    """A share of images that were right: `right` of `total`, under an attack of radius `eps` (0: none).

    Example:
        >>> low, high = Accuracy(0.5, 620, 1000).interval
        >>> round(low, 3), round(high, 3)
        (0.59, 0.65)
    """

    eps: float
    right: int
    total: int

    @property
    def share(self) -> float:
        """right / total."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the share (Wilson 1927)."""
        z, n, p = 1.959964, self.total, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)


def evaluate_accuracy(
    model: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    norm: str = "l2",
    eps: Sequence[float] = (0.5,),
    seed: int = 0,
    precision: str | None = None,
    batch_size: int | None = None,
    on_images: Callable[[int], object] | None = None,
) -> list[Accuracy]:
    """Clean accuracy and accuracy under PGD-20 for each radius.

    An image counts under attack only if it is right clean, after PGD from itself, and after PGD from a random start.
    The attack's gradients may be computed in reduced precision where that is faster; what counts as right is always
    decided in float32.

    Args:
        model: a classifier.
        images: uint8 (N, H, W, C).
        labels: (N,) integers.
        norm: ``l2`` or ``linf``.
        eps: radii in pixel units of images in [0, 1].
        seed: of the random starts.
        precision: of the attack's gradients; measured where None.
        batch_size: images a batch; measured where None.
        on_images: called with the number of images done, as they are.

    Returns:
        The clean accuracy, with eps 0, then one for each radius.

    Raises:
        UserError: images that do not fit the model, or no images.
    """
    if len(images) == 0:
        raise UserError("expected images to evaluate on, got none")
    side = model.image_size
    if images.shape[3] != model.channels or (side is not None and images.shape[1:3] != (side, side)):
        raise UserError(
            f"expected images (N, {side or 'H'}, {side or 'W'}, {model.channels}) for model {model.name!r}, "
            f"got {images.shape}"
        )
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= len(model.classes):
        raise UserError(f"expected one label from 0 to {len(model.classes) - 1} for each of {len(images)} images")
    for radius in eps:
        ball(norm, radius)  # Says what is wrong with it before any work is done.
    fast = model.synthesizer(precision=precision, batch_size=batch_size)
    exact = model.synthesizer(precision="float32", batch_size=fast.execution.batch_size)
    right = dict.fromkeys([0.0, *eps], 0)
    size = batch_size or max(fast.execution.batch_size, 32)
    for start in range(0, len(images), size):
        chosen = np.arange(start, min(start + size, len(images)))
        batch = torch.from_numpy(np.ascontiguousarray(images[chosen])).to(model.device)
        batch = batch.permute(0, 3, 1, 2).float() / 255
        truth = torch.from_numpy(np.ascontiguousarray(labels[chosen])).to(model.device)
        with torch.no_grad():
            clean = exact(batch).argmax(1) == truth
        right[0.0] += int(clean.sum())
        for radius in dict.fromkeys(eps):
            if radius == 0:
                continue
            survivors = clean.nonzero().flatten()
            for random_start in (False, True):
                # Who has fallen stays fallen, so that only survivors need the next attack.
                indices = chosen[survivors.cpu().numpy()].tolist()
                starts = image_generators(seed, indices) if random_start else None
                try:
                    held = _survive(fast, exact, batch[survivors], truth[survivors], norm, radius, starts)
                except NonFiniteError as error:
                    position, step = next(iter(error.failures.items()))
                    raise UserError(
                        f"expected finite losses and gradients, got NaN or infinity for image {indices[position]} at "
                        f"step {step} of PGD at eps {radius:g}; check the model's weights, or try --precision float32"
                    ) from None
                survivors = survivors[held]
            right[radius] += len(survivors)
        if on_images is not None:
            on_images(len(chosen))
    return [Accuracy(radius, count, len(images)) for radius, count in right.items()]


def _survive(
    fast: Callable[[Tensor], Tensor],
    exact: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    norm: str,
    eps: float,
    starts: Sequence[torch.Generator] | None,
) -> Tensor:
    """Which images stay right under PGD-20, from the images or from random starts that `starts` draw."""
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.bool, device=images.device)
    constraint = ball(norm, eps)
    start = images if starts is None else constraint.random_start(images, starts)
    problem = Problem(start, Untargeted(fast, labels), constraint, center=images)
    attacked = pgd(problem, step_size=2.5 * eps / PGD_STEPS, steps=PGD_STEPS, use_best=False)
    with torch.no_grad():
        return exact(attacked).argmax(1) == labels
