"""Beginning a run from the weights of a model that is there, also one of other classes."""

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


def network_of_model(name_or_path: str) -> dict[str, Any]:
    """The settings that a run must have to begin from a model, from its card: its network and its images' side.

    Raises:
        UnknownNameError: no such model.
        UserError: a folder without a card.

    Example:
        >>> network_of_model("mnist")
        {'architecture': 'small-cnn', 'width': 16, 'image_size': 28}
    """
    card = ModelCard.load(find_model(name_or_path))
    return {"architecture": card.architecture, "width": card.width, "image_size": card.image_size}


def attack_of_model(name_or_path: str) -> dict[str, Any]:
    """The norm and radius that a model was trained against, from its card; nothing of one that was not.

    Raises:
        UnknownNameError: no such model.
        UserError: a folder without a card.

    Example:
        >>> attack_of_model("imagenette")
        {'norm': 'l2', 'eps': 1.5}
        >>> attack_of_model("cifar10-standard")
        {}
    """
    known = ModelCard.load(find_model(name_or_path)).threat_model or {}
    return {name: known[name] for name in ("norm", "eps")} if known.get("eps") else {}


def begin_from(network: nn.Module, model: Classifier, classes: Sequence[str]) -> list[str]:
    """Put the weights of `model` into `network`.

    The last linear layer's rows of classes that both have, by name, are taken over wherever they stand; those of new
    classes stay as they were initialised. Every other tensor must have the same name and shape.

    Args:
        network: freshly initialised, for `classes`.
        model: to begin from.
        classes: names in the order of the logits of `network`.

    Returns:
        The classes that are new.

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
    head = _last_linear(network)
    rows = [name for name in (f"{head}.weight", f"{head}.bias") if name in own]
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
    """What to tell of a run that begins from a model: new classes, and where the two differ.

    Args:
        model: to begin from.
        settings: of the run.
        data: that it trains on, with its own mean and deviation.
        size: side in pixels that it trains at.
        new: the classes that the model does not know.
    """
    shared = len(data.classes) - len(new)
    lines = [f"beginning from {model.name}, which knows {shared} of the {len(data.classes)} classes"]
    if new:
        more = f" and {len(new) - 8} more" if len(new) > 8 else ""
        lines[0] += f"; new: {', '.join(new[:8])}{more}"
    known = None if model.card is None else model.card.threat_model
    if known and (known.get("eps"), known.get("norm")) != (settings.eps, settings.norm):
        was = f"{known.get('norm')} eps {known.get('eps'):g}" if known.get("eps") else "no attack"
        lines.append(f"it was trained against {was}, this run trains against {settings.norm} eps {settings.eps:g}")
    if model.image_size is not None and model.image_size != size:
        lines.append(f"it was trained at {model.image_size} pixels, this run trains at {size}")
    mean, std = (values.flatten() for values in (model.mean.cpu(), model.std.cpu()))
    if not all(torch.allclose(a, torch.tensor(b), atol=1e-4) for a, b in ((mean, data.mean), (std, data.std))):
        lines.append("its mean and deviation are used in the place of the data's")
    return lines


def _last_linear(network: nn.Module) -> str:
    """The name of the linear layer that gives the logits."""
    found = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise UserError("expected a network whose last layer is linear, to fit new classes to, got none")
    return found[-1]
