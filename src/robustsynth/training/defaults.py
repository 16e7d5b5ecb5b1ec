"""What a run takes where nobody chose a preset: one for the images' size, fitted to how many there are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from robustsynth.constraints import norm_named
from robustsynth.errors import UserError
from robustsynth.models.architectures import ONE_SIZE
from robustsynth.models.card import SMALL_IMAGE
from robustsynth.training.settings import resolve_train_settings

LEAST_STEPS = 3000
"""Steps of a run on few images: fewer do not make a network robust, whatever it is trained on."""

FINE_TUNE_STEPS = 300
"""Steps of a run that begins from a model: on 1,600 photographs of other classes the best came before the 200th
(docs/training-recipes.md)."""

FINE_TUNE_RATE = 0.05
"""Its peak rate, which does not shake off what the model knows."""

FEW_PHOTOGRAPHS = 4000
"""Below so many the network has half the standard width, which 1,600 were learnt well by (docs/training-recipes.md)."""

LOOKS = 20
"""How often, at most, such a run is evaluated to be selected by."""


def default_preset(side: int) -> str:
    """The preset for images of `side` pixels.

    Example:
        >>> default_preset(32), default_preset(224)
        ('small-images', 'photographs')
    """
    return "small-images" if side <= SMALL_IMAGE else "photographs"


def fitted(preset: str, images: int, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What to change of a preset for a data set of `images`: a tenth is held out at most, batches are small enough for
    four an epoch, and epochs are as many as `LEAST_STEPS` take, or, of a model that is fine-tuned, `FINE_TUNE_STEPS`.
    Of few photographs the network is narrower.

    Args:
        preset: its name.
        images: for training, those to be held out among them.
        given: settings that are chosen already; None values count as not given.

    Example:
        >>> fitted("photographs", 9469)
        {}
        >>> fitted("photographs", 600)
        {'held_out': 60, 'epochs': 375, 'evaluate_every': 18, 'width': 32}
        >>> fitted("photographs", 600, {"batch_size": 32, "epochs": 20, "architecture": "resnet50"})
        {'held_out': 60, 'evaluate_every': 1}
    """
    settings = resolve_train_settings(preset)
    said = {name: value for name, value in (given or {}).items() if value is not None}
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
    wanted["evaluate_every"] = max(usual, epochs // LOOKS)
    if preset == "photographs" and images < FEW_PHOTOGRAPHS and not {"architecture", "fine_tune"} & said.keys():
        wanted["width"] = 32
    return {name: value for name, value in wanted.items() if name not in said and value != getattr(settings, name)}


def sizes_for(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What to change of a preset's sizes for the image's size, the crop and the network that are given.

    Photographs are held larger and trained on smaller at first, in proportion; where crops are not resized, where
    the network takes one size alone, and in fine-tuning, which begins with a network that knows its size, only at one.

    Example:
        >>> sizes_for("photographs", {"image_size": 224})
        {'stored_size': 280, 'early_size': 168}
        >>> sizes_for("photographs", {"crop": "none"})
        {'stored_size': 128, 'early_size': 128}
    """
    settings = resolve_train_settings(preset)
    usual, size = settings.image_size, given.get("image_size") or settings.image_size
    if usual is None or size is None:
        return {}
    resized = (given.get("crop") or settings.crop) == "resized"
    early = resized and given.get("architecture") not in ONE_SIZE and given.get("fine_tune") is None
    wanted = {}
    for name, kept in (("stored_size", resized), ("early_size", early)):
        value = getattr(settings, name)
        if value is not None and given.get(name) is None:
            # Networks halve sides four or five times.
            wanted[name] = max(8, round(value * size / usual / 8) * 8) if kept else size
    return {name: value for name, value in wanted.items() if value != getattr(settings, name)}


def attack_for(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What to change of a preset's attack for the radius, norm and recipe that are given, where nothing else is said.

    Its step stays as large a part of the radius, but where the norm has a `single_step` of its own, as l-infinity has;
    that one starts at random. Several are 2.5 radii long together; TRADES and MART take 7 of a fifth. MART's labels are
    certain.

    Example:
        >>> attack_for("photographs", {"eps": 3.0})
        {'attack_step_size': 3.0}
        >>> attack_for("photographs", {"norm": "linf", "eps": 0.02})
        {'random_start': True, 'attack_step_size': 0.025}
    """
    settings = resolve_train_settings(preset)
    norm = norm_named(given.get("norm") or settings.norm)
    single, usual = norm.single_step, settings.eps if norm.name == settings.norm else norm.usual_eps
    eps = usual if given.get("eps") is None else float(given["eps"])
    if eps is None:
        raise UserError(f"expected --eps beside --norm {norm.name}, which has no usual radius, got none")
    wanted: dict[str, Any] = {"eps": eps}
    if given.get("recipe") == "mart":
        wanted |= {"label_smoothing": 0.0, "cutmix": 0.0}
    if given.get("recipe") in ("trades", "mart") and eps > 0:
        wanted |= {"attack_steps": 7, "attack_step_size": eps / 5}
    elif given.get("attack_steps") in (None, settings.attack_steps) and eps > 0:
        wanted |= {} if single is None else {"random_start": True}
        wanted |= {"attack_step_size": eps * (single or settings.attack_step_size / settings.eps)}
    elif eps > 0:
        wanted |= {} if single is None else {"random_start": True}
        wanted |= {"attack_step_size": 2.5 * eps / max(1, int(given["attack_steps"]))}
    said = {name for name, value in given.items() if value is not None}
    return {name: value for name, value in wanted.items() if name not in said and value != getattr(settings, name)}
