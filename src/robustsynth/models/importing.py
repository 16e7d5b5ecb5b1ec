"""Other libraries' checkpoints made into model folders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from robustsynth.constraints import NORMS
from robustsynth.errors import UserError
from robustsynth.files import sha256
from robustsynth.models.card import SMALL_IMAGE, ModelCard
from robustsynth.models.checkpoints import open_checkpoint
from robustsynth.models.classifier import Classifier
from robustsynth.models.networks import build_network
from robustsynth.models.recognition import (
    Fit,
    Normalisation,
    StateDict,
    arranged,
    chosen_state,
    recognised_network,
    written_numbers,
)
from robustsynth.models.store import save_model

LARGE_IMAGE = 224


class DataFacts(Protocol):
    """What knowing the data set tells of a network that was trained on it; a `robustsynth.data.DatasetSpec` does.

    `normalisations` are those in use with it, a mean and a standard deviation by whose they are; one is taken where a
    file has none only if it is the only one.
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def image_size(self) -> int: ...
    @property
    def normalisations(self) -> Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]: ...
    @property
    def hub_id(self) -> str: ...
    @property
    def licence(self) -> str: ...


@dataclass(frozen=True)
class ForeignModel:
    """A checkpoint that was understood.

    Attributes:
        classifier: with its weights in float32.
        fit: the architecture that was recognised.
        layout: whose names the file has.
        form: what kind of file it is.
        normalisation: where mean and std come from.
    """

    classifier: Classifier
    fit: Fit
    layout: str
    form: str
    normalisation: str


def read_foreign(
    path: Path | str,
    *,
    classes: Sequence[str] | int | None = None,
    architecture: str | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    data: DataFacts | None = None,
    key: str | None = None,
) -> ForeignModel:
    """Another library's checkpoint as a classifier. Nothing in the file is executed.

    Args:
        path: a file of torch.save or safetensors.
        classes: names in the order of the logits, or their number, where no data set tells.
        architecture: a name in `ARCHITECTURES`, where names and shapes leave a doubt.
        image_size: side of the images in pixels, where no data set tells.
        mean: per channel, in [0, 1] units, where the file has none.
        std: per channel, likewise.
        data: what is known of the data set.
        key: which of a checkpoint's state dicts, where there are several (``"model"``, ``"ema"``).

    Raises:
        UserError: the file is damaged or holds code; it is of no architecture here; classes, sizes or normalisation
            are missing, contradict it, or are there twice.
    """
    path = Path(path).expanduser()
    checkpoint = open_checkpoint(path)
    state = arranged(chosen_state(checkpoint, key, path.name), path.name)
    fits = recognised_network(state.weights, architecture=architecture, where=path.name)
    origin = "--image-size" if image_size or data is None else f"--data {data.name}:"
    size = image_size or (data.image_size if data else None)
    if architecture is None:
        _check_strides(fits, size, path.name)
    fit, size = _fit_and_size(fits, size, path.name, origin)
    names = _class_names(classes, data, fit, path.name)
    normalisation = _normalisation(state, mean, std, data, fit.channels, path.name)
    network = build_network(
        fit.architecture, classes=fit.classes, width=fit.width, channels=fit.channels, image_size=size
    )
    network.load_state_dict(_completed(state.weights, network.state_dict(), path.name))
    classifier = Classifier(
        network, classes=names, mean=normalisation.mean, std=normalisation.std, image_size=size
    ).eval()
    return ForeignModel(classifier, fit, state.layout, checkpoint.form, normalisation.where)


def import_model(
    path: Path | str,
    out: Path | str,
    *,
    norm: str | None = None,
    eps: float | None = None,
    licence: str = "not stated",
    data: DataFacts | None = None,
    half: bool = False,
    **given: Any,
) -> tuple[ModelCard, ForeignModel]:
    """Write another library's checkpoint into `out` as a model folder that `load_model` takes.

    Args:
        path: a file of torch.save or safetensors.
        out: a folder without a model in it.
        norm: of `robustsynth.constraints.NORMS`, which it was trained to withstand.
        eps: the radius in units of [0, 1]; 0 is standard training.
        licence: of the weights.
        data: what is known of the data set.
        half: store float16, half as large; its logits then differ in the third or fourth digit.
        **given: the other arguments of `read_foreign`.

    Raises:
        UserError: as `read_foreign`; or `out` holds a model already.
    """
    out, path = Path(out).expanduser(), Path(path).expanduser()
    if out.exists() and (not out.is_dir() or (out / "card.json").exists() or any(out.glob("*.safetensors"))):
        raise UserError(f"expected a folder without a model as --out, got {out}; choose another one")
    threat = _threat_model(norm, eps)
    foreign = read_foreign(path, data=data, **given)
    classifier, fit = foreign.classifier, foreign.fit
    imported = {
        "file": path.name,
        "sha256": sha256(path),
        "format": foreign.form,
        "layout": foreign.layout,
        "normalisation": foreign.normalisation,
    }
    card = ModelCard(
        name=out.resolve().name,
        architecture=fit.architecture,
        width=fit.width,
        channels=fit.channels,
        image_size=classifier.image_size or 0,
        classes=classifier.classes,
        mean=written_numbers(classifier.mean),
        std=written_numbers(classifier.std),
        threat_model=threat,
        training={"imported": imported},
        data={"name": data.name, "source": data.hub_id, "licence": data.licence} if data else {},
        licence=licence,
        description=f"Imported from {path.name} ({foreign.layout} layout); how it was trained is not known here.",
    )
    return save_model(out, classifier, card, half=half), foreign


