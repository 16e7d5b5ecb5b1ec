"""What network another library's state dict is of: its names made ours, its normalisation, its architecture."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.models.card import SMALL_IMAGE
from robustsynth.models.checkpoints import StoredArray, brief
from robustsynth.models.networks import ARCHITECTURES, ONE_SIZE, build_network

LARGE_IMAGE = 224

_NORMALISERS = {"new_mean": "new_std", "mu": "sigma", "mean": "std"}
"""The last parts of the names of buffers that hold a normalisation: robustness', and RobustBench's two."""


@dataclass(frozen=True)
class Normalisation:
    """A mean and a standard deviation of each channel in units of [0, 1], and `where` they are from."""

    where: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class StateDict:
    """A network's weights with the names that this library gives them, and all normalisations found beside them.

    `layout` says whose names they had: ``"robustness"``, ``"RobustBench"``, or ``"torchvision"``, which timm follows.
    """

    layout: str
    weights: dict[str, Tensor]
    normalisations: tuple[Normalisation, ...]


def chosen_state(contents: Any, key: str | None, where: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint that are a network's, by name.

    Args:
        contents: of the checkpoint: a state dict, or what holds one under some name (``model``, ``state_dict``, …).
        key: that name, with dots between where it lies deeper; found out where None.
        where: the file's name, for messages, here and below.

    Raises:
        UserError: there is none, or more than one.
    """
    found = _state_dicts(contents)
    if key is not None:
        if key not in found:
            raise UnknownNameError("state dict", key, found, f"(in {where})")
        found = {key: found[key]}
    if not found:
        what = f"a {type(contents).__name__}"
        if isinstance(contents, Mapping):
            what = f"a dict of {', '.join(map(brief, list(contents)[:8])) or 'nothing'}"[:300]
        raise UserError(
            f"expected a network's state dict (tensors by name) in {where}, found {what}; "
            "save model.state_dict() and import that"
        )
    if len(found) > 1:
        raise UserError(
            f"expected one state dict in {where}, found {len(found)}: {', '.join(map(repr, found))}; "
            f"choose with --key {next(iter(found))}"
        )
    (chosen,) = found.values()
    # Tensors that are far more than the numbers that they are made of are refused before any is copied. robustness
    # shares each storage between the network and its attacker's.
    tensors = [value for value in chosen.values() if isinstance(value, Tensor)]
    asked = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)
    there = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    if asked > 4 * there + 2**20:
        raise UserError(
            f"expected tensors of numbers of their own in {where}, got {asked / 1e6:.0f} MB of tensors that share "
            f"{there / 1e6:.1f} MB; save model.state_dict() and import that"
        )
    return {
        name: value.tensor() if isinstance(value, StoredArray) else value.detach().clone().contiguous()
        for name, value in chosen.items()
    }


def _state_dicts(value: Any, path: tuple[str, ...] = ()) -> dict[str, dict[str, Tensor | StoredArray]]:
    """The dicts of tensors by name in `value`, at most three deep, by where they are."""
    if not isinstance(value, Mapping):
        return {}
    tensors = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor | StoredArray)}
    # A scalar beside the state dict (an accuracy, say) is no network; a bias alone is none either.
    if any("." in name for name in tensors) and any(len(v.shape) > 1 for v in tensors.values()):
        return {".".join(path): tensors}
    found: dict[str, dict[str, Tensor | StoredArray]] = {}
    for name, inner in value.items() if len(path) < 3 else ():
        found |= _state_dicts(inner, (*path, name)) if isinstance(name, str) else {}
    return found


