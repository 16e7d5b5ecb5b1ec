"""Which of our architectures a state dict is of, by its names and shapes alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.models.architectures import ARCHITECTURES, build_network
from robustsynth.models.card import SMALL_IMAGE

_HEADS = (
    "fc.weight",
    "linear.weight",
    "classifier.6.weight",
    "classifier.1.weight",
    "classifier.weight",
    "logits.weight",
)
_LARGE_IMAGE = 224


@dataclass(frozen=True)
class Fit:
    """How a state dict compares with one form of one architecture.

    Attributes:
        architecture: its name.
        classes: rows of the last linear layer.
        width: base width.
        channels: channels of the images.
        small: whether it is the form for images up to 64 pixels.
        image_size: the side that the shapes themselves tell; None where any of the form will do.
        missing: names that the network has and the file has not.
        differing: names whose shapes differ, as ``name (shape, not shape)``.
        unknown: names that the file has and the network has not.
    """

    architecture: str
    classes: int
    width: int
    channels: int
    small: bool
    image_size: int | None = None
    missing: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How many names are wrong; 0 where it fits."""
        return len(self.missing) + len(self.differing) + len(self.unknown)

    def __str__(self) -> str:
        sizes = f"up to {SMALL_IMAGE}" if self.small else f"above {SMALL_IMAGE}"
        return f"{self.architecture} of width {self.width} with {self.classes} classes for images {sizes} pixels"

    def complaint(self) -> str:
        """What is wrong, with examples."""
        kinds = (("missing", self.missing), ("of another shape", self.differing), ("unknown", self.unknown))
        return ", ".join(f"{len(names)} {kind} ({', '.join(names[:2])})" for kind, names in kinds if names)


def recognised_network(weights: Mapping[str, Tensor], *, architecture: str | None, where: str) -> list[Fit]:
    """All forms of all architectures that have exactly these names and shapes.

    Args:
        weights: by our names, as `robustsynth.models.layouts.arranged` gives them.
        architecture: the only one to consider; all where None, those made here (``-even``) only where no other fits.
        where: the file's name, for messages.

    Returns:
        One fit, or two that differ in the size of their images alone.

    Raises:
        UnknownNameError: no such architecture.
        UserError: none fits; what comes nearest is named, and what is wrong with it.

    Example:
        >>> recognised_network(build_network("vgg11-bn", classes=7, width=4).state_dict(), architecture=None, where="a")
        [Fit(architecture='vgg11-bn', classes=7, width=4, channels=3, small=True, image_size=None, ...
    """
    if architecture is not None and architecture not in ARCHITECTURES:
        raise UnknownNameError("architecture", architecture, ARCHITECTURES)
    tried = [fit for name in ARCHITECTURES for small in (True, False) for fit in _compared(weights, name, small)]
    fitting = [fit for fit in tried if not fit.faults]
    chosen = [fit for fit in fitting if architecture in (None, fit.architecture)]
    foreign = [fit for fit in chosen if not fit.architecture.endswith("-even")]
    if len(names := dict.fromkeys(fit.architecture for fit in foreign)) > 1:
        raise UserError(
            f"expected to know which network {where} is of: {' and '.join(names)} have the same names and shapes and "
            f"give other logits; say --arch {' or --arch '.join(names)} (docs/guide/architectures.md)"
        )
    if chosen:
        return foreign or chosen
    if fitting:
        raise UserError(
            f"expected the weights of a {architecture} in {where}, got those of a {fitting[0]}; "
            f"leave --arch out or give --arch {fitting[0].architecture}"
        )
    nearest = min(
        (fit for fit in tried if architecture in (None, fit.architecture)), key=lambda f: f.faults, default=None
    )
    begins = ", ".join(f"{name} {tuple(value.shape)}" for name, value in list(weights.items())[:3]) or "nothing"
    if not any(key in weights for key in _HEADS):
        looked = ", ".join(key.removesuffix(".weight") for key in _HEADS)
        begins += f"; it has no last linear layer (looked for {looked})"
    compared = f"nearest is {nearest}: {nearest.complaint()}" if nearest else f"it begins with {begins}"
    raise UserError(
        f"expected the weights of one of these architectures in {where}: {architecture or ', '.join(ARCHITECTURES)}; "
        f"got {len(weights)} tensors that are of none ({compared}). Where the network is another one, build it with "
        "its own code and use robustsynth.Classifier.wrap"
    )


def _compared(weights: Mapping[str, Tensor], name: str, small: bool) -> list[Fit]:
    """The comparison with one form of one architecture; none where the first convolution rules it out."""
    stem = _stem(weights, name, small)
    head = next((weights[key] for key in _HEADS if key in weights), None)
    if stem is None or head is None or head.ndim != 2 or len(head) < 2 or stem[0] < 1:
        return []
    width, channels = stem
    side = _digit_side(weights, width) if name == "small-cnn" else None
    size = side or (32 if small else _LARGE_IMAGE)
    if (size <= SMALL_IMAGE) != small or channels not in (1, 3):
        return []
    try:
        expected = _shapes(name, len(head), width, channels, size)
    except (ValueError, UserError):  # No such network: groups that do not divide an odd width, say.
        return []
    return [
        Fit(
            name,
            len(head),
            width,
            channels,
            small,
            side,
            missing=[k for k in expected if k not in weights and not k.endswith("num_batches_tracked")],
            differing=[
                f"{k} ({tuple(weights[k].shape)}, not {shape})"
                for k, shape in expected.items()
                if k in weights and tuple(weights[k].shape) != shape
            ],
            unknown=[k for k in weights if k not in expected],
        )
    ]


@functools.lru_cache(maxsize=64)
def _shapes(name: str, classes: int, width: int, channels: int, size: int) -> dict[str, tuple[int, ...]]:
    # On the meta device a network has shapes but no numbers, so that all can be tried at once.
    with torch.device("meta"):
        network = build_network(name, classes=classes, width=width, channels=channels, image_size=size)
    return {k: tuple(v.shape) for k, v in network.state_dict().items()}


def _stem(weights: Mapping[str, Tensor], name: str, small: bool) -> tuple[int, int] | None:
    """Base width and channels, where the first convolution is one that this form has."""
    even_stem = name.endswith("-even") and not small
    key = "features.0.weight" if name.startswith("vgg") else "conv1.weight"
    key = "features.0.0.weight" if name == "mobilenet-v2" else "conv1.0.weight" if even_stem else key
    if name.endswith("-silu"):
        key = "init_conv.weight" if name.startswith("wide") else "conv_2d.weight"
    first = weights.get(key)
    if first is None or first.ndim != 4:
        return None
    if key == "conv1.weight":
        kernel = 5 if name == "small-cnn" else 3 if small else 7
        if first.shape[2] != kernel:
            return None
    if even_stem:
        second = weights.get("conv1.3.weight")
        return None if second is None or second.ndim != 4 else (second.shape[0], first.shape[1])
    return first.shape[0], first.shape[1]


def _digit_side(weights: Mapping[str, Tensor], width: int) -> int | None:
    hidden = weights.get("fc1.weight")
    if hidden is None or hidden.ndim != 2:
        return None
    places = hidden.shape[1] // (2 * width)
    return 4 * round(places**0.5)
