"""What a training run leaves: the log, the best model so far, and at the end its seeds."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustsynth.data import ImageData
from robustsynth.files import sha256, written_beside
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.execution import machine_name, processor_kind
from robustsynth.models.networks import standard_width
from robustsynth.models.store import save_model
from robustsynth.seeds import fit_class_seeds
from robustsynth.training.state import TrainState


def write_log(rows: list[dict[str, Any]], out: Path) -> None:
    """``log.csv``, a row an epoch."""
    text = io.StringIO()
    # A run begun before a column was there has rows without it.
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with written_beside(out / "log.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def keep_model(state: TrainState, data: ImageData, held: np.ndarray, kept: np.ndarray, out: Path) -> None:
    """Write the moving average and its card into `out`, which then is a model.

    Args:
        state: of the run, whose ``best`` describes the average as it is now.
        data: that it is trained on.
        held: indices of the images that it is selected by.
        kept: indices of the images that it is trained on.
        out: the run's folder.
    """
    settings, channels = state.settings, data.images.shape[3]
    size = settings.image_size or data.images.shape[1]
    classifier = Classifier(state.average, classes=data.classes, mean=data.mean, std=data.std, image_size=size)
    device = next(state.average.parameters()).device
    robust, clean = state.best["score"]
    card = ModelCard(
        name=out.resolve().name,
        architecture=settings.architecture,
        width=settings.width or standard_width(settings.architecture),
        channels=channels,
        image_size=size,
        classes=data.classes,
        mean=tuple(data.mean),
        std=tuple(data.std),
        threat_model={"norm": settings.norm, "eps": settings.eps},
        training={
            "settings": dataclasses.asdict(settings),
            "execution": state.execution.as_dict(),
            "machine": machine_name(device),
            "processor": processor_kind() if device.type == "cpu" else device.type,
            "torch": torch.__version__,
            "selected_epoch": state.best["epoch"],
            "seconds": round(state.seconds),
            "held_out": {"images": len(held), "clean": clean, "pgd10": robust, "eps": settings.eps},
            **({"collapses": state.collapses} if state.collapses else {}),
        },
        data={"name": data.name, "source": data.source, "licence": data.licence, "images": len(kept)},
    )
    save_model(out, classifier, card)


def finish_model(state: TrainState, data: ImageData, held: np.ndarray, out: Path) -> None:
    """Fit the class seeds on the images that were trained on, and complete the card."""
    labels = np.array(data.labels)
    labels[held] = -1
    size = state.settings.image_size or data.images.shape[1]
    path = fit_class_seeds(data.images, labels, classes=len(data.classes), image_size=size).save(out)
    card = ModelCard.load(out)
    training = card.training | {"seconds": round(state.seconds)}
    dataclasses.replace(card, training=training, sha256=card.sha256 | {path.name: sha256(path)}).save(out)
