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
from robustsynth.processes import SINGLE, Team
from robustsynth.randomness import generator
from robustsynth.training.attack import count_clean_and_robust, count_correct, recipe_attack, strength
from robustsynth.training.checkpoints import TrainState

GUARD = 3
"""Key of the guard's random streams."""

GUARD_IMAGES = 64
"""Held-out images that are compared, at most."""

CHANCE = 5
"""Fewer images than this that only one of the attacks turns are no sign of anything."""


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
    """Compare the two attacks; keep the weights where all is well, and recover where training has collapsed.

    The first process of `team` compares for all, on `images` (N, C, H, W) in [0, 1] of the size that is trained at and
    `labels` (N,). `predict` makes a network a function from images to logits, `scale` is that of eps at this step, and
    `announce` is called with the message of a collapse. ``state.good`` holds the weights to go back to.

    Raises:
        UserError: the weights are not finite.
    """
    settings, network, count = state.settings, state.network, len(images)

    def counts() -> tuple[int, int]:
        """Images classified correctly under the training's attack and PGD-10."""
        training, logits = network.training, predict(network)
        generators = [generator(settings.seed, GUARD, state.step, place) for place in range(count)]
        network.eval().requires_grad_(False)
        given = {"norm": settings.norm, "eps": scale * settings.eps, "size": images.shape[-1]}
        try:
            attack = recipe_attack(logits, images, labels, settings, generators, scale=scale, level=state.attack_level)
            return count_correct(logits, attack, labels), count_clean_and_robust(logits, images, labels, **given)[1]
        except NonFiniteError:
            raise state.not_finite("finite weights") from None
        finally:
            network.train(training).requires_grad_(True)

    trained, pgd = (correct / count for correct in team.workers.agreed(counts))
    if trained - pgd > settings.guard_gap and (trained - pgd) * count >= CHANCE:
        back = state.return_to_good()
        state.attack_level += 1
        steps = strength(settings, state.attack_level)[0]
        event = {"step": state.step, "trained": trained, "pgd": pgd, "back_to": back, "attack_steps": steps}
        state.collapses.append(event)
        announce(
            f"catastrophic overfitting at step {state.step}: {100 * trained:.0f} % correct under the attack "
            f"trained with, {100 * pgd:.0f} % under PGD-10; back to the weights of step {back}, on with {steps} attack "
            "steps"
        )
    elif trained - pgd <= settings.guard_gap / 2:
        state.keep_good()
