"""The parts of generation: the classes or mixes of classes that are wanted, their objective, the start images, and
optimising from coarse to fine."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsynth.constraints import Constraint
from robustsynth.errors import UserError
from robustsynth.files import sha256
from robustsynth.images import as_tensor, image_files, read_image
from robustsynth.models.classifier import Classifier, FrozenClassifier
from robustsynth.objectives import (
    CrossEntropy,
    Ensemble,
    MixedCrossEntropy,
    Network,
    Objective,
    Reordered,
    checked_weights,
)
from robustsynth.seeds import SEED_KINDS, model_seeds, sample_seeds
from robustsynth.views import Shifted


def check_targets(targets: Tensor | Sequence[int | str] | int | str, model: Classifier) -> Tensor:
    """Class indices (N,) of numbers or names, or weights of the classes (N, K), checked against the model.

    Raises:
        UserError: anything else.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> check_targets([3, 8], load_model("cifar10"))
        tensor([3, 8])
    """
    named = [targets] if isinstance(targets, str) else targets
    if isinstance(named, (list, tuple)) and any(isinstance(target, str) for target in named):
        named = [model.class_index(str(target)) for target in named]
    try:
        found = torch.atleast_1d(torch.as_tensor(named).cpu())
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"expected labels as numbers or names, one an image, got {targets!r}") from None
    if found.ndim == 1 and not found.numel():
        return found.long()
    if found.ndim == 2 and found.is_floating_point():
        return checked_weights(found, len(model.classes))
    last = len(model.classes) - 1
    if found.ndim != 1 or found.is_floating_point():
        raise UserError(
            f"expected labels as (N,) integers, got {found.dtype} {tuple(found.shape)}; "
            f"for mixes of classes give their weights, (N, {last + 1}) floats"
        )
    if not 0 <= int(found.min()) <= int(found.max()) <= last:
        raise UserError(f"expected labels from 0 to {last}, got {int(found.min())} to {int(found.max())}")
    return found


def main_classes(targets: Tensor) -> Tensor:
    """The class (N,) of each image, of a mix the one that weighs most, the first of equals.

    Example:
        >>> main_classes(torch.tensor([[0.4, 0.6], [0.5, 0.5]])).tolist()
        [1, 0]
    """
    return targets if targets.ndim == 1 else targets.argmax(1)


def parse_mix(text: str, model: Classifier) -> Tensor:
    """``ship:0.6,horse:0.4`` as weights (K,) that sum to 1.

    Args:
        text: classes by name or number, each with a weight above 0; their sum does not matter.
        model: whose classes are meant.

    Raises:
        UserError: no such classes, or no such weights.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> parse_mix("3:1,8:3", load_model("mnist"))[[3, 8]].tolist()
        [0.25, 0.75]
    """
    weights = torch.zeros(len(model.classes))
    for part in text.split(","):
        name, _, number = part.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not name.strip() or not 0 < weight < float("inf"):
            first, last = model.classes[0], model.classes[-1]
            raise UserError(f"expected a mix such as {first}:0.6,{last}:0.4, got {text!r}")
        weights[model.class_index(name.strip())] += weight
    return weights / weights.sum()


def named(target: Tensor, classes: Sequence[str]) -> str:
    """A target as people write it: a class's name, or ``ship:0.6,horse:0.4``.

    Example:
        >>> named(torch.tensor([0.25, 0.75]), ["cat", "ship"]), named(torch.tensor(1), ["cat", "ship"])
        ('ship:0.75,cat:0.25', 'ship')
    """
    if target.ndim == 0:
        return classes[int(target)]
    heaviest = sorted(target.nonzero().flatten().tolist(), key=lambda place: -float(target[place]))
    return ",".join(f"{classes[place]}:{float(target[place]):.4g}" for place in heaviest)


def class_objective(
    frozen: FrozenClassifier, targets: Tensor, ensemble: Sequence[Classifier], *, shift: int, mirror: bool
) -> Objective:
    """The cross-entropy of targets (n,) or (n, K) by the frozen classifier, or its mean over an ensemble.

    Args:
        frozen: the model.
        targets: classes, or weights of classes.
        ensemble: further classifiers.
        shift: as for `robustsynth.views.Shifted`.
        mirror: likewise.

    Raises:
        UserError: classifiers of other classes, or of images of another size.
    """
    networks: list[Network] = [frozen]
    channels = frozen.mean.numel()
    for other in ensemble:
        # In the same precision and batch size, so that there is one answer to what the images were drawn in.
        execution = frozen.execution
        its_frozen = other.frozen(precision=execution.precision, batch_size=execution.batch_size)
        networks.append(Reordered(its_frozen, other.classes, frozen.classes))
        if len({frozen.image_size, other.image_size} - {None}) > 1 or other.channels != channels:
            raise UserError(
                f"expected classifiers of images of {frozen.image_size} pixels and {channels} channels, got "
                f"{other.name!r} for {other.image_size} pixels and {other.channels}; an ensemble looks at the same "
                "images"
            )
    kind = CrossEntropy if targets.ndim == 1 else MixedCrossEntropy
    each = [kind(Shifted(network, shift, mirror), targets) for network in networks]
    return each[0] if len(each) == 1 else Ensemble(each)


def draw_starts(
    model: Classifier,
    settings: Any,
    numbers: Sequence[int],
    labels: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Start images (n, C, H, W), as the settings say.

    Args:
        model: for its seeds and its images' size.
        settings: resolved ones.
        numbers: of the images in the job.
        labels: (n,) of the images.
        generators: of random numbers, one an image.

    Raises:
        UserError: seeds or images that are missing or do not fit the model.
    """
    if settings.seeds_from not in SEED_KINDS:
        return _starts_of_folder(model, settings.seeds_from, numbers)
    seeds = None if settings.seeds_from == "uniform" else model_seeds(model, settings.seeds_from)
    if model.image_size is None:
        raise UserError(
            "expected a model with an image size to draw seeds for, got one without; "
            "give image_size to Classifier.wrap, or start=…"
        )
    shape = (model.channels, model.image_size, model.image_size)
    return sample_seeds(
        seeds, settings.seeds_from, labels, generators, shape=shape, upsampling=settings.seed_upsampling
    )


