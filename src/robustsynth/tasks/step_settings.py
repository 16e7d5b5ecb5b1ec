"""Settings of the tasks. Sizes are in pixel units of images in [0, 1], at the model's image size:
on a larger picture an ℓ2 size grows with the root of the number of pixels."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass, field
from typing import Any

from robustsynth.errors import UserError


def choice(default: Any, *names: Any) -> Any:
    """A field whose value is one of `names`, or of those that a single function gives when it is checked."""
    return field(default=default, metadata={"choices": names[0] if callable(names[0]) else names})


def norm_names() -> list[str]:
    """The norms that are registered when this is called: see `robustsynth.constraints.register_norm`."""
    # Here, because the command line reads settings before it pays for importing torch.
    from robustsynth.constraints import NORMS

    return list(NORMS)


@dataclass(frozen=True)
class StepSettings:
    """What every task has.

    Attributes:
        eps: radius of the ball around where the task starts.
        step_size: length of a step, of the first one where steps decay.
        steps: number of steps.
        norm: of the ball and the steps, ``l2``, ``linf`` or another one that was registered.
        step_schedule: ``constant`` (the papers') or ``linear``, falling to 0 over the steps.
        use_best: keep each image's iterate of lowest loss, as the authors do, rather than the last.
        shift: pixels, at the model's image size, by which what it sees is moved from step to step; 0 as in the papers.
        mirror: let it see the picture mirrored in every second step; for classes that have no handedness.
    """

    eps: float = 40.0
    step_size: float = 1.0
    steps: int = 60
    norm: str = choice("l2", norm_names)
    step_schedule: str = choice("constant", "constant", "linear")
    use_best: bool = True
    shift: int = 0
    mirror: bool = False

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            _check_kind(each, getattr(self, each.name))
        if self.steps < 0:
            raise UserError(f"expected 0 or more steps, got {self.steps}")
        if not 0 < self.step_size < math.inf:
            raise UserError(f"expected a positive finite step_size, got {self.step_size}")
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, numbers.Real) and not 0 <= float(value) < math.inf:
                raise UserError(f"expected a finite {each.name} of 0 or more, got {value}")

    def step_length(self, index: int) -> float:
        """The length of step `index`."""
        return self.step_size * (1 - index / self.steps if self.step_schedule == "linear" else 1)


def _check_kind(each: dataclasses.Field[Any], value: Any) -> None:
    choices: Any = each.metadata.get("choices")
    if choices is not None:
        choices = choices() if callable(choices) else choices
        if value not in choices:
            named = ", ".join(str(c) for c in choices if c is not None)
            raise UserError(f"expected {each.name} of {named}, got {value!r}")
        return
    kind = {"float": numbers.Real, "int": numbers.Integral, "bool": bool, "str": str}[str(each.type)]
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"expected {each.name} as {each.type}, got {value!r}")


@dataclass(frozen=True)
class PictureSettings(StepSettings):
    """What every task on given pictures has besides.

    Attributes:
        views: how the classifier sees a picture of another size: ``whole``, ``squares`` along its longer side,
            ``tiles`` of its own size; whole up to an aspect ratio of 4:3 and squares beyond where None.
    """

    views: str | None = choice(None, None, "whole", "squares", "tiles")


@dataclass(frozen=True)
class InpaintSettings(PictureSettings):
    """Settings of inpainting (Santurkar et al. 2019, Equation 3); the defaults are the paper's.

    Attributes:
        fill: what the hole starts as: ``mean`` (the paper's), ``laplace``, or a name of `robustsynth.fills.FILLS`.
        penalty: λ, weight of the mean squared difference from the known pixels.
        only_inside: let steps change the hole alone, so that none of their length is spent outside.
        keep_known: give the known pixels back exactly as they were.
        feather: pixels, at the model's image size, over which what is drawn fades into the fill within the hole's
            border, so that no frame shows; for `only_inside`.
    """

    eps: float = 21.0
    step_size: float = 0.1
    steps: int = 720
    fill: str = "mean"
    penalty: float = 10.0
    only_inside: bool = False
    keep_known: bool = True
    feather: float = 0.0


@dataclass(frozen=True)
class TranslateSettings(PictureSettings):
    """Settings of translation (Santurkar et al. 2019, Section 3.3); the defaults are the paper's.

    Attributes:
        adherence: λ, weight of the mean squared difference from the source.
    """

    eps: float = 60.0
    steps: int = 80
    adherence: float = 0.0


@dataclass(frozen=True)
class UpscaleSettings(PictureSettings):
    """Settings of super-resolution (Santurkar et al. 2019, Equation 4); the defaults are the paper's.

    Attributes:
        start: how the small picture is enlarged to start from: ``nearest`` (the paper's), ``bicubic`` or ``lanczos``.
        consistency: rounds of back-projection before the first step; one follows each step then, and twice as many
            the last. 0 for none, as in the paper.
        penalty: λ, weight of the mean squared difference between the averaged result and the small picture.
    """

    eps: float = 8.0
    steps: int = 40
    start: str = choice("nearest", "nearest", "bicubic", "lanczos")
    consistency: int = 0
    penalty: float = 0.0


@dataclass(frozen=True)
class SketchSettings(PictureSettings):
    """Settings of sketch to image (Santurkar et al. 2019, Section 3.5); the defaults are the paper's.

    Attributes:
        adherence: λ, weight of the mean squared difference from the drawing.
        softening: pixels, at the model's image size, over which the drawing's lines are blurred before the first
            step; 0 for none, as in the paper.
        blend: share of the class's mean image mixed into the drawing, 0 to 1: flat, saturated colours are unlike any
            photograph, and a classifier has little to say of them. 0 as in the paper.
        texture: weight of a draw of how the class's images differ from their mean, added for the climb to grow from;
            the class's seeds are what it is drawn from. 0 as in the paper.
    """

    adherence: float = 0.0
    softening: float = 0.0
    blend: float = 0.0
    texture: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blend > 1:
            raise UserError(f"expected a blend of 0 to 1, got {self.blend}")


@dataclass(frozen=True)
class PaintSettings(PictureSettings):
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


@dataclass(frozen=True)
class RefineSettings(PictureSettings):
    """Settings of refinement (Ganz and Elad 2021, "BIGRoC"): a short climb towards the class, in a small ball.

    Attributes:
        adherence: λ, weight of the mean squared difference from the given image.
    """

    eps: float = 6.0
    step_size: float = 0.6
    steps: int = 20
    adherence: float = 0.0


PICTURE_TASKS: dict[str, type[PictureSettings]] = {
    "inpaint": InpaintSettings,
    "translate": TranslateSettings,
    "upscale": UpscaleSettings,
    "sketch": SketchSettings,
    "paint": PaintSettings,
    "refine": RefineSettings,
}
"""Each task's settings."""
