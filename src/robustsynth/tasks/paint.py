"""Feature painting: raise units of the representation inside a region (Santurkar et al. 2019, Section 3.5,
Equation 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustsynth.tasks.inputs import UNIT_MASKS, UNITS
from robustsynth.tasks.settings import ImageSettings
from robustsynth.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.solver import Stated
    from robustsynth.tasks.call import Batch, Call


@dataclass(frozen=True)
class PaintSettings(ImageSettings):
    """Settings of feature painting (Santurkar et al. 2019, Equation 5); the defaults are the paper's.

    Attributes:
        activation: weight of the unit's activation.
        penalty: weight of the mean squared difference outside of the mask.
        straight_through: pass gradients straight through the last ReLU, so that a unit that is off can be raised.
        only_inside: let steps change the masked region alone; what is outside stays exactly as it was.
        feather: pixels, at the model's image size, over which the painting fades out within the region's border; for
            `only_inside`.
    """

    eps: float = 70.0
    steps: int = 140
    activation: float = 0.1
    penalty: float = 90.0
    straight_through: bool = True
    only_inside: bool = False
    feather: float = 0.0


def state(batch: Batch) -> Stated:
    """Raise the run's unit inside its region, from what the run before it gave."""
    import torch

    from robustsynth.models.representation import feature_network
    from robustsynth.objectives import Activation

    settings, images, regions = batch.settings, batch.images, batch.value("mask")
    unit, region = batch.value("unit")[batch.run], regions[batch.run]
    features = feature_network(
        batch.model, straight_through=settings.straight_through, precision=batch.precision, batch_size=batch.batch_size
    )
    objective = settings.activation * Activation(batch.network(features), unit)
    objective, constraint, soft = batch.confined(objective, region, images)

    def finish(result: Tensor) -> Tensor:
        return result.cpu() if soft is None else torch.lerp(images, result.cpu(), soft)

    where = torch.stack(regions).amax(0)
    given = {"region": images * (0.35 + 0.65 * where)}
    return batch.stated(images, objective, constraint=constraint, finish=finish, given=given)


def runs(call: Call) -> int:
    """One for each unit."""
    return len(call.value("unit"))


PAINT = Task(
    "paint",
    PaintSettings,
    state,
    "Paint what units of the model respond to onto regions of images, one unit after another.",
    "``robustsynth features`` shows what units respond to. One mask serves all units; as many as there are units go "
    "with one each.",
    inputs=(UNITS, UNIT_MASKS),
    runs=runs,
    example='paint(load_model("cifar10"), torch.rand(1, 3, 32, 32), 7, mask=torch.eye(32)[None], steps=2)',
)
