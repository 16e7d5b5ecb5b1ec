"""The outer losses of the recipes, and the adversarial perturbation of weights that some combine with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsynth.training.attack import divergence
from robustsynth.training.distributed import SINGLE, Team
from robustsynth.training.settings import TrainSettings


def recipe_loss(
    logits: Callable[[Tensor], Tensor], images: Tensor, attacked: Tensor, labels: Tensor, settings: TrainSettings
) -> Tensor:
    """What the weights descend on, a scalar: the mean over a batch.

    pgd, fast: CE(f(x′), y) (Madry et al. 2018, Equation 2.1).
    trades: CE(f(x), y) + β·KL(f(x) ‖ f(x′)), β = 1/λ (Zhang et al. 2019, Equation 5, Algorithm 1).
    mart: see `mart_loss`.

    Args:
        logits: images to logits (N, classes), in training mode.
        images: x, (N, C, H, W) in [0, 1].
        attacked: x′, of the same shape.
        labels: (N,) integers, or (N, classes) shares; mart takes only the former.
        settings: of the run.
    """
    if settings.recipe == "trades":
        clean = logits(images)
        loss = F.cross_entropy(clean, labels, label_smoothing=settings.label_smoothing)
        return loss + settings.trades_beta * divergence(clean, logits(attacked)).mean()
    if settings.recipe == "mart":
        return mart_loss(logits(images), logits(attacked), labels, weight=settings.mart_weight)
    return F.cross_entropy(logits(attacked), labels, label_smoothing=settings.label_smoothing)


def mart_loss(clean: Tensor, attacked: Tensor, labels: Tensor, *, weight: float) -> Tensor:
    """MART's loss (Wang et al. 2020, Section 3), the mean over a batch.

    BCE(p(x′), y) + λ·KL(p(x) ‖ p(x′))·(1 − p_y(x)), where the boosted cross-entropy is
    BCE(p, y) = −log p_y − log(1 − max over k ≠ y of p_k).

    Args:
        clean: logits of x, (N, classes).
        attacked: logits of x′.
        labels: (N,) integers.
        weight: λ.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> round(mart_loss(logits, logits, torch.tensor([0]), weight=5.0).item(), 3)  # 2·log 2
        1.386
    """
    chosen = labels.view(-1, 1)
    others = attacked.softmax(1).scatter(1, chosen, 0.0).amax(1)
    # 1e-4 keeps a network that is sure and wrong from an infinite loss.
    boosted = F.cross_entropy(attacked, labels, reduction="none") - torch.log(1.0001 - others)
    unsure = 1 - clean.softmax(1).gather(1, chosen).squeeze(1)
    return (boosted + weight * divergence(clean, attacked) * unsure).mean()


@contextlib.contextmanager
def perturbed_weights(
    network: nn.Module, loss: Callable[[], Tensor], gamma: float, *, team: Team = SINGLE
) -> Iterator[None]:
    """Within it the weights of `network` are w + v, v raising the loss; after it they are w again, to the last bit.

    AWP (Wu et al. 2020, Equation 8 and Algorithm 1, one ascent step): for each layer v = γ·‖w‖·∇/‖∇‖. As in the
    authors' code only weights of two or more dimensions move, not biases or batch norm's; the pass that finds v
    leaves batch norm's running statistics as they were.

    Args:
        network: in the mode in which it is trained; its parameters' ``grad`` are not touched.
        loss: the loss to raise, computed anew with the weights as they are.
        gamma: γ, the size of v as a share of a layer's norm.
        team: the processes that train it; the gradient is that of all their images.
    """
    weights = [p for p in network.parameters() if p.ndim > 1]
    kept = [p.detach().clone() for p in weights]
    statistics = [b.clone() for b in network.buffers()]
    grads = torch.autograd.grad(loss(), weights)
    team.average(grads)
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), statistics, strict=True):
            buffer.copy_(before)
        for weight, grad in zip(weights, grads, strict=True):
            weight.add_(grad * (gamma * weight.norm() / (grad.norm() + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
