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

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.models.card import SMALL_IMAGE
from robustsynth.models.checkpoints import Checkpoint
from robustsynth.models.networks import ARCHITECTURES, build_network
from robustsynth.models.pickles import StoredArray, brief

_HEADS = (
    "fc.weight",
    "linear.weight",
    "classifier.6.weight",
    "classifier.1.weight",
    "classifier.weight",
    "logits.weight",
)
_LARGE_IMAGE = 224

_NORMALISERS = {"new_mean": "new_std", "mu": "sigma", "mean": "std"}
"""The last parts of the names of buffers that hold a normalisation: robustness', and RobustBench's two."""


@dataclass(frozen=True)
class Normalisation:
    """A mean and a standard deviation of each channel.

    Attributes:
        where: the names of the buffers that hold it.
        mean: in units of [0, 1].
        std: likewise.
    """

    where: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class StateDict:
    """A network's weights with the names that this library gives them.

    Attributes:
        layout: whose names they had: ``"robustness"``, ``"RobustBench"``, or ``"torchvision"``, which timm follows.
        weights: by name.
        normalisations: all that were found beside the weights; a well-made file has one or none.
    """

    layout: str
    weights: dict[str, Tensor]
    normalisations: tuple[Normalisation, ...]


def chosen_state(checkpoint: Checkpoint, key: str | None, where: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint that are a network's, by name.

    Args:
        checkpoint: it may be a state dict, or hold one under some name (``model``, ``state_dict``, …).
        key: that name, with dots between where it lies deeper; found out where None.
        where: the file's name, for messages.

    Raises:
        UserError: there is none, or more than one.
    """
    found = dict(_state_dicts(checkpoint.contents))
    if key is not None:
        if key not in found:
            raise UnknownNameError("state dict", key, found, f"(in {where})")
        found = {key: found[key]}
    if not found:
        raise UserError(
            f"expected a network's state dict (tensors by name) in {where}, found {_summary(checkpoint.contents)}; "
            "save model.state_dict() and import that"
        )
    if len(found) > 1:
        raise UserError(
            f"expected one state dict in {where}, found {len(found)}: {', '.join(map(repr, found))}; "
            f"choose with --key {next(iter(found))}"
        )
    chosen = next(iter(found.values()))
    _check_amount([value for value in chosen.values() if isinstance(value, Tensor)], where)
    return {
        name: value.tensor() if isinstance(value, StoredArray) else value.detach().clone().contiguous()
        for name, value in chosen.items()
    }


def _check_amount(tensors: list[Tensor], where: str) -> None:
    """Refuse tensors that are far more than the numbers that they are made of, before any is copied."""
    asked = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    there = sum(storages.values())
    # robustness shares each storage between the network and its attacker's.
    if asked > 4 * there + 2**20:
        raise UserError(
            f"expected tensors of numbers of their own in {where}, got {asked / 1e6:.0f} MB of tensors that share "
            f"{there / 1e6:.1f} MB; save model.state_dict() and import that"
        )


def _state_dicts(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The dicts of tensors by name in `value`, at most three deep, with where they are."""
    if not isinstance(value, Mapping):
        return []
    tensors = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor | StoredArray)}
    # A scalar beside the state dict (an accuracy, say) is no network; a bias alone is none either.
    if any("." in name for name in tensors) and any(len(_sides(v)) > 1 for v in tensors.values()):
        return [(".".join(path), tensors)]
    if len(path) == 3:
        return []
    return [found for k, v in value.items() if isinstance(k, str) for found in _state_dicts(v, (*path, k))]


def _sides(value: Tensor | StoredArray) -> tuple[int, ...]:
    array = value.array if isinstance(value, StoredArray) else value
    return () if array is None else tuple(array.shape)


def _summary(contents: Any) -> str:
    if isinstance(contents, Mapping):
        return f"a dict of {', '.join(map(brief, list(contents)[:8])) or 'nothing'}"[:300]
    return f"a {type(contents).__name__}"


