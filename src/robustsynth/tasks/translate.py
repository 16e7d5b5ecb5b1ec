"""Translation: descend another class's cross-entropy from an image (Santurkar et al. 2019, Section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustsynth.tasks.inputs import TARGETS
from robustsynth.tasks.settings import ImageSettings
from robustsynth.tasks.task import Task

if TYPE_CHECKING:
    from robustsynth.solver import Stated
    from robustsynth.tasks.call import Batch


@dataclass(frozen=True)
class TranslateSettings(ImageSettings):
    """Settings of translation (Santurkar et al. 2019, Section 3.3); the defaults are the paper's.

    Attributes:
        adherence: λ, weight of the mean squared difference from the source.
    """

    eps: float = 60.0
    steps: int = 80
    adherence: float = 0.0


def state(batch: Batch) -> Stated:
    """Descend the target's cross-entropy from the image."""
    return batch.towards(batch.value("targets"), adherence=batch.settings.adherence)


TRANSLATE = Task(
    "translate",
    TranslateSettings,
    state,
    "Turn images into another class, near to what they were.",
    "With several classes the command makes several results of each image, NAME-CLASS.png, and figure.png shows all "
    "of them in a row.",
    inputs=(TARGETS,),
    example='translate(load_model("cifar10"), torch.rand(2, 3, 32, 32), ["cat", "ship"], steps=2)',
)
