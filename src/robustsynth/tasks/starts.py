"""Where each image of a generation starts: a draw of its class's distribution, a picture of a folder, a given one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.files import sha256
from robustsynth.images import as_tensor, image_files, read_image
from robustsynth.mixtures import MIXTURES_FILE, ClassMixtures
from robustsynth.models.classifier import Classifier
from robustsynth.seeds import SEED_KINDS, SEEDS_FILE, ClassSeeds, sample_seeds
from robustsynth.tasks.settings import GenerateSettings

Draw = Callable[[Sequence[int], Tensor, Tensor, Sequence[torch.Generator]], Tensor]
"""Of the images' numbers in the job, their places in `labels`, their labels, and their generators."""


def has_seeds(model: Classifier) -> bool:
    """Whether fitted class seeds lie beside the model."""
    return model.folder is not None and (model.folder / SEEDS_FILE).exists()


def start_source(model: Classifier, settings: GenerateSettings, start: Tensor | None) -> Draw:
    """A function to start images (n, C, H, W).

    Args:
        model: for its seeds and its images' size.
        settings: resolved ones.
        start: (N, C, H, W) to start from in place of what the settings say.

    Raises:
        UserError: seeds or pictures that are missing or do not fit the model.
    """
    if start is not None:
        return lambda chosen, places, labels, generators: start[places]
    if settings.seeds_from not in SEED_KINDS:
        return _from_folder(model, settings.seeds_from)
    seeds = None if settings.seeds_from == "uniform" else model_seeds(model, settings.seeds_from)
    if model.image_size is None:
        raise UserError(
            "expected a model with an image size to draw seeds for, got one without; "
            "give image_size to Classifier.wrap, or start=…"
        )
    shape = (model.channels, model.image_size, model.image_size)
    return lambda chosen, places, labels, generators: sample_seeds(
        seeds, settings.seeds_from, labels, generators, shape=shape, upsampling=settings.seed_upsampling
    )


def _from_folder(model: Classifier, seeds_from: str) -> Draw:
    folder = Path(seeds_from)
    if not folder.exists():
        raise UserError(
            f"expected --seeds-from {', '.join(SEED_KINDS)} or a folder of start images, "
            f"got {seeds_from!r}, which is neither"
        )
    files = image_files(folder)
    size = model.image_size

    def draw(chosen: Sequence[int], places: Tensor, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        starts = [files[i % len(files)] for i in chosen]
        pictures = [read_image(f, channels=model.channels, size=size).pixels for f in starts]
        for file, picture in zip(starts, pictures, strict=True):
            if picture.shape != pictures[0].shape:
                raise UserError(
                    f"expected start images of one size for a model without an image size, but {file} is "
                    f"{picture.shape[1]}×{picture.shape[0]} and {starts[0]} is not"
                )
        return as_tensor(pictures)

    return draw


def start_identity(settings: GenerateSettings) -> dict[str, Any]:
    """What tells one folder of start images from another in a job's record, in which no path belongs; nothing where
    starts are drawn.

    Returns:
        ``settings`` as plain values, with the folder's name alone, and ``starts_sha256``; or no keys.
    """
    if settings.seeds_from in SEED_KINDS or not Path(settings.seeds_from).is_dir():
        return {}
    folder = Path(settings.seeds_from).resolve()
    told = hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in image_files(folder)).encode())
    plain = dataclasses.asdict(settings) | {"seeds_from": folder.name}
    return {"settings": plain, "starts_sha256": told.hexdigest()}


def model_seeds(model: Classifier, kind: str) -> ClassSeeds:
    """The seeds that lie beside the model."""
    if model.folder is None:
        raise UserError(
            f"expected fitted seeds for seeds_from={kind!r}, but a wrapped network has none; "
            "use seeds_from='uniform', a folder of start images, or start=…"
        )
    recorded = {} if model.card is None else model.card.sha256
    seeds = ClassSeeds.load(model.folder, recorded=recorded.get(SEEDS_FILE))
    if len(seeds.mean) != len(model.classes) or seeds.image_size != model.image_size:
        raise UserError(
            f"expected seeds of {len(model.classes)} classes for images of {model.image_size} pixels in "
            f"{model.folder}, got {len(seeds.mean)} classes and {seeds.image_size} pixels; they belong to "
            "another model"
        )
    if kind == "mixture":
        mixtures = ClassMixtures.load(model.folder, recorded=recorded.get(MIXTURES_FILE))
        return dataclasses.replace(seeds, mixtures=mixtures)
    return seeds
