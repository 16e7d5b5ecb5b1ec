"""What training settings may be, alone and beside each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustsynth.errors import UserError

if TYPE_CHECKING:
    from robustsynth.training.settings import TrainSettings

CHOICES = {
    "recipe": ("pgd", "trades", "mart", "free", "fast"),
    "attack_statistics": ("eval", "train"),
    "schedule": ("cosine", "step", "one-cycle"),
    "crop": ("pad", "resized", "none"),
}
"""The names that settings of names take, beside the norms, which may be registered later."""


LEAST_SIDE = 4
"""Pixels of the smallest images that are trained on."""


def check_settings(settings: TrainSettings) -> None:
    """Refuse values out of range and combinations that make no sense.

    Raises:
        UserError: which, and what to do.
    """
    _check_values(settings)
    _check_sizes(settings)
    _check_attack(settings)
    _check_recipe(settings)


def _check_values(settings: TrainSettings) -> None:
    # Here, because the command line reads settings before it pays for importing torch.
    from robustsynth.constraints import NORMS

    for name, choices in {"norm": tuple(NORMS), **CHOICES}.items():
        if getattr(settings, name) not in choices:
            raise UserError(f"expected {name} of {', '.join(choices)}, got {getattr(settings, name)!r}")
    sizes = ("width", "image_size", "stored_size", "early_size")
    for name in ("epochs", "batch_size", "accumulate", "free_replays", "evaluate_every", "held_out", *sizes):
        if getattr(settings, name) is not None and getattr(settings, name) < 1:
            raise UserError(f"expected {name} of 1 or more, got {getattr(settings, name)}")
    for name in ("learning_rate", "trades_beta", "mart_weight"):
        if not 0 < getattr(settings, name) < math.inf:
            raise UserError(f"expected a positive finite {name}, got {getattr(settings, name)}")
    for name in ("weight_decay", "clip_norm", "jitter", "seed", "eps", "fast_noise", "guard_every"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise UserError(f"expected a finite {name} of 0 or more, got {getattr(settings, name)}")
    if settings.seed >= 2**63:
        raise UserError(f"expected a seed below 2^63, got {settings.seed}")
    for name in ("average", "early_share", "warmup", "eps_warmup", "label_smoothing", "momentum", "awp"):
        if not 0 <= getattr(settings, name) < 1:
            raise UserError(f"expected {name} of 0 or more and below 1, got {getattr(settings, name)}")
    if not 0 <= settings.cutmix <= 1:
        raise UserError(f"expected a cutmix probability from 0 to 1, got {settings.cutmix}")
    for name in ("crop_area", "guard_gap"):
        if not 0 < getattr(settings, name) <= 1:
            raise UserError(f"expected {name} above 0 and at most 1, got {getattr(settings, name)}")
    if any(m < 0 for m in settings.milestones):
        raise UserError(f"expected milestones of 0 or more epochs, got {settings.milestones}")
    if settings.batch_size % settings.accumulate:
        raise UserError(
            f"expected a batch_size that accumulate divides, got {settings.batch_size} in {settings.accumulate} parts"
        )


def _check_sizes(settings: TrainSettings) -> None:
    for name in ("image_size", "stored_size", "early_size"):
        if getattr(settings, name) is not None and getattr(settings, name) < LEAST_SIDE:
            raise UserError(f"expected {name} of {LEAST_SIDE} or more pixels, got {getattr(settings, name)}")
    plain = settings.crop != "resized"
    # Sizes that are all the same are none.
    if settings.stored_size is not None and (
        settings.image_size is None or (plain and settings.stored_size != settings.image_size)
    ):
        raise UserError(
            "expected image_size and crop='resized' beside stored_size, which is what crops are taken from, "
            f"got image_size={settings.image_size} and crop={settings.crop!r}; give a stored_size that is the "
            "image_size, for none"
        )
    if settings.early_size is not None and plain and settings.early_size != settings.image_size:
        raise UserError(
            f"expected crop='resized' beside early_size, got crop={settings.crop!r}; give an early_size that is the "
            "image_size, for none"
        )
    sizes = {name: getattr(settings, name) for name in ("early_size", "image_size", "stored_size")}
    given = [(name, size) for name, size in sizes.items() if size is not None]
    for (small, less), (large, more) in itertools.pairwise(given):
        if less > more:
            raise UserError(f"expected {small} of at most {large}, got {less} and {more}; change one of them")


def _check_attack(settings: TrainSettings) -> None:
    if settings.eps == 0:
        asked = [f"recipe={settings.recipe}"] if settings.recipe != "pgd" else []
        asked += ["awp"] if settings.awp else []
        if asked:
            raise UserError(
                f"expected an eps above 0 for {' and '.join(asked)}, got 0, which is standard training; "
                "give --eps, or leave them out"
            )
    elif settings.attack_steps < 1 or not 0 < settings.attack_step_size < math.inf:
        raise UserError(
            f"expected at least one attack step of positive size for eps={settings.eps}, "
            f"got {settings.attack_steps} of {settings.attack_step_size}; eps=0 is standard training"
        )


def _check_recipe(settings: TrainSettings) -> None:
    recipe = settings.recipe
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


def other_data(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What tells the data that a run was begun with from that of now, in words; empty where nothing does.

    The mean and deviation are the run's, not the data's: a model that is fine-tuned brings its own.

    Example:
        >>> other_data({"images": 60, "classes": ["cat"]}, {"images": 61, "classes": ["cat", "dog"]})
        'images: 60 then, 61 now; classes: 1 then, 2 now, such as dog'
    """
    told = []
    for name, value in now.items():
        was = begun.get(name, value)
        if name in ("mean", "std") or was == value:
            continue
        if name == "classes":
            differing = sorted(set(was) ^ set(value))[:3]
            such = f", such as {', '.join(differing)}" if differing else ", in another order"
            told.append(f"classes: {len(was)} then, {len(value)} now{such}")
        else:
            told.append(f"{name}: {was} then, {value} now")
    return "; ".join(told)
