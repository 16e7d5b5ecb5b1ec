"""Super-resolution: enlarge, then descend the class's cross-entropy (Santurkar et al. 2019, Section 3.4, Equation 4).

The descent alone makes the image more recognisable, but hardly closer to the original. Back-projection, which keeps the
averages of the result equal to the small image, brings it closer; the two together are better than either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustsynth.errors import UserError
from robustsynth.tasks.inputs import LABELS, number_input
from robustsynth.tasks.settings import ImageSettings, choice
from robustsynth.tasks.task import Task

if TYPE_CHECKING:
    from robustsynth.solver import Stated
    from robustsynth.tasks.call import Batch, Call


@dataclass(frozen=True)
class UpscaleSettings(ImageSettings):
    """Settings of super-resolution (Santurkar et al. 2019, Equation 4); the defaults are the paper's.

    Attributes:
        start: how the small image is enlarged to start from: ``nearest`` (the paper's), ``bicubic`` or ``lanczos``.
        consistency: rounds of back-projection before the first step; one follows each step then, and twice as many
            the last. 0 for none, as in the paper.
        penalty: λ, weight of the mean squared difference between the averaged result and the small image.
    """

    eps: float = 8.0
    steps: int = 40
    start: str = choice("nearest", "nearest", "bicubic", "lanczos")
    consistency: int = 0
    penalty: float = 0.0


def state(batch: Batch) -> Stated:
    """Descend the class's cross-entropy from the enlarged image, keeping its averages."""
    from robustsynth.constraints import Consistent
    from robustsynth.objectives import AveragedDistance, CrossEntropy
    from robustsynth.resampling import back_project, resample

    settings, low = batch.settings, batch.images
    bicubic = resample(low, batch.size, "bicubic").clamp(0, 1)
    start = back_project(resample(low, batch.size, settings.start).clamp(0, 1), low, rounds=settings.consistency)
    objective = CrossEntropy(batch.network(), batch.labels(bicubic))
    small = low.to(batch.device)
    if settings.penalty:
        objective = objective + settings.penalty * AveragedDistance(small)
    return batch.stated(
        start,
        objective,
        constraint=Consistent(batch.ball(), small) if settings.consistency else None,
        finish=lambda images: back_project(images.cpu(), low, rounds=2 * settings.consistency),
        given={"bicubic": bicubic},
    )


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


def result_size(size: tuple[int, int], call: Call) -> tuple[int, int]:
    """(H, W) of the result."""
    return enlarged_size(size, call.value("factor"))


UPSCALE = Task(
    "upscale",
    UpscaleSettings,
    state,
    "Make images `factor` times as large in both directions, whatever the model's own size.",
    "The class may be named in another vocabulary: dog, truck. It is predicted from the bicubically enlarged image "
    "where none is given.",
    inputs=(
        LABELS,
        number_input("factor", float, "1 or more, whole or not.", "How many times as wide and high: 7, 3.5."),
    ),
    images="low",
    returns="(N, C, round(H·factor), round(W·factor)) float32 in [0, 1], on the CPU. By the bundled settings its area "
    "averages are `low` within 1/255 on average.",
    result_size=result_size,
    untuned={"start": "bicubic", "consistency": 10},
    example='upscale(load_model("cifar10"), torch.rand(1, 3, 10, 12), "cat", factor=2.5, steps=2)',
)
