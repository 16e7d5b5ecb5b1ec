"""Clean accuracy, and accuracy under PGD and APGD, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustsynth.constraints import ball
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.evaluation.apgd import apgd
from robustsynth.loop import NonFiniteError, Problem, pgd
from robustsynth.models.classifier import Classifier
from robustsynth.objectives import Untargeted
from robustsynth.randomness import generator

PGD_STEPS = 20
"""Steps of PGD, each 2.5·ε/20 long, once from the image itself and once from a random start in the ball."""
APGD_STEPS = 100
"""Steps of APGD, from a random start, as its authors take them."""
STEPS = {"pgd": PGD_STEPS, "apgd": APGD_STEPS}
"""The attacks, and the steps that each takes where nothing else is asked for."""

Network = Callable[[Tensor], Tensor]
Attempt = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""Images (N, C, H, W), their labels (N,) and their numbers in the data, to images that are attacked."""


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
    attack: str = "pgd",
    restarts: int = 1,
    steps: int | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
) -> list[Accuracy]:
    """Clean accuracy and accuracy under PGD-20, or APGD, for each radius.

    An image counts under attack only if it is right clean and after every attempt: PGD from the image itself and from
    `restarts` random starts; APGD on the cross-entropy from `restarts` random starts, then (with three or more
    classes) on the difference of logits ratio. The attack's gradients may be computed in reduced precision where that
    is faster; what counts as right is always decided in float32.

    Args:
        model: a classifier.
        images: uint8 (N, H, W, C); a memory map is read a batch at a time.
        labels: (N,) integers.
        norm: ``l2`` or ``linf``.
        eps: radii in pixel units of images in [0, 1].
        seed: of the random starts, of which each image has its own, whatever others are evaluated.
        precision: of the attack's gradients; measured where None.
        batch_size: images a batch; measured where None.
        on_images: called with the number of images done, as they are.
        attack: ``pgd`` or ``apgd``.
        restarts: random starts, 1 or more.
        steps: of each attempt; 20 for PGD, each 2.5·ε/steps long, and 100 for APGD where None.
        indices: which images to evaluate; all where None.

    Returns:
        The clean accuracy, with eps 0, then one for each radius.

    Raises:
        UserError: images that do not fit the model, or no images.
        UnknownNameError: no such attack.
    """
    chosen_all = np.arange(len(images)) if indices is None else np.asarray(indices)
    check_fit(model, images, labels, chosen_all)
    if attack not in STEPS:
        raise UnknownNameError("attack", attack, STEPS)
    if restarts < 1 or (steps is not None and steps < 1):
        raise UserError(f"expected 1 or more restarts and steps, got {restarts} and {steps}")
    for radius in eps:
        ball(norm, radius)  # Says what is wrong with it before any work is done.
    fast = model.frozen(precision=precision, batch_size=batch_size)
    exact = model.frozen(precision="float32", batch_size=fast.execution.batch_size)
    right = dict.fromkeys([0.0, *eps], 0)
    size = batch_size or max(fast.execution.batch_size, 32)
    for first in range(0, len(chosen_all), size):
        chosen = chosen_all[first : first + size]
        batch, truth = as_batch(model, images, labels, chosen)
        with torch.no_grad():
            clean = exact(batch).argmax(1) == truth
        right[0.0] += int(clean.sum())
        for radius in dict.fromkeys(eps):
            if radius == 0:
                continue
            survivors = clean.nonzero().flatten()
            for attempt in _attempts(attack, fast, len(model.classes), norm, radius, seed, restarts, steps):
                # Who has fallen stays fallen, so that only survivors need the next attempt.
                numbers = chosen[survivors.cpu().numpy()].tolist()
                if not numbers:
                    break
                try:
                    attacked = attempt(batch[survivors], truth[survivors], numbers)
                except NonFiniteError as error:
                    position, step = next(iter(error.failures.items()))
                    raise UserError(
                        f"expected finite losses and gradients, got NaN or infinity for image {numbers[position]} at "
                        f"step {step} of {attack.upper()} at eps {radius:g}; check the model's weights, or try "
                        "--precision float32"
                    ) from None
                with torch.no_grad():
                    survivors = survivors[exact(attacked).argmax(1) == truth[survivors]]
            right[radius] += len(survivors)
        if on_images is not None:
            on_images(len(chosen))
    return [Accuracy(radius, count, len(chosen_all)) for radius, count in right.items()]


def drawn(count: int, num: int | None, seed: int) -> np.ndarray:
    """The numbers of `num` of `count` images in a random order; of all where `num` is None or more.

    A larger `num` only adds to a smaller one, and any beginning of it is a fair sample, whatever order the data has.

    Example:
        >>> drawn(10, 3, 0).tolist() == drawn(10, 5, 0).tolist()[:3]
        True
    """
    return np.random.default_rng(seed).permutation(count)[:num]


def check_fit(model: Classifier, images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> None:
    """Raise a `UserError` unless there are images, of the model's shape, with labels of its classes."""
    if len(images) == 0 or len(chosen) == 0:
        raise UserError("expected images to evaluate on, got none")
    side = model.image_size
    if images.shape[3] != model.channels or (side is not None and images.shape[1:3] != (side, side)):
        raise UserError(
            f"expected images (N, {side or 'H'}, {side or 'W'}, {model.channels}) for model {model.name!r}, "
            f"got {images.shape}"
        )
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= len(model.classes):
        raise UserError(f"expected one label from 0 to {len(model.classes) - 1} for each of {len(images)} images")


def as_batch(model: Classifier, images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
    """The chosen images (N, C, H, W) float32 in [0, 1] and their labels (N,), on the model's device."""
    batch = torch.from_numpy(np.ascontiguousarray(images[chosen])).to(model.device)
    truth = torch.from_numpy(np.ascontiguousarray(labels[chosen])).long().to(model.device)
    return (batch.permute(0, 3, 1, 2).float() / 255).contiguous(), truth


def _attempts(
    attack: str, fast: Network, classes: int, norm: str, eps: float, seed: int, restarts: int, steps: int | None
) -> Iterator[Attempt]:
    """What an image has to survive, one after the other."""
    count, constraint = steps or STEPS[attack], ball(norm, eps)

    def start(images: Tensor, numbers: Sequence[int], restart: int) -> Tensor:
        return constraint.random_start(images, [generator(seed, number, restart) for number in numbers])

    def descend(images: Tensor, labels: Tensor, begin: Tensor) -> Tensor:
        problem = Problem(begin, Untargeted(fast, labels), constraint, center=images)
        return pgd(problem, step_size=2.5 * eps / count, steps=count, use_best=False)

    if attack == "pgd":
        yield lambda images, labels, numbers: descend(images, labels, images)
        for restart in range(restarts):
            yield lambda images, labels, numbers, r=restart: descend(images, labels, start(images, numbers, r))
        return
    # With two classes the ratio's denominator has no third logit; there the cross-entropy alone says everything.
    for loss in ("ce", "dlr") if classes > 2 else ("ce",):
        for restart in range(restarts):
            yield lambda images, labels, numbers, name=loss, r=restart: apgd(
                fast,
                images,
                labels,
                constraint=constraint,
                loss=name,
                steps=count,
                start=start(images, numbers, r),
            )