def arranged(state: Mapping[str, Tensor], where: str) -> StateDict:
    """A foreign state dict with our names, its wrappings taken off and its normalisation apart.

    Raises:
        UserError: the network is there twice, and differs.

    Example:
        >>> import torch
        >>> names = ["bn1.weight", "layer1.0.conv1.weight", "layer2.0.shortcut.0.bias", "linear.bias"]
        >>> state = {f"module.model.{name}": torch.zeros(2) for name in names}
        >>> state["module.normalizer.new_mean"], state["module.normalizer.new_std"] = torch.zeros(3), torch.ones(3)
        >>> found = arranged(state, "a.pt")
        >>> found.layout, list(found.weights)[2:], found.normalisations[0].mean
        ('robustness', ['layer2.0.downsample.0.bias', 'fc.bias'], (0.0, 0.0, 0.0))
    """
    # DataParallel and torch.compile put their part of a name wherever they wrap. robustness saves network and
    # normaliser twice: by themselves and as the attacker's.
    single: dict[str, Tensor] = {}
    for name, value in state.items():
        short = ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))
        short = re.sub(r"\battacker\.normalize\.", "normalizer.", re.sub(r"\battacker\.model\.", "model.", short))
        if "attacker" in short.split(".") or short == "n_averaged":
            continue  # A buffer of the attack itself, or of PyTorch's AveragedModel.
        other = single.setdefault(short, value)
        if other is not value and not (other.shape == value.shape and bool((other == value).all())):
            raise UserError(
                f"expected one network in {where}, found {name} and {short} twice, with and without a wrapper's name, "
                "and they differ; take the one that is meant into a file of its own"
            )
    weights, normalisations = _without_normalisers(single)
    while weights and len({name.split(".")[0] for name in weights}) == 1 and all("." in name for name in weights):
        weights = {name.split(".", 1)[1]: value for name, value in weights.items()}
    renamed = _renamed(weights)
    theirs = {"block1.layer.0.bn1.weight", "linear.weight", "logits.weight"}
    places = " ".join(found.where for found in normalisations)
    layout = "torchvision"
    if "new_mean" in places or any("attacker" in name.split(".") for name in state):
        layout = "robustness"
    elif list(renamed) != list(weights) or theirs & set(weights) or re.search(r"\b(mu|sigma)\b", places):
        layout = "RobustBench"
    return StateDict(layout, renamed, normalisations)


def _without_normalisers(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[Normalisation, ...]]:
    weights = dict(state)
    found: list[Normalisation] = []
    for name in state:
        prefix, _, last = name.rpartition(".")
        other = f"{prefix}.{_NORMALISERS.get(last, '')}".lstrip(".")
        if last in _NORMALISERS and other in state:
            mean, std = (written_numbers(weights.pop(key)) for key in (name, other))
            found.append(Normalisation(f"{name}, {other}", mean, std))
    return weights, tuple(found)


def written_numbers(values: Tensor) -> tuple[float, ...]:
    """The shortest numbers that are these in float32: 0.4914, not 0.49140000343."""
    return tuple(float(str(np.float32(value))) for value in values.flatten().tolist())


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if "bn1.weight" in weights and "layer1.0.conv1.weight" in weights:
        # A plain residual network: CIFAR-10's repositories say linear and shortcut, torchvision fc and downsample.
        unused, head, shortcut = "-", ("linear", "fc"), ("shortcut", "downsample")
    elif "bn1.weight" not in weights and "layer1.0.bn1.weight" in weights:
        # Copies that some of RobustBench's files hold of the first layers.
        unused, head, shortcut = "model_preact_hl1.", ("fc", "linear"), ("downsample", "shortcut")
    elif "block1.layer.0.bn1.weight" in weights:
        # TRADES' file holds a part that its network never runs.
        unused, head, shortcut = "sub_block1.", ("linear", "fc"), ("-", "-")
    else:
        return weights
    return {
        re.sub(rf"^{head[0]}\.", f"{head[1]}.", name).replace(f".{shortcut[0]}.", f".{shortcut[1]}."): value
        for name, value in weights.items()
        if not name.startswith(unused)
    }


