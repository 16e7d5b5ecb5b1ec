"""A model's card: what it is, how it was trained, what was measured."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustsynth.errors import UserError
from robustsynth.files import write_json

SMALL_IMAGE = 64
"""The largest side, in pixels, that counts as small: it decides networks' stems and presets' rows."""


@dataclass(frozen=True)
class ModelCard:
    """The contents of ``card.json``.

    Attributes:
        name: the model's name.
        architecture: a name in `robustsynth.models.architectures.ARCHITECTURES`.
        width: base width.
        channels: channels of the images.
        image_size: side of the images, in pixels.
        classes: names in the order of the logits.
        mean: per channel, in [0, 1] units.
        std: per channel.
        threat_model: ``{"norm": "l2", "eps": 0.5}`` in pixel units; eps 0 is standard training.
        training: recipe, machine and time.
        tasks: tuned settings by task name.
        accuracies: what `evaluate` measured, with its settings.
        data: what it was trained on, and that data's licence.
        licence: the weights' licence.
        sha256: of the other files, by name.
        description: one or two sentences for people.
    """

    name: str
    architecture: str
    width: int
    channels: int
    image_size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    threat_model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    accuracies: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    licence: str = "MIT"
    sha256: dict[str, str] = field(default_factory=dict)
    description: str = ""

    def save(self, folder: Path | str) -> None:
        """Write ``card.json`` into `folder`, whole or not at all."""
        write_json(Path(folder) / "card.json", dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path | str) -> ModelCard:
        """Read ``card.json`` from `folder`.

        Raises:
            UserError: the file is missing, is not JSON, or lacks something that a card needs.
        """
        path = Path(folder) / "card.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"expected a model folder with card.json and model.safetensors, got {str(folder)!r} without card.json"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"expected JSON in {path}, got something else ({error}); restore the file") from None
        if not isinstance(values, dict):
            raise UserError(f"expected a JSON object in {path}, got {type(values).__name__}")
        known = {f.name: f for f in dataclasses.fields(cls)}
        needed = [n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING]
        missing = [n for n in needed if n not in values]
        if missing:
            raise UserError(f"expected {', '.join(missing)} in {path}, found only {', '.join(values) or 'nothing'}")
        _check_types({n: (values[n], str(f.type)) for n, f in known.items() if n in values}, path)
        if not len(values["mean"]) == len(values["std"]) == values["channels"]:
            raise UserError(
                f"expected a mean and a std for each of {values['channels']} channels in {path}, "
                f"got mean={values['mean']}, std={values['std']}"
            )
        # A card of a later version may say more than this version knows of; that must not stop anybody.
        given: dict[str, Any] = {
            n: tuple(v) if n in ("classes", "mean", "std") else v for n, v in values.items() if n in known
        }
        return cls(**given)


def _check_types(fields: dict[str, tuple[Any, str]], path: Path) -> None:
    """Raise a `UserError` where a value is not of the type that its field's annotation says."""
    plain: dict[str, Any] = {"str": str, "int": int, "float": (int, float)}
    for name, (value, annotation) in fields.items():
        if annotation.startswith("tuple"):
            inner = plain[annotation.removeprefix("tuple[").removesuffix(", ...]")]
            fits = isinstance(value, list) and all(isinstance(v, inner) for v in value)
        else:
            fits = isinstance(value, dict if annotation.startswith("dict") else plain[annotation])
        if not fits:
            raise UserError(f"expected {name} in {path} as {annotation}, got {value!r}; restore the file")
