"""Sketch to image: descend a class's cross-entropy from a drawing (Santurkar et al. 2019, Section 3.5)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustsynth.images import to_uint8
from robustsynth.models.classifier import Classifier
from robustsynth.objectives import CrossEntropy, Distance
from robustsynth.randomness import image_generators
from robustsynth.resampling import resample
from robustsynth.tasks.running import OnStep, PictureTask, Statement, check_pictures
from robustsynth.tasks.settings import resolve_settings
from robustsynth.tasks.softness import softened
from robustsynth.tasks.starts import model_seeds
from robustsynth.tasks.step_settings import SketchSettings


def sketch(
    model: Classifier,
    drawings: Tensor,
    labels: Tensor | Sequence[int] | int | None = None,
    *,
    seed: int = 0,
    preset: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Tensor:
    """Drawings turned into pictures of a class that keep to their outlines.

    Args:
        model: a robust classifier.
        drawings: (N, C, H, W) in [0, 1], of any size.
        labels: (N,) class indices, or one for all; predicted from the drawings, which is often wrong, where None.
        seed: of the texture; each drawing has its own stream, whatever its company.
        preset: ``paper``, ``mcgill2019``, ``duke2023``, ``hse2025`` or ``best``; the model's own settings where None.
        precision: ``float32`` or ``bfloat16``; measured where None.
        batch_size: images a batch.
        on_step: called with the places of a batch and each `Step` of it; returning False ends that batch.
        **settings: fields of `SketchSettings`, which override the preset.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        UserError: labels or settings that do not fit, or `blend` or `texture` for a model without class seeds.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> sketch(load_model("cifar10"), torch.ones(1, 3, 32, 32), 3, steps=2).shape
        torch.Size([1, 3, 32, 32])
    """
    drawings = check_pictures(model, drawings, "drawings")
    resolved = resolve_settings(SketchSettings, "sketch", model, preset=preset, given=settings)
    task = PictureTask(model, drawings, resolved, precision=precision, batch_size=batch_size)
    labels = task.labels(labels, drawings)
    start = softened(drawings, resolved.softening * max(task.size) / task.side)
    start = _in_class_colours(start, labels, model, resolved, _generators(drawings, seed))

    def state(places: Tensor) -> Statement:
        objective = CrossEntropy(task.seen(), labels[places].to(model.device))
        if resolved.adherence:
            objective = objective + resolved.adherence * Distance(drawings[places].to(model.device))
        return Statement(start[places].to(model.device), objective)

    return task.run(state, on_step)


def _in_class_colours(
    start: Tensor,
    labels: Tensor,
    model: Classifier,
    settings: SketchSettings,
    generators: list[torch.Generator],
) -> Tensor:
    """Drawings mixed with the mean and the texture of their class."""
    if settings.blend == settings.texture == 0 or not len(start):
        return start
    seeds = model_seeds(model, "multivariate")
    size = (start.shape[2], start.shape[3])
    mean = seeds.mean[labels]
    deviation = seeds.multivariate(labels, generators) - mean
    mixed = (1 - settings.blend) * start + settings.blend * resample(mean, size)
    return (mixed + settings.texture * resample(deviation, size)).clamp(0, 1)


def _generators(drawings: Tensor, seed: int) -> list[torch.Generator]:
    """One for each drawing, keyed by what it shows: its place in a folder or a batch must not matter."""
    return image_generators(seed, [zlib.crc32(image.tobytes()) for image in to_uint8(drawings)])
