"""Settings of a training run: their checks, their presets, and what is chosen where no preset is named."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.files import preset_files, read_preset
from robustsynth.models.card import SMALL_IMAGE

ONE_CYCLE_RISE = 0.4
"""Share of a one-cycle run in which the rate rises, where no `warmup` says so."""


@dataclass(frozen=True)
class TrainSettings:
    """min over weights of E[max over ‖δ‖ ≤ eps of CE(x + δ, y)] by PGD inside and SGD outside, or by another recipe.

    The recipes: ``pgd`` (Madry et al. 2018, Equation 2.1), ``trades`` (Zhang et al. 2019, Equation 5), ``mart`` (Wang
    et al. 2020, Equation 9), ``free`` (Shafahi et al. 2019, Algorithm 1) and ``fast`` (Wong et al. 2020, Algorithm 3,
    in the form of de Jorge et al. 2022, Algorithm 1: N-FGSM).

    Attributes:
        architecture: a name in `robustsynth.models.networks.ARCHITECTURES`.
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
            attack nearly as strong as PGD-20 (docs/log/training-recipes.md), while linf needs true (Wong et al. 2020).
        trades_beta: weight of trades' divergence between clean and attacked predictions.
        mart_weight: weight of mart's.
        free_replays: times that free trains on each batch, moving its perturbation each time; divide epochs by it for
            equal work.
        fast_noise: noise of fast before its one step, in units of eps; 0 is plain FGSM.
        awp: size of the adversarial perturbation of the weights, beside pgd and trades, as a share of each layer's
            norm, such as 0.005; 0 for none.
        guard_every: steps between looks for catastrophic overfitting, where the attack has one step; 0 for none.
        guard_gap: share of images correct under the training's attack beyond that under PGD-10 which counts as one.
        epochs: passes over the training images.
        batch_size: images a step.
        accumulate: parts that each batch is worked through in, for less memory; batch norm sees a part at a time.
        learning_rate: the peak.
        schedule: ``cosine`` to 0, ``one-cycle`` (linearly up, then linearly down to 0), or ``step``, times 0.1 at each
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
    recipe: str = field(default="pgd", metadata={"choices": ("pgd", "trades", "mart", "free", "fast")})
    norm: str = "l2"
    eps: float = 0.5
    attack_steps: int = 7
    attack_step_size: float = 0.1
    attack_statistics: str = field(default="eval", metadata={"choices": ("eval", "train")})
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
    schedule: str = field(default="cosine", metadata={"choices": ("cosine", "one-cycle", "step")})
    milestones: tuple[int, ...] = ()
    warmup: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_norms: bool = False
    label_smoothing: float = 0.0
    average: float = 0.998
    clip_norm: float = 1.0
    crop: str = field(default="pad", metadata={"choices": ("pad", "resized", "none")})
    crop_area: float = 0.35
    flip: bool = True
    jitter: float = 0.0
    cutmix: float = 0.0
    held_out: int = 1000
    evaluate_every: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        _check_values(self)
        _check_sizes(self)
        _check_recipe(self)

    @property
    def guarded(self) -> bool:
        """Whether the run is guarded against catastrophic overfitting: its attack has one step."""
        one_step = self.recipe == "fast" or (self.recipe != "free" and self.attack_steps == 1)
        return self.eps > 0 and self.guard_every > 0 and one_step

    def evaluates(self, epoch: int) -> bool:
        """Whether the model is evaluated on the held-out images after epoch `epoch`, counted from 0."""
        return (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == self.epochs

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


SIZES = ("early_size", "image_size", "stored_size")
"""The settings of sides, none of which may be larger than the next."""

RANGES: list[tuple[str, Callable[[float], bool], str]] = [
    ("of 1 or more", lambda v: v >= 1, "epochs batch_size accumulate free_replays evaluate_every held_out width"),
    ("of 4 or more pixels", lambda v: v >= 4, " ".join(SIZES)),
    ("positive and finite", lambda v: 0 < v < math.inf, "learning_rate trades_beta mart_weight"),
    ("finite and 0 or more", lambda v: 0 <= v < math.inf, "weight_decay clip_norm jitter eps fast_noise guard_every"),
    ("of 0 or more and below 1", lambda v: 0 <= v < 1, "average awp early_share eps_warmup label_smoothing"),
    ("of 0 or more and below 1", lambda v: 0 <= v < 1, "momentum warmup"),
    ("from 0 to 1", lambda v: 0 <= v <= 1, "cutmix"),
    ("above 0 and at most 1", lambda v: 0 < v <= 1, "crop_area guard_gap"),
    ("of 0 or more and below 2^63", lambda v: 0 <= v < 2**63, "seed"),
]
"""What numbers must be, in words and as a test, and the settings that they are."""


def _check_values(settings: TrainSettings) -> None:
    for each in dataclasses.fields(settings):
        choices, value = each.metadata.get("choices"), getattr(settings, each.name)
        if choices and value not in choices:
            raise UserError(f"expected {each.name} of {', '.join(choices)}, got {value!r}")
    for wanted, fits, names in RANGES:
        for name in names.split():
            value = getattr(settings, name)
            if value is not None and not fits(value):
                raise UserError(f"expected {name} {wanted}, got {value}")
    # Here, and in the functions below, because the command line reads these settings' names without PyTorch.
    from robustsynth.constraints import ball

    ball(settings.norm, settings.eps)
    if any(m < 0 for m in settings.milestones):
        raise UserError(f"expected milestones of 0 or more epochs, got {settings.milestones}")
    if settings.batch_size % settings.accumulate:
        raise UserError(
            f"expected a batch_size that accumulate divides, got {settings.batch_size} in {settings.accumulate} parts"
        )


def _check_sizes(settings: TrainSettings) -> None:
    plain = settings.crop != "resized"
    final, stored, early = settings.image_size, settings.stored_size, settings.early_size
    # Sizes that are all the same are none.
    if stored is not None and (final is None or (plain and stored != final)):
        raise UserError(
            "expected image_size and crop='resized' beside stored_size, which is what crops are taken from, got "
            f"image_size={final} and crop={settings.crop!r}; give a stored_size that is the image_size, for none"
        )
    if early is not None and plain and early != final:
        raise UserError(
            f"expected crop='resized' beside early_size, got crop={settings.crop!r}; give an early_size that is the "
            "image_size, for none"
        )
    given = [(name, size) for name in SIZES if (size := getattr(settings, name)) is not None]
    for (small, less), (large, more) in itertools.pairwise(given):
        if less > more:
            raise UserError(f"expected {small} of at most {large}, got {less} and {more}; change one of them")


def _check_recipe(settings: TrainSettings) -> None:
    recipe = settings.recipe
    if settings.eps == 0:
        if asked := [f"recipe={recipe}"] * (recipe != "pgd") + ["awp"] * (settings.awp > 0):
            raise UserError(
                f"expected an eps above 0 for {' and '.join(asked)}, got 0, which is standard training; "
                "give --eps, or leave them out"
            )
    elif settings.attack_steps < 1 or not 0 < settings.attack_step_size < math.inf:
        raise UserError(
            f"expected at least one attack step of positive size for eps={settings.eps}, "
            f"got {settings.attack_steps} of {settings.attack_step_size}; eps=0 is standard training"
        )
    if settings.awp and recipe not in ("pgd", "trades"):
        raise UserError(f"expected awp beside recipe pgd or trades, got {recipe}; leave out --awp")
    if recipe == "mart" and (settings.cutmix or settings.label_smoothing):
        raise UserError(
            "expected one certain label an image for recipe mart, whose loss is that of the label's probability, got "
            f"cutmix={settings.cutmix} and label_smoothing={settings.label_smoothing}; set both to 0"
        )
    if recipe == "free" and settings.attack_statistics == "train":
        raise UserError(
            "expected attack_statistics eval beside recipe free, which has no passes of the attack's own (its "
            "statistics are always the batch's), got train; leave it out"
        )


def training_presets() -> list[str]:
    """Names of the training presets."""
    return preset_files("robustsynth.training")


def resolve_train_settings(preset: str | None, given: dict[str, Any] | None = None) -> TrainSettings:
    """A preset's settings with what the caller gives in their place; None values count as not given.

    Raises:
        UserError: an unknown preset or field, or a value that does not fit.

    Example:
        >>> resolve_train_settings("cifar10-small", {"epochs": 3}).epochs
        3
    """
    return settings_from(({} if preset is None else read_preset("robustsynth.training", preset)) | _said(given))


def settings_from(values: dict[str, Any]) -> TrainSettings:
    """Settings from plain values, such as a checkpoint's."""
    fields = {f.name for f in dataclasses.fields(TrainSettings)}
    if unknown := sorted(values.keys() - fields):
        raise UnknownNameError("training setting", unknown[0], sorted(fields))
    return TrainSettings(**{**values, "milestones": tuple(values.get("milestones", ()))})


LEAST_STEPS = 3000
"""Steps of a run on few images: fewer do not make a network robust, whatever it is trained on."""

FINE_TUNE_STEPS = 300
"""Of a run that begins from a model: on 1,600 photographs of other classes the best came before the 200th
(docs/log/training-recipes.md)."""

FINE_TUNE_RATE = 0.05
"""Its peak rate, which does not shake off what the model knows."""

FEW_PHOTOGRAPHS = 4000
"""Below so many the network has half the standard width, which 1,600 were learnt well by (docs/log)."""

EVALUATIONS = 20
"""How often, at most, such a run is evaluated to be selected by."""


def default_preset(side: int) -> str:
    """The preset for images of `side` pixels.

    Example:
        >>> default_preset(32), default_preset(224)
        ('small-images', 'photographs')
    """
    return "small-images" if side <= SMALL_IMAGE else "photographs"


def fitted(preset: str, images: int, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What to change of a preset for a data set of `images` training images, beside settings that are `given`.

    A tenth is held out at most, batches are small enough for four an epoch, and epochs are as many as `LEAST_STEPS`
    take, or, of a model that is fine-tuned, `FINE_TUNE_STEPS`. Of few photographs the network is narrower.

    Example:
        >>> fitted("photographs", 9469)
        {}
        >>> fitted("photographs", 600)
        {'held_out': 60, 'epochs': 375, 'evaluate_every': 18, 'width': 32}
        >>> fitted("photographs", 600, {"batch_size": 32, "epochs": 20, "architecture": "resnet50"})
        {'held_out': 60, 'evaluate_every': 1}
    """
    settings, said = resolve_train_settings(preset), _said(given)
    held_out = said.get("held_out", max(1, min(settings.held_out, images // 10)))
    batch_size = said.get("batch_size", settings.batch_size)
    while "batch_size" not in said and batch_size > 1 and 4 * batch_size > images - held_out:
        batch_size //= 2
    steps = max(1, (images - held_out) // max(1, batch_size))
    wanted: dict[str, Any] = {"held_out": held_out, "batch_size": batch_size}
    if "fine_tune" in said:
        wanted |= {"epochs": math.ceil(FINE_TUNE_STEPS / steps), "learning_rate": FINE_TUNE_RATE}
    else:
        wanted["epochs"] = max(settings.epochs, math.ceil(LEAST_STEPS / steps))
    epochs = said.get("epochs", wanted["epochs"])
    usual = settings.evaluate_every if epochs >= settings.epochs else 1
    wanted["evaluate_every"] = max(usual, epochs // EVALUATIONS)
    if preset == "photographs" and images < FEW_PHOTOGRAPHS and not {"architecture", "fine_tune"} & said.keys():
        wanted["width"] = 32
    return _changes(settings, wanted, said)


def _said(given: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (given or {}).items() if value is not None}


def _changes(settings: TrainSettings, wanted: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """What is `wanted` and neither said nor so already."""
    return {name: value for name, value in wanted.items() if name not in said and value != getattr(settings, name)}


def sizes_for(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What to change of a preset's sizes for the images' size, the crop and the network that are given.

    Photographs are held larger than they are trained on, and smaller at first, in proportion. They have one size where
    crops are not resized, where the network takes only one, and in fine-tuning.

    Example:
        >>> sizes_for("photographs", {"image_size": 224})
        {'stored_size': 280, 'early_size': 168}
        >>> sizes_for("photographs", {"crop": "none"})
        {'stored_size': 128, 'early_size': 128}
    """
    from robustsynth.models.networks import ONE_SIZE

    settings, said = resolve_train_settings(preset), _said(given)
    usual, size = settings.image_size, said.get("image_size", settings.image_size)
    if usual is None or size is None:
        return {}
    resized = said.get("crop", settings.crop) == "resized"
    early = resized and said.get("architecture") not in ONE_SIZE and "fine_tune" not in said
    wanted = {}
    for name, kept in (("stored_size", resized), ("early_size", early)):
        if (value := getattr(settings, name)) is not None:
            # Networks halve sides four or five times.
            wanted[name] = max(8, round(value * size / usual / 8) * 8) if kept else size
    return _changes(settings, wanted, said)


def attack_for(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What to change of a preset's attack for the radius, norm and recipe that are given.

    One step stays as large a part of the radius, but where the norm has a `single_step` of its own, which starts at
    random. Several are 2.5 radii long together; TRADES and MART take 7 of a fifth. MART's labels are not mixed.

    Example:
        >>> attack_for("photographs", {"eps": 3.0})
        {'attack_step_size': 3.0}
        >>> attack_for("photographs", {"norm": "linf", "eps": 0.02})
        {'random_start': True, 'attack_step_size': 0.025}
    """
    from robustsynth.constraints import norm_named

    settings, said = resolve_train_settings(preset), _said(given)
    norm = norm_named(said.get("norm", settings.norm))
    eps = said.get("eps", settings.eps if norm.name == settings.norm else norm.usual_eps)
    if eps is None:
        raise UserError(f"expected --eps beside --norm {norm.name}, which has no usual radius, got none")
    wanted: dict[str, Any] = {"eps": eps}
    if said.get("recipe") == "mart":
        wanted |= {"label_smoothing": 0.0, "cutmix": 0.0}
    if eps > 0 and said.get("recipe") in ("trades", "mart"):
        wanted |= {"attack_steps": 7, "attack_step_size": eps / 5}
    elif eps > 0:
        share, steps = norm.single_step, said.get("attack_steps", settings.attack_steps)
        if share is not None:
            wanted["random_start"] = True
        if steps == settings.attack_steps:
            wanted["attack_step_size"] = eps * (share or settings.attack_step_size / settings.eps)
        else:
            wanted["attack_step_size"] = 2.5 * eps / max(1, steps)
    return _changes(settings, wanted, said)
