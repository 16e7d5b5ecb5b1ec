"""Generation: from a draw of a simple class distribution, descend the cross-entropy of the class
(Santurkar et al. 2019, Section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustsynth import randomness
from robustsynth.constraints import ball
from robustsynth.errors import UserError
from robustsynth.images import as_tensor, load_picture, picture_files
from robustsynth.loop import NonFiniteError, Problem, Step, check_images
from robustsynth.models.classifier import Classifier
from robustsynth.objectives import CrossEntropy
from robustsynth.seeds import SEED_KINDS, SEEDS_FILE, ClassSeeds, sample_seeds
from robustsynth.tasks.batches import Batch, solve_in_batches
from robustsynth.tasks.settings import GenerateSettings, resolve_settings


def generate(
    model: Classifier,
    labels: Tensor | Sequence[int],
    *,
    seed: int = 0,
    start: Tensor | None = None,
    preset: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    indices: Sequence[int] | None = None,
    on_step: Callable[[Sequence[int], Step], object] | None = None,
    **settings: Any,
) -> Tensor:
    """Draw images of classes with a robust classifier.

    Args:
        model: from `load_model` or `Classifier.wrap`.
        labels: (N,) class indices, one for each image.
        seed: of the job; image i depends on `seed`, its label and i, not on the other images.
        start: (N, C, H, W) in [0, 1] to start from in place of drawn seeds.
        preset: ``paper``, ``mcgill2019``, ``duke2023``, ``hse2025`` or ``best``; the model's own tuned settings
            where None.
        precision: ``float32`` or ``bfloat16``; measured once per model and machine where None.
        batch_size: images a batch; likewise.
        indices: the images' numbers within the job, 0 … N − 1 where None, to draw a part of a larger job.
        on_step: called with the indices of a batch and each `Step` of it; returning False ends that batch.
        **settings: fields of `GenerateSettings`, which override the preset.

    Returns:
        (N, C, H, W) float32 in [0, 1], on the CPU.

    Raises:
        UserError: labels, settings or seeds that do not fit the model.
        NonFiniteError: NaN or infinity in some images; the error carries all, the others complete.

    Example:
        >>> from robustsynth.models.files import load_model
        >>> generate(load_model("mnist"), [3, 7], seed=0, steps=2).shape
        torch.Size([2, 1, 28, 28])
    """
    labels = torch.as_tensor(labels).cpu()
    labels = labels if labels.numel() else labels.long()
    _check_labels(labels, model)
    resolved = resolve_generate(model, preset=preset, given=settings)
    indices = range(len(labels)) if indices is None else indices
    if len(indices) != len(labels):
        raise UserError(f"expected one index a label, got {len(indices)} indices for {len(labels)} labels")
    position = {int(index): place for place, index in enumerate(indices)}
    if len(position) != len(labels):
        raise UserError("expected different indices, got some twice")
    drawn: dict[int, Tensor] = {}
    failures: dict[int, int] = {}
    for batch in generate_batches(
        model,
        labels,
        resolved,
        seed=seed,
        start=start,
        precision=precision,
        batch_size=batch_size,
        indices=list(position),
        on_step=on_step,
    ):
        drawn |= zip(batch.indices, batch.images, strict=True)
        failures |= {position[i]: step for i, step in batch.failures.items()}
    size = model.image_size or 0
    result = torch.stack([drawn[i] for i in position]) if drawn else torch.empty(0, model.channels, size, size)
    if failures:
        raise NonFiniteError(result, failures)
    return result


def generate_batches(
    model: Classifier,
    labels: Tensor,
    settings: GenerateSettings,
    *,
    seed: int = 0,
    start: Tensor | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    indices: Sequence[int] | None = None,
    wanted: Sequence[int] | None = None,
    on_step: Callable[[Sequence[int], Step], object] | None = None,
) -> Iterator[Batch]:
    """As `generate`, but hands over each batch as it is done, so that a job of any size needs little memory.

    Args:
        model: as for `generate`.
        labels: (N,) class indices of the images `indices`.
        settings: resolved ones.
        seed: as for `generate`.
        start: as for `generate`.
        precision: as for `generate`.
        batch_size: as for `generate`.
        indices: the images' numbers within the job, one a label; 0 … N − 1 where None.
        wanted: those of `indices` to draw, all where None; a resumed job leaves out what is there.
        on_step: as for `generate`.
    """
    _check_labels(labels, model)
    if start is not None:
        check_images(start, "start")
        size = start.shape[2:] if model.image_size is None else (model.image_size, model.image_size)
        if start.shape != (expected := (len(labels), model.channels, *size)):
            raise UserError(f"expected start images {expected}, one a label, got {tuple(start.shape)}")
        start = start.float()
    indices = range(len(labels)) if indices is None else indices
    position = {index: place for place, index in enumerate(indices)}
    draw = _seed_source(model, settings, start)
    twin = model.synthesizer(precision=precision, batch_size=batch_size)
    constraint = ball(settings.norm, settings.eps)

    def state(chosen: Sequence[int]) -> Problem:
        places = torch.tensor([position[i] for i in chosen])
        seeds = draw(chosen, places, labels[places], randomness.image_generators(seed, chosen))
        objective = CrossEntropy(twin, labels[places].to(model.device))
        return Problem(start=seeds.to(model.device), objective=objective, constraint=constraint)

    return solve_in_batches(
        list(indices if wanted is None else wanted),
        state,
        batch_size=twin.execution.batch_size,
        step_size=settings.step_length,
        steps=settings.steps,
        use_best=settings.use_best,
        on_step=on_step,
    )


def resolve_generate(
    model: Classifier, *, preset: str | None = None, given: dict[str, Any] | None = None
) -> GenerateSettings:
    """The settings that generation with `model` will use: see `robustsynth.tasks.settings`.

    A model without fitted seeds starts from uniform noise unless told otherwise.
    """
    settings = resolve_settings(GenerateSettings, "generate", model, preset=preset, given=given)
    asked = (given or {}).get("seeds_from")
    if asked is None and settings.seeds_from in ("normal", "multivariate") and not has_seeds(model):
        given = {**(given or {}), "seeds_from": "uniform"}
        return resolve_settings(GenerateSettings, "generate", model, preset=preset, given=given)
    return settings


def has_seeds(model: Classifier) -> bool:
    """Whether fitted class seeds lie beside the model."""
    return model.folder is not None and (model.folder / SEEDS_FILE).exists()


def _check_labels(labels: Tensor, model: Classifier) -> None:
    last = len(model.classes) - 1
    if labels.ndim != 1 or labels.is_floating_point():
        raise UserError(f"expected labels as (N,) integers, got {labels.dtype} {tuple(labels.shape)}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
        raise UserError(f"expected labels from 0 to {last}, got {int(labels.min())} to {int(labels.max())}")


Draw = Callable[[Sequence[int], Tensor, Tensor, Sequence[torch.Generator]], Tensor]


def _seed_source(model: Classifier, settings: GenerateSettings, start: Tensor | None) -> Draw:
    """A function to start images, of the images' numbers in the job, their places in `labels`, labels, generators."""
    if start is not None:
        return lambda chosen, places, labels, generators: start[places]
    if settings.seeds_from not in SEED_KINDS:
        folder = Path(settings.seeds_from)
        if not folder.exists():
            raise UserError(
                f"expected --seeds-from {', '.join(SEED_KINDS)} or a folder of start images, "
                f"got {settings.seeds_from!r}, which is neither"
            )
        files = picture_files(folder)
        size = model.image_size

        def from_files(
            chosen: Sequence[int], places: Tensor, labels: Tensor, generators: Sequence[torch.Generator]
        ) -> Tensor:
            starts = [files[i % len(files)] for i in chosen]
            pictures = [load_picture(f, channels=model.channels, size=size) for f in starts]
            for file, picture in zip(starts, pictures, strict=True):
                if picture.shape != pictures[0].shape:
                    raise UserError(
                        f"expected start images of one size for a model without an image size, but {file} is "
                        f"{picture.shape[1]}×{picture.shape[0]} and {starts[0]} is not"
                    )
            return as_tensor(pictures)

        return from_files
    seeds = None
    if settings.seeds_from != "uniform":
        if model.folder is None:
            raise UserError(
                f"expected fitted seeds for seeds_from={settings.seeds_from!r}, but a wrapped network has none; "
                "use seeds_from='uniform', a folder of start images, or start=…"
            )
        seeds = ClassSeeds.load(
            model.folder, recorded=None if model.card is None else model.card.sha256.get(SEEDS_FILE)
        )
        if len(seeds.mean) != len(model.classes) or seeds.image_size != model.image_size:
            raise UserError(
                f"expected seeds of {len(model.classes)} classes for images of {model.image_size} pixels in "
                f"{model.folder}, got {len(seeds.mean)} classes and {seeds.image_size} pixels; they belong to "
                "another model"
            )
    if model.image_size is None:
        raise UserError(
            "expected a model with an image size to draw seeds for, got one without; "
            "give image_size to Classifier.wrap, or start=…"
        )
    shape = (model.channels, model.image_size, model.image_size)
    return lambda chosen, places, labels, generators: sample_seeds(
        seeds, settings.seeds_from, labels, generators, shape=shape, upsampling=settings.seed_upsampling
    )
