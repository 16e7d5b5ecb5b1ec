"""Inpainting: fill a hole, then descend the class's cross-entropy (Santurkar et al. 2019, Section 3.2, Equation 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustsynth.constraints import Inside
from robustsynth.errors import UserError
from robustsynth.fills import fill
from robustsynth.masks import check_mask
from robustsynth.models.classifier import Classifier
from robustsynth.objectives import CrossEntropy, Distance
from robustsynth.tasks.running import OnStep, PictureTask, Statement, check_pictures
from robustsynth.tasks.settings import resolve_settings
from robustsynth.tasks.softness import faded
from robustsynth.tasks.step_settings import InpaintSettings


def inpaint(
    model: Classifier,
    images: Tensor,
    labels: Tensor | Sequence[int] | int | None = None,
    *,
    mask: Tensor,
    start: Tensor | None = None,
    preset: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Tensor:
    """Images with what is under the mask drawn anew. Pixels under the mask are never read.

    Args:
        model: a robust classifier.
        images: (N, C, H, W) in [0, 1], of any size.
        labels: (N,) class indices, or one for all; predicted from the filled images where None.
        mask: (N, 1, H, W) or (1, H, W), 1 where to fill.
        start: (N, C, H, W) in [0, 1], whose pixels under the mask are what the hole starts as, such as a fill made
            elsewhere; filled as the settings say where None.
        preset: ``paper``, ``mcgill2019``, ``duke2023``, ``hse2025`` or ``best``; the model's own settings where None.
        precision: ``float32`` or ``bfloat16``; measured where None.
        batch_size: images a batch.
        on_step: called with the places of a batch and each `Step` of it; returning False ends that batch.
        **settings: fields of `InpaintSettings`, which override the preset.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        UserError: a mask of another size, or one that covers everything or nothing; labels or settings that do not fit.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> images, hole = torch.rand(1, 3, 32, 32), torch.zeros(1, 32, 32)
        >>> hole[:, 8:16, 8:16] = 1
        >>> result = inpaint(load_model("cifar10"), images, 3, mask=hole, steps=2)
        >>> bool((result != images).any(1, keepdim=True)[0].logical_or(hole > 0).eq(hole > 0).all())
        True
    """
    holes = check_mask(mask, images).float().cpu()
    # Before anything else looks at them: whatever is there, even NaN, must not matter.
    images = check_pictures(model, torch.where(holes > 0, 0.0, images.detach().cpu()))
    resolved = resolve_settings(InpaintSettings, "inpaint", model, preset=preset, given=settings)
    if start is None:
        filled = fill(images, holes, resolved.fill)
    else:
        start = check_pictures(model, start.detach().cpu())
        if start.shape != images.shape:
            raise UserError(f"expected start like the images, {tuple(images.shape)}, got {tuple(start.shape)}")
        filled = torch.where(holes > 0, start, images)
    task = PictureTask(model, images, resolved, precision=precision, batch_size=batch_size)
    labels = task.labels(labels, filled)
    soft = faded(holes, resolved.feather * max(task.size) / task.side)

    def state(places: Tensor) -> Statement:
        start, hole = filled[places].to(model.device), holes[places].to(model.device)
        objective = CrossEntropy(task.seen(), labels[places].to(model.device))
        if resolved.only_inside:
            return Statement(start, objective, Inside(task.ball(), soft[places].to(model.device)))
        # The filled image stands in for the known pixels: it is the same outside, where alone the weight is not 0.
        return Statement(start, objective + resolved.penalty * Distance(start, 1 - hole))

    result = task.run(state, on_step)
    if resolved.only_inside:
        result = torch.lerp(filled, result, soft)
    return torch.where(holes > 0, result, images) if resolved.keep_known else result
