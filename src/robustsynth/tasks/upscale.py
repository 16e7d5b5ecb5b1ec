"""Super-resolution: enlarge, then descend the class's cross-entropy (Santurkar et al. 2019, Section 3.4, Equation 4).

By itself the climb adds recognition and next to no fidelity. Back-projection, which keeps the averages of the result
equal to the small picture, is what fidelity comes from; the two together are better than either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from robustsynth.constraints import Consistent
from robustsynth.errors import UserError
from robustsynth.models.classifier import Classifier
from robustsynth.objectives import CrossEntropy, Objective
from robustsynth.resampling import back_project, resample
from robustsynth.tasks.running import OnStep, PictureTask, Statement, check_pictures
from robustsynth.tasks.settings import resolve_settings
from robustsynth.tasks.step_settings import UpscaleSettings
from robustsynth.tasks.views import check_size


class LowDistance(Objective):
    """mean((↓x − x_low)²), ↓ being area averaging: the natural form of hse2025's consistency loss, which it does not
    define.

    Args:
        low: (N, C, h, w).

    Example:
        >>> import torch
        >>> LowDistance(torch.zeros(1, 1, 1, 1))(torch.tensor([[[[0.0, 1.0]]]])).tolist()
        [0.25]
    """

    def __init__(self, low: Tensor) -> None:
        self.low = low

    def __call__(self, images: Tensor) -> Tensor:
        averaged = resample(images, (self.low.shape[2], self.low.shape[3]), "area")
        return (averaged - self.low).square().flatten(1).mean(1)


def upscale(
    model: Classifier,
    low: Tensor,
    labels: Tensor | Sequence[int] | int | None = None,
    *,
    factor: float,
    preset: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Tensor:
    """Images `factor` times as large in both directions, whatever the model's own size.

    Args:
        model: a robust classifier of what the images show.
        low: (N, C, h, w) in [0, 1].
        labels: (N,) class indices, or one for all; predicted from the plainly enlarged images where None.
        factor: 1 or more, whole or not.
        preset: ``paper``, ``mcgill2019``, ``duke2023``, ``hse2025`` or ``best``; the model's own settings where None.
        precision: ``float32`` or ``bfloat16``; measured where None.
        batch_size: images a batch.
        on_step: called with the places of a batch and each `Step` of it; returning False ends that batch.
        **settings: fields of `UpscaleSettings`, which override the preset.

    Returns:
        (N, C, round(h·factor), round(w·factor)) float32 in [0, 1]. By the bundled settings its area averages are
        `low` within 1/255 on average.

    Raises:
        UserError: a factor, labels or settings that do not fit.

    Example:
        >>> import torch
        >>> from robustsynth.models.store import load_model
        >>> upscale(load_model("cifar10"), torch.rand(1, 3, 10, 12), 3, factor=2.5, steps=2).shape
        torch.Size([1, 3, 25, 30])
    """
    low = check_pictures(model, low, "low")
    resolved = resolve_settings(UpscaleSettings, "upscale", model, preset=preset, given=settings)
    size = enlarged_size((low.shape[2], low.shape[3]), factor)
    check_size(*size)
    start = resample(low, size, resolved.start).clamp(0, 1)
    start = back_project(start, low, rounds=resolved.consistency)
    task = PictureTask(model, low, resolved, size=size, precision=precision, batch_size=batch_size)
    labels = task.labels(labels, resample(low, size, "bicubic").clamp(0, 1) if labels is None else start)

    def state(places: Tensor) -> Statement:
        small = low[places].to(model.device)
        objective: Objective = CrossEntropy(task.seen(), labels[places].to(model.device))
        if resolved.penalty:
            objective = objective + resolved.penalty * LowDistance(small)
        constraint = Consistent(task.ball(), small) if resolved.consistency else None
        return Statement(start[places].to(model.device), objective, constraint)

    return back_project(task.run(state, on_step), low, rounds=2 * resolved.consistency)


def enlarged_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(h, w) times `factor`, rounded as Python rounds.

    Raises:
        UserError: a factor below 1, or not finite.

    Example:
        >>> enlarged_size((32, 25), 3.5)
        (112, 88)
    """
    if not 1 <= factor < float("inf"):
        raise UserError(f"expected a finite factor of 1 or more, got {factor}")
    return round(size[0] * factor), round(size[1] * factor)