def _threat_model(norm: str | None, eps: float | None) -> dict[str, Any]:
    if norm is None and eps is None:
        return {}
    if eps == 0:
        return {"norm": norm or "l2", "eps": 0.0}
    if norm not in NORMS or eps is None or not (eps > 0 and math.isfinite(eps)):
        raise UserError(f"expected --norm {' or '.join(NORMS)} with a positive --eps, got norm={norm}, eps={eps}")
    return {"norm": norm, "eps": eps}


def _check_strides(fits: list[Fit], size: int | None, where: str) -> None:
    """Refuse to guess strides: a network whose two forms have the same shapes may be either."""
    if size is not None and size <= SMALL_IMAGE and len({fit.small for fit in fits}) > 1:
        name = fits[0].architecture
        raise UserError(
            f"expected to know the strides of {where}, a {name}, which leave no trace in it: say --arch {name} where "
            "its first convolution and its first strided stage keep the side, as those of the one here for "
            f"{size} pixels do; another joins by robustsynth.Classifier.wrap"
        )


def _fit_and_size(fits: list[Fit], size: int | None, where: str, origin: str) -> tuple[Fit, int]:
    known = next((fit.image_size for fit in fits if fit.image_size), None)
    if size is None and known is None:
        raise UserError(
            f"expected the side of the images, which {where} does not tell ({' or '.join(map(str, fits))}); "
            "give --image-size (32 for CIFAR-10, 224 for ImageNet) or --data"
        )
    size = known if size is None else size
    assert size is not None
    for fit in fits:
        if fit.small == (size <= SMALL_IMAGE) and fit.image_size in (None, size):
            return fit, size
    suiting = fits[0].image_size or (None if fits[0].small else LARGE_IMAGE)
    remedy = (
        f"give --image-size {suiting}, or what it was trained at"
        if suiting
        else "networks of this form for images of that side are not among the architectures here: "
        "robustsynth.Classifier.wrap takes them in Python"
    )
    raise UserError(f"expected images that suit a {fits[0]} as {where} is one, got {origin} {size}; {remedy}")


def _class_names(classes: Sequence[str] | int | None, data: DataFacts | None, fit: Fit, where: str) -> tuple[str, ...]:
    if classes is None and data is None:
        raise UserError(
            f"expected names for the {fit.classes} classes of {where}, which it does not tell; give --classes a,b,… in "
            f"the order of the logits, --classes {fit.classes} to number them, or --data"
        )
    if classes is None:
        assert data is not None
        names, source = data.classes, f"--data {data.name}"
    else:
        names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        source = "--classes"
    if len(names) != fit.classes:
        raise UserError(
            f"expected as many classes as the last layer of {where} has rows, {fit.classes}, got {len(names)} from "
            f"{source}; give the names of the {fit.classes} with --classes, or the data set that it was trained on"
        )
    return names


def _normalisation(
    state: StateDict,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    data: DataFacts | None,
    channels: int,
    where: str,
) -> Normalisation:
    """The one normalisation, from the file, from what was given, or from the data set."""
    inside = state.normalisations
    if (mean is None) != (std is None):
        raise UserError(f"expected --mean and --std together, got mean={mean}, std={std}")
    if len(inside) > 1:
        twice = "; ".join(f"{found.where}: mean {found.mean}, std {found.std}" for found in inside)
        raise UserError(
            f"expected one normalisation in {where}, found {len(inside)}: {twice}. Images would be normalised twice; "
            "take one of them out of the file, or build the network with its own code and use Classifier.wrap"
        )
    if inside and mean is not None:
        raise UserError(
            f"expected one normalisation, but {where} has its own ({inside[0].where}: mean {inside[0].mean}, std "
            f"{inside[0].std}) and --mean and --std would be a second; leave them out"
        )
    if mean is not None and std is not None:
        found = Normalisation("given", tuple(mean), tuple(std))
    elif inside:
        found = inside[0]
    else:
        found = _of_data(state, data, where)
    values = [v * channels if len(v) == 1 else v for v in (found.mean, found.std)]
    finite = all(math.isfinite(number) for each in values for number in each)
    if any(len(v) != channels for v in values) or not finite or min(values[1]) <= 0:
        raise UserError(
            f"expected a mean and a positive std for each of the {channels} channels of {where}, got "
            f"mean {found.mean}, std {found.std} ({found.where})"
        )
    if min(values[0]) < 0 or max(values[0]) > 1:
        raise UserError(
            f"expected a mean in units of [0, 1], got {found.mean} ({found.where}); divide mean and std by 255 where "
            "they are of 255"
        )
    return Normalisation(found.where, *values)


def _of_data(state: StateDict, data: DataFacts | None, where: str) -> Normalisation:
    choices = [Normalisation(who, *values) for who, values in data.normalisations.items()] if data else []
    # The library has one for each data set.
    choices = [c for c in choices if c.where == state.layout] or choices
    if len(choices) == 1:
        return choices[0]
    offered = "; ".join(
        f"--mean {','.join(map(str, c.mean))} --std {','.join(map(str, c.std))} ({c.where})" for c in choices
    )
    raise UserError(
        f"expected a normalisation, which {where} does not hold: give --mean and --std as its training had them, "
        "or zeros and ones where the network takes images in [0, 1] as they are"
        + (f". In use for {data.name}: {offered}" if data and offered else "")
    )


def _completed(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The weights in the network's own types; counters that old files lack begin at 0."""
    found = {k: weights[k].to(v.dtype) if k in weights else torch.zeros_like(v) for k, v in expected.items()}
    broken = [k for k, v in found.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise UserError(f"expected finite numbers in {where}, got NaN or infinity in {broken[0]}")
    return found
