"""Generation: from a draw of a simple class distribution, descend the cross-entropy of the class
(Santurkar et al. 2019, Section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from robustsynth import randomness
from robustsynth.constraints import Constraint, ball
from robustsynth.errors import UserError
from robustsynth.loop import NonFiniteError, Problem, Step, check_images
from robustsynth.models.classifier import Classifier
from robustsynth.tasks.batches import Batch, solve_in_batches
from robustsynth.tasks.scales import CoarseToFine, check_scales
from robustsynth.tasks.settings import GenerateSettings, resolve_settings
from robustsynth.tasks.starts import has_seeds, start_source
from robustsynth.tasks.targets import check_targets, main_classes, objective_source


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
    ensemble: Sequence[Classifier] = (),
    **settings: Any,
) -> Tensor:
    """Draw images of classes with a robust classifier.

    Args:
        model: from `load_model` or `Classifier.wrap`.
        labels: (N,) class indices, one for each image; or mixes, (N, K) floats, the weight of each class for each
            image, each row summing to 1. A mix starts from a seed of the class that weighs most.
        seed: of the job; image i depends on `seed`, its label and i, not on the other images.
        start: (N, C, H, W) in [0, 1] to start from in place of drawn seeds.
        preset: ``paper``, ``mcgill2019``, ``duke2023``, ``hse2025`` or ``best``; the model's own tuned settings
            where None.
        precision: ``float32`` or ``bfloat16``; measured once per model and machine where None.
        batch_size: images a batch; likewise.
        indices: the images' numbers within the job, 0 … N − 1 where None, to draw a part of a larger job.
        on_step: called with the indices of a batch and each `Step` of it; returning False ends that batch.
        ensemble: further classifiers of the same classes, in any order: the mean of all their losses is minimised.
        **settings: fields of `GenerateSettings`, which override the preset.

    Returns:
        (N, C, H, W) float32 in [0, 1], on the CPU.

    Raises:
        UserError: labels, settings or seeds that do not fit the model.
        NonFiniteError: NaN or infinity in some images; the error carries all, the others complete.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> generate(load_model("mnist"), [3, 7], seed=0, steps=2).shape
        torch.Size([2, 1, 28, 28])

        Ones that are as much a 3 as an 8:

        >>> halves = torch.zeros(2, 10).index_fill(1, torch.tensor([3, 8]), 0.5)
        >>> generate(load_model("mnist"), halves, seed=0, steps=2).shape
        torch.Size([2, 1, 28, 28])
    """
    labels = check_targets(labels, model)
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
        ensemble=ensemble,
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
    ensemble: Sequence[Classifier] = (),
) -> Iterator[Batch]:
    """As `generate`, but hands over each batch as it is done, so that a job of any size needs little memory.

    Args:
        model: as for `generate`.
        labels: (N,) class indices of the images `indices`, or (N, K) weights.
        settings: resolved ones.
        seed: as for `generate`.
        start: as for `generate`.
        precision: as for `generate`.
        batch_size: as for `generate`.
        indices: the images' numbers within the job, one a label; 0 … N − 1 where None.
        wanted: those of `indices` to draw, all where None; a resumed job leaves out what is there.
        on_step: as for `generate`.
        ensemble: as for `generate`.
    """
    labels = check_targets(labels, model)
    if start is not None:
        check_images(start, "start")
        size = start.shape[2:] if model.image_size is None else (model.image_size, model.image_size)
        if start.shape != (expected := (len(labels), model.channels, *size)):
            raise UserError(f"expected start images {expected}, one a label, got {tuple(start.shape)}")
        start = start.float()
    side = model.image_size or (None if start is None else min(start.shape[2:]))
    if side is not None:
        check_scales(settings.scales, side)
    indices = range(len(labels)) if indices is None else indices
    position = {index: place for place, index in enumerate(indices)}
    draw = start_source(model, settings, start)
    frozen = model.frozen(precision=precision, batch_size=batch_size)
    objective = objective_source(frozen, ensemble, shift=settings.shift, mirror=settings.mirror)
    kinds = main_classes(labels)

    def state(chosen: Sequence[int]) -> Problem:
        places = torch.tensor([position[i] for i in chosen])
        seeds = draw(chosen, places, kinds[places], randomness.image_generators(seed, chosen))
        return Problem(
            start=seeds.to(model.device),
            objective=objective(labels[places].to(model.device)),
            constraint=_constraint(settings),
        )

    return solve_in_batches(
        list(indices if wanted is None else wanted),
        state,
        batch_size=frozen.execution.batch_size,
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


def _constraint(settings: GenerateSettings) -> Constraint:
    """The ball; from coarse to fine, one that counts its steps, so each batch needs its own."""
    plain = ball(settings.norm, settings.eps)
    return plain if settings.scales == 1 else CoarseToFine(plain, scales=settings.scales, steps=settings.steps)
