"""A task as anybody might add it: darken images towards a class, by at most so much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustsynth.tasks.inputs import LABELS, number_input
from robustsynth.tasks.settings import ImageSettings, choice
from robustsynth.tasks.task import Task

if TYPE_CHECKING:
    from robustsynth.solver import Stated
    from robustsynth.tasks.call import Batch


@dataclass(frozen=True)
class ToySettings(ImageSettings):
    """Settings of the toy.

    Attributes:
        shade: what the images are mixed with before the first step.
    """

    eps: float = 3.0
    step_size: float = 0.5
    steps: int = 6
    shade: str = choice("black", "black", "grey")


def state(batch: Batch) -> Stated:
    """Descend the class's cross-entropy from the darkened image."""
    from robustsynth.objectives import CrossEntropy

    target = {"black": 0.0, "grey": 0.5}[batch.settings.shade]
    start = batch.images + batch.value("amount") * (target - batch.images)
    objective = CrossEntropy(batch.network(), batch.labels(batch.images).to(batch.device))
    return batch.stated(start, objective, given={"darkened": start})


TOY = Task(
    "toy",
    ToySettings,
    state,
    "Darken images and make them more like their class.",
    inputs=(LABELS, number_input("amount", float, "of darkening, 0 to 1.", "How much to darken, 0 to 1.", default=0.5)),
    untuned={"shade": "grey"},
)
