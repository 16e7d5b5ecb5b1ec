"""What a run needs before its first step: room for it, its network, its precision, and the data it was begun with."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustsynth.data import ImageData
from robustsynth.errors import UserError
from robustsynth.files import only_writer
from robustsynth.models.execution import Execution, fastest_precision
from robustsynth.models.networks import build_network
from robustsynth.models.store import load_model
from robustsynth.processes import Workers
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


def check_passes(network: nn.Module, settings: TrainSettings, size: int, channels: int, images: int) -> None:
    """Refuse sizes that the network cannot take, before a run is on its way to them.

    Args:
        network: to be trained; it is not changed.
        settings: of the run.
        size: side in pixels that the run ends at.
        channels: of the images.
        images: that go through it at a time.

    Raises:
        UserError: a side is too small or not the one the network was made for, or batch norm has one number to
            normalise.
    """
    early = settings.early_size or size
    if early > size:
        raise UserError(f"expected early_size of at most the images' side, got {early} and {size}; lower --early-size")
    device = next(network.parameters()).device
    # Whole networks are copied only where there is something to find out.
    trial = network.eval() if images > 1 else copy.deepcopy(network)
    for side in sorted({early, size}):
        zeros = torch.zeros(1, channels, side, side, device=device)
        try:
            with torch.no_grad():
                trial.eval()(zeros)
                if images == 1:
                    trial.train()(zeros)
        except (RuntimeError, ValueError) as error:
            if "more than 1 value per channel" in str(error):
                raise UserError(
                    f"expected batches that batch norm can normalise, got one image of {side} pixels at a time, of "
                    f"which {settings.architecture} leaves one number a channel; raise --batch-size or --image-size, "
                    "or lower --accumulate"
                ) from None
            other = "" if side == size else " (--early-size), and of another one in the end,"
            raise UserError(
                f"expected images that {settings.architecture} of {size} pixels takes, got {side} pixels{other} which "
                "it does not; choose another size or --architecture"
            ) from None


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


def only_trainer(out: Path, workers: Workers) -> contextlib.ExitStack:
    """Become, until it is closed, the only run that writes to `out`; all processes hear of it where that cannot be.

    Raises:
        UserError: another process trains there.
    """
    held = contextlib.ExitStack()

    def refusal() -> str:
        try:
            held.enter_context(only_writer(out))
        except UserError as error:
            return str(error)
        return ""

    refused = workers.agreed(refusal)
    if refused:
        raise UserError(refused)
    return held
