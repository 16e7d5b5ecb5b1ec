"""Fine-tuning: a run that begins with the weights of a model, also one of other classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from robustsynth.data import ImageData
from robustsynth.errors import UserError
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.store import find_model
from robustsynth.training.settings import TrainSettings


def settings_of_model(name_or_path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """From a model's card, what a run that begins from it must have, and the attack that it was trained against.

    Raises:
        UnknownNameError: no such model.
        UserError: a folder without a card.

    Example:
        >>> settings_of_model("mnist")[0]
        {'architecture': 'small-cnn', 'width': 16, 'image_size': 28}
        >>> settings_of_model("imagenette")[1], settings_of_model("cifar10-standard")[1]
        ({'norm': 'l2', 'eps': 1.5}, {})
    """
    card = ModelCard.load(find_model(name_or_path))
    known = card.threat_model or {}
    network = {name: getattr(card, name) for name in ("architecture", "width", "image_size")}
    return network, {name: known[name] for name in ("norm", "eps")} if known.get("eps") else {}


def begin_from(network: nn.Module, model: Classifier, classes: Sequence[str]) -> list[str]:
    """Put the weights of `model` into `network`, which is freshly initialised for `classes`; the classes that are new.

    The last linear layer's rows of classes that both have, by name, are taken over wherever they stand; those of new
    classes stay as they were initialised. Every other tensor must have the same name and shape.

    Raises:
        UserError: the model is another network than the one to be trained.

    Example:
        >>> from robustsynth.models.networks import build_network
        >>> old, new = (build_network("resnet18", classes=count, width=8) for count in (2, 3))
        >>> begin_from(new, Classifier.wrap(old, classes=["cat", "ship"], mean=[0] * 3, std=[1] * 3),
        ...            ["ship", "cat", "tree"])
        ['tree']
        >>> bool((new.fc.weight[0] == old.fc.weight[1]).all())
        True
    """
    own, other = network.state_dict(), model.network.state_dict()
    channels = next((p.shape[1] for p in network.parameters() if p.ndim == 4), model.channels)
    if channels != model.channels:
        raise UserError(
            f"expected images of {model.channels} channels, which {model.name!r} was trained on, got {channels}; "
            "begin from another model, or convert the images"
        )
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError("expected a network whose last layer is linear, to fit new classes to, got none")
    rows = [name for name in (f"{linear[-1]}.weight", f"{linear[-1]}.bias") if name in own]
    wrong = [k for k in own if k not in rows and (k not in other or other[k].shape != own[k].shape)]
    wrong += [k for k in rows if k not in other or other[k].shape[1:] != own[k].shape[1:]]
    wrong += [k for k in other if k not in own]
    if wrong:
        architecture = "network" if model.card is None else f"{model.card.architecture} of width {model.card.width}"
        raise UserError(
            f"expected to begin from a model of the same network, got {model.name!r}, a {architecture}, whose "
            f"{wrong[0]} is missing or of another shape here ({len(wrong)} such); choose its --architecture, --width "
            "and --image-size"
        )
    with torch.no_grad():
        for name, value in own.items():
            if name not in rows:
                value.copy_(other[name])
        for row, label in enumerate(classes):
            if label in model.classes:
                for name in rows:
                    own[name][row].copy_(other[name][model.classes.index(label)])
    return [label for label in classes if label not in model.classes]


def announcements(
    model: Classifier, settings: TrainSettings, data: ImageData, *, size: int, new: Sequence[str]
) -> list[str]:
    """What to tell of a run at `size` pixels that begins from a model: `new` classes, and where the two differ."""
    known = len(data.classes) - len(new)
    lines = [f"beginning from {model.name}, which knows {known} of the {len(data.classes)} classes"]
    if new:
        lines[0] += f"; new: {', '.join(new[:8])}{f' and {len(new) - 8} more' if len(new) > 8 else ''}"
    attack = {} if model.card is None else model.card.threat_model or {}
    if attack and (attack.get("eps"), attack.get("norm")) != (settings.eps, settings.norm):
        was = f"{attack.get('norm')} eps {attack.get('eps'):g}" if attack.get("eps") else "no attack"
        lines.append(f"it was trained against {was}, this run trains against {settings.norm} eps {settings.eps:g}")
    if model.image_size not in (None, size):
        lines.append(f"it was trained at {model.image_size} pixels, this run trains at {size}")
    pairs = ((model.mean, data.mean), (model.std, data.std))
    if not all(torch.allclose(a.flatten().cpu(), torch.tensor(b), atol=1e-4) for a, b in pairs):
        lines.append("its mean and deviation are used in the place of the data's")
    return lines
