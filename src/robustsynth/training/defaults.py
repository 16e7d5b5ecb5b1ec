"""What a run takes where nobody chose a preset: one for the images' size, fitted to how many there are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from robustsynth.models.card import SMALL_IMAGE
from robustsynth.training.settings import resolve_train_settings

LEAST_STEPS = 3000
"""Steps of a run on few images: fewer do not make a network robust, whatever it is trained on."""

USUAL_LINF = 8 / 255
"""The radius in l-infinity that everybody takes."""

LOOKS = 20
"""How often, at most, such a run is evaluated to be selected by."""


def default_preset(side: int) -> str:
    """The preset for images of `side` pixels.

    Example:
        >>> default_preset(32), default_preset(224)
        ('small-images', 'photographs')
    """
    return "small-images" if side <= SMALL_IMAGE else "photographs"


def fitted(preset: str, images: int) -> dict[str, Any]:
    """What to change of a preset for a data set of `images`: a tenth is held out at most, batches are small enough for
    four an epoch, and epochs are as many as `LEAST_STEPS` take.

    Example:
        >>> fitted("photographs", 9469)
        {}
        >>> fitted("photographs", 600)
        {'held_out': 60, 'epochs': 375, 'evaluate_every': 18}
    """
    settings = resolve_train_settings(preset)
    held_out = max(1, min(settings.held_out, images // 10))
    batch_size = settings.batch_size
    while batch_size > 1 and 4 * batch_size > images - held_out:
        batch_size //= 2
    steps = max(1, (images - held_out) // batch_size)
    epochs = max(settings.epochs, math.ceil(LEAST_STEPS / steps))
    wanted = {
        "held_out": held_out,
        "batch_size": batch_size,
        "epochs": epochs,
        "evaluate_every": max(settings.evaluate_every, epochs // LOOKS),
    }
    return {name: value for name, value in wanted.items() if value != getattr(settings, name)}


def attack_for(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What to change of a preset's attack for the radius, norm and recipe that are given, where nothing else is said.

    Its step stays as large a part of the radius. A single step in l-infinity starts at random, and is 1.25 radii long
    (Wong et al. 2020); several are 2.5 radii long together; TRADES and MART take 7 of a fifth.

    Example:
        >>> attack_for("photographs", {"eps": 3.0})
        {'attack_step_size': 3.0}
        >>> attack_for("photographs", {"norm": "linf", "eps": 0.02})
        {'random_start': True, 'attack_step_size': 0.025}
    """
    settings = resolve_train_settings(preset)
    linf = given.get("norm") == "linf"
    usual = USUAL_LINF if linf else settings.eps
    eps = usual if given.get("eps") is None else float(given["eps"])
    wanted: dict[str, Any] = {"eps": eps}
    if given.get("recipe") in ("trades", "mart"):
        wanted |= {"attack_steps": 7, "attack_step_size": eps / 5}
    elif given.get("attack_steps") in (None, settings.attack_steps) and eps > 0:
        wanted |= {"random_start": True} if linf else {}
        wanted |= {"attack_step_size": eps * (1.25 if linf else settings.attack_step_size / settings.eps)}
    elif eps > 0:
        wanted |= {"random_start": True} if linf else {}
        wanted |= {"attack_step_size": 2.5 * eps / max(1, int(given["attack_steps"]))}
    said = {name for name, value in given.items() if value is not None}
    return {name: value for name, value in wanted.items() if name not in said and value != getattr(settings, name)}
