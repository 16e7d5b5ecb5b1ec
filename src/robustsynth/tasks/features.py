"""What the units of a classifier's representation respond to: pictures drawn from noise to raise each of them, and the
images of a data set that raise it most. It is how to choose units to paint with (Santurkar et al. 2019, Equation 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsynth import randomness
from robustsynth.constraints import ball
from robustsynth.errors import UserError
from robustsynth.images import to_uint8
from robustsynth.loop import NonFiniteError, Problem, Step
from robustsynth.models.classifier import Classifier
from robustsynth.models.representation import feature_network, last_linear
from robustsynth.objectives import Objective
from robustsynth.sheet import sheet
from robustsynth.tasks.batches import solve_in_batches
from robustsynth.tasks.feature_settings import FeatureSettings
from robustsynth.tasks.settings import resolve_settings
from robustsynth.tasks.units import TopImages, check_units, choose_units, feeds, representations
from robustsynth.tasks.views import Shifted

SIZED_FOR = 32
"""The images' side, in pixels, that the default radius and step are for."""

PIXELS_A_SHIFT = 64
"""Of the images' side for each pixel that what the network sees is moved by: small pictures show no grid."""

LINF_DEFAULTS = {"eps": 0.7, "step_size": 0.05, "smoothness": 1.0}
"""Defaults where the norm is ℓ∞, whatever the images' size: its steps move all pixels alike, even those that matter
next to nothing, which shows as grain where nothing smooths it."""


class FeatureActivation(Objective):
    """−R(x)_f, minus the activation of a unit f of the representation (Santurkar et al. 2019, Equation 5).

    Args:
        model: a `Classifier`, whose `feature_network` is used, or any function from images to features (N, D).
        units: f, one for all images, or (N,) integers, one an image.

    Raises:
        UserError: units that are not integers of 0 or more.

    Example:
        >>> flat = lambda x: x.flatten(1)
        >>> FeatureActivation(flat, [1, 0])(torch.tensor([[[[0.0, 0.5]]], [[[0.25, 0.0]]]])).tolist()
        [-0.5, -0.25]
    """

    def __init__(self, model: Classifier | Callable[[Tensor], Tensor], units: int | Tensor | Sequence[int]) -> None:
        units = torch.as_tensor(units)
        if units.ndim > 1 or units.is_floating_point() or units.dtype == torch.bool:
            raise UserError(f"expected one unit, or (N,) integers, got {units.dtype} {tuple(units.shape)}")
        if units.numel() and int(units.min()) < 0:
            raise UserError(f"expected units of 0 or more, got {int(units.min())}")
        self.network = feature_network(model) if isinstance(model, Classifier) else model
        self.units = units.long()
        self._highest = int(units.max()) if units.numel() else -1

    def __call__(self, images: Tensor) -> Tensor:
        features = self.network(images)
        if self.units.ndim and len(self.units) != len(images):
            raise UserError(f"expected one unit an image, got {len(self.units)} for {len(images)} images")
        if self._highest >= features.shape[1]:
            raise UserError(f"expected units from 0 to {features.shape[1] - 1}, got {self._highest}")
        chosen = self.units.to(images.device).expand(len(images))
        return -features.gather(1, chosen.unsqueeze(1)).squeeze(1)


