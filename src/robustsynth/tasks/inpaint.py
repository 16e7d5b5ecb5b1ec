"""Inpainting: fill a hole, then descend the class's cross-entropy (Santurkar et al. 2019, Section 3.2, Equation 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustsynth.errors import UserError
from robustsynth.tasks.inputs import LABELS, mask_input
from robustsynth.tasks.settings import ImageSettings, choice
from robustsynth.tasks.task import Input, Task

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.solver import Stated
    from robustsynth.tasks.call import Batch, Call


@dataclass(frozen=True)
class InpaintSettings(ImageSettings):
    """Settings of inpainting (Santurkar et al. 2019, Equation 3); the defaults are the paper's.

    Attributes:
        fill: what the hole starts as: the ``mean`` colour (the paper's), a smooth ``laplace`` fill, or one that
            continues ``edges``.
        penalty: λ, weight of the mean squared difference from the known pixels.
        only_inside: only pixels in the hole change, so that the whole step length is used there.
        keep_known: give the known pixels back exactly as they were.
        feather: pixels, at the model's image size, over which what is drawn fades into the fill within the hole's
            border, so that no frame shows; for `only_inside`.
    """

    eps: float = 21.0
    step_size: float = 0.1
    steps: int = 720
    fill: str = choice("mean", "mean", "laplace", "edges")
    penalty: float = 10.0
    only_inside: bool = False
    keep_known: bool = True
    feather: float = 0.0


def state(batch: Batch) -> Stated:
    """Descend the class's cross-entropy from the filled image."""
    import torch

    from robustsynth.fills import fill
    from robustsynth.objectives import CrossEntropy

    settings, holes = batch.settings, batch.value("mask")
    # Pixels under the mask are never read: whatever is there, even NaN, must not matter.
    images = torch.where(holes > 0, 0.0, batch.images)
    start = batch.value("start")
    filled = fill(images, holes, settings.fill) if start is None else torch.where(holes > 0, start, images)
    objective = CrossEntropy(batch.network(), batch.labels(filled))
    # The filled image stands in for the known pixels: it is the same outside of the hole.
    objective, constraint, soft = batch.confined(objective, holes, filled)

    def finish(result: Tensor) -> Tensor:
        result = result.cpu() if soft is None else torch.lerp(filled, result.cpu(), soft)
        return torch.where(holes > 0, result, images) if settings.keep_known else result

    holed = torch.where(holes > 0, torch.full_like(images, 0.5), images)
    return batch.stated(filled, objective, constraint=constraint, finish=finish, given={"to fill": holed})


def _check_start(value: Any, call: Call) -> Any:
    from robustsynth.tasks.call import PerImage, read_images

    if value is None:
        return None
    start = read_images(call.model, value, "start")
    given = [tuple(image.shape) for image in start]
    expected = [(call.model.channels, *call.sizes[index]) for index in range(len(call))]
    if given != expected:
        raise UserError(f"expected start like the images, {expected[:1]} each, got {given[:1]}")
    return PerImage.rows(start)


def _read_start(options: Mapping[str, Any], call: Call) -> tuple[Any, dict[str, Any]]:
    return None, {}


START = Input(
    "start",
    "Any",
    "(N, C, H, W) in [0, 1], whose pixels under the mask are what the hole starts as, such as a fill made elsewhere; "
    "filled as the settings say where None.",
    (),
    _check_start,
    _read_start,
)

INPAINT = Task(
    "inpaint",
    InpaintSettings,
    state,
    "Draw anew what is under a mask.",
    "What is under the mask is never read. Labels are predicted from the filled images where none are given.",
    inputs=(LABELS, mask_input(own_alpha=True), START),
    reads_all=False,
    untuned={"fill": "edges"},
    example='inpaint(load_model("cifar10"), torch.rand(1, 3, 32, 32), "cat", mask=torch.eye(32)[None], steps=2)',
)
