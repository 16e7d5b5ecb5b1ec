"""APGD: gradient ascent on a classifier's loss that finds its own step size, image by image.

Croce & Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks*, ICML
2020, Algorithm 1 and Equation 6. This is for quick looks; figures to stand beside others' come from the authors' own
package (`robustsynth.evaluation.auto_attack`). It is not the loop of `robustsynth.loop`, because each image has its own
step size, a momentum, and goes back to its best iterate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.constraints import L2Ball, LinfBall
from robustsynth.errors import UnknownNameError, UserError
from robustsynth.loop import NonFiniteError, check_images

SLACK = 0.75
"""ρ: the share of steps between two checkpoints that must raise the loss, or the step is halved."""
PULL = 0.75
"""α: the share of a new step in a move; the rest repeats the move before it."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(label), (N,): higher is worse for the classifier."""
    return F.cross_entropy(logits, labels, reduction="none")


def logit_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """The difference of logits ratio, −(z_y − max z_other) / (z_1st − z_3rd) (Equation 6): above 0 where it errs.

    Unlike the cross-entropy it does not change when the logits are scaled, so that a classifier whose softmax
    saturates cannot hide behind it.

    Args:
        logits: (N, K), K of 3 or more.
        labels: (N,).

    Example:
        >>> logit_ratio(torch.tensor([[4.0, 2.0, 0.0], [2.0, 4.0, 0.0]]), torch.tensor([0, 0])).tolist()
        [-0.5, 0.5]
    """
    first, second, third = logits.topk(3, dim=1).values.unbind(1)
    own = logits.gather(1, labels[:, None]).squeeze(1)
    rival = torch.where(logits.argmax(1) == labels, second, first)
    return -(own - rival) / (first - third + 1e-12)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "dlr": logit_ratio}


def checkpoints(steps: int) -> list[int]:
    """After which steps the step size is looked at: ⌈p_j · steps⌉ (Section 3.3).

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
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    constraint: L2Ball | LinfBall,
    loss: str = "ce",
    steps: int = 100,
    start: Tensor | None = None,
) -> Tensor:
    """Images that `network` errs on where such were met, the images of highest loss elsewhere.

    Args:
        network: images (N, C, H, W) to logits (N, K).
        images: (N, C, H, W) in [0, 1], which the constraint is centred on.
        labels: (N,) integers.
        constraint: the ball.
        loss: ``ce`` or ``dlr``; see `LOSSES`.
        steps: gradient steps.
        start: where to begin, such as at random; `images` where None.

    Raises:
        UnknownNameError: no such loss.
        UserError: ``dlr`` with fewer than three classes, or steps below 1.
        NonFiniteError: an image met a NaN or an infinity.

    Example:
        >>> bright = lambda x: torch.stack([x.sum((1, 2, 3)), torch.full((len(x),), 2.0)], 1)
        >>> image = torch.full((1, 1, 2, 2), 0.6)
        >>> found = apgd(bright, image, torch.tensor([0]), constraint=LinfBall(0.2), steps=5)
        >>> bool(found.sum() < 2), round((found - image).abs().max().item(), 4) <= 0.2
        (True, True)
    """
    if loss not in LOSSES:
        raise UnknownNameError("loss", loss, LOSSES)
    if steps < 1:
        raise UserError(f"expected 1 or more steps of APGD, got {steps}")
    check_images(images)
    images = images.detach()
    x = constraint.project(images if start is None else start, images)
    value, grad, right = _look(network, x, labels, LOSSES[loss], 0)
    found, best, best_value, best_grad = x, x, value, grad
    length = torch.full((len(x), 1, 1, 1), 2 * constraint.eps, device=x.device)
    previous, rises = x, torch.zeros_like(value)
    marks, last_mark = set(checkpoints(steps)), 0
    halved, value_at_mark = torch.ones_like(right), value
    for index in range(1, steps + 1):
        if not bool(right.any()):
            break
        z = constraint.project(x + length * constraint.direction(grad), images)
        if index > 1:  # The first step has no move before it.
            z = constraint.project(x + PULL * (z - x) + (1 - PULL) * (x - previous), images)
        previous, x, before = x, z, value
        value, grad, right_now = _look(network, x, labels, LOSSES[loss], index)
        # The first iterate that it errs on is kept, so that it makes no difference for how long others go on.
        found = torch.where(_wide(right & ~right_now), x, found)
        right = right & right_now
        rises = rises + (value > before)
        better = value > best_value
        best, best_grad = torch.where(_wide(better), x, best), torch.where(_wide(better), grad, best_grad)
        best_value = torch.where(better, value, best_value)
        if index in marks:
            stalled = (rises < SLACK * (index - last_mark)) | (~halved & (best_value <= value_at_mark))
            length = torch.where(_wide(stalled), length / 2, length)
            x, grad = torch.where(_wide(stalled), best, x), torch.where(_wide(stalled), best_grad, grad)
            value = torch.where(stalled, best_value, value)
            halved, value_at_mark, last_mark, rises = stalled, best_value, index, torch.zeros_like(rises)
    return torch.where(_wide(right), best, found)


def _wide(each: Tensor) -> Tensor:
    return each.view(-1, 1, 1, 1)


def _look(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (N,), its gradient, and which images are right."""
    with torch.enable_grad():
        variable = images.detach().requires_grad_(True)
        logits = network(variable)
        if loss is logit_ratio and logits.shape[1] < 3:
            raise UserError(f"expected 3 or more classes for the dlr loss, got {logits.shape[1]}; use ce")
        value = loss(logits, labels)
        # Summed, never averaged: an image's step must not depend on how many others are in the batch.
        (grad,) = torch.autograd.grad(value.sum(), variable)
    finite = torch.isfinite(value) & torch.isfinite(grad).flatten(1).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(images, dict.fromkeys((~finite).nonzero().flatten().tolist(), index))
    return value.detach(), grad, logits.detach().argmax(1) == labels
