"""Feature painting: raise units of the representation inside a region (Santurkar et al. 2019, Section 3.5,
Equation 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustsynth.constraints import Inside
from robustsynth.errors import UserError
from robustsynth.masks import check_mask
from robustsynth.models.classifier import Classifier
from robustsynth.models.representation import feature_network
from robustsynth.objectives import Distance, Objective
from robustsynth.tasks.running import OnStep, PictureTask, Statement, check_pictures, chosen_precision
from robustsynth.tasks.settings import resolve_settings
from robustsynth.tasks.softness import faded
from robustsynth.tasks.step_settings import PaintSettings


class Activation(Objective):
    """−R(x)_f, the negative activation of unit f of the representation.

    Args:
        network: images to representations (N, D).
        unit: f.
    """

    def __init__(self, network: Any, unit: int) -> None:
        self.network, self.unit = network, unit

    def __call__(self, images: Tensor) -> Tensor:
        return -self.network(images)[:, self.unit]


def paint(
    model: Classifier,
    images: Tensor,
    unit: int | Sequence[int],
    *,
    mask: Tensor | Sequence[Tensor],
    preset: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Tensor:
    """Images with what units of the model respond to painted onto regions of them, one unit after another.

    Args:
        model: a robust classifier.
        images: (N, C, H, W) in [0, 1], of any size.
        unit: of the representation, 0 … D − 1, or several; ``robustsynth features`` shows what they respond to.
        mask: (N, 1, H, W) or (1, H, W), 1 where to paint; or a sequence of such, one a unit.
        preset: ``paper``, ``mcgill2019``, ``duke2023``, ``hse2025`` or ``best``; the model's own settings where None.
        precision: ``float32`` or ``bfloat16``; measured where None.
        batch_size: images a batch.
        on_step: called with the places of a batch and each `Step` of it; returning False ends that batch.
        **settings: fields of `PaintSettings`, which override the preset.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        UserError: a unit that the model lacks, a mask of another size or that covers nothing or everything, a number
            of masks that is neither 1 nor that of the units, or settings that do not fit.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> region = torch.zeros(1, 32, 32)
        >>> region[:, 4:20, 4:20] = 1
        >>> paint(load_model("cifar10"), torch.rand(1, 3, 32, 32), 7, mask=region, steps=2).shape
        torch.Size([1, 3, 32, 32])
    """
    images = check_pictures(model, images)
    resolved = resolve_settings(PaintSettings, "paint", model, preset=preset, given=settings)
    units = [int(u) for u in torch.as_tensor(unit).reshape(-1).tolist()]
    masks = list(mask) if isinstance(mask, (list, tuple)) else [torch.as_tensor(mask)]
    if len(masks) not in (1, len(units)) or not units:
        raise UserError(f"expected one mask, or one for each of {len(units)} units, got {len(masks)}")
    regions = [check_mask(m, images).float() for m in masks]
    regions *= len(units) // len(regions)
    precision = precision or chosen_precision(model)
    network = feature_network(model, straight_through=resolved.straight_through, precision=precision)
    task = PictureTask(model, images, resolved, precision=precision, batch_size=batch_size, network=network)
    width = _width(task, images[:1])
    for wanted in units:
        if not 0 <= wanted < width:
            raise UserError(f"expected units from 0 to {width - 1} for model {model.name!r}, got {wanted}")
    for chosen, region in zip(units, regions, strict=True):
        images = _paint_one(task, resolved, images, chosen, region, on_step)
    return images


def _paint_one(
    task: PictureTask, settings: PaintSettings, images: Tensor, unit: int, region: Tensor, on_step: OnStep | None
) -> Tensor:
    device = task.model.device
    soft = faded(region, settings.feather * max(task.size) / task.side)

    def state(places: Tensor) -> Statement:
        start, inside = images[places].to(device), region[places].to(device)
        objective = settings.activation * Activation(task.seen(), unit)
        if settings.only_inside:
            return Statement(start, objective, Inside(task.ball(), soft[places].to(device)))
        return Statement(start, objective + settings.penalty * Distance(start, 1 - inside))

    result = task.run(state, on_step)
    return torch.lerp(images, result, soft) if settings.only_inside else result


def _width(task: PictureTask, example: Tensor) -> int:
    """How many units there are."""
    with torch.no_grad():
        shown = example if len(example) else torch.zeros(1, task.model.channels, *task.size)
        return task.seen()(shown.to(task.model.device)).shape[1]
