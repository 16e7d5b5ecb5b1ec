"""What a model's card says was measured of it, one figure at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from robustsynth.errors import UserError
from robustsynth.models.card import ModelCard

CLEAN, PGD, APGD, AUTO = "clean", "pgd", "apgd", "auto"
TITLES = {CLEAN: "clean", PGD: "PGD", APGD: "APGD", AUTO: "AutoAttack"}


@dataclass(frozen=True)
class Measured:
    """One accuracy.

    Attributes:
        attack: ``clean``, ``pgd``, ``apgd`` or ``auto`` (AutoAttack).
        norm: of the ball, such as ``l2``.
        eps: its radius; 0 where clean.
        share: of the images that were right, 0 to 1.
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
