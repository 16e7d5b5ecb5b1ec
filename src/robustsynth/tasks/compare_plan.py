"""What is compared: the classes that all models have, one set of start images, and settings for each model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustsynth import randomness
from robustsynth.constraints import norm_named
from robustsynth.errors import UserError
from robustsynth.models.classifier import Classifier
from robustsynth.models.execution import Execution
from robustsynth.resampling import resample
from robustsynth.seeds import MIXTURES_FILE
from robustsynth.tasks.generate import resolve_generate
from robustsynth.tasks.settings import GenerateSettings
from robustsynth.tasks.starts import has_seeds, start_source

TURNS = 3
"""That models take at least, unless a batch size is given."""

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class ComparisonPlan:
    """What is to be drawn by which models; all that can be refused beforehand has been.

    Attributes:
        models: compared.
        names: of the models, all different.
        classes: the class of each of the N start images, by the first model's spelling.
        seed: of the start images.
        seeds: (N, C, H, W) start images in [0, 1], at the size of the model that they are from.
        seeds_of: place of that model; common settings are its too.
        own_settings: whether each model has the settings of its own card.
        settings: of each model.
        executions: precision and batch size of each.
    """

    models: tuple[Classifier, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    seed: int
    seeds: Tensor
    seeds_of: int
    own_settings: bool
    settings: tuple[GenerateSettings, ...]
    executions: tuple[Execution, ...]

    def starts(self, place: int) -> Tensor:
        """The start images as the model at `place` takes them: in its size, in grey or in colours."""
        return _fitted(self.seeds, self.models[place])


def plan_comparison(
    models: Sequence[Classifier],
    classes: Sequence[str | int] | None = None,
    *,
    names: Sequence[str] | None = None,
    num_per_class: int = 2,
    seed: int = 0,
    preset: str | None = None,
    own_settings: bool = False,
    precision: str | None = None,
    batch_size: int | None = None,
    given: dict[str, Any] | None = None,
) -> ComparisonPlan:
    """All of `robustsynth.tasks.compare.compare` but the drawing.

    Args:
        models: as there.
        classes: as there.
        names: what to call the models; their own names where None.
        num_per_class: as there.
        seed: as there.
        preset: as there.
        own_settings: as there.
        precision: as there.
        batch_size: as there.
        given: settings by name; None values count as not given.

    Raises:
        UserError: no models, classes that they do not share, or settings or seeds that do not fit.
    """
    if not models:
        raise UserError("expected one or more models to compare, got none")
    if num_per_class < 1:
        raise UserError(f"expected 1 or more start images of each class, got {num_per_class}")
    wanted = (
        shared_classes(models) if classes is None else list(dict.fromkeys(shared_class(c, models) for c in classes))
    )
    if not wanted:
        raise UserError("expected one or more classes to draw, got none")
    of_images = tuple(name for name in wanted for _ in range(num_per_class))
    seeds_of = _with_seeds(models, (given or {}).get("seeds_from"))
    reference = models[seeds_of]
    common = resolve_generate(reference, preset=preset, given=given)
    if own_settings:
        own = (resolve_generate(model, preset=preset, given=given) for model in models)
        starts = {"seeds_from": common.seeds_from, "seed_upsampling": common.seed_upsampling}
        settings = tuple(dataclasses.replace(each, **starts) for each in own)
    else:
        settings = tuple(_scaled(common, reference, model) for model in models)
    indices = range(len(of_images))
    labels = labels_of(reference, of_images)
    draw = start_source(reference, common, None)
    seeds = draw(indices, torch.arange(len(labels)), labels, randomness.image_generators(seed, indices))
    executions: list[Execution] = []
    for model in models:
        execution = model.synthesizer(precision=precision, batch_size=batch_size).execution
        # In several turns, however few images there are: one batch each would not be fair to the first.
        size = batch_size or min(execution.batch_size, -(-len(labels) // TURNS))
        executions.append(dataclasses.replace(execution, batch_size=size))
    return ComparisonPlan(
        tuple(models),
        distinct(names or [model.name for model in models]),
        of_images,
        seed,
        seeds,
        seeds_of,
        own_settings,
        settings,
        tuple(executions),
    )


def shared_classes(models: Sequence[Classifier]) -> list[str]:
    """The classes that all models have, by the first one's spelling and in its order.

    Raises:
        UserError: there are none.
    """
    shared = [name for name in models[0].classes if all(_position(name, model) is not None for model in models)]
    if not shared:
        raise UserError(
            "expected models that share classes, by name, got none in common: "
            + "; ".join(f"{model.name} has {_some(model.classes)}" for model in models)
        )
    return shared


def shared_class(asked: str | int, models: Sequence[Classifier]) -> str:
    """A class that all models have, by the first one's spelling.

    Args:
        asked: its name, or its number as the first model counts.
        models: that must all have it.

    Raises:
        UserError: some model has no such class; what they have in common is named.
    """
    first = models[0]
    name = str(asked)
    if _position(name, first) is None and name.isdecimal():
        name = first.classes[first.class_index(name)]
    without = [model.name for model in models if _position(name, model) is None]
    if without:
        raise UserError(
            f"expected classes that all models have, got {name!r}, which {', '.join(without)} "
            f"{'lacks' if len(without) == 1 else 'lack'}; in common they have {_some(shared_classes(models))}"
        )
    position = _position(name, first)
    assert position is not None
    return first.classes[position]


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number behind those that were there before.

    Example:
        >>> distinct(["a", "b", "a"])
        ('a', 'b', 'a (2)')
    """
    return tuple(
        name if (count := list(names[: place + 1]).count(name)) == 1 else f"{name} ({count})"
        for place, name in enumerate(names)
    )


def _position(name: str, model: Classifier) -> int | None:
    """Of a class by name alone: a number means another class in each model."""
    if name in model.classes:
        return model.classes.index(name)
    lowered = [each.lower() for each in model.classes]
    return lowered.index(name.lower()) if name.lower() in lowered else None


def labels_of(model: Classifier, names: Sequence[str]) -> Tensor:
    """The named classes (N,) as the model numbers them."""
    return torch.tensor([_position(name, model) for name in names])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _with_seeds(models: Sequence[Classifier], seeds_from: str | None) -> int:
    """The first robust model with class seeds; else any with seeds; else the first that knows its images' size."""

    def rank(place: int) -> tuple[bool, bool, bool]:
        model = models[place]
        robust = model.card is not None and bool(model.card.threat_model.get("eps"))
        mixed = model.folder is not None and (model.folder / MIXTURES_FILE).exists()
        seeded = has_seeds(model) and (mixed or seeds_from != "mixture")
        return not seeded, not robust, model.image_size is None

    return min(range(len(models)), key=rank)


def _scaled(settings: GenerateSettings, reference: Classifier, model: Classifier) -> GenerateSettings:
    """The same settings for images of another size: a radius grows as its norm says, and a shift with the side."""
    if reference.image_size is None or model.image_size is None:
        return settings
    side = model.image_size / reference.image_size
    scale = norm_named(settings.norm).scale
    values = scale(side**2) * scale(model.channels / reference.channels)
    return dataclasses.replace(
        settings,
        eps=settings.eps * values,
        step_size=settings.step_size * values,
        shift=round(settings.shift * side),
    )


def _fitted(images: Tensor, model: Classifier) -> Tensor:
    if model.channels == 1 and images.shape[1] == 3:
        images = (images * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    elif model.channels == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    side = model.image_size or images.shape[-1]
    return resample(images, (side, side)).clamp(0, 1)
