"""Other libraries' checkpoints made into model folders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustsynth.constraints import NORMS
from robustsynth.errors import UserError
from robustsynth.files import sha256
from robustsynth.models.card import CARD_FILE, SMALL_IMAGE, ModelCard
from robustsynth.models.checkpoints import open_checkpoint
from robustsynth.models.classifier import Classifier
from robustsynth.models.networks import build_network
from robustsynth.models.recognition import (
    LARGE_IMAGE,
    Fit,
    Normalisation,
    StateDict,
    arranged,
    chosen_state,
    recognised_network,
    written_numbers,
)
from robustsynth.models.store import save_model


@dataclass(frozen=True)
class ForeignModel:
    """A checkpoint as a classifier in float32, with its architecture, whose names it has (`layout`), what kind of file
    it is (`form`), and where mean and std come from."""

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
    data: Any = None,
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
        data: the `robustsynth.data.DatasetSpec` of the data set that it was trained on. Of its normalisations one is
            taken where a file has none, only if it is the only one.
        key: which of a checkpoint's state dicts, where there are several (``"model"``, ``"ema"``).

    Raises:
        UserError: the file is damaged or holds code; it is of no architecture here; classes, sizes or normalisation
            are missing, contradict it, or are there twice.
    """
    path = Path(path).expanduser()
    checkpoint = open_checkpoint(path)
    state = arranged(chosen_state(checkpoint.contents, key, path.name), path.name)
    fits = recognised_network(state.weights, architecture=architecture, where=path.name)
    origin = "--image-size" if image_size or data is None else f"--data {data.name}:"
    size = image_size or (data.image_size if data else None)
    # Strides leave no trace: a network whose two forms have the same shapes may be either.
    if architecture is None and size is not None and size <= SMALL_IMAGE and len({fit.small for fit in fits}) > 1:
        name = fits[0].architecture
        raise UserError(
            f"expected to know the strides of {path.name}, a {name}, which leave no trace in it: say --arch {name} "
            "where its first convolution and its first strided stage keep the side, as those of the one here for "
            f"{size} pixels do; another joins by robustsynth.Classifier.wrap"
        )
    fit, size = _fit_and_size(fits, size, path.name, origin)
    names = _class_names(classes, data, fit, path.name)
    normalisation = _normalisation(state, mean, std, data, fit.channels, path.name)
    network = build_network(
        fit.architecture, classes=fit.classes, width=fit.width, channels=fit.channels, image_size=size
    )
    # The weights in the network's own types; counters that old files lack begin at 0.
    weights = {k: state.weights.get(k, torch.zeros_like(v)).to(v.dtype) for k, v in network.state_dict().items()}
    broken = [k for k, v in weights.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise UserError(f"expected finite numbers in {path.name}, got NaN or infinity in {broken[0]}")
    network.load_state_dict(weights)
    classifier = Classifier(network, classes=names, mean=normalisation.mean, std=normalisation.std, image_size=size)
    return ForeignModel(classifier.eval(), fit, state.layout, checkpoint.form, normalisation.where)


def import_model(
    path: Path | str,
    out: Path | str,
    *,
    norm: str | None = None,
    eps: float | None = None,
    licence: str = "not stated",
    data: Any = None,
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
        data: as for `read_foreign`.
        half: store float16, half as large; its logits then differ in the third or fourth digit.
        **given: the other arguments of `read_foreign`.

    Raises:
        UserError: as `read_foreign`; or `out` holds a model already.
    """
    out, path = Path(out).expanduser(), Path(path).expanduser()
    if out.exists() and (not out.is_dir() or (out / CARD_FILE).exists() or any(out.glob("*.safetensors"))):
        raise UserError(f"expected a folder without a model as --out, got {out}; choose another one")
    if (eps not in (None, 0) and (norm not in NORMS or not (eps > 0 and math.isfinite(eps)))) or (norm and eps is None):
        raise UserError(f"expected --norm {' or '.join(NORMS)} with a positive --eps, got norm={norm}, eps={eps}")
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
        threat_model={} if eps is None else {"norm": norm or "l2", "eps": float(eps)},
        training={"imported": imported},
        data={"name": data.name, "source": data.hub_id, "licence": data.licence} if data else {},
        licence=licence,
        description=f"Imported from {path.name} ({foreign.layout} layout); how it was trained is not known here.",
    )
    return save_model(out, classifier, card, half=half), foreign


def _fit_and_size(fits: list[Fit], size: int | None, where: str, origin: str) -> tuple[Fit, int]:
    size = size or next((fit.image_size for fit in fits if fit.image_size), None)
    if size is None:
        raise UserError(
            f"expected the side of the images, which {where} does not tell ({' or '.join(map(str, fits))}); "
            "give --image-size (32 for CIFAR-10, 224 for ImageNet) or --data"
        )
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


def _class_names(classes: Sequence[str] | int | None, data: Any, fit: Fit, where: str) -> tuple[str, ...]:
    source = "--classes"
    if classes is None and data is not None:
        classes, source = data.classes, f"--data {data.name}"
    if classes is None:
        raise UserError(
            f"expected names for the {fit.classes} classes of {where}, which it does not tell; give --classes a,b,… in "
            f"the order of the logits, --classes {fit.classes} to number them, or --data"
        )
    names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
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
    data: Any,
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
    else:
        found = inside[0] if inside else _of_data(state, data, where)
    means, stds = (values * channels if len(values) == 1 else values for values in (found.mean, found.std))
    if not len(means) == len(stds) == channels or not all(map(math.isfinite, (*means, *stds))) or min(stds) <= 0:
        raise UserError(
            f"expected a mean and a positive std for each of the {channels} channels of {where}, got "
            f"mean {found.mean}, std {found.std} ({found.where})"
        )
    if min(means) < 0 or max(means) > 1:
        raise UserError(
            f"expected a mean in units of [0, 1], got {found.mean} ({found.where}); divide mean and std by 255 where "
            "they are of 255, in the file where it has them"
        )
    return Normalisation(found.where, means, stds)


def _of_data(state: StateDict, data: Any, where: str) -> Normalisation:
    known: Mapping[str, Any] = data.normalisations if data else {}
    choices = [Normalisation(who, *values) for who, values in known.items()]
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
        + (f". In use for {data.name}: {offered}" if offered else "")
    )
