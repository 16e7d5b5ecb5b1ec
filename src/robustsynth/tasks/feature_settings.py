"""Settings of feature pictures, apart from their task, so that the command line needs no torch to know its options."""

from __future__ import annotations

from dataclasses import dataclass

from robustsynth.errors import UserError
from robustsynth.tasks.step_settings import StepSettings, choice


@dataclass(frozen=True)
class FeatureSettings(StepSettings):
    """Settings of the pictures that show what a unit responds to.

    The defaults of ``eps`` and ``step_size`` are for images of 32 pixels; see `resolve_features`.

    Attributes:
        eps: radius of the ball around the noise; in ℓ2 8 at 32 pixels and in proportion to the side, in ℓ∞ 0.7.
        step_size: length of a step, of the first one where steps decay; likewise 1.4, and 0.05.
        norm: of the ball and the steps, ``l2`` or ``linf``; the model's own if not given.
        step_schedule: ``linear``, falling to 0 over the steps, or ``constant``.
        shift: pixels by which what the network sees is moved from step to step; one for each 64 of the side.
        level: brightness of the noise that pictures start from, 0 to 1; between mid-grey and the model's mean.
        contrast: standard deviation of that noise.
        smoothness: λ, weight of the mean difference between neighbouring pixels, for activations in units of logits;
            1 in ℓ∞.
        straight_through: pass gradients straight through the last ReLU, so that a unit that is off can be raised.
        drawn: pictures drawn of each unit, each from noise of its own.
        top: images of the data shown of each unit.
    """

    eps: float = 8.0
    step_size: float = 1.4
    steps: int = 40
    step_schedule: str = choice("linear", "constant", "linear")
    level: float = 0.5
    contrast: float = 0.05
    smoothness: float = 0.0
    straight_through: bool = True
    drawn: int = 3
    top: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level > 1:
            raise UserError(f"expected a level from 0 to 1, got {self.level}")
        if self.drawn < 1:
            raise UserError(f"expected 1 or more drawn pictures of each unit, got {self.drawn}")
