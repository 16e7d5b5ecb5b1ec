"""The attacks of adversarial training, accuracy under PGD-10, and the frozen network that an attack asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robustsynth.constraints import ball
from robustsynth.loop import Objective, Problem, pgd
from robustsynth.models.folding import fold_and_report, reduce_but_logits, reducible
from robustsynth.objectives import Network, Untargeted
from robustsynth.randomness import normal
from robustsynth.training.settings import TrainSettings

TRADES_NOISE = 0.001
"""Standard deviation of the noise that TRADES' attack starts with (Zhang et al. 2019, Algorithm 1)."""

MOST_STEPS = 16
"""Steps at which the attack is strong enough: it is not made stronger after yet another collapse."""


def adversarial_images(
    network: Network,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str,
    eps: float,
    step_size: float,
    steps: int,
    random_start: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Images within `eps` of `images` that the network finds hardest: the last iterate of PGD (Madry et al. 2018).

    `network` takes images (N, C, H, W) in [0, 1] to logits, in evaluation mode and with frozen parameters. `labels` are
    (N,) integers, or shares (N, classes). The attack starts uniformly at random in the ball, drawn from one generator
    of `random_start` an image; at the images themselves where None.

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
    start = images if random_start is None else constraint.random_start(images, random_start)
    problem = Problem(start, Untargeted(network, labels), constraint, center=images)
    return pgd(problem, step_size=step_size, steps=steps, use_best=False)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(p ‖ q) in nats, (N,), where p and q have the logits `first` and `second` (N, classes).

    Example:
        >>> round(divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item(), 4)
        0.1201
    """
    logs = F.log_softmax(second, 1), F.log_softmax(first, 1)
    return F.kl_div(*logs, reduction="none", log_target=True).sum(1)


def strength(settings: TrainSettings, level: int) -> tuple[int, float]:
    """Steps of the training's attack, and their length, after it has been made stronger `level` times.

    Each time doubles the steps, up to `MOST_STEPS`; together they are 2.5·eps long.

    Example:
        >>> strength(TrainSettings(attack_steps=1, attack_step_size=0.5), 0)
        (1, 0.5)
        >>> strength(TrainSettings(eps=0.8, attack_steps=1, attack_step_size=0.5), 2)
        (4, 0.5)
    """
    if level == 0:
        return settings.attack_steps, settings.attack_step_size
    steps = min(2**level, MOST_STEPS)
    return steps, 2.5 * settings.eps / steps


def recipe_attack(
    network: Network,
    images: Tensor,
    labels: Tensor,
    settings: TrainSettings,
    generators: Sequence[torch.Generator],
    *,
    scale: float = 1.0,
    level: int = 0,
) -> Tensor:
    """The images (N, C, H, W) that the recipe of `settings` trains on in the place of `images`; free has its own way.

    That of fast is N-FGSM (de Jorge et al. 2022, Algorithm 1): a random start in the ball of radius k·eps, k being
    `fast_noise`, then one step of length eps. Only the box [0, 1] bounds the result, which may lie (k + 1)·eps away.

    `network` and `labels` are as for `adversarial_images`, `generators` those of random starts, one an image. `scale`
    multiplies eps and the step while they rise; the attack has been made stronger `level` times.

    Raises:
        NonFiniteError: a gradient became NaN or infinite.
    """
    eps, noise, fast = scale * settings.eps, settings.fast_noise, settings.recipe == "fast" and level == 0
    steps, step_size = (1, settings.eps) if fast else strength(settings, level)
    start, reach = images, ball(settings.norm, eps)
    objective: Objective = Untargeted(network, labels)
    if fast:
        start = ball(settings.norm, noise * eps).random_start(images, generators) if noise else images
        # By the triangle inequality nothing leaves this ball, but for rounding: the projection is on the box alone.
        reach = ball(settings.norm, (noise + 1) * eps * (1 + 1e-5))
    elif settings.recipe == "trades":
        with torch.no_grad():
            clean = network(images)

        def closeness(images: Tensor) -> Tensor:
            return -divergence(clean, network(images))

        objective = closeness
        # The divergence is flat at the images themselves, so that any attack on it needs a little noise to start.
        start = (images + TRADES_NOISE * normal(generators, images.shape[1:]).to(images.device)).clamp(0, 1)
    elif settings.random_start or level > 0:
        # What collapsed without noise begins with it from then on.
        start = reach.random_start(images, generators)
    problem = Problem(start, objective, reach, center=images)
    return pgd(problem, step_size=scale * step_size, steps=steps, use_best=False)


def count_clean_and_robust(
    logits: Network, images: Tensor, labels: Tensor, *, norm: str, eps: float, size: int
) -> tuple[int, int]:
    """How many images of a batch are classified correctly, and how many under PGD-10: steps of eps/4, from themselves.

    `images` (N, C, h, w) are brought to the side `size` that the network is meant for; all else is as for
    `adversarial_images`.

    Example:
        >>> images = torch.tensor([[[[0.4, 0.6]]], [[[0.0, 1.0]]]])
        >>> count_clean_and_robust(lambda x: x.flatten(1), images, torch.tensor([1, 1]), norm="linf", eps=0.2, size=2)
        (2, 1)
    """
    if images.shape[-1] != size:
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    attacked = adversarial_images(logits, images, labels, norm=norm, eps=eps, step_size=eps / 4, steps=10)
    return count_correct(logits, images, labels), count_correct(logits, attacked, labels)


def count_correct(logits: Network, images: Tensor, labels: Tensor) -> int:
    """How many images of a batch are classified correctly."""
    with torch.no_grad():
        return int((logits(images).argmax(1) == labels).sum())


class AttackNetwork(nn.Module):
    """A frozen copy of a network in training, which follows its weights: in evaluation mode, batch norm folded.

    An attack asks the network many times between two changes of its weights. Folded, it has fewer layers to pass, and
    its weights are cast to bfloat16 only once, where that is the `precision`. `folds` says whether there was anything
    to fold; where not, it is as fast as the network itself.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(100, 2))
        >>> frozen, images = AttackNetwork(network, "float32"), torch.rand(2, 3, 5, 5)
        >>> with torch.no_grad():
        ...     _ = network[0].weight.mul_(2)
        >>> frozen.follow(network)
        >>> bool(torch.allclose(frozen(images), network.eval()(images), atol=1e-5))
        True
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        frozen, self._norms = fold_and_report(network)
        self.folds = bool(self._norms)
        frozen = frozen.requires_grad_(False).eval()
        self.reduced = precision == "bfloat16"
        self._reduced_weights = self.reduced and reducible(frozen)
        if self._reduced_weights:
            reduce_but_logits(frozen)
        self.frozen = frozen.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Take on the weights and statistics that `network` has now."""
        current = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        for name, value in self.frozen.state_dict().items():
            if name.rpartition(".")[0] not in self._norms:
                value.copy_(current[name])
        for name, norm_name in self._norms.items():
            layer: Any = network.get_submodule(name)
            norm: Any = network.get_submodule(norm_name)
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            folded = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
            for value, kind in zip(folded, ("weight", "bias"), strict=True):
                self.frozen.get_parameter(f"{name}.{kind}").copy_(value)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes), float32, of normalised images (N, C, H, W)."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.reduced and not self._reduced_weights):
            return self.frozen(images.to(torch.bfloat16) if self._reduced_weights else images).float()


def attack_network(network: nn.Module, settings: TrainSettings, precision: str) -> AttackNetwork | None:
    """The frozen copy that a run's attack asks, where there is an attack and something to gain."""
    if settings.eps == 0 or settings.recipe == "free" or settings.attack_statistics == "train":
        return None
    frozen = AttackNetwork(network, precision)
    return frozen if frozen.folds else None
