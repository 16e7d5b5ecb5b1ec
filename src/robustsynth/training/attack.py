"""The inner maximisation of adversarial training: the same loop, with the labels' likelihood going down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.constraints import Constraint, ball
from robustsynth.loop import Problem, pgd
from robustsynth.objectives import Objective, Untargeted
from robustsynth.training.settings import TrainSettings
from robustsynth.training.workers import Rows, own, total_of

TRADES_NOISE = 0.001
"""Standard deviation of the noise that TRADES' attack starts with (Zhang et al. 2019, Algorithm 1)."""

STRONGEST = 16
"""Steps at which the attack is strong enough: it is not made stronger after yet another collapse."""


def adversarial_images(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    norm: str,
    eps: float,
    step_size: float,
    steps: int,
    random_start: torch.Generator | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """Images within `eps` of `images` that the network finds hardest: the last iterate of PGD (Madry et al. 2018).

    Args:
        network: images to logits, in evaluation mode and with frozen parameters.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) integers, or (N, classes) shares of a mixed label, whose loss is then what is maximised.
        norm: of `robustsynth.constraints.NORMS`.
        eps: the radius, in pixel units; 0 gives the images back.
        step_size: length of a step.
        steps: how many.
        random_start: start uniformly at random in the ball, drawn from this generator; at the images where None.
        rows: which of a larger batch `images` are: starts are drawn for all of that.

    Example:
        >>> adversarial_images(
        ...     lambda x: x.flatten(1), torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]),
        ...     norm="linf", eps=0.25, step_size=0.5, steps=1,
        ... ).tolist()
        [[[[0.25, 0.75]]]]
    """
    if eps == 0:
        return images
    constraint = ball(norm, eps)
    start = images
    if random_start is not None:
        start = _random_start(constraint, images, random_start, rows)
    problem = Problem(start, Untargeted(network, labels), constraint, center=images)
    return pgd(problem, step_size=step_size, steps=steps, use_best=False)


def _random_start(constraint: Constraint, images: Tensor, stream: torch.Generator, rows: Rows | None) -> Tensor:
    """Random images in a ball. One generator for all: a batch of training is one draw, reproducible by its step."""
    if rows is None:
        return constraint.random_start(images, [stream] * len(images))
    whole = images.new_zeros(rows.total, *images.shape[1:])
    whole[rows.indices.to(images.device)] = images
    return own(constraint.random_start(whole, [stream] * rows.total), rows)


def noisy_step_images(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    norm: str,
    eps: float,
    noise: float,
    generator: torch.Generator,
    rows: Rows | None = None,
) -> Tensor:
    """N-FGSM (de Jorge et al. 2022, Algorithm 1): noise, then one step of length eps from there, and no projection.

    For ``linf`` the noise is uniform in [−k·eps, k·eps] a pixel and the step goes along the gradient's sign. For
    ``l2``, of which the paper does not speak, its analogue: noise uniform in the ball of radius k·eps, a step of
    length eps along the gradient. Only the box [0, 1] bounds the result, which may lie (k + 1)·eps from the image.

    Args:
        network: as for `adversarial_images`.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) or (N, classes).
        norm: of `robustsynth.constraints.NORMS`.
        eps: length of the step; 0 gives the images back.
        noise: k; 0 is plain FGSM (Goodfellow et al. 2015).
        generator: of the noise.
        rows: as for `adversarial_images`.

    Example:
        >>> noisy_step_images(
        ...     lambda x: x.flatten(1), torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]),
        ...     norm="linf", eps=0.25, noise=0.0, generator=torch.Generator(),
        ... ).tolist()
        [[[[0.25, 0.75]]]]
    """
    if eps == 0:
        return images
    start = images
    if noise:
        start = _random_start(ball(norm, noise * eps), images, generator, rows)
    # By the triangle inequality nothing leaves this ball, but for rounding: the projection is on the box alone.
    reach = ball(norm, (noise + 1) * eps * (1 + 1e-5))
    problem = Problem(start, Untargeted(network, labels), reach, center=images)
    return pgd(problem, step_size=eps, steps=1, use_best=False)


@dataclass(frozen=True)
class Divergence(Objective):
    """−KL(p(reference) ‖ p(image)): minimised, it moves a prediction away from what it was.

    Args:
        network: images to logits.
        reference: logits (N, classes) of the images as they were.

    Example:
        >>> same = torch.tensor([[1.0, 2.0]])
        >>> Divergence(lambda x: x.flatten(1), same)(same.view(1, 1, 1, 2)).abs().item()
        0.0
    """

    network: Callable[[Tensor], Tensor]
    reference: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return -divergence(self.reference, self.network(images))


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(p ‖ q) in nats, (N,), of the distributions with logits `first` and `second` (N, classes).

    Example:
        >>> round(divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item(), 4)
        0.1201
    """
    logs = F.log_softmax(second, 1), F.log_softmax(first, 1)
    return F.kl_div(*logs, reduction="none", log_target=True).sum(1)


def strength(settings: TrainSettings, level: int) -> tuple[int, float]:
    """Steps of the training's attack, and their length, after it has been made stronger `level` times.

    Each time doubles the steps, up to `STRONGEST`; together they are 2.5·eps long.

    Example:
        >>> strength(TrainSettings(attack_steps=1, attack_step_size=0.5), 0)
        (1, 0.5)
        >>> strength(TrainSettings(eps=0.8, attack_steps=1, attack_step_size=0.5), 2)
        (4, 0.5)
    """
    if level == 0:
        return settings.attack_steps, settings.attack_step_size
    steps = min(2**level, STRONGEST)
    return steps, 2.5 * settings.eps / steps


def recipe_attack(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    settings: TrainSettings,
    generator: torch.Generator,
    *,
    scale: float = 1.0,
    level: int = 0,
    rows: Rows | None = None,
) -> Tensor:
    """The images (N, C, H, W) that the recipe of `settings` trains on in the place of `images`; free has its own way.

    Args:
        network: as for `adversarial_images`.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) or (N, classes).
        settings: of the run.
        generator: of random starts.
        scale: of eps and of the step, while they rise.
        level: how often the attack has been made stronger.
        rows: as for `adversarial_images`.

    Raises:
        NonFiniteError: a gradient became NaN or infinite.
    """
    eps = scale * settings.eps
    steps, step_size = strength(settings, level)
    if settings.recipe == "fast" and level == 0:
        return noisy_step_images(
            network,
            images,
            labels,
            norm=settings.norm,
            eps=eps,
            noise=settings.fast_noise,
            generator=generator,
            rows=rows,
        )
    if settings.recipe == "trades":
        with torch.no_grad():
            reference = network(images)
        # The divergence is flat at the images themselves, so that any attack on it needs a little noise to start.
        shape = total_of(images, rows), *images.shape[1:]
        noise = TRADES_NOISE * own(torch.randn(shape, generator=generator), rows).to(images.device)
        start = (images + noise).clamp(0, 1)
        problem = Problem(start, Divergence(network, reference), ball(settings.norm, eps), center=images)
        return pgd(problem, step_size=scale * step_size, steps=steps, use_best=False)
    # What collapsed without noise begins with it from then on.
    random = settings.random_start or level > 0
    return adversarial_images(
        network,
        images,
        labels,
        norm=settings.norm,
        eps=eps,
        step_size=scale * step_size,
        steps=steps,
        random_start=generator if random else None,
        rows=rows,
    )
