"""Settings of the tasks, and how they are found.

In this order: what the caller gives; the named preset; the model card's tuned settings for the task (the default,
and what the preset ``best`` names); the paper's, improved as a task's ``untuned`` and `PHOTOGRAPH_SHIFT` say if no
preset is named. A preset's sizes that were published for 224² images scale with the side of the model's images, as
their norm says (`robustsynth.constraints.Ball.scale`).

Sizes are in pixel units of images in [0, 1], at the model's image size: on a larger image an ℓ2 size grows with the
root of the number of pixels.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.models.card import SMALL_IMAGE
from robustsynth.presets import preset_files, read_preset

if TYPE_CHECKING:  # The command line reads settings before it pays for importing torch.
    from robustsynth.models.classifier import Classifier

S = TypeVar("S")

BEST = "best"

PHOTOGRAPH_SHIFT = 1 / 16
"""Of the side of a photograph's classifier: how far the views of one without tuned settings are moved. The paper's
settings, which meet the same grid of pixels in each step, engrave it."""

CONDITIONS = ("images", "published_for", "only_seeds_from", "only_classes")
"""Keys of a preset's row that say when it counts; the others are settings."""

NOTHING: Mapping[str, Any] = {}


def choice(default: Any, *names: Any, more: Callable[[], Iterable[str]] | None = None) -> Any:
    """A field whose value is one of `names`, or of those that `more` gives when another value is checked."""
    return field(default=default, metadata={"choices": names, "more": more})


def norm_names() -> list[str]:
    """The norms that are registered when this is called: see `robustsynth.constraints.register_norm`."""
    # Imported here, because the command line reads settings before it pays for importing torch.
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
        mirror: let it see the image mirrored in every second step; for classes that have no handedness.
    """

    eps: float = 40.0
    step_size: float = 1.0
    steps: int = 60
    norm: str = choice("l2", "l2", "linf", more=norm_names)
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
    choices, more = each.metadata.get("choices"), each.metadata.get("more")
    if choices is not None:
        if value not in choices and more is not None:
            choices = list(dict.fromkeys([*choices, *more()]))
        if value not in choices:
            named = ", ".join(str(c) for c in choices if c is not None)
            raise UserError(f"expected {each.name} of {named}, got {value!r}")
        return
    kind = {"float": numbers.Real, "int": numbers.Integral, "bool": bool, "str": str}[str(each.type)]
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"expected {each.name} as {each.type}, got {value!r}")


@dataclass(frozen=True)
class ImageSettings(StepSettings):
    """What every task on given images has besides.

    Attributes:
        views: how the classifier sees an image of another size: ``whole``, ``squares`` along its longer side,
            ``tiles`` of its own size; whole up to an aspect ratio of 4:3 and squares beyond where None.
    """

    views: str | None = choice(None, None, "whole", "squares", "tiles")


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
    given: Mapping[str, Any] = NOTHING,
    untuned: Mapping[str, Any] = NOTHING,
) -> S:
    """The settings of `task` for `model`, as an instance of the frozen dataclass `kind`.

    Args:
        kind: the task's settings class.
        task: the task's name.
        model: for its card's tuned settings and its images' size.
        preset: a name of `preset_names`, or None for the model's own.
        given: what the caller said, by field name; None values count as not said.
        untuned: what a model without tuned settings gets in place of the paper's.

    Raises:
        UnknownNameError: an unknown preset or field.
        UserError: a value that does not fit its field.
    """
    given = {name: value for name, value in given.items() if value is not None}
    fields = {f.name: f for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    for name in given:
        if name not in fields:
            raise UnknownNameError(f"setting of {task}", name, fields)
    values = _preset_values("paper", task, model, given)
    if preset in (None, BEST) or not knows_task(preset, task):
        tuned = (None if model.card is None else model.card.tasks.get(task)) or _improved(task, model, untuned)
        values |= {name: value for name, value in tuned.items() if name in fields}
    else:
        values |= _preset_values(preset, task, model, given)
    found = kind(**(values | given))
    _check_norm(found, values, given)
    return found


def _improved(task: str, model: Classifier, untuned: Mapping[str, Any]) -> dict[str, Any]:
    """What a model without tuned settings gets in place of the paper's."""
    improved = dict(untuned)
    side = model.image_size or 0
    if side > SMALL_IMAGE:
        improved |= {"shift": round(side * PHOTOGRAPH_SHIFT), "seed_upsampling": "bicubic"}
        # One that was trained on mirrored images says the same of both.
        training = {} if model.card is None else model.card.training
        # Painting names a place, which a mirrored view has elsewhere; a unit may respond to one hand alone.
        improved["mirror"] = task not in ("paint", "features") and bool(training.get("settings", {}).get("flip"))
    return improved


def _check_norm(found: object, values: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse sizes that were meant for another norm: an ℓ2 radius is no ℓ∞ one."""
    if not isinstance(found, ImageSettings) or found.norm == values.get("norm", "l2"):
        return
    missing = [name for name in ("eps", "step_size") if name not in given]
    if missing:
        from robustsynth.constraints import norm_named

        usual = norm_named(found.norm).usual_drawing
        start = f"; for {found.norm}, {usual[0]} and {usual[1]} are a start" if usual else ""
        raise UserError(
            f"expected {' and '.join(missing)} beside norm={found.norm}, whose sizes are other ones, got neither{start}"
        )


def _preset_values(preset: str, task: str, model: Classifier, given: Mapping[str, Any]) -> dict[str, Any]:
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


@dataclass(frozen=True)
class FeatureSettings(StepSettings):
    """Settings of the images that show what a unit responds to.

    The defaults of ``eps`` and ``step_size`` are for images of 32 pixels; see `tasks.features.resolve_features`.

    Attributes:
        eps: radius of the ball around the noise; in ℓ2 8 at 32 pixels and in proportion to the side, in ℓ∞ 0.7.
        step_size: length of a step, of the first one where steps decay; likewise 1.4, and 0.05.
        norm: of the ball and the steps, ``l2`` or ``linf``; the model's own if not given.
        step_schedule: ``linear``, falling to 0 over the steps, or ``constant``.
        shift: pixels by which what the network sees is moved from step to step; one for each 64 of the side.
        level: brightness of the noise that images start from, 0 to 1; between mid-grey and the model's mean.
        contrast: standard deviation of that noise.
        smoothness: λ, weight of the mean difference between neighbouring pixels, for activations in units of logits;
            1 in ℓ∞.
        straight_through: pass gradients straight through the last ReLU, so that a unit that is off can be raised.
        drawn: images drawn of each unit, each from noise of its own.
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
            raise UserError(f"expected 1 or more drawn images of each unit, got {self.drawn}")
