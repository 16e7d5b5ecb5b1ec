"""The attacks that come with this package: PGD, APGD, and a random search that uses no gradients.

APGD is that of Croce & Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks*, ICML 2020, Algorithm 1 and Equation 6: gradient ascent that finds its own step size, image by image. It is not
the loop of `robustsynth.loop`, because each image has its own step size, a momentum, and returns to its best iterate.
For figures that are compared with others', take its authors' package (`robustsynth.evaluation.auto_attack`).
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import robustsynth
from robustsynth.constraints import Ball, ball
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.loop import NonFiniteError, Problem, check_images, pgd
from robustsynth.models.classifier import Classifier
from robustsynth.objectives import Network, Untargeted
from robustsynth.randomness import generator

STEPS = {"pgd": 20, "apgd": 100}
"""The attacks by name, and the steps that each attempt takes where nothing else is asked for."""

RISING_SHARE = 0.75
"""ρ of APGD: the share of steps between two checkpoints that must raise the loss, or the step is halved."""

NEW_SHARE = 0.75
"""α of APGD: the share of a new step in a move; the rest repeats the move before it."""


class Attack(ABC):
    """Attempts to change an image's class, by name, one after the other, in one ball around it.

    Attributes:
        precision: of the classifier under attack.
        batch_size: images a batch.
        exact: the classifier frozen in float32, which decides what is correct.
        attempts: their names, in order.
        titles: of the attempts whose survivors have a row of their own, how people write them.
        name: of the attack, for people.
        on_pass: called at each step, or forward pass, of an attempt.
    """

    titles: ClassVar[Mapping[str, str]] = {}

    def __init__(self, model: Classifier, attacked_ball: Ball, *, seed: int, precision: str, batch_size: int) -> None:
        self.model, self.ball, self.seed = model, attacked_ball, seed
        self.precision, self.batch_size = precision, batch_size
        # The batch size is given so that none is measured; a frozen classifier takes any.
        self.exact = model.frozen(precision="float32", batch_size=batch_size)
        self.attempts: Sequence[str] = ()
        self.name = ""
        self.on_pass: Callable[[], object] = lambda: None

    def correct(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which images are classified correctly in float32, (N,) booleans."""
        with torch.no_grad():
            return self.exact(images).argmax(1) == labels

    def record(self) -> dict[str, Any]:
        """What the figures depend on besides the model and the data."""
        where = {"norm": self.ball.name, "eps": self.ball.eps}
        return where | {"seed": self.seed, "precision": self.precision, "batch_size": self.batch_size}

    @abstractmethod
    def describe(self) -> str:
        """The attack in words, for a model's card."""

    @abstractmethod
    def survivors(
        self, attempt: str, images: Tensor, labels: Tensor, *, numbers: Sequence[int], seed: int
    ) -> tuple[Tensor, list[str]]:
        """Which images stay correct under one attempt, (N,) booleans, and what there is to warn of.

        All images (N, C, H, W) are correct without an attack. Their `numbers` in the data are for random numbers that
        each image has of its own, `seed` for those that all images of the batch share.
        """

    @abstractmethod
    def passes(self, attempt: str) -> int:
        """About how often `on_pass` is called in an attempt, for the progress bar."""

    def cost(self, attempt: str) -> int:
        """The work of an attempt in forward passes of an image: a backward one costs two."""
        return 3 * self.passes(attempt)


