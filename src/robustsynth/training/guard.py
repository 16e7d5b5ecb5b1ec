"""A guard against catastrophic overfitting: one-step training that learns to see through its own attack.

A network trained on a one-step attack may come, within some hundred steps, to be right on nearly all images under that
attack and on hardly any under PGD (Wong et al. 2020, Section 5.4; Andriushchenko and Flammarion 2020). The guard
compares the two on a few images held apart every so many steps. A gap above ``guard_gap`` is a collapse: the run goes
back to the last weights whose gap was at most half of that, and goes on from there with an attack of twice as many
steps from a random start. The step count, and with it the schedule and the random streams, goes on too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from robustsynth.loop import NonFiniteError
from robustsynth.objectives import Network
from robustsynth.randomness import generator
from robustsynth.training.attack import recipe_attack, strength
from robustsynth.training.selecting import right, right_clean_and_attacked
from robustsynth.training.state import TrainState
from robustsynth.training.workers import SINGLE, Team

GUARD = 3
"""Key of the guard's random streams."""

GUARD_IMAGES = 64
"""At most so many of the held-out images are looked at."""

CHANCE = 5
"""Fewer images than this that only one of the attacks turns are no sign of anything."""


@dataclass(frozen=True)
class Look:
    """What the guard saw at a step: shares of images right under the training's attack, and under PGD-10.

    Example:
        >>> Look(trained=0.97, pgd=0.02).gap
        0.95
    """

    trained: float
    pgd: float

    @property
    def gap(self) -> float:
        """How much of the one is missing in the other."""
        return self.trained - self.pgd


def look(state: TrainState, logits: Network, images: Tensor, labels: Tensor, *, scale: float) -> Look:
    """Compare the two attacks on the network as it is.

    Args:
        state: of the run.
        logits: of ``state.network``, which is in evaluation mode, its parameters frozen, meanwhile.
        images: (N, C, H, W) in [0, 1], of the size that is trained at.
        labels: (N,) integers.
        scale: of eps at this step.
    """
    settings, network = state.settings, state.network
    training = network.training
    network.eval().requires_grad_(False)
    stream = generator(settings.seed, GUARD, state.step)
    own = recipe_attack(logits, images, labels, settings, stream, scale=scale, level=state.attack_level)
    _, pgd = right_clean_and_attacked(
        logits, images, labels, norm=settings.norm, eps=scale * settings.eps, size=images.shape[-1]
    )
    seen = Look(right(logits, own, labels) / len(images), pgd / len(images))
    network.train(training).requires_grad_(True)
    return seen


def watch(
    state: TrainState,
    predict: Callable[[nn.Module], Network],
    images: Tensor,
    labels: Tensor,
    *,
    scale: float,
    announce: Callable[[str], object],
    team: Team = SINGLE,
) -> Look:
    """Look; keep the weights where all is well, and recover where training has collapsed.

    Args:
        state: of the run; `state.good` holds the weights to go back to.
        predict: makes a network a function from images to logits.
        images: as for `look`.
        labels: as for `look`.
        scale: as for `look`.
        announce: told of a collapse.
        team: the processes that train; the first looks, and all do as it saw.

    Raises:
        NonFiniteError: the weights are not finite.
    """
    seen = team.workers.agreed(lambda: _seen(state, predict(state.network), images, labels, scale))
    if seen is None:
        raise NonFiniteError(images, {})
    if seen.gap > state.settings.guard_gap and seen.gap * len(images) >= CHANCE:
        back = state.return_to_good()
        state.attack_level += 1
        steps = strength(state.settings, state.attack_level)[0]
        event = {"step": state.step, "trained": seen.trained, "pgd": seen.pgd, "back_to": back, "attack_steps": steps}
        state.collapses.append(event)
        announce(told(event))
    elif seen.gap <= state.settings.guard_gap / 2:
        state.keep_good()
    return seen


def _seen(state: TrainState, logits: Network, images: Tensor, labels: Tensor, scale: float) -> Look | None:
    """`look`, or None where the weights are not finite: something to tell the other processes."""
    try:
        return look(state, logits, images, labels, scale=scale)
    except NonFiniteError:
        return None


def told(event: dict[str, float]) -> str:
    """A collapse in words.

    Example:
        >>> told({"step": 400, "trained": 0.95, "pgd": 0.0, "back_to": 200, "attack_steps": 2})
        'catastrophic overfitting at step 400: 95 % right under the attack trained with, 0 % under PGD-10; \
back to the weights of step 200, on with 2 attack steps'
    """
    return (
        f"catastrophic overfitting at step {event['step']}: {100 * event['trained']:.0f} % right under the attack "
        f"trained with, {100 * event['pgd']:.0f} % under PGD-10; back to the weights of step {event['back_to']}, on "
        f"with {event['attack_steps']} attack steps"
    )
