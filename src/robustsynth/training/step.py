"""One training step: the recipes' losses, adversarial weights, and how a batch moves the weights of the network.

A step is a function of the run's state, a batch, and random numbers keyed by the step and the image's place.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsynth.constraints import ball
from robustsynth.loop import NonFiniteError
from robustsynth.objectives import Network
from robustsynth.processes import SINGLE, Team
from robustsynth.randomness import generator
from robustsynth.training.attack import AttackNetwork, divergence, recipe_attack
from robustsynth.training.checkpoints import TrainState
from robustsynth.training.data import augment, cutmix
from robustsynth.training.settings import TrainSettings

STEP, DROPOUT, CUTMIX = 2, 4, 5
"""Keys of a step's random streams: of each image's augmentation and attack, of what is dropped, of which images are
mixed; 1 is that of an epoch's order, 3 that of the guard."""


def recipe_loss(
    logits: Callable[[Tensor], Tensor], images: Tensor, attacked: Tensor, labels: Tensor, settings: TrainSettings
) -> Tensor:
    """What the weights descend on, a scalar: the mean over a batch.

    pgd, fast: CE(f(x′), y) (Madry et al. 2018, Equation 2.1).
    trades: CE(f(x), y) + β·KL(f(x) ‖ f(x′)), β = 1/λ (Zhang et al. 2019, Equation 5, Algorithm 1).
    mart: see `mart_loss`.

    `logits` is f, in training mode; `images` x and `attacked` x′ are (N, C, H, W) in [0, 1]; `labels` y are (N,)
    integers, or shares (N, classes), which mart does not take.
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
    BCE(p, y) = −log p_y − log(1 − max over k ≠ y of p_k). `weight` is λ, `clean` and `attacked` are the logits
    (N, classes) of x and x′, `labels` are (N,) integers.

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
    """Within it the weights of `network` are w + v, v raising `loss`; after it they are w again, to the last bit.

    AWP (Wu et al. 2020, Equation 8 and Algorithm 1, one ascent step): for each layer v = γ·‖w‖·∇/‖∇‖. As in the
    authors' code only weights of two or more dimensions move, not biases or batch norm's; the pass that finds v
    leaves batch norm's running statistics as they were, and the parameters' ``grad``.
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


@dataclass(frozen=True)
class StepResult:
    """A step's mean loss, and the attacked `images` (N, C, H, W) that it trained on, of the batch's first part."""

    loss: float
    images: Tensor


def train_step(
    state: TrainState,
    predict: Callable[[nn.Module], Network],
    images: Tensor,
    labels: Tensor,
    *,
    steps_per_epoch: int,
    size: int,
    team: Team = SINGLE,
    frozen: AttackNetwork | None = None,
) -> StepResult:
    """Attack a batch and move the weights of ``state.network`` against it, by the recipe of ``state.settings``.

    Only the network, the optimizer, the average and, for free, the perturbation that goes on to the next batch are
    changed; nothing is written. An image's random numbers depend on the run's seed, the step and its place in the
    batch.

    Args:
        state: of a run of `steps_per_epoch` steps an epoch, which ends at images of `size` pixels.
        predict: makes a network a function from images in [0, 1] to float32 logits.
        images: the batch (N, C, h, w) in [0, 1], or this process's part of it, and its `labels` (N,).
        frozen: copy of ``state.network``, for the attack to ask in its place.

    Raises:
        UserError: the attack, the loss or a gradient became NaN or infinite; the weights are as they were.
    """
    settings = state.settings
    places = range(len(images)) if team.rows is None else team.rows.tolist()
    generators = [generator(settings.seed, STEP, state.step, place) for place in places]
    images = augment(images, settings, generators, side=settings.side(state.step, steps_per_epoch, size))
    if settings.cutmix:
        # A partner may be another process's image.
        batch, classes = (team.gathered(images), team.gathered(labels)), len(state.data["classes"])
        stream = generator(settings.seed, CUTMIX, state.step)
        mixed = cutmix(*batch, classes=classes, probability=settings.cutmix, generator=stream)
        images, labels = map(team.own, mixed)
    for group in state.optimizer.param_groups:
        group["lr"] = settings.rate(state.step, steps_per_epoch)
    scale = settings.attack_scale(state.step, steps_per_epoch)
    descend = functools.partial(_descend, state, predict, team)
    with _dropout(state, team, images.device):
        if settings.recipe == "free":
            result = _replay(state, descend, images, labels, settings.eps * scale, team)
        else:
            result = _attack_and_descend(state, descend, predict, images, labels, generators, scale, team, frozen)
    # Batch norm's running statistics.
    team.average([b for b in state.network.buffers() if b.is_floating_point()])
    state.step += 1
    state.update_average()
    return result


