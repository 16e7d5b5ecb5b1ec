"""Accuracy on images held out from training, clean and under PGD-10: what models are selected by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.objectives import Network
from robustsynth.training.attack import adversarial_images

PGD_STEPS = 10
"""Steps of the selecting attack, each eps/4 long, from the images themselves."""


def right_clean_and_attacked(
    logits: Network, images: Tensor, labels: Tensor, *, norm: str, eps: float, size: int
) -> tuple[int, int]:
    """How many images of a batch are right plain, and how many under PGD-10.

    Args:
        logits: of a network in evaluation mode with frozen parameters.
        images: (N, C, h, w) in [0, 1]; brought to `size` where they have another side.
        labels: (N,) integers.
        norm: of the attack.
        eps: its radius; 0 for none.
        size: side in pixels of the images that the network is meant for.

    Example:
        >>> images = torch.tensor([[[[0.4, 0.6]]], [[[0.0, 1.0]]]])
        >>> right_clean_and_attacked(lambda x: x.flatten(1), images, torch.tensor([1, 1]), norm="linf", eps=0.2,
        ...                          size=2)
        (2, 1)
    """
    if images.shape[-1] != size:
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    attacked = adversarial_images(logits, images, labels, norm=norm, eps=eps, step_size=eps / 4, steps=PGD_STEPS)
    return right(logits, images, labels), right(logits, attacked, labels)


def right(logits: Network, images: Tensor, labels: Tensor) -> int:
    """How many images of a batch are right."""
    with torch.no_grad():
        return int((logits(images).argmax(1) == labels).sum())
