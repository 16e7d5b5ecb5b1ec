"""Settings of a training run, and the presets that fill them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.presets import preset_files, read_preset


@dataclass(frozen=True)
class TrainSettings:
    """min over weights of E[max over ‖δ‖ ≤ eps of CE(x + δ, y)] by PGD inside and SGD outside.

    Attributes:
        architecture: a name in `robustsynth.models.architectures.ARCHITECTURES`.
        width: base width; None for the architecture's standard one.
        image_size: side to train at; None for the data's own.
        stored_size: side at which the training images are held, for ``resized`` crops to be taken from; None for
            `image_size`.
        early_size: side to train at in the first part of a run, at fewer pixels and so faster; None for `image_size`.
        early_share: the part of all steps that this is.
        norm: of the attack, ``l2`` or ``linf``.
        eps: radius of the attack in pixel units of images in [0, 1]; 0 is standard training.
        attack_steps: PGD steps.
        attack_step_size: their length.
        eps_warmup: share of all steps over which eps and the attack's step rise linearly from 0; large l-infinity
            radii are not learnt at all from a cold start.
        random_start: start the attack uniformly at random in the ball.
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: the peak.
        schedule: ``cosine`` to 0, or ``step`` by a tenth at each of `milestones`.
        milestones: epochs of the ``step`` schedule.
        warmup: share of all steps over which the rate rises linearly from 0.
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
        held_out: training images held out to select by.
        evaluate_every: epochs between selections.
        seed: of the whole run.
    """

    architecture: str = "resnet18"
    width: int | None = None
    image_size: int | None = None
    stored_size: int | None = None
    early_size: int | None = None
    early_share: float = 0.4
    norm: str = "l2"
    eps: float = 0.5
    attack_steps: int = 7
    attack_step_size: float = 0.1
    eps_warmup: float = 0.0
    random_start: bool = True
    epochs: int = 30
    batch_size: int = 128
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
    held_out: int = 1000
    evaluate_every: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in {"norm": ("l2", "linf"), "schedule": ("cosine", "step"), "crop": CROPS}.items():
            if getattr(self, name) not in choices:
                raise UserError(f"expected {name} of {', '.join(choices)}, got {getattr(self, name)!r}")
        sizes = ("width", "image_size", "stored_size", "early_size")
        for name in ("epochs", "batch_size", "evaluate_every", "held_out", *sizes):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"expected {name} of 1 or more, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"expected a positive finite learning_rate, got {self.learning_rate}")
        for name in ("weight_decay", "clip_norm", "jitter", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"expected a finite {name} of 0 or more, got {getattr(self, name)}")
        if any(m < 0 for m in self.milestones):
            raise UserError(f"expected milestones of 0 or more epochs, got {self.milestones}")
        if not 0 <= self.eps < math.inf:
            raise UserError(f"expected a finite eps of 0 or more, got {self.eps}")
        if self.eps > 0 and (self.attack_steps < 1 or not self.attack_step_size > 0):
            raise UserError(
                f"expected at least one attack step of positive size for eps={self.eps}, "
                f"got {self.attack_steps} of {self.attack_step_size}; eps=0 is standard training"
            )
        if not 0 < self.crop_area <= 1:
            raise UserError(f"expected crop_area above 0 and at most 1, got {self.crop_area}")
        if self.stored_size is not None and (self.image_size is None or self.crop != "resized"):
            raise UserError(
                "expected image_size and crop='resized' beside stored_size, which is what crops are taken from, "
                f"got image_size={self.image_size} and crop={self.crop!r}"
            )
        if self.early_size is not None and self.crop != "resized":
            raise UserError(f"expected crop='resized' beside early_size, got crop={self.crop!r}")
        for name in ("average", "early_share", "warmup", "eps_warmup", "label_smoothing", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"expected {name} of 0 or more and below 1, got {getattr(self, name)}")

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
        if done < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup * total + 1)
        if self.schedule == "step":
            passed = sum(step >= m * steps_per_epoch for m in self.milestones)
            return self.learning_rate * 0.1**passed
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))


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


CROPS = ("pad", "resized", "none")