def arranged(state: Mapping[str, Tensor], where: str) -> StateDict:
    """A foreign state dict with our names, its wrappings taken off and its normalisation apart.

    Args:
        state: tensors by whatever names.
        where: the file's name, for messages.

    Raises:
        UserError: the network is there twice, and differs; or a normalisation makes no sense.

    Example:
        >>> import torch
        >>> names = ["bn1.weight", "layer1.0.conv1.weight", "layer2.0.shortcut.0.bias", "linear.bias"]
        >>> state = {f"module.model.{name}": torch.zeros(2) for name in names}
        >>> state["module.normalizer.new_mean"], state["module.normalizer.new_std"] = torch.zeros(3), torch.ones(3)
        >>> found = arranged(state, "a.pt")
        >>> found.layout, list(found.weights)[2:], found.normalisations[0].mean
        ('robustness', ['layer2.0.downsample.0.bias', 'fc.bias'], (0.0, 0.0, 0.0))
    """
    # DataParallel and torch.compile put their part of a name wherever they wrap.
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        short = ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))
        other = plain.setdefault(short, value)
        if other is not value and not (other.shape == value.shape and bool((other == value).all())):
            raise UserError(
                f"expected one network in {where}, found {short} twice, with and without a wrapper's name, and they "
                "differ; take the one that is meant into a file of its own"
            )
    plain.pop("n_averaged", None)  # Of PyTorch's AveragedModel.
    single = _without_attacker(plain, where)
    weights, normalisations = _without_normalisers(single, where)
    while weights and len({name.split(".")[0] for name in weights}) == 1 and all("." in name for name in weights):
        weights = {name.split(".", 1)[1]: value for name, value in weights.items()}
    of_robustness = len(single) < len(plain) or any("new_mean" in found.where for found in normalisations)
    renamed = _renamed(weights)
    of_bench = list(renamed) != list(weights) or "block1.layer.0.bn1.weight" in weights or "linear.weight" in weights
    of_bench = of_bench or "logits.weight" in weights
    of_bench = of_bench or any(re.search(r"\b(mu|sigma)\b", found.where) for found in normalisations)
    layout = "robustness" if of_robustness else "RobustBench" if of_bench else "torchvision"
    return StateDict(layout, renamed, normalisations)


def _without_attacker(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """robustness saves network and normaliser twice: by themselves and as the attacker's."""
    single = {name: value for name, value in state.items() if "attacker" not in name.split(".")}
    for name, value in state.items():
        if name in single:
            continue
        other = re.sub(r"\battacker\.normalize\.", "normalizer.", re.sub(r"\battacker\.model\.", "model.", name))
        if other == name:
            continue  # A buffer of the attack itself.
        if other in single and not (single[other].shape == value.shape and bool((single[other] == value).all())):
            raise UserError(
                f"expected {name} and {other} in {where} to be the same, as robustness saves them, but they differ; "
                "take the one that is meant into a file of its own"
            )
        single.setdefault(other, value)
    return single


def _without_normalisers(state: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], tuple[Normalisation, ...]]:
    weights = dict(state)
    found: list[Normalisation] = []
    for name in state:
        prefix, _, last = name.rpartition(".")
        other = f"{prefix}.{_NORMALISERS.get(last, '')}".lstrip(".")
        if last not in _NORMALISERS or other not in state:
            continue
        mean, std = weights.pop(name).double(), weights.pop(other).double()
        if mean.numel() not in (1, 3) or mean.numel() != std.numel() or bool((std <= 0).any() or (mean < 0).any()):
            raise UserError(
                f"expected a mean and a positive std of 1 or 3 channels in {where}, got {name} of "
                f"{tuple(mean.shape)} and {other} of {tuple(std.shape)}: {mean.flatten()[:3].tolist()}, "
                f"{std.flatten()[:3].tolist()}"
            )
        if bool((mean > 1).any()):
            raise UserError(
                f"expected a mean in units of [0, 1] in {where}, got {name} = {written_numbers(mean)}, of 255; "
                "divide it and its std by 255 where the network scales images itself, and save the file again"
            )
        found.append(Normalisation(f"{name}, {other}", written_numbers(mean), written_numbers(std)))
    return weights, tuple(found)


def written_numbers(values: Tensor) -> tuple[float, ...]:
    """The shortest numbers that are these in float32: 0.4914, not 0.49140000343."""
    return tuple(float(str(np.float32(value))) for value in values.flatten().tolist())


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if "bn1.weight" in weights and "layer1.0.conv1.weight" in weights:
        # A plain residual network: CIFAR-10's repositories say linear and shortcut, torchvision fc and downsample.
        return {re.sub(r"^linear\.", "fc.", k).replace(".shortcut.", ".downsample."): v for k, v in weights.items()}
    if "bn1.weight" not in weights and "layer1.0.bn1.weight" in weights:
        # Copies that some of RobustBench's files hold of the first layers.
        weights = {k: v for k, v in weights.items() if not k.startswith("model_preact_hl1.")}
        return {re.sub(r"^fc\.", "linear.", k).replace(".downsample.", ".shortcut."): v for k, v in weights.items()}
    if "block1.layer.0.bn1.weight" in weights:
        # TRADES' file holds a part that its network never runs.
        kept = {k: v for k, v in weights.items() if not k.startswith("sub_block1.")}
        return {re.sub(r"^linear\.", "fc.", k): v for k, v in kept.items()}
    return weights


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
        weights: by our names, as `arranged` gives them.
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
