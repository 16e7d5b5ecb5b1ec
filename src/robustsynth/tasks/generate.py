"""Generation: from a draw of a simple class distribution, descend the cross-entropy of the class
(Santurkar et al. 2019, Section 3.1)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustsynth.errors import UserError
from robustsynth.tasks.inputs import number_input
from robustsynth.tasks.settings import StepSettings, choice
from robustsynth.tasks.task import REQUIRED, Input, Option, Task

if TYPE_CHECKING:
    from robustsynth.models.classifier import Classifier
    from robustsynth.solver import Stated
    from robustsynth.tasks.call import Batch, Call


@dataclass(frozen=True)
class GenerateSettings(StepSettings):
    """Settings of generation (Santurkar et al. 2019, Section 3.1); the defaults are the paper's for CIFAR-10.

    Attributes:
        seeds_from: ``uniform``, ``normal`` (per pixel), ``multivariate``, ``mixture`` (of Gaussians), or a folder of
            start images.
        seed_upsampling: ``nearest`` (the paper's) or ``bicubic``, for seeds fitted at a quarter resolution.
        scales: 1 to step on the whole image alone (the papers'); with more, the first steps are taken on a canvas
            of half, a quarter … of the side.
    """

    eps: float = 30.0
    step_size: float = 0.5
    seeds_from: str = "multivariate"
    seed_upsampling: str = choice("nearest", "nearest", "bicubic")
    scales: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.seeds_from, os.PathLike):
            object.__setattr__(self, "seeds_from", os.fspath(self.seeds_from))
        super().__post_init__()
        if self.scales < 1:
            raise UserError(f"expected 1 or more scales, got {self.scales}")


def state(batch: Batch) -> Stated:
    """Descend the cross-entropy of the wanted class, or mix of classes, from the class's seed."""
    import torch

    from robustsynth import randomness
    from robustsynth.constraints import ball
    from robustsynth.tasks.generation import CoarseToFine, class_objective, draw_starts, main_classes

    settings, places = batch.settings, torch.tensor(batch.indices)
    targets, numbers = batch.value("labels"), [batch.value("indices")[place] for place in batch.indices]
    generators = randomness.image_generators(batch.value("seed"), numbers)
    start = batch.value("start")
    if start is None:
        start = draw_starts(batch.model, settings, numbers, main_classes(targets), generators)
    else:
        start = start[places]
    constraint = ball(settings.norm, settings.eps)
    if settings.scales > 1:  # It counts its steps, so that each batch needs its own.
        constraint = CoarseToFine(constraint, scales=settings.scales, steps=settings.steps)
    ensemble, targets = batch.value("ensemble"), targets.to(batch.device)
    objective = class_objective(batch.call.frozen, targets, ensemble, shift=settings.shift, mirror=settings.mirror)
    return batch.stated(start, objective, constraint=constraint)


def adapt(model: Classifier, settings: Any, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A model without fitted seeds starts from uniform noise, unless seeds_from is given."""
    from robustsynth.seeds import has_seeds

    drawn = given.get("seeds_from") is None and settings.seeds_from in ("normal", "multivariate")
    return {"seeds_from": "uniform"} if drawn and not has_seeds(model) else {}


def _check_labels(value: Any, call: Call) -> Any:
    from robustsynth.tasks.call import PerImage
    from robustsynth.tasks.generation import check_targets

    return PerImage.rows(check_targets(value, call.model))


def _check_start(value: Any, call: Call) -> Any:
    import torch

    from robustsynth.tasks.call import read_images
    from robustsynth.tasks.generation import check_scales

    side = call.model.image_size
    if value is not None:
        start = read_images(call.model, value, "start")
        shapes = [tuple(image.shape) for image in start]
        expected = (call.model.channels, side or 0, side or 0) if side or not shapes else shapes[0]
        if shapes != [expected] * len(call):
            got = (len(start), *shapes[0]) if len(set(shapes)) == 1 else f"{len(start)} of several sizes"
            raise UserError(f"expected start images {(len(call), *expected)}, one a label, got {got}")
        value = torch.stack(start) if start else torch.empty(0, *expected)
        side = min(expected[1:])
    if side is not None:
        check_scales(call.settings.scales, side)
    return value


def _check_indices(value: Any, call: Call) -> list[int]:
    indices = list(range(len(call))) if value is None else [int(index) for index in value]
    if len(indices) != len(call):
        raise UserError(f"expected one index a label, got {len(indices)} indices for {len(call)} labels")
    if len(set(indices)) != len(indices):
        raise UserError("expected different indices, got some twice")
    return indices


def _check_ensemble(value: Any, call: Call) -> tuple[Any, ...]:
    return tuple(value)


def _read(options: Mapping[str, Any], call: Call) -> tuple[Any, dict[str, Any]]:
    raise NotImplementedError  # The command reads classes, mixes and ensembles itself: they decide how many images.


LABELS = Input(
    "labels",
    "Tensor | Sequence[int | str] | int | str",
    "(N,) classes by number or name, one for each image; or mixes, (N, K) floats, the weight of each class for each "
    "image, each row summing to 1. A mix starts from a seed of the class that weighs most.",
    (
        Option("--classes", "Names, indices, ranges such as 2-5, or all.", default="all"),
        Option(
            "--num", "Images in all, spread evenly over the classes; 8 a class.", type=int, other_flag="--num-images"
        ),
        Option("--mix", "A mix in place of --classes, such as ship:0.6,horse:0.4; one or several.", multiple=True),
    ),
    _check_labels,
    _read,
    default=REQUIRED,
    positional=True,
)

GENERATE = Task(
    "generate",
    GenerateSettings,
    state,
    "Draw images of classes with a robust classifier.",
    inputs=(
        LABELS,
        number_input(
            "seed",
            int,
            "of the job; image i depends on `seed`, its label and i, not on the other images.",
            "The same seed gives the same images.",
            default=0,
        ),
        Input("start", "Any", "(N, C, H, W) in [0, 1] to start from in place of drawn seeds.", (), _check_start, _read),
        Input(
            "indices",
            "Sequence[int] | None",
            "the images' numbers within the job, 0 … N − 1 where None, to draw a part of a larger job.",
            (),
            _check_indices,
            _read,
        ),
        Input(
            "ensemble",
            "Sequence[Classifier]",
            "further classifiers of the same classes, in any order: the mean of all their losses is minimised.",
            (Option("--ensemble", "Further models of the same classes, to agree with; comma-separated."),),
            _check_ensemble,
            _read,
            default=(),
        ),
    ),
    images="",
    adapt=adapt,
    example='generate(load_model("mnist"), ["3", "7"], seed=0, steps=2)',
)
