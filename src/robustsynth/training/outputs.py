"""What a training run writes beside its checkpoints: the log, TensorBoard's log, the best model so far, its seeds."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsynth.data import ImageData
from robustsynth.errors import UserError
from robustsynth.files import sha256, written_beside
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.execution import machine_name, processor_kind
from robustsynth.models.networks import standard_width
from robustsynth.models.store import save_model
from robustsynth.seeds import fit_class_seeds
from robustsynth.training.checkpoints import TrainState


def write_log(rows: list[dict[str, Any]], out: Path) -> None:
    """``log.csv``, a row an epoch."""
    text = io.StringIO()
    # Rows from before the first collapse lack its column.
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with written_beside(out / "log.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def keep_model(state: TrainState, data: ImageData, out: Path, held_out: int, trained_on: int) -> None:
    """Write the moving average, which ``state.best`` describes, and its card into the folder `out`: it is a model then.

    `held_out` and `trained_on` are the numbers of images that it is selected by and trained on.
    """
    settings, device = state.settings, next(state.average.parameters()).device
    size = settings.image_size or data.images.shape[1]
    classifier = Classifier(state.average, classes=data.classes, mean=data.mean, std=data.std, image_size=size)
    robust, clean = state.best["score"]
    card = ModelCard(
        name=out.resolve().name,
        architecture=settings.architecture,
        width=settings.width or standard_width(settings.architecture),
        channels=data.images.shape[3],
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
            "held_out": {"images": held_out, "clean": clean, "pgd10": robust, "eps": settings.eps},
            **({"collapses": state.collapses} if state.collapses else {}),
        },
        data={"name": data.name, "source": data.source, "licence": data.licence, "images": trained_on},
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


TENSORBOARD_EVERY = 10
"""Steps between two values of the loss and the learning rate."""

TENSORBOARD_IMAGES = 8
"""Adversarial images shown an epoch."""


class TensorBoardLog:
    """What TensorBoard shows of a run, in the folder ``tensorboard`` of `out`; what is there after `step` is dropped.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, out: Path, *, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "expected the package tensorboard for --tensorboard, which is not installed; "
                "pip install 'robustsynth[tensorboard]', or leave the option out"
            ) from None
        self.writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def step(self, step: int, loss: float, rate: float) -> None:
        """Loss and learning rate of step `step`, now and then."""
        if step % TENSORBOARD_EVERY == 0:
            self.writer.add_scalar("training/loss", loss, step)
            self.writer.add_scalar("training/learning rate", rate, step)

    def epoch(self, step: int, row: dict[str, Any], attacked: Tensor | None) -> None:
        """An epoch's row of the log, and some of the images (N, C, H, W) in [0, 1] that its last step trained on."""
        for name in ("held_out_clean", "held_out_pgd"):
            if row[name] != "":
                self.writer.add_scalar(name.replace("held_out_", "held out/"), row[name], step)
        if attacked is not None:
            self.writer.add_images("adversarial images", attacked[:TENSORBOARD_IMAGES].detach().cpu(), step)
        self.writer.flush()
