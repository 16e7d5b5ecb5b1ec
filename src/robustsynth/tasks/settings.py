"""How a task's settings are found.

In this order: what the caller gives; the named preset; the model card's tuned settings for the task (the default,
and what the preset ``best`` names); the paper's, improved as `IMPROVED` and `PHOTOGRAPH_SHIFT` say if no preset is
named. A preset's sizes that were published for 224² images scale with the side of the model's images, as their norm
says.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.models.card import SMALL_IMAGE
from robustsynth.presets import preset_files, read_preset
from robustsynth.tasks.step_settings import PictureSettings, StepSettings, choice

if TYPE_CHECKING:  # The command line reads settings before it pays for importing torch.
    from robustsynth.models.classifier import Classifier

S = TypeVar("S")

BEST = "best"

IMPROVED: dict[str, dict[str, Any]] = {
    "inpaint": {"fill": "edges"},
    "upscale": {"start": "bicubic", "consistency": 10},
}
"""What a model without tuned settings gets in place of the paper's: a better start, whatever the classifier, and a
larger picture that averages to the given one. The paper's climbs from there are the paper's."""

PHOTOGRAPH_SHIFT = 1 / 16
"""Of the side of a photograph's classifier: how far the views of one without tuned settings are moved. The paper's
climb, which meets the same grid of pixels in each step, engraves it there."""

CONDITIONS = ("images", "published_for", "only_seeds_from", "only_classes")
"""Keys of a preset's row that say when it counts; the others are settings."""


@dataclass(frozen=True)
class GenerateSettings(StepSettings):
    """Settings of generation (Santurkar et al. 2019, Section 3.1); the defaults are the paper's for CIFAR-10.

    Attributes:
        seeds_from: ``uniform``, ``normal`` (per pixel), ``multivariate``, ``mixture`` (of Gaussians), or a folder of
            start images.
        seed_upsampling: ``nearest`` (the paper's) or ``bicubic``, for seeds fitted at a quarter resolution.
        scales: 1 to step on the whole picture alone (the papers'); with more, the first steps are taken on a canvas
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


def preset_names() -> list[str]:
    """The named presets, ``best`` included.

    Example:
        >>> preset_names()
        ['best', 'duke2023', 'hse2025', 'mcgill2019', 'paper']
    """
    return sorted([BEST, *preset_files("robustsynth.tasks")])


def knows_task(preset: str, task: str) -> bool:
    """Whether a preset says anything of a task; where it does not, the model's own settings count.

    Raises:
        UnknownNameError: no such preset.

    Example:
        >>> knows_task("paper", "sketch"), knows_task("paper", "refine")
        (True, False)
    """
    if preset not in preset_names():
        raise UnknownNameError("preset", preset, preset_names())
    return preset != BEST and task in read_preset("robustsynth.tasks", preset)


def resolve_settings(
    kind: type[S],
    task: str,
    model: Classifier,
    *,
    preset: str | None = None,
    given: dict[str, Any] | None = None,
) -> S:
    """The settings of `task` for `model`, as an instance of the frozen dataclass `kind`.

    Args:
        kind: the task's settings class.
        task: the task's name.
        model: for its card's tuned settings and its images' size.
        preset: a name of `preset_names`, or None for the model's own.
        given: what the caller said, by field name; None values count as not said.

    Raises:
        UnknownNameError: an unknown preset or field.
        UserError: a value that does not fit its field.
    """
    given = {name: value for name, value in (given or {}).items() if value is not None}
    fields = {f.name: f for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    for name in given:
        if name not in fields:
            raise UnknownNameError(f"setting of {task}", name, fields)
    values = _preset_values("paper", task, model, given)
    if preset in (None, BEST) or not knows_task(preset, task):
        tuned = (None if model.card is None else model.card.tasks.get(task)) or _improved(task, model)
        values |= {name: value for name, value in tuned.items() if name in fields}
    else:
        values |= _preset_values(preset, task, model, given)
    found = kind(**(values | given))
    _check_norm(found, values, given)
    return found


def _improved(task: str, model: Classifier) -> dict[str, Any]:
    """What a model without tuned settings gets in place of the paper's."""
    improved = dict(IMPROVED.get(task, {}))
    side = model.image_size or 0
    if side > SMALL_IMAGE:
        improved |= {"shift": round(side * PHOTOGRAPH_SHIFT), "seed_upsampling": "bicubic"}
        # One that was trained on mirrored images says the same of both.
        training = {} if model.card is None else model.card.training
        # Painting names a place, which a mirrored view has elsewhere; a unit may respond to one hand alone.
        improved["mirror"] = task not in ("paint", "features") and bool(training.get("settings", {}).get("flip"))
    return improved


def _check_norm(found: object, values: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse sizes that were meant for another norm: an ℓ2 radius is no ℓ∞ one."""
    if not isinstance(found, PictureSettings) or found.norm == values.get("norm", "l2"):
        return
    missing = [name for name in ("eps", "step_size") if name not in given]
    if missing:
        from robustsynth.constraints import norm_named

        usual = norm_named(found.norm).usual_drawing
        start = f"; for {found.norm}, {usual[0]} and {usual[1]} are a start" if usual else ""
        raise UserError(
            f"expected {' and '.join(missing)} beside norm={found.norm}, whose sizes are other ones, got neither{start}"
        )


def _preset_values(preset: str, task: str, model: Classifier, given: dict[str, Any]) -> dict[str, Any]:
    """The preset's values for images of the model's size; rows that match better come later in the file."""
    from robustsynth.constraints import norm_named

    if preset not in preset_names():
        raise UnknownNameError("preset", preset, preset_names())
    rows: list[dict[str, Any]] = read_preset("robustsynth.tasks", preset).get(task, [])
    side = model.image_size or 32
    fitting = "small" if side <= SMALL_IMAGE else "large"
    values: dict[str, Any] = {}
    for row in rows:
        # A row may be for one kind of seeds alone: duke2023 takes more steps from poorer ones; or for classifiers of
        # two classes, as the paper's translation has both.
        fits = fitting in row["images"] and row.get("only_seeds_from") in (None, given.get("seeds_from"))
        if not fits or row.get("only_classes") not in (None, len(model.classes)):
            continue
        size = norm_named(row.get("norm", "l2")).scale
        scale = size(side**2) / size(row["published_for"] ** 2) if row["published_for"] > SMALL_IMAGE else 1.0
        for name, value in row.items():
            if name not in CONDITIONS:
                values[name] = value * scale if name in ("eps", "step_size") else value
    if not values and rows:
        raise UserError(f"preset {preset!r} has no settings of {task} for images of {side} pixels")
    return values
