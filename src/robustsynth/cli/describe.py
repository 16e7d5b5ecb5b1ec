"""Models in words."""

from __future__ import annotations

from typing import Any

from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier


def describe_model(model: Classifier) -> str:
    """One line on a model: what it is, how robust, on which device."""
    card = model.card
    if card is None:
        return f"model {model.name}: {len(model.classes)} classes, on {model.device}"
    return (
        f"model {card.name}: {card.architecture} of width {card.width}, {len(card.classes)} classes at "
        f"{card.image_size}×{card.image_size}, {threat(card)}, {accuracy_summary(card)}, on {model.device}"
    )


def threat(card: ModelCard) -> str:
    """What the model was trained to withstand."""
    if not card.threat_model:
        return "what it withstands not stated"
    eps = card.threat_model.get("eps", 0)
    return f"robust in {card.threat_model.get('norm', 'l2')} to eps {eps}" if eps else "standard training"


def accuracy_summary(card: ModelCard) -> str:
    """The card's measured accuracies in one phrase."""
    rows: list[dict[str, Any]] = card.accuracies.get("rows", [])
    if not rows:
        held = card.training.get("held_out", {})
        if not held:
            return "accuracy not measured"
        return f"{100 * held['clean']:.1f} % clean and {100 * held['pgd10']:.1f} % under PGD-10 on held-out images"
    return ", ".join(f"{100 * row['share']:.1f} % {attack_name(row['eps'])}" for row in rows)


def attack_name(eps: float) -> str:
    """``clean``, or the radius of the attack."""
    return "clean" if eps == 0 else f"at eps {eps:g}"
