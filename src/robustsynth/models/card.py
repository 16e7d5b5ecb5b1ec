"""A model's card: what it is, how it was trained, and what was measured of it, one figure at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustsynth.errors import UserError
from robustsynth.files import write_json

SMALL_IMAGE = 64
"""The largest side, in pixels, that counts as small: it decides networks' stems and presets' rows."""

CARD_FILE = "card.json"

SMALL_IMAGE = 64
"""The largest side, in pixels, that counts as small: it decides networks' stems and presets' rows."""

CLEAN, PGD, APGD, AUTO = "clean", "pgd", "apgd", "auto"
TITLES = {CLEAN: "clean", PGD: "PGD", APGD: "APGD", AUTO: "AutoAttack"}


@dataclass(frozen=True)
class ModelCard:
    """The contents of ``card.json``.

    Attributes:
        name: the model's name.
        architecture: a name in `robustsynth.models.networks.ARCHITECTURES`.
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
        aliases: other names of classes, by the class: ``{"English springer": ["dog", "n02102040"]}``.
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
    aliases: dict[str, list[str]] = field(default_factory=dict)

    def save(self, folder: Path | str) -> None:
        """Write ``card.json`` into `folder`, whole or not at all."""
        write_json(Path(folder) / CARD_FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path | str) -> ModelCard:
        """Read ``card.json`` from `folder`.

        Raises:
            UserError: the file is missing, is not JSON, or lacks something that a card needs.
        """
        path = Path(folder) / CARD_FILE
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
        for name, others in values.get("aliases", {}).items():
            if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
                raise UserError(f"expected lists of names as aliases in {path}, got {others!r} for {name!r}")
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


@dataclass(frozen=True)
class Measured:
    """One accuracy.

    Attributes:
        attack: ``clean``, ``pgd``, ``apgd`` or ``auto`` (AutoAttack).
        norm: of the ball, such as ``l2``.
        eps: its radius; 0 where clean.
        share: of the images that were classified correctly, 0 to 1.
        images: how many were looked at; None where the card does not say.
        data: what they were.
        how: the attack in words.
    """

    attack: str
    norm: str
    eps: float
    share: float
    images: int | None
    data: str
    how: str

    @property
    def title(self) -> str:
        """The attack's short name, such as ``PGD-20``, or ``AutoAttack of APGD-CE, FAB-T, Square alone``."""
        if self.attack == AUTO and self.how.startswith("AutoAttack"):
            return self.how.partition(", standard version")[0]
        first = self.how.partition(" ")[0]
        return first if first.lower().startswith(self.attack) else TITLES[self.attack]


def measured(card: ModelCard) -> list[Measured]:
    """Every accuracy on a card: clean first, then each attack's, the smallest radius first.

    A model that was never evaluated has what training measured on images held out for it, if even that.

    Raises:
        UserError: figures of another form.

    Example:
        >>> card = ModelCard("cats", "resnet18", 64, 3, 32, ("cat", "dog"), (0.5,) * 3, (0.2,) * 3)
        >>> measured(card)
        []
    """
    try:
        found = [*_rows(card.accuracies, PGD)]
        for attack in (APGD, AUTO):
            found += _rows(card.accuracies.get(attack, {}), attack)
        found = found or [*_held_out(card)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"expected accuracies in the card of {card.name!r} as rows with an eps and a share, got others "
            f"({type(error).__name__}: {error}); restore it, or measure again with robustsynth evaluate --record"
        ) from None
    clean = [row for row in found if row.attack == CLEAN]
    # AutoAttack may have looked at other images than PGD: the clean accuracy of most images is the one to know.
    most = sorted(clean, key=lambda row: -(row.images or 0))[:1]
    attacked = sorted((row for row in found if row.attack != CLEAN), key=lambda row: row.eps)
    return most + [row for attack in (PGD, APGD, AUTO) for row in attacked if row.attack == attack]


def _rows(figures: dict[str, Any], attack: str) -> Iterator[Measured]:
    for row in figures.get("rows", []):
        eps, images = float(row["eps"]), row.get("images")
        yield Measured(
            attack if eps else CLEAN,
            str(figures.get("norm", "l2")),
            eps,
            float(row["share"]),
            None if images is None else int(images),
            str(figures.get("data", "data not stated")),
            str(figures.get("attack", "attack not stated")) if eps else "no attack",
        )


def _held_out(card: ModelCard) -> Iterator[Measured]:
    """What a training run itself measures; under an attack of radius 0 it measures nothing."""
    if not (held := card.training.get("held_out")):
        return
    norm, eps, images = str(card.threat_model.get("norm", "l2")), float(held.get("eps", 0)), int(held["images"])
    data = "images held out of training"
    yield Measured(CLEAN, norm, 0.0, float(held["clean"]), images, data, "no attack")
    if eps:
        yield Measured(PGD, norm, eps, float(held["pgd10"]), images, data, "PGD-10")


def one_line(text: object) -> str:
    """Text of a card as one line without control characters: it may be anybody's, and terminals obey them.

    Example:
        >>> one_line("free\\nas in beer")
        'free as in beer'
    """
    return "".join(c if c.isprintable() else " " for c in str(text))