class GradientAttack(Attack):
    """PGD from the image itself and from random starts; or APGD from random starts, on each of its losses.

    APGD maximises the cross-entropy, then, with three or more classes, the difference of logits ratio, which needs a
    third logit.

    Args:
        model: the classifier.
        attack: ``pgd`` or ``apgd``.
        norm: of the ball, one of `robustsynth.constraints.NORMS`; APGD knows ``l2`` and ``linf`` alone.
        eps: its radius in pixel units; at 0 there is nothing to attempt.
        seed: of the random starts, of which each image has its own, whatever others are attacked.
        restarts: random starts, 1 or more.
        steps: of each attempt, see `STEPS`; those of PGD are 2.5·eps/steps long.
        precision: of the gradients; measured where None.
        batch_size: images a batch; measured where None, 32 at least.

    Raises:
        UnknownNameError: no such attack.
        UserError: a norm that the attack cannot use, or restarts or steps below 1.
    """

    def __init__(
        self,
        model: Classifier,
        attack: str,
        *,
        norm: str,
        eps: float,
        seed: int = 0,
        restarts: int = 1,
        steps: int | None = None,
        precision: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        if attack not in STEPS:
            raise UnknownNameError("attack", attack, STEPS)
        if restarts < 1 or (steps is not None and steps < 1):
            raise UserError(f"expected 1 or more restarts and steps, got {restarts} and {steps}")
        attacked_ball = ball(norm, eps)
        if attack != "pgd":
            attacked_ball.name_for(attack)
        self.frozen = model.frozen(precision=precision, batch_size=batch_size)
        execution = self.frozen.execution
        size = batch_size or max(execution.batch_size, 32)
        super().__init__(model, attacked_ball, seed=seed, precision=execution.precision, batch_size=size)
        self.attack, self.steps = attack, steps or STEPS[attack]
        self.name, self.restarts = f"{attack.upper()}-{self.steps}", restarts
        self.losses = ("ce", "dlr") if attack == "apgd" and len(model.classes) > 2 else ("ce",)
        starts = [*(["image"] if attack == "pgd" else []), *map(str, range(restarts))]
        # What is maximised, and where it begins: "ce image", "ce 0".
        self.attempts = [f"{loss} {start}" for loss in self.losses for start in starts] if eps > 0 else []

    def record(self) -> dict[str, Any]:
        # These attacks are this package's own, and what one version has found is not another's.
        package = f"robustsynth {robustsynth.__version__}"
        return super().record() | {"attack": self.name, "attempts": list(self.attempts), "package": package}

    def describe(self) -> str:
        starts = "a random start" if self.restarts == 1 else f"{self.restarts} random starts"
        if self.attack == "pgd":
            return f"{self.name} of 2.5*eps/{self.steps}, from the image and from {starts}"
        return f"{self.name} on {' and '.join(loss.upper() for loss in self.losses)}, each from {starts}"

    def passes(self, attempt: str) -> int:
        return self.steps

    def survivors(
        self, attempt: str, images: Tensor, labels: Tensor, *, numbers: Sequence[int], seed: int = 0
    ) -> tuple[Tensor, list[str]]:
        try:
            return self.correct(self.attacked(attempt, images, labels, numbers), labels), []
        except NonFiniteError as error:
            position, step = next(iter(error.failures.items()))
            raise UserError(
                f"expected finite losses and gradients, got NaN or infinity for image {numbers[position]} at step "
                f"{step} of {self.attack.upper()} at eps {self.ball.eps:g}; check the model's weights, or try "
                "--precision float32"
            ) from None

    def attacked(self, attempt: str, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> Tensor:
        """The images (N, C, H, W) that an attempt ends with."""
        loss, restart = attempt.split(" ")
        start = images
        if restart != "image":
            start = self.ball.random_start(images, [generator(self.seed, number, int(restart)) for number in numbers])
        if self.attack == "apgd":
            given: dict[str, Any] = {"constraint": self.ball, "steps": self.steps, "start": start, "loss": loss}
            return apgd(self.frozen, images, labels, on_pass=self.on_pass, **given)
        problem = Problem(start, Untargeted(self.frozen, labels), self.ball, center=images)
        length = 2.5 * self.ball.eps / self.steps
        return pgd(problem, step_size=length, steps=self.steps, use_best=False, on_step=lambda _: self.on_pass())


def logit_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """The difference of logits ratio (N,), −(z_y − max z_other) / (z_1st − z_3rd) (Equation 6): above 0 where it errs.

    Unlike the cross-entropy it does not change when the logits (N, K) are scaled, as by a softmax that saturates.

    Example:
        >>> logit_ratio(torch.tensor([[4.0, 2.0, 0.0], [2.0, 4.0, 0.0]]), torch.tensor([0, 0])).tolist()
        [-0.5, 0.5]
    """
    if logits.shape[1] < 3:
        raise UserError(f"expected 3 or more classes for the dlr loss, got {logits.shape[1]}; use ce")
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return -_margin(logits, labels) / (first - third + 1e-12)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit less the largest other; below 0 where the network errs."""
    others = logits.scatter(1, labels[:, None], float("-inf")).max(1).values
    return logits.gather(1, labels[:, None]).squeeze(1) - others


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": functools.partial(F.cross_entropy, reduction="none"),
    "dlr": logit_ratio,
}
"""What APGD maximises: logits (N, K) and labels (N,) to (N,), higher is worse for the classifier."""


def checkpoints(steps: int) -> list[int]:
    """After which steps APGD looks at its step size: ⌈p_j · steps⌉ (Section 3.3).

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # Rounded first: 0.22 + 0.19 + 0.16 is a little more than 0.57 in binary.
    return sorted({math.ceil(round(share * steps, 6)) for share in shares[1:] if share <= 1})


def apgd(
    network: Network,
    images: Tensor,
    labels: Tensor,
    *,
    constraint: Ball,
    loss: str = "ce",
    steps: int = 100,
    start: Tensor | None = None,
    on_pass: Callable[[], object] = lambda: None,
) -> Tensor:
    """Images that `network` errs on where such were met, the images of highest loss elsewhere.

    Args:
        network: images (N, C, H, W) to logits (N, K).
        images: (N, C, H, W) in [0, 1], which the constraint is centred on.
        labels: (N,) integers.
        constraint: a ball in ℓ2 or ℓ∞.
        loss: ``ce``, or ``dlr`` with three or more classes; see `LOSSES`.
        start: where to begin, such as at random; `images` where None.
        on_pass: called at each step.

    Raises:
        UserError: no such loss, a norm that APGD is not made for, or steps below 1.
        NonFiniteError: a loss or a gradient is not finite.

    Example:
        >>> bright = lambda x: torch.stack([x.sum((1, 2, 3)), torch.full((len(x),), 2.0)], 1)
        >>> image = torch.full((1, 1, 2, 2), 0.6)
        >>> found = apgd(bright, image, torch.tensor([0]), constraint=ball("linf", 0.2), steps=5)
        >>> bool(found.sum() < 2), round((found - image).abs().max().item(), 4) <= 0.2
        (True, True)
    """
    if loss not in LOSSES:
        raise UnknownNameError("loss", loss, LOSSES)
    if steps < 1:
        raise UserError(f"expected 1 or more steps of APGD, got {steps}")
    constraint.name_for("apgd")
    check_images(images)
    images = images.detach()
    x = constraint.project(images if start is None else start, images)
    value, grad, correct = _loss_and_gradient(network, x, labels, LOSSES[loss], 0)
    found, best, best_value, best_grad = x, x, value, grad
    length = torch.full((len(x), 1, 1, 1), 2 * constraint.eps, device=x.device)
    previous, rises = x, torch.zeros_like(value)
    checked, last_check = set(checkpoints(steps)), 0
    halved, value_at_check = torch.ones_like(correct), value
    for index in range(1, steps + 1):
        if not bool(correct.any()):
            break
        z = constraint.project(x + length * constraint.direction(grad), images)
        if index > 1:  # The first step has no move before it.
            z = constraint.project(x + NEW_SHARE * (z - x) + (1 - NEW_SHARE) * (x - previous), images)
        previous, x, before = x, z, value
        value, grad, correct_now = _loss_and_gradient(network, x, labels, LOSSES[loss], index)
        on_pass()
        # The first iterate that the network errs on is kept, however long other images are attacked.
        found = torch.where(_by_image(correct & ~correct_now), x, found)
        correct = correct & correct_now
        rises = rises + (value > before)
        better = value > best_value
        best, best_grad = torch.where(_by_image(better), x, best), torch.where(_by_image(better), grad, best_grad)
        best_value = torch.where(better, value, best_value)
        if index in checked:
            stalled = (rises < RISING_SHARE * (index - last_check)) | (~halved & (best_value <= value_at_check))
            length = torch.where(_by_image(stalled), length / 2, length)
            x, grad = torch.where(_by_image(stalled), best, x), torch.where(_by_image(stalled), best_grad, grad)
            value = torch.where(stalled, best_value, value)
            halved, value_at_check, last_check, rises = stalled, best_value, index, torch.zeros_like(rises)
    return torch.where(_by_image(correct), best, found)


def _by_image(each: Tensor) -> Tensor:
    return each.view(-1, 1, 1, 1)


def _loss_and_gradient(
    network: Network, images: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (N,), its gradient, and which images are correct."""
    with torch.enable_grad():
        variable = images.detach().requires_grad_(True)
        logits = network(variable)
        value = loss(logits, labels)
        # Summed, never averaged: an image's step must not depend on how many others are in the batch.
        (grad,) = torch.autograd.grad(value.sum(), variable)
    finite = torch.isfinite(value) & torch.isfinite(grad).flatten(1).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(images, dict.fromkeys((~finite).nonzero().flatten().tolist(), index))
    return value.detach(), grad, logits.detach().argmax(1) == labels


def random_squares(
    network: Network,
    images: Tensor,
    labels: Tensor,
    *,
    constraint: Ball,
    numbers: Sequence[int],
    seed: int = 0,
    queries: int = 500,
) -> Tensor:
    """The images (N, C, H, W) with the smallest margin of their label that a random search met.

    Each query moves a square of random place and colour by up to twice the radius and projects; squares shrink from
    half of the image to a pixel. It is not the Square attack, which its authors' package has.

    Args:
        network, images, labels, constraint: as for `apgd`.
        numbers: of the images, each of which has a generator of its own.
        seed: of the generators.
        queries: forward passes.
    """

    @torch.no_grad()
    def margins(images: Tensor) -> Tensor:
        return _margin(network(images), labels)

    generators = [generator(seed, number, 1) for number in numbers]
    best, best_margin = images, margins(images)
    side = min(images.shape[2:])
    for query in range(queries):
        edge = max(round(side * 0.5 * (1 - query / queries) ** 2), 1)
        square = torch.stack([_square(g, images.shape[1:], edge) for g in generators]).to(images)
        # A square of four channels is then two radii long, one of a single channel at least one, however small it is.
        height = constraint.eps * (2.0 / constraint.scale(4 * edge**2))
        moved = constraint.project(best + height * square, images)
        margin = margins(moved)
        better = (margin < best_margin) & (best_margin >= 0)
        best = torch.where(_by_image(better), moved, best)
        best_margin = torch.where(better, margin, best_margin)
    return best


def _square(draw: torch.Generator, shape: Sequence[int], edge: int) -> Tensor:
    channels, height, width = shape
    result = torch.zeros(channels, height, width)
    top = int(torch.randint(height - edge + 1, (1,), generator=draw))
    left = int(torch.randint(width - edge + 1, (1,), generator=draw))
    sign = 2.0 * torch.randint(2, (channels, 1, 1), generator=draw) - 1.0
    result[:, top : top + edge, left : left + edge] = sign
    return result
