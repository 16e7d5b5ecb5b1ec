"""What a run needs before its first step: room for it, its network, its precision, and the data it was begun with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustsynth.data import ImageData
from robustsynth.errors import UserError
from robustsynth.models.architectures import build_network
from robustsynth.models.execution import Execution, fastest_precision
from robustsynth.models.files import load_model
from robustsynth.training.checking import other_data
from robustsynth.training.checkpoints import has_checkpoint
from robustsynth.training.fine_tuning import announcements, begin_from
from robustsynth.training.settings import TrainSettings
from robustsynth.training.state import TrainState


def check_room(settings: TrainSettings, data: ImageData, out: Path, *, resume: bool) -> None:
    """Refuse to begin where images are too few or where `out` holds another run.

    Raises:
        UserError: as said.
    """
    if len(data) < settings.held_out + settings.batch_size:
        raise UserError(
            f"expected at least {settings.held_out + settings.batch_size} training images "
            f"(held_out={settings.held_out} and one batch of {settings.batch_size}), got {len(data)}; "
            "lower --held-out or --batch-size"
        )
    if not resume and has_checkpoint(out):
        raise UserError(
            f"expected an empty folder for a new run, but {out} holds one; "
            "--resume goes on with it, another --out begins anew"
        )
    if not resume and (out / "card.json").exists():
        raise UserError(f"expected an empty folder for a new run, but {out} holds a model; choose another --out")


def check_classes(data: ImageData, kept: np.ndarray, held_out: int) -> None:
    """Refuse classes that are too small to fit seeds on, which happens when training ends: too late to say so.

    Raises:
        UserError: which class.
    """
    counts = np.bincount(np.asarray(data.labels)[kept], minlength=len(data.classes))
    if counts.min() < 2:
        raise UserError(
            f"expected at least 2 images of each class beside the {held_out} held out, "
            f"got {counts.min()} of {data.classes[int(counts.argmin())]!r}; lower --held-out or add images"
        )


def first_network(
    settings: TrainSettings,
    data: ImageData,
    device: torch.device,
    *,
    resume: bool,
    announce: Callable[[str], object],
) -> tuple[nn.Module, ImageData]:
    """The network that a run begins with, and the data with the mean and deviation that it goes by.

    A run that is resumed takes both from its checkpoint, so that the model it was fine-tuned from is not needed again.

    Raises:
        UnknownNameError: an architecture or model of that name is not there.
        UserError: the model to begin from is another network.
    """
    size, channels = settings.image_size or data.images.shape[1], data.images.shape[3]
    torch.manual_seed(settings.seed)
    network = build_network(
        settings.architecture, classes=len(data.classes), width=settings.width, channels=channels, image_size=size
    ).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if settings.fine_tune is None or resume:
        return network, data
    model = load_model(settings.fine_tune, device=device)
    new = begin_from(network, model, data.classes)
    for line in announcements(model, settings, data, size=size, new=new):
        announce(line)
    # The weights know images as that model normalises them.
    mean, std = (tuple(values.flatten().tolist()) for values in (model.mean, model.std))
    return network, dataclasses.replace(data, mean=mean, std=std)


def measured_execution(
    network: nn.Module, settings: TrainSettings, device: torch.device, shape: tuple[int, int, int]
) -> Execution:
    """The faster precision for images of `shape` (C, H, W), measured for half a second."""
    # Enough to tell on a processor; a graphics card must be filled as training fills it.
    count = settings.batch_size if device.type == "cuda" else 16
    images = torch.rand(count, *shape, device=device).contiguous(memory_format=torch.channels_last)
    # In evaluation mode: measuring must not move batch norm's statistics, nor fail on a single small image.
    network.eval()

    class Reduced(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16):
                return network(x).float()

    precision = fastest_precision({"float32": network, "bfloat16": Reduced()}, images)
    return Execution(precision, settings.batch_size)


def check_same_run(state: TrainState, data: ImageData, out: Path, precision: str | None) -> ImageData:
    """Refuse to go on with other images or in another precision: the result would be neither run's.

    Returns:
        The data with the mean and deviation that the run was begun with.

    Raises:
        UserError: what differs.
    """
    begun, now = state.data, data_summary(data)
    if told := other_data(begun, now):
        raise UserError(f"expected the data that {out} was begun with, got other ({told}); pass its --data")
    state.data = begun | now
    if precision is not None and precision != state.execution.precision:
        raise UserError(
            f"expected the precision that {out} was begun in, {state.execution.precision}, "
            f"got {precision}; resume without --precision"
        )
    if "mean" not in state.data:  # Checkpoints from before there was fine-tuning lack it.
        return data
    return dataclasses.replace(data, **{name: tuple(state.data[name]) for name in ("mean", "std")})


def data_summary(data: ImageData) -> dict[str, Any]:
    """What tells one data set from another, for a checkpoint."""
    return {"images": len(data), "shape": list(data.images.shape[1:]), "classes": list(data.classes)}


def normalisation(data: ImageData) -> dict[str, Any]:
    """The mean and standard deviation that a run normalises by, for its checkpoint."""
    return {"mean": list(data.mean), "std": list(data.std)}
