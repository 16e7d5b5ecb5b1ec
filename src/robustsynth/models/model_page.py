"""The page of a published model, made from its card."""

from __future__ import annotations

import json
from typing import Any

from robustsynth.models.card import ModelCard

_LICENCES = {
    "mit": "mit", "apache-2.0": "apache-2.0", "bsd-3-clause": "bsd-3-clause", "bsd-2-clause": "bsd-2-clause",
    "cc-by-4.0": "cc-by-4.0", "cc-by-sa-4.0": "cc-by-sa-4.0", "cc-by-nc-4.0": "cc-by-nc-4.0", "cc0-1.0": "cc0-1.0",
}  # fmt: skip
"""Licences that the Hub knows, by their names in lower case."""


def model_page(card: ModelCard, *, repository: str, samples: str | None = None) -> str:
    """A model card in the Hub's form: Markdown with a header that the Hub reads.

    Args:
        card: our own.
        repository: ``owner/name``, for the commands that the page shows.
        samples: a picture's file name beside it, if there is one.

    Example:
        >>> card = ModelCard("cats", "resnet18", 64, 3, 32, ("cat", "dog"), (0.5,) * 3, (0.2,) * 3)
        >>> page = model_page(card, repository="someone/cats")
        >>> page.splitlines()[:3]
        ['---', 'license: mit', 'library_name: robustsynth']
    """
    threat = card.threat_model
    robust = f"trained to withstand {threat['norm']} perturbations of {threat['eps']:g}" if threat.get("eps") else (
        "standard training, not robust" if threat else "what it was trained to withstand is not stated"
    )  # fmt: skip
    picture = f"![Samples, a row for each class, not selected]({samples})\n\n" if samples else ""
    return (
        f"{_header(card)}\n# {_plain(card.name)}\n\n{_plain(card.description)}\n\n{picture}"
        f"An image classifier ({card.architecture} of width {card.width}, {len(card.classes)} classes at "
        f"{card.image_size}×{card.image_size} pixels; {robust}) to draw with: descending its loss on the image is the "
        "whole method of Santurkar et al., *Image Synthesis with a Single (Robust) Classifier* (NeurIPS 2019).\n\n"
        f"{_use(repository)}{_accuracies(card)}{_table('Training', _flat(card.training))}{_classes(card)}"
        f"{_table('Data', card.data)}"
        f"\n## Normalisation and licence\n\nInside the model: mean {list(card.mean)}, std {list(card.std)}, of images "
        f"in [0, 1].\n\nLicence of the weights: {_plain(card.licence)}.\n"
    )


def _header(card: ModelCard) -> str:
    licence = card.licence.strip().lower()
    known = _LICENCES.get(licence)
    lines = [f"license: {known or ('unknown' if licence == 'not stated' else 'other')}"]
    if known is None and licence != "not stated":
        lines.append(f"license_name: {json.dumps(card.licence, ensure_ascii=False)}")
    lines += ["library_name: robustsynth", "pipeline_tag: image-classification", "tags:"]
    tags = [
        "adversarial-robustness",
        "image-synthesis",
        card.architecture,
        *([card.threat_model["norm"]] if _robust(card) else []),
    ]
    lines += [f"- {json.dumps(str(tag), ensure_ascii=False)}" for tag in tags]
    return "---\n" + "\n".join(lines) + "\n---\n"


def _robust(card: ModelCard) -> bool:
    return bool(card.threat_model.get("eps")) and "norm" in card.threat_model


def _use(repository: str) -> str:
    return (
        "## Use\n\n"
        f"    robustsynth generate --model hf://{repository} --out samples\n\n"
        f'    import robustsynth as rs\n    model = rs.load_model("hf://{repository}")\n\n'
        "Weights are safetensors and the card is JSON: nothing is executed to load them.\n"
    )


def _accuracies(card: ModelCard) -> str:
    rows = card.accuracies.get("rows", [])
    if not rows:
        return "\n## Accuracy\n\nNot measured.\n"
    lines = ["\n## Accuracy\n", "| attack | accuracy | images |", "|---|---|---|"]
    for row in rows:
        attack = "none" if row["eps"] == 0 else f"{card.accuracies.get('norm', '')} {row['eps']:g}"
        lines.append(f"| {attack} | {100 * row['share']:.1f} % | {row.get('images', '')} |")
    how = {k: v for k, v in card.accuracies.items() if k != "rows" and isinstance(v, str | int | float)}
    return "\n".join(lines) + "\n\n" + "; ".join(f"{k}: {_plain(str(v))}" for k, v in how.items()) + "\n"


def _classes(card: ModelCard) -> str:
    return "\n## Classes\n\n" + ", ".join(_plain(name) for name in card.classes) + "\n"


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """One level of nesting as names with dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _table(title: str, values: dict[str, Any]) -> str:
    if not values:
        return ""
    rows = "\n".join(f"| {_plain(str(k))} | {_plain(str(v))} |" for k, v in values.items() if v not in (None, "", []))
    return f"\n## {title}\n\n| | |\n|---|---|\n{rows}\n"


def _plain(text: str) -> str:
    """Text that is nothing but text in Markdown: somebody else's card must not bring markup to one's page."""
    for mark in ("\\", "|", "<", "[", "]", "`", "*", "_"):
        text = text.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return " ".join(text.split())
