"""Settings of a training run, and the presets that fill them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from robustsynth.errors import UnknownNameError
from robustsynth.presets import preset_files, read_preset
from robustsynth.training.checking import check_settings


@dataclass(frozen=True)
class TrainSettings:
    """min over weights of E[max over ‖δ‖ ≤ eps of CE(x + δ, y)] by PGD inside and SGD outside, or by another recipe.

    The recipes: ``pgd`` (Madry et al. 2018, Equation 2.1), ``trades`` (Zhang et al. 2019, Equation 5), ``mart`` (Wang
    et al. 2020, Equation 9), ``free`` (Shafahi et al. 2019, Algorithm 1) and ``fast`` (Wong et al. 2020, Algorithm 3,
    in the form of de Jorge et al. 2022, Algorithm 1: N-FGSM); see `robustsynth.training.recipes`.

    In the many dimensions of an image a start uniform in an l2 ball lies near its edge and at a right angle to the
    gradient, so that one step of length eps from there, projected, goes only about 1/√2 of the radius along it. One
    from the image itself is nearly as strong as PGD-20 at no cost: ``random_start = false`` (the losses are in
    docs/training-recipes.md). For linf keep the random start: one-step training collapses sooner without (Wong et al.
    2020).

    Attributes:
        architecture: a name in `robustsynth.models.architectures.ARCHITECTURES`.
        width: base width; None for the architecture's standard one.
        fine_tune: a model to begin from, by name or folder, also one of other classes; None for random weights.
        image_size: side to train at; None for the data's own.
        stored_size: side at which the training images are held, for ``resized`` crops to be taken from; None for
            `image_size`.
        early_size: side to train at in the first part of a run, at fewer pixels and so faster; None for `image_size`.
        early_share: the part of all steps that this is.
        recipe: ``pgd``, ``trades``, ``mart``, ``free`` or ``fast``.
        norm: of the attack, ``l2``, ``linf`` or another one that was registered.
        eps: radius of the attack in pixel units of images in [0, 1]; 0 is standard training.
        attack_steps: PGD steps; free and fast have their own.
        attack_step_size: their length.
        attack_statistics: batch norm in the attack: ``eval`` for the running statistics, frozen; ``train`` for the
            batch's, which moves the running ones too.
        eps_warmup: share of all steps over which eps and the attack's step rise linearly from 0; large l-infinity
            radii are not learnt at all from a cold start.
        random_start: start the attack of pgd and mart uniformly at random in the ball; false makes a one-step l2
            attack nearly as strong as PGD-20.
        trades_beta: weight of trades' divergence between clean and attacked predictions.
        mart_weight: weight of mart's.
        free_replays: times that free trains on each batch, moving its perturbation each time; divide epochs by it for
            equal work.
        fast_noise: noise of fast before its one step, in units of eps; 0 is plain FGSM.
        awp: size of the adversarial perturbation of the weights, beside pgd and trades, as a share of each layer's
            norm, such as 0.005; 0 for none.
        guard_every: steps between looks for catastrophic overfitting, where the attack has one step; 0 for none.
        guard_gap: share of images right under the training's attack beyond that under PGD-10 which counts as one.
        epochs: passes over the training images.
        batch_size: images a step.
        accumulate: parts that each batch is worked through in, for less memory; batch norm sees a part at a time.
        learning_rate: the peak.
        schedule: ``cosine`` to 0, ``one-cycle`` (linearly up, then linearly down to 0), or ``step`` by a tenth at each
            of `milestones`.
        milestones: epochs of the ``step`` schedule.
        warmup: share of all steps over which the rate rises linearly from 0; 0.4 for one-cycle where 0.
        momentum: of SGD.
        nesterov: whether it is Nesterov's.
        weight_decay: on weights.
        decay_norms: also on biases and on batch norm's parameters.
        label_smoothing: share of the label spread over all classes.
        average: decay of the weights' moving average, shorter while training is young; 0 for none.
        clip_norm: bound of the gradient's norm; 0 for none.
        crop: ``pad`` (pad by an eighth of the side, crop), ``resized`` (random area and aspect) or ``none``.
        flip: mirror half of the images.
        crop_area: the least share of an image that a ``resized`` crop shows.
        jitter: strength of random brightness, contrast and saturation; 0 for none.
        cutmix: probability that an image gets a rectangle of another one, and that share of its label.
        held_out: training images held out to select by.
        evaluate_every: epochs between selections.
        seed: of the whole run.
    """

    architecture: str = "resnet18"
    width: int | None = None
    fine_tune: str | None = None
    image_size: int | None = None
    stored_size: int | None = None
    early_size: int | None = None
    early_share: float = 0.4
    recipe: str = "pgd"
    norm: str = "l2"
    eps: float = 0.5
    attack_steps: int = 7
    attack_step_size: float = 0.1
    attack_statistics: str = "eval"
    eps_warmup: float = 0.0
    random_start: bool = True
    trades_beta: float = 6.0
    mart_weight: float = 5.0
    free_replays: int = 4
    fast_noise: float = 2.0
    awp: float = 0.0
    guard_every: int = 200
    guard_gap: float = 0.3
    epochs: int = 30
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 0.1
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    warmup: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_norms: bool = False
    label_smoothing: float = 0.0
    average: float = 0.998
    clip_norm: float = 1.0
    crop: str = "pad"
    crop_area: float = 0.35
    flip: bool = True
    jitter: float = 0.0
    cutmix: float = 0.0
    held_out: int = 1000
    evaluate_every: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def guarded(self) -> bool:
        """Whether the run is looked after for catastrophic overfitting: its attack has but one step.

        Example:
            >>> TrainSettings(recipe="fast").guarded, TrainSettings(attack_steps=7).guarded
            (True, False)
        """
        one_step = self.recipe == "fast" or (self.recipe != "free" and self.attack_steps == 1)
        return self.eps > 0 and self.guard_every > 0 and one_step

    def attack_scale(self, step: int, steps_per_epoch: int) -> float:
        """The share of eps, and of the attack's step size, that step `step` trains with."""
        rising = self.eps_warmup * self.epochs * steps_per_epoch
        return min(1.0, (step + 1) / rising) if rising else 1.0

    def side(self, step: int, steps_per_epoch: int, final: int) -> int:
        """The side in pixels that step `step` trains at, in a run that ends at `final`.

        Example:
            >>> settings = TrainSettings(epochs=2, crop="resized", early_size=96, early_share=0.5)
            >>> settings.side(9, 10, 128), settings.side(10, 10, 128)
            (96, 128)
        """
        if self.early_size is None or step >= self.early_share * self.epochs * steps_per_epoch:
            return final
        return self.early_size

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of step `step`, counted from 0 over the whole run.

        Example:
            >>> TrainSettings(epochs=2, learning_rate=0.2).rate(10, steps_per_epoch=10)
            0.1
        """
        total = self.epochs * steps_per_epoch
        done = step / total
        rising = (self.warmup or ONE_CYCLE_RISE) if self.schedule == "one-cycle" else self.warmup
        if done < rising:
            return self.learning_rate * (step + 1) / (rising * total + 1)
        if self.schedule == "step":
            passed = sum(step >= m * steps_per_epoch for m in self.milestones)
            return self.learning_rate * 0.1**passed
        fallen = (done - rising) / (1 - rising)
        if self.schedule == "one-cycle":
            return self.learning_rate * (1 - fallen)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * fallen))


ONE_CYCLE_RISE = 0.4
"""Share of a one-cycle run in which the rate rises, where no `warmup` says so."""


def training_presets() -> list[str]:
    """Names of the training presets."""
    return preset_files("robustsynth.training")


def resolve_train_settings(preset: str | None, given: dict[str, Any] | None = None) -> TrainSettings:
    """A preset's settings with what the caller gives in their place; None values count as not given.

    Raises:
        UnknownNameError: an unknown preset or field.
        UserError: a value that does not fit.

    Example:
        >>> resolve_train_settings("cifar10-small", {"epochs": 3}).epochs
        3
    """
    values = {} if preset is None else read_preset("robustsynth.training", preset)
    values |= {name: value for name, value in (given or {}).items() if value is not None}
    return settings_from(values)


def settings_from(values: dict[str, Any]) -> TrainSettings:
    """Settings from plain values, such as a checkpoint's."""
    fields = {f.name for f in dataclasses.fields(TrainSettings)}
    for name in values:
        if name not in fields:
            raise UnknownNameError("training setting", name, sorted(fields))
    plain: dict[str, Any] = {**values, "milestones": tuple(values.get("milestones", ()))}
    return TrainSettings(**plain)