class Roughness(Objective):
    """The mean absolute difference between neighbouring pixels, along rows and columns: anisotropic total variation
    (Mahendran and Vedaldi 2015, "Understanding deep image representations by inverting them").

    Example:
        >>> Roughness()(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])).tolist()
        [1.0]
    """

    def __call__(self, images: Tensor) -> Tensor:
        across, down = images.diff(dim=3).abs(), images.diff(dim=2).abs()
        return across.flatten(1).mean(1) + down.flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class UnitRow:
    """What one unit responds to.

    Attributes:
        unit: its position in the representation.
        feeds: the classes whose logits it raises most, with the weights, largest first.
        images: (K, C, H, W) in [0, 1], drawn from noise to raise it.
        activations: what it reached in each of them.
        top_indices: positions in the data of the images that raise it most, first the one that most does.
        top_activations: what it reaches in each of those.
        top_images: those, uint8 (T, H, W, C).
    """

    unit: int
    feeds: tuple[tuple[str, float], ...]
    images: Tensor
    activations: tuple[float, ...]
    top_indices: tuple[int, ...]
    top_activations: tuple[float, ...]
    top_images: np.ndarray

    def record(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        return {
            "unit": self.unit,
            "classes": [{"name": name, "weight": round(weight, 4)} for name, weight in self.feeds],
            "activation_reached": [round(value, 4) for value in self.activations],
            "top_images": [
                {"index": index, "activation": round(value, 4)}
                for index, value in zip(self.top_indices, self.top_activations, strict=True)
            ],
        }


@dataclass(frozen=True, eq=False)
class FeatureAtlas:
    """Rows for units, and the settings that they were drawn with."""

    rows: tuple[UnitRow, ...]
    settings: FeatureSettings


def feature_atlas(
    model: Classifier,
    units: Sequence[int] | None = None,
    *,
    data: np.ndarray | None = None,
    num: int = 12,
    seed: int = 0,
    precision: str | None = None,
    batch_size: int | None = None,
    on_step: Callable[[Sequence[int], Step], object] | None = None,
    on_images: Callable[[int], object] | None = None,
    **settings: Any,
) -> FeatureAtlas:
    """Pictures of what units of a classifier respond to; `draw_atlas` puts them on a sheet.

    Args:
        model: from `load_model` or `Classifier.wrap`, with an image size.
        units: positions in the representation; where None, `choose_units` takes `num`.
        data: uint8 (N, H, W, C) of the model's size, to find the images that raise each unit most; None for none.
        num: units to choose.
        seed: of the noise. A picture depends on it, on its unit, and on its number among that unit's, on nothing else.
        precision: ``float32`` or ``bfloat16``; measured once per model and machine where None.
        batch_size: images a batch; likewise.
        on_step: called with the positions of a batch's pictures (unit after unit) and each `Step` of it.
        on_images: called with the number of images of the data that have been looked at.
        **settings: fields of `FeatureSettings`, which override the model's own.

    Raises:
        UserError: units that the model lacks, data of another size, a model without image size.
        NonFiniteError: NaN or infinity in some pictures.

    Example:
        >>> from robustsynth.models.files import load_model
        >>> atlas = feature_atlas(load_model("mnist"), [3, 17], steps=2, drawn=1)
        >>> [row.unit for row in atlas.rows], atlas.rows[0].images.shape
        ([3, 17], torch.Size([1, 1, 28, 28]))
    """
    resolved = resolve_features(model, given=settings)
    rows = feature_rows(
        model,
        choose_units(model, num=num) if units is None else units,
        resolved,
        data=data,
        seed=seed,
        precision=precision,
        batch_size=batch_size,
        on_step=on_step,
        on_images=on_images,
    )
    return FeatureAtlas(tuple(rows), resolved)


def feature_rows(
    model: Classifier,
    units: Sequence[int],
    settings: FeatureSettings,
    *,
    data: np.ndarray | None = None,
    seed: int = 0,
    precision: str | None = None,
    batch_size: int | None = None,
    on_step: Callable[[Sequence[int], Step], object] | None = None,
    on_images: Callable[[int], object] | None = None,
) -> Iterator[UnitRow]:
    """As `feature_atlas`, but hands over each unit's row as it is done, so that stopping early keeps the others."""
    units = check_units(model, units)
    weights = last_linear(model).weight.detach().cpu()
    # What a unit counts for in logits: activations alone have no scale, a layer before could change it at will.
    logit_scale = float(weights.abs().amax(0).mean()) or 1.0
    network = feature_network(
        model, straight_through=settings.straight_through, precision=precision, batch_size=batch_size
    )
    top = TopImages.of(network, model, units, data, settings.top, on_images)
    wanted = [(unit, number) for unit in units for number in range(settings.drawn)]

    def state(chosen: Sequence[int]) -> Problem:
        generators = [randomness.generator(seed, *wanted[i]) for i in chosen]
        start = noise(model, generators, level=settings.level, contrast=settings.contrast)
        # Shifts begin anew with each batch.
        seen = Shifted(network, settings.shift, settings.mirror)
        objective: Objective = FeatureActivation(seen, [wanted[i][0] for i in chosen])
        if settings.smoothness:
            objective = objective + settings.smoothness / logit_scale * Roughness()
        return Problem(start.to(model.device), objective, ball(settings.norm, settings.eps))

    done: list[Tensor] = []
    reached: list[float] = []
    for batch in solve_in_batches(
        range(len(wanted)),
        state,
        batch_size=network.execution.batch_size,
        step_size=settings.step_length,
        steps=settings.steps,
        use_best=settings.use_best,
        on_step=on_step,
    ):
        if batch.failures:
            raise NonFiniteError(batch.images, {batch.indices.index(i): step for i, step in batch.failures.items()})
        done += batch.images
        values = representations(network, batch.images, model.device)
        reached += [float(row[wanted[i][0]]) for i, row in zip(batch.indices, values, strict=True)]
        while len(done) >= settings.drawn:
            unit = units.pop(0)
            images, activations = torch.stack(done[: settings.drawn]), tuple(reached[: settings.drawn])
            done, reached = done[settings.drawn :], reached[settings.drawn :]
            yield UnitRow(unit, feeds(model, weights, unit), images, activations, *top.of_unit(unit))


def resolve_features(model: Classifier, *, given: dict[str, Any] | None = None) -> FeatureSettings:
    """The settings for `model`: those given, else its card's tuned ones, else the defaults for its norm and size.

    The norm is that which the model withstands: an ℓ∞-robust classifier of digits sees little but single pixels where
    steps are ℓ2. ℓ2 sizes grow with the images' side, as the distance over equally changed pixels does. The noise is
    half as far from mid-grey as the colour that the model normalises by: below it, it sees no difference in digits on
    black.

    Example:
        >>> network = torch.nn.Linear(2, 2)
        >>> large = Classifier.wrap(network, classes=2, mean=[0.5], std=[0.5], image_size=128)
        >>> resolve_features(large).eps
        32.0
    """
    said = {name: value for name, value in (given or {}).items() if value is not None}
    tuned, own = ({}, {}) if model.card is None else (model.card.tasks.get("features", {}), model.card.threat_model)
    norm = said.get("norm", tuned.get("norm", own.get("norm", "l2")))
    scale = (model.image_size or SIZED_FOR) / SIZED_FOR
    sized = {"eps": FeatureSettings.eps * scale, "step_size": FeatureSettings.step_size * scale}
    sized = LINF_DEFAULTS if norm == "linf" else sized
    if norm == tuned.get("norm", norm):  # Tuned sizes say nothing of another norm.
        sized = {name: value for name, value in sized.items() if name not in tuned}
    if "shift" not in tuned:
        sized |= {"shift": (model.image_size or SIZED_FOR) // PIXELS_A_SHIFT}
    if "level" not in tuned and bool(model.mean.any()):  # All zeros means that the network normalises itself.
        sized |= {"level": round((0.5 + float(model.mean.mean())) / 2, 2)}
    return resolve_settings(FeatureSettings, "features", model, given={"norm": norm} | sized | said)


def noise(model: Classifier, generators: Sequence[torch.Generator], *, level: float, contrast: float) -> Tensor:
    """Noise around a grey of brightness `level`, (N, C, H, W) in [0, 1], of standard deviation `contrast`.

    Its amplitudes fall with frequency as those of photographs do (Field 1987, "Relations between the statistics of
    natural images and the response properties of cortical cells"), and it is grey: white noise of the same contrast
    shows as grain in what becomes of it, coloured noise as patches of wrong colours.

    Raises:
        UserError: the model has no image size.

    Example:
        >>> grey = Classifier.wrap(torch.nn.Linear(2, 2), classes=2, mean=[0.5], std=[0.5], image_size=8)
        >>> noise(grey, randomness.image_generators(0, range(4)), level=0.5, contrast=0.05).shape
        torch.Size([4, 1, 8, 8])
    """
    side = model.image_size
    if side is None:
        raise UserError(f"expected a model with an image size, got {model.name!r} without; give it to Classifier.wrap")
    rows, columns = torch.fft.fftfreq(side).unsqueeze(1), torch.fft.rfftfreq(side).unsqueeze(0)
    frequency = torch.sqrt(rows**2 + columns**2)
    frequency[0, 0] = float("inf")  # So that the mean is the level.
    spectrum = torch.fft.rfft2(randomness.normal(generators, (1, side, side))) / frequency
    drawn = torch.fft.irfft2(spectrum, s=(side, side))
    drawn = drawn / drawn.std(dim=(2, 3), correction=0, keepdim=True).clamp_min(1e-12)
    return (level + contrast * drawn).clamp(0, 1).repeat(1, model.channels, 1, 1)


def draw_atlas(
    rows: Sequence[UnitRow],
    *,
    title: str,
    drawn_as: str = "drawn from noise",
    data_name: str = "the data",
    classes: Sequence[str] = (),
) -> np.ndarray:
    """One uint8 image (H, W, 3): for each unit its number, its classes, what was drawn to raise it, its top images.

    Under each image stands the unit's activation in it.

    Args:
        rows: of a `FeatureAtlas`.
        title: above everything.
        drawn_as: above the drawn images.
        data_name: of the data that the top images are from.
        classes: the model's, written by number where no font has their letters.

    Raises:
        UserError: no rows.

    Example:
        >>> row = UnitRow(3, (("cat", 0.5),), torch.zeros(2, 3, 32, 32), (1.0, 2.0), (), (), np.zeros((0, 32, 32, 3)))
        >>> draw_atlas([row], title="two images").shape[0]
        224
    """
    drawn = max((len(row.images) for row in rows), default=0)
    top = max((len(row.top_images) for row in rows), default=0)
    images, values = [], []
    for row in rows:
        gaps = [None] * (drawn - len(row.images)), [None] * (top - len(row.top_images))
        images.append([*to_uint8(row.images), *gaps[0], *row.top_images, *gaps[1]])
        reached = (*row.activations, *gaps[0], *row.top_activations, *gaps[1])
        values.append(["" if value is None else f"{value:.1f}" for value in reached])
    return sheet(
        images,
        title=title,
        titles=[drawn_as] * drawn + [f"images of {data_name} that raise it most"] * top,
        labels=[(f"unit {row.unit}", *(f"{weight:+.2f} {name}" for name, weight in row.feeds)) for row in rows],
        captions=values,
        classes=classes,
        cell=128,
    )
