"""Sketch to image: descend a class's cross-entropy from a drawing (Santurkar et al. 2019, Section 3.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustsynth.errors import UserError
from robustsynth.tasks.inputs import LABELS, number_input
from robustsynth.tasks.settings import ImageSettings
from robustsynth.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.solver import Stated
    from robustsynth.tasks.call import Batch


@dataclass(frozen=True)
class SketchSettings(ImageSettings):
    """Settings of sketch to image (Santurkar et al. 2019, Section 3.5); the defaults are the paper's.

    Attributes:
        adherence: λ, weight of the mean squared difference from the drawing.
        softening: pixels, at the model's image size, over which the drawing's lines are blurred before the first
            step; 0 for none, as in the paper.
        blend: share of the class's mean image mixed into the drawing, 0 to 1: flat, saturated colours are unlike any
            photograph, and a classifier has little to say of them. 0 as in the paper.
        texture: weight of a draw of how the class's images differ from their mean, added for the steps to grow from;
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


def state(batch: Batch) -> Stated:
    """Descend the class's cross-entropy from the drawing, softened and coloured as the settings say."""
    from robustsynth.resampling import blurred

    labels = batch.labels(batch.images)
    start = blurred(batch.images, batch.settings.softening * max(batch.size) / batch.side)
    return batch.towards(labels, start=_in_class_colours(batch, start, labels), adherence=batch.settings.adherence)


def _in_class_colours(batch: Batch, start: Tensor, labels: Tensor) -> Tensor:
    """Drawings mixed with their class's mean image and texture, as far as the settings want."""
    import zlib

    from robustsynth.images import to_uint8
    from robustsynth.randomness import image_generators
    from robustsynth.resampling import resample
    from robustsynth.seeds import model_seeds

    settings = batch.settings
    if not settings.blend and not settings.texture:
        return start
    # Keyed by what a drawing shows: its place in a folder or a batch must not matter.
    keys = [zlib.crc32(image.tobytes()) for image in to_uint8(batch.images)]
    seeds = model_seeds(batch.model, "multivariate")
    mean = seeds.mean[labels]
    deviation = seeds.multivariate(labels, image_generators(batch.value("seed"), keys)) - mean
    mixed = (1 - settings.blend) * start + settings.blend * resample(mean, batch.size)
    return (mixed + settings.texture * resample(deviation, batch.size)).clamp(0, 1)


SKETCH = Task(
    "sketch",
    SketchSettings,
    state,
    "Turn drawings into images of a class that keep to their outlines.",
    "Dark lines on white serve best; give the class, because a prediction from a drawing is often wrong.",
    inputs=(
        LABELS,
        number_input("seed", int, "of the texture; each drawing has its own stream.", "Of the texture.", default=0),
    ),
    images="drawings",
    example='sketch(load_model("cifar10"), torch.ones(1, 3, 32, 32), "cat", steps=2)',
)