def _starts_of_folder(model: Classifier, seeds_from: str, numbers: Sequence[int]) -> Tensor:
    folder = Path(seeds_from)
    if not folder.exists():
        raise UserError(
            f"expected --seeds-from {', '.join(SEED_KINDS)} or a folder of start images, "
            f"got {seeds_from!r}, which is neither"
        )
    files = image_files(folder)
    starts = [files[number % len(files)] for number in numbers]
    images = [read_image(file, channels=model.channels, size=model.image_size).pixels for file in starts]
    for file, image in zip(starts, images, strict=True):
        if image.shape != images[0].shape:
            raise UserError(
                f"expected start images of one size for a model without an image size, but {file} is "
                f"{image.shape[1]}×{image.shape[0]} and {starts[0]} is not"
            )
    return as_tensor(images)


def start_identity(settings: Any) -> dict[str, Any]:
    """What distinguishes one folder of start images from another in ``settings.json``, in which no path belongs.

    Returns:
        ``settings`` as plain values, with the folder's name alone, and ``starts_sha256``; or no keys.
    """
    if settings.seeds_from in SEED_KINDS or not Path(settings.seeds_from).is_dir():
        return {}
    folder = Path(settings.seeds_from).resolve()
    digest = hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in image_files(folder)).encode())
    plain = dataclasses.asdict(settings) | {"seeds_from": folder.name}
    return {"settings": plain, "starts_sha256": digest.hexdigest()}


SMALLEST = 4
"""Pixels of a side below which a canvas holds nothing to draw on."""

COARSE_SHARE = 0.25
"""Of the steps, on canvases smaller than the image."""


class CoarseToFine:
    """A constraint in which the steps begin on a small canvas and end on the whole image.

    Each scale doubles the canvas's side; the coarse ones share the first quarter of the steps. A step on a canvas that
    is enlarged linearly, by E, changes the image by E·Eᵀ·gradient: this takes just these directions, so that the
    seed's own detail stays, and one ball around the seed holds at every scale.

    It counts its directions to know at which step it is, so it is for one run of one batch.

    Args:
        constraint: what images may become, such as a ball.
        scales: how many there are; 1 leaves the constraint as it is.
        steps: in all.

    Example:
        >>> from robustsynth.constraints import Box
        >>> two = CoarseToFine(Box(), scales=2, steps=2)
        >>> grad = torch.zeros(1, 1, 8, 8).index_fill(3, torch.tensor([0]), 1.0)
        >>> [(two.direction(grad)[0, 0, 0] > 0).sum().item() for step in range(2)]
        [3, 1]
    """

    def __init__(self, constraint: Constraint, *, scales: int, steps: int) -> None:
        self.constraint, self.scales, self.taken = constraint, scales, 0
        self.coarse_steps = max(scales - 1, round(steps * COARSE_SHARE)) if scales > 1 else 0

    def direction(self, grad: Tensor) -> Tensor:
        """The steepest direction of length one on this step's canvas."""
        coarse = self.scales - 1
        done = self.taken * coarse // self.coarse_steps if self.taken < self.coarse_steps else coarse
        self.taken += 1
        for dim in (2, 3) if done < coarse else ():
            enlarging = _enlarging(grad.shape[dim], coarse - done).to(grad)
            grad = torch.movedim(torch.movedim(grad, dim, 3) @ enlarging, 3, dim)
        return self.constraint.direction(grad)

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        """As the constraint does."""
        return self.constraint.project(images, center)

    def random_start(self, center: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """As the constraint does."""
        return self.constraint.random_start(center, generators)


def check_scales(scales: int, size: int) -> None:
    """Raise a `UserError` where the coarsest canvas of an image of side `size` is too small.

    Example:
        >>> check_scales(3, 8)
        Traceback (most recent call last):
        robustsynth.errors.UserError: expected scales of 1 to 2 for images of 8 pixels, got 3: the coarsest canvas \
would have 2
    """
    most = 1
    while size >> most >= SMALLEST:
        most += 1
    if scales > most:
        raise UserError(
            f"expected scales of 1 to {most} for images of {size} pixels, got {scales}: the coarsest canvas would "
            f"have {size >> (scales - 1)}"
        )


@functools.cache
def _enlarging(size: int, halvings: int) -> Tensor:
    """E·Eᵀ (size, size) of the linear enlargement of a canvas that was halved so often."""
    small = torch.eye(max(1, size >> halvings))[None]
    enlarged = F.interpolate(small, size=size, mode="linear", align_corners=False)[0]
    return enlarged.T @ enlarged