@contextlib.contextmanager
def _dropout(state: TrainState, team: Team, device: torch.device) -> Iterator[None]:
    """Dropout draws from PyTorch's own generator, whose state no checkpoint has: within this it is the step's own."""
    first = 0 if team.rows is None else int(team.rows[0])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator(state.settings.seed, DROPOUT, state.step, first).initial_seed())
        yield


def _descend(
    state: TrainState, predict: Callable[[nn.Module], Network], team: Team, loss: Callable[[Network], Tensor]
) -> float:
    """Add the gradient of one part of a batch; its share of the loss, over all processes."""
    value = loss(predict(state.network)) / state.settings.accumulate
    mean = team.mean(float(value.detach()))
    if not math.isfinite(mean):
        raise state.not_finite("a finite loss")
    value.backward()
    return mean


def _attack_and_descend(
    state: TrainState,
    descend: Callable[..., float],
    predict: Callable[[nn.Module], Network],
    images: Tensor,
    labels: Tensor,
    generators: list[torch.Generator],
    scale: float,
    team: Team,
    frozen: AttackNetwork | None,
) -> StepResult:
    settings, network = state.settings, state.network
    if frozen is not None:
        frozen.follow(network)
    logits = predict(network if frozen is None else frozen)
    total, shown = 0.0, images
    state.optimizer.zero_grad()
    for index, (part, truth) in enumerate(_parts(settings.accumulate, images, labels)):
        attacked = part
        if settings.eps > 0:
            # Parameters' gradients would be wasted on the attack.
            network.train(settings.attack_statistics == "train").requires_grad_(False)
            failed, own = False, generators[index * len(part) : (index + 1) * len(part)]
            try:
                attacked = recipe_attack(logits, part, truth, settings, own, scale=scale, level=state.attack_level)
            except NonFiniteError:
                failed = True
            finally:
                network.requires_grad_(True)
            if team.workers.any(failed)[0]:
                raise state.not_finite("a finite attack")
        network.train()
        loss = functools.partial(recipe_loss, images=part, attacked=attacked, labels=truth, settings=settings)
        # Not the attack's copy: its weights are frozen.
        ascent = functools.partial(loss, predict(network))
        with perturbed_weights(network, ascent, settings.awp, team=team) if settings.awp else contextlib.nullcontext():
            total += descend(loss)
        shown = attacked if index == 0 else shown
    _move(state, team)
    return StepResult(total, shown)


def _replay(
    state: TrainState, descend: Callable[..., float], images: Tensor, labels: Tensor, eps: float, team: Team
) -> StepResult:
    """Free adversarial training (Shafahi et al. 2019, Algorithm 1).

    The same batch is trained on `free_replays` times; each pass gives both the weights' gradient and that of the
    images, along which the perturbation then moves by eps. The next batch begins with the perturbation that this one
    ends with. The paper's is for linf; for l2 the step goes along the gradient, and the projection is the ball's.
    """
    settings, constraint = state.settings, ball(state.settings.norm, eps)
    carried = state.perturbation
    if carried is None or carried.shape != images.shape:  # The run's first, or the first at another size.
        carried = torch.zeros_like(images)
    state.network.train().requires_grad_(True)
    attacked = constraint.project(images + carried, images)
    total, trained_on = 0.0, attacked
    for _ in range(settings.free_replays):
        state.optimizer.zero_grad()
        total, trained_on = 0.0, attacked
        moved: list[Tensor] = []
        for part, center, truth in _parts(settings.accumulate, attacked, images, labels):
            variable = part.detach().requires_grad_(True)

            def loss(logits: Network, variable: Tensor = variable, truth: Tensor = truth) -> Tensor:
                return F.cross_entropy(logits(variable), truth, label_smoothing=settings.label_smoothing)

            total += descend(loss)
            assert variable.grad is not None
            with torch.no_grad():
                moved.append(constraint.project(part + eps * constraint.direction(variable.grad), center))
        attacked = torch.cat(moved)
        _move(state, team)
    state.perturbation = (attacked - images).detach()
    return StepResult(total, trained_on)


def _parts(count: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors cut into `count` parts of equal length, part by part."""
    return list(zip(*(t.split(len(t) // count) for t in tensors), strict=True))


def _move(state: TrainState, team: Team) -> None:
    """Let the optimizer take its step, once every part's gradient is there."""
    team.average([p.grad for p in state.network.parameters() if p.grad is not None])
    # Without a bound the norm is still taken: a gradient that is not finite must not reach the weights, whose
    # checkpoint would replace the last good one.
    bound = state.settings.clip_norm or math.inf
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), bound, foreach=True)
    if not bool(torch.isfinite(norm)):
        raise state.not_finite("a finite gradient")
    state.optimizer.step()
