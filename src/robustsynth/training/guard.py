"""A guard against catastrophic overfitting: one-step training that withstands its own attack and no other.

A network trained on a one-step attack may come, within some hundred steps, to classify nearly all images correctly
under that attack and hardly any under PGD (Wong et al. 2020, Section 5.4; Andriushchenko and Flammarion 2020). The
guard compares the two on a few held-out images every so many steps. A gap above ``guard_gap`` is a collapse: the run
goes back to the last weights whose gap was at most half of that, and goes on from there with an attack of twice as many
steps from a random start. The step count, and with it the schedule and the random streams, goes on too.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from robustsynth.loop import NonFiniteError
from robustsynth.objectives import Network
from robustsynth.randomness import generator
from robustsynth.training.attack import correct, correct_clean_and_attacked, recipe_attack, strength
from robustsynth.training.checkpoints import TrainState
from robustsynth.training.distributed import SINGLE, Team

GUARD = 3
"""Key of the guard's random streams."""

GUARD_IMAGES = 64
"""At most so many of the held-out images are looked at."""

CHANCE = 5
"""Fewer images than this that only one of the attacks turns are no sign of anything."""


def look(
    state: TrainState, logits: Network, images: Tensor, labels: Tensor, *, scale: float
) -> tuple[float, float] | None:
    """Compare the two attacks on the network as it is.

    Args:
        state: of the run.
        logits: of ``state.network``, which is in evaluation mode, its parameters frozen, meanwhile.
        images: (N, C, H, W) in [0, 1], of the size that is trained at.
        labels: (N,) integers.
        scale: of eps at this step.

    Returns:
        The shares of images classified correctly under the training's attack and under PGD-10; None where the weights
        are not finite.
    """
    settings, network = state.settings, state.network
    training = network.training
    network.eval().requires_grad_(False)
    generators = [generator(settings.seed, GUARD, state.step, place) for place in range(len(images))]
    given, pgd = {"scale": scale, "level": state.attack_level}, {"norm": settings.norm, "eps": scale * settings.eps}
    try:
        attacked = recipe_attack(logits, images, labels, settings, generators, **given)
        _, robust = correct_clean_and_attacked(logits, images, labels, size=images.shape[-1], **pgd)
        return correct(logits, attacked, labels) / len(images), robust / len(images)
    except NonFiniteError:
        return None
    finally:
        network.train(training).requires_grad_(True)


def watch(
    state: TrainState,
    predict: Callable[[nn.Module], Network],
    images: Tensor,
    labels: Tensor,
    *,
    scale: float,
    announce: Callable[[str], object],
    team: Team = SINGLE,
) -> None:
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
    seen = team.workers.agreed(lambda: look(state, predict(state.network), images, labels, scale=scale))
    if seen is None:
        raise NonFiniteError(images, {})
    trained, pgd = seen
    if trained - pgd > state.settings.guard_gap and (trained - pgd) * len(images) >= CHANCE:
        back = state.return_to_good()
        state.attack_level += 1
        steps = strength(state.settings, state.attack_level)[0]
        event = {"step": state.step, "trained": trained, "pgd": pgd, "back_to": back, "attack_steps": steps}
        state.collapses.append(event)
        announce(described(event))
    elif trained - pgd <= state.settings.guard_gap / 2:
        state.keep_good()


def described(event: dict[str, float]) -> str:
    """A collapse in words.

    Example:
        >>> described({"step": 400, "trained": 0.95, "pgd": 0.0, "back_to": 200, "attack_steps": 2})
        'catastrophic overfitting at step 400: 95 % correct under the attack trained with, 0 % under PGD-10; \
back to the weights of step 200, on with 2 attack steps'
    """
    return (
        f"catastrophic overfitting at step {event['step']}: {100 * event['trained']:.0f} % correct under the attack "
        f"trained with, {100 * event['pgd']:.0f} % under PGD-10; back to the weights of step {event['back_to']}, on "
        f"with {event['attack_steps']} attack steps"
    )