@dataclass(frozen=True)
class Fit:
    """How a state dict compares with one form of one architecture.

    Attributes:
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
        weights: by our names, as `arranged` gives them.
        architecture: the only one to consider; all where None, those made here (``-even``) only where no other fits.
        where: for messages.

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
    tried = [fit for name in ARCHITECTURES for small in (True, False) if (fit := _compared(weights, name, small))]
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
    candidates = [fit for fit in tried if architecture in (None, fit.architecture)]
    if candidates:
        nearest = min(candidates, key=lambda fit: fit.faults)
        compared = f"nearest is {nearest}: {nearest.complaint()}"
    else:
        begins = ", ".join(f"{name} {tuple(value.shape)}" for name, value in list(weights.items())[:3])
        compared = f"it begins with {begins or 'nothing'}"
        heads = dict.fromkeys(_ends(name, small)[2] for name in ARCHITECTURES for small in (True, False))
        if not heads.keys() & weights.keys():
            looked = ", ".join(key.removesuffix(".weight") for key in heads)
            compared += f"; it has no last linear layer (looked for {looked})"
    raise UserError(
        f"expected the weights of one of these architectures in {where}: {architecture or ', '.join(ARCHITECTURES)}; "
        f"got {len(weights)} tensors that are of none ({compared}). Where the network is another one, build it with "
        "its own code and use robustsynth.Classifier.wrap"
    )


def _compared(weights: Mapping[str, Tensor], name: str, small: bool) -> Fit | None:
    """The comparison with one form of one architecture; None where its first and last layers rule it out."""
    ends = _ends(name, small)
    first, stem, head = (weights.get(key, torch.empty(0)) for key in ends)
    if not (first.ndim == stem.ndim == 4 and head.ndim == 2 and len(head) > 1 and len(stem) > 0):
        return None
    width, channels, size, side = len(stem), first.shape[1], 32 if small else LARGE_IMAGE, None
    if channels not in (1, 3) or first.shape[2:] != _shapes(name, 2, 8, 3, size)[ends[0]][2:]:
        return None
    if name in ONE_SIZE:
        hidden = weights.get("fc1.weight", torch.empty(0))
        places = hidden.shape[1] // (2 * width) if hidden.ndim == 2 else 0
        size = side = 4 * round(places**0.5) or size
        if (size <= SMALL_IMAGE) != small:
            return None
    try:
        expected = _shapes(name, len(head), width, channels, size)
    except (ValueError, UserError):  # No such network: groups that do not divide an odd width, say.
        return None
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    return Fit(
        name,
        len(head),
        width,
        channels,
        small,
        side,
        missing=[k for k in expected if k not in shapes and not k.endswith("num_batches_tracked")],
        differing=[f"{k} ({shapes[k]}, not {shape})" for k, shape in expected.items() if shapes.get(k, shape) != shape],
        unknown=[k for k in shapes if k not in expected],
    )


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of initial weights, which takes most of the time where there are none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawing = getattr(func, "__module__", None) == "torch.nn.init"
        return kwargs["tensor"] if drawing else func(*args, **(kwargs or {}))


@functools.lru_cache(maxsize=128)
def _shapes(name: str, classes: int, width: int, channels: int, size: int) -> dict[str, tuple[int, ...]]:
    # On the meta device a network has shapes but no numbers, so that all can be tried at once.
    with torch.device("meta"), _Undrawn():
        network = build_network(name, classes=classes, width=width, channels=channels, image_size=size)
    return {k: tuple(v.shape) for k, v in network.state_dict().items()}


def _ends(name: str, small: bool) -> tuple[str, str, str]:
    """Names of the first convolution, of the first one that has the base width, and of the last linear layer."""
    shapes = _shapes(name, 2, 8, 3, 32 if small else LARGE_IMAGE)
    convolutions = [key for key, shape in shapes.items() if len(shape) == 4]
    return (
        convolutions[0],
        next(key for key in convolutions if shapes[key][0] == 8),
        [key for key, shape in shapes.items() if len(shape) == 2][-1],
    )
