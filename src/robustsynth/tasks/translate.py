"""Translation: descend another class's cross-entropy from an image (Santurkar et al. 2019, Section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from robustsynth.models.classifier import Classifier
from robustsynth.objectives import CrossEntropy, Distance
from robustsynth.tasks.running import OnStep, PictureTask, Statement, check_labels, check_pictures
from robustsynth.tasks.settings import resolve_settings
from robustsynth.tasks.step_settings import TranslateSettings


def translate(
    model: Classifier,
    images: Tensor,
    targets: Tensor | Sequence[int] | int,
    *,
    preset: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Tensor:
    """Images turned into a target class, near to what they were.

    Args:
        model: a robust classifier: of many classes, or of just the two domains.
        images: (N, C, H, W) in [0, 1], of any size.
        targets: (N,) class indices, or one for all.
        preset: ``paper``, ``mcgill2019``, ``duke2023``, ``hse2025`` or ``best``; the model's own settings where None.
        precision: ``float32`` or ``bfloat16``; measured where None.
        batch_size: images a batch.
        on_step: called with the places of a batch and each `Step` of it; returning False ends that batch.
        **settings: fields of `TranslateSettings`, such as ``eps``, ``step_size`` and ``steps``.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        UserError: targets or settings that do not fit.

    Example:
        >>> import torch
        >>> from robustsynth.models.store import load_model
        >>> translate(load_model("cifar10"), torch.rand(2, 3, 32, 32), [3, 5], steps=2).shape
        torch.Size([2, 3, 32, 32])
    """
    images = check_pictures(model, images)
    targets = check_labels(targets, model, len(images))
    resolved = resolve_settings(TranslateSettings, "translate", model, preset=preset, given=settings)
    task = PictureTask(model, images, resolved, precision=precision, batch_size=batch_size)

    def state(places: Tensor) -> Statement:
        start = images[places].to(model.device)
        objective = CrossEntropy(task.seen(), targets[places].to(model.device))
        if resolved.adherence:
            objective = objective + resolved.adherence * Distance(start)
        return Statement(start, objective)

    return task.run(state, on_step)
