"""A black-box attack that needs no package: random squares, kept where they bring an error nearer.

It is a plain random search for `robustsynth.evaluation.masking`, to be compared with attacks that use gradients; it is
not the Square attack, whose figures come from its authors' package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustsynth.constraints import L2Ball, LinfBall
from robustsynth.randomness import generator


def random_squares(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    constraint: L2Ball | LinfBall,
    numbers: Sequence[int],
    seed: int = 0,
    queries: int = 500,
) -> Tensor:
    """The images (N, C, H, W) with the smallest margin of their label that a random search met.

    Each query moves a square of random place and colour by up to twice the radius and projects; squares shrink from
    half of the image to a pixel.

    Args:
        network: images to logits.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        constraint: the ball.
        numbers: of the images; each draws from a generator of its own.
        seed: of the generators.
        queries: forward passes.

    Example:
        >>> bright = lambda x: torch.stack([x.sum((1, 2, 3)), torch.full((len(x),), 8.0)], 1)
        >>> image, label = torch.full((1, 1, 4, 4), 0.6), torch.tensor([0])
        >>> found = random_squares(bright, image, label, constraint=LinfBall(0.2), numbers=[0], queries=50)
        >>> bool(found.sum() < 8)
        True
    """
    generators = [generator(seed, number, 1) for number in numbers]
    best, best_margin = images, _margin(network, images, labels)
    side = min(images.shape[2:])
    for query in range(queries):
        edge = max(round(side * 0.5 * (1 - query / queries) ** 2), 1)
        square = torch.stack([_square(g, images.shape[1:], edge) for g in generators]).to(images)
        # In ℓ2 a square carries its share of the radius however small it is.
        height = constraint.eps * (2.0 if isinstance(constraint, LinfBall) else 1.0 / edge)
        moved = constraint.project(best + height * square, images)
        margin = _margin(network, moved, labels)
        better = (margin < best_margin) & (best_margin >= 0)
        best = torch.where(better.view(-1, 1, 1, 1), moved, best)
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


def _margin(network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """The label's logit less the largest other; below 0 where the network errs."""
    with torch.no_grad():
        logits = network(images).clone()
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1, keepdim=True)
    return (own - others).squeeze(1)
