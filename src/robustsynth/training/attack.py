"""The inner maximisation of adversarial training: the same loop, with the labels' likelihood going down."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustsynth.constraints import ball
from robustsynth.loop import Problem, pgd
from robustsynth.objectives import Untargeted


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
) -> Tensor:
    """Images within `eps` of `images` that the network finds hardest: the last iterate of PGD.

    Args:
        network: images to logits, in evaluation mode and with frozen parameters.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) integers.
        norm: ``l2`` or ``linf``.
        eps: the radius, in pixel units; 0 gives the images back.
        step_size: length of a step.
        steps: how many.
        random_start: start uniformly at random in the ball, drawn from this generator; at the images where None.

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
        # The same generator for every image: a batch of training is one draw, reproducible by its step.
        start = constraint.random_start(images, [random_start] * len(images))
    problem = Problem(start, Untargeted(network, labels), constraint, center=images)
    return pgd(problem, step_size=step_size, steps=steps, use_best=False)
