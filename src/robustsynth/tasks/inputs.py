"""The inputs that tasks share: classes, masks, units, numbers. Each is read from Python and from the command line."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustsynth.errors import UserError
from robustsynth.tasks.task import REQUIRED, Input, Option

if TYPE_CHECKING:
    from robustsynth.tasks.call import Call

CLASSES = "Tensor | Sequence[int | str] | int | str"

MASK_OPTIONS = (
    Option("--mask", "An image of where, or a rectangle LEFT,TOP,WIDTH,HEIGHT in pixels.", multiple=True),
    Option("--invert", "Take the other part.", type=bool, default=False),
    Option("--patch", "A square of so many pixels at random.", type=int, least=1),
    Option("--seed", "Of the random patches.", type=int, default=0),
)


def _check_label(value: Any, call: Call) -> Any:
    from robustsynth.tasks.call import PerImage, class_indices

    if value is None:
        return None
    return PerImage.rows(class_indices(value, call.model, len(call)))


def _read_label(options: Mapping[str, Any], call: Call) -> tuple[Any, dict[str, Any]]:
    name = options["label"]
    if name is None:
        return None, {"label": None}
    index = call.named_class(name)
    return _check_label(index, call), {"label": call.model.classes[index]}


LABELS = Input(
    "labels",
    f"{CLASSES} | None",
    "(N,) classes by number or name, or one for all images; predicted where None.",
    (Option("--label", "Class of the images; predicted if not given."),),
    _check_label,
    _read_label,
    positional=True,
)


def _check_targets(value: Any, call: Call) -> Any:
    from robustsynth.tasks.call import PerImage, class_indices

    return PerImage.rows(class_indices(value, call.model, len(call)))


def _read_targets(options: Mapping[str, Any], call: Call) -> tuple[Any, dict[str, Any]]:
    """Several targets make several results of each image: the call is asked for each image as often."""
    names = [name.strip() for name in options["to"].split(",") if name.strip()]
    if not names:
        raise UserError(f"expected one or more classes after --to, got {options['to']!r}")
    wanted = list(dict.fromkeys(call.named_class(name) for name in names))
    classes = [call.model.classes[index] for index in wanted]
    images = len(call)
    call.repeat([f"-{name.replace(' ', '_')}" for name in classes] if len(wanted) > 1 else [""])
    return _check_targets(wanted * images, call), {"to": classes}


TARGETS = Input(
    "targets",
    CLASSES,
    "(N,) classes to turn the images into, by number or name, or one for all images.",
    (Option("--to", "Class to turn the images into, or several: dog,church.", required=True),),
    _check_targets,
    _read_targets,
    default=REQUIRED,
    positional=True,
)


def _check_mask(value: Any, call: Call) -> Any:
    from robustsynth.tasks.call import PerImage, masks_of

    return PerImage.rows(masks_of(value, call))


def mask_input(*, own_alpha: bool) -> Input:
    """A mask for each image.

    Args:
        own_alpha: where none is given on the command line, what is transparent in an image is its mask.
    """

    def read(options: Mapping[str, Any], call: Call) -> tuple[Any, dict[str, Any]]:
        from robustsynth.tasks.call import MaskSource

        source = MaskSource(options["mask"], options, own_alpha=own_alpha)
        return source.of(call), source.record(call)

    return Input(
        "mask",
        "Tensor | Any",
        "(N, 1, H, W) or (1, H, W), 1 where images may change, or an image file, PIL image or array of where.",
        MASK_OPTIONS,
        _check_mask,
        read,
        default=REQUIRED,
    )


def _check_units(value: Any, call: Call) -> list[int]:
    import torch

    from robustsynth.models.representation import last_linear

    try:
        given = torch.atleast_1d(torch.as_tensor(value))
    except (TypeError, ValueError, RuntimeError):
        given = torch.empty(0, 0)
    if given.ndim != 1 or given.is_floating_point() or given.dtype == torch.bool:
        raise UserError(f"expected units as whole numbers, one or several, got {value!r}")
    units = given.tolist()
    count = last_linear(call.model).in_features
    if not units or not all(0 <= unit < count for unit in units):
        raise UserError(f"expected units from 0 to {count - 1} for model {call.model.name!r}, got {units or 'none'}")
    return units


def _read_units(options: Mapping[str, Any], call: Call) -> tuple[list[int], dict[str, Any]]:
    try:
        units = [int(part) for part in options["unit"].split(",") if part.strip()]
    except ValueError:
        raise UserError(f"expected units as whole numbers such as 3,17, got {options['unit']!r}") from None
    return _check_units(units, call), {"units": units}


UNITS = Input(
    "unit",
    "int | Sequence[int]",
    "of the representation, 0 … D − 1, or several, painted one after another; ``robustsynth features`` shows what they "
    "respond to.",
    (Option("--unit", "Units of the representation, one after another: 17 or 17,203.", required=True),),
    _check_units,
    _read_units,
    default=REQUIRED,
    positional=True,
)


def _check_unit_masks(value: Any, call: Call) -> Any:
    from robustsynth.tasks.call import PerImage, masks_of

    units = call.value("unit")
    masks = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(masks) not in (1, len(units)):
        raise UserError(f"expected one mask, or one for each of {len(units)} units, got {len(masks)}")
    rows = [PerImage.rows(masks_of(mask, call)) for mask in masks] * (len(units) // len(masks))
    return PerImage(lambda indices: [mask(indices) for mask in rows])


def _read_unit_masks(options: Mapping[str, Any], call: Call) -> tuple[Any, dict[str, Any]]:
    from robustsynth.tasks.call import MaskSource, PerImage

    units = call.value("unit")
    given = [(mask,) for mask in options["mask"]] or [()]
    if len(given) not in (1, len(units)):
        raise UserError(f"expected one mask, or one for each of {len(units)} units, got {len(given)}")
    sources = [MaskSource(mask, options) for mask in given]
    masks = [source.of(call) for source in sources] * (len(units) // len(sources))
    return (
        PerImage(lambda indices: [mask(indices) for mask in masks]),
        {"masks": [source.record(call) for source in sources]},
    )


UNIT_MASKS = Input(
    "mask",
    "Tensor | Sequence[Any] | Any",
    "(N, 1, H, W) or (1, H, W), 1 where to paint, or an image file, PIL image or array of where; or a sequence of "
    "such, one a unit.",
    MASK_OPTIONS,
    _check_unit_masks,
    _read_unit_masks,
    default=REQUIRED,
)


def number_input(
    name: str, kind: type[int] | type[float], help: str, option_help: str, *, default: Any = REQUIRED
) -> Input:
    """A number that holds for all images, such as a factor or a seed."""

    def check(value: Any, call: Call) -> Any:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if kind is int else numbers.Real):
            raise UserError(f"expected {name} as {'a whole' if kind is int else 'a'} number, got {value!r}")
        return kind(value)  # pyright: ignore[reportArgumentType]

    def read(options: Mapping[str, Any], call: Call) -> tuple[Any, dict[str, Any]]:
        return options[name], {name: options[name]}

    required = default is REQUIRED
    flag = "--" + name.replace("_", "-")
    option = Option(flag, option_help, type=kind, default=None if required else default, required=required)
    return Input(name, kind.__name__, help, (option,), check, read, default=default)
