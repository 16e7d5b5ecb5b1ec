"""Refinement: a short run of the loop from any image, such as another generator's, towards its class (Ganz and Elad
2021, "BIGRoC: Boosting Image Generation via a Robust Classifier")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustsynth.tasks.inputs import LABELS
from robustsynth.tasks.settings import ImageSettings
from robustsynth.tasks.task import Task

if TYPE_CHECKING:
    from robustsynth.solver import Stated
    from robustsynth.tasks.call import Batch


@dataclass(frozen=True)
class RefineSettings(ImageSettings):
    """Settings of refinement: few steps in a small ball.

    Attributes:
        adherence: λ, weight of the mean squared difference from the given image.
    """

    eps: float = 6.0
    step_size: float = 0.6
    steps: int = 20
    adherence: float = 0.0


def state(batch: Batch) -> Stated:
    """Descend the class's cross-entropy from the image."""
    return batch.towards(batch.labels(batch.images), adherence=batch.settings.adherence)


REFINE = Task(
    "refine",
    RefineSettings,
    state,
    "Make images more like their class, and otherwise what they were.",
    "For another generator's output, or any photograph. The papers have no preset for this task.",
    inputs=(LABELS,),
    example='refine(load_model("cifar10"), torch.rand(2, 3, 32, 32), [3, 5], steps=2)',
)
