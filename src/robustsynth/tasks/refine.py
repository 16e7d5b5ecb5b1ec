"""Refinement: a short climb of any picture, such as another generator's, towards its class (Ganz and Elad 2021,
"BIGRoC: Boosting Image Generation via a Robust Classifier")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from robustsynth.models.classifier import Classifier
from robustsynth.objectives import CrossEntropy, Distance
from robustsynth.tasks.running import OnStep, PictureTask, Statement, check_pictures
from robustsynth.tasks.settings import resolve_settings
from robustsynth.tasks.step_settings import RefineSettings


def refine(
    model: Classifier,
    images: Tensor,
    labels: Tensor | Sequence[int] | int | None = None,
    *,
    preset: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Tensor:
    """Images made more like their class, and otherwise what they were.

    Args:
        model: a robust classifier.
        images: (N, C, H, W) in [0, 1], of any size.
        labels: (N,) class indices, or one for all; predicted from the images where None.
        preset: ``best`` or None, the model's own settings; the papers have none for this task.
        precision: ``float32`` or ``bfloat16``; measured where None.
        batch_size: images a batch.
        on_step: called with the places of a batch and each `Step` of it; returning False ends that batch.
        **settings: fields of `RefineSettings`, which override the preset.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        UserError: labels or settings that do not fit.

    Example:
        >>> import torch
        >>> from robustsynth.models.store import load_model
        >>> refine(load_model("cifar10"), torch.rand(2, 3, 32, 32), [3, 5], steps=2).shape
        torch.Size([2, 3, 32, 32])
    """
    images = check_pictures(model, images)
    resolved = resolve_settings(RefineSettings, "refine", model, preset=preset, given=settings)
    task = PictureTask(model, images, resolved, precision=precision, batch_size=batch_size)
    labels = task.labels(labels, images)

    def state(places: Tensor) -> Statement:
        start = images[places].to(model.device)
        objective = CrossEntropy(task.seen(), labels[places].to(model.device))
        if resolved.adherence:
            objective = objective + resolved.adherence * Distance(start)
        return Statement(start, objective)

    return task.run(state, on_step)
